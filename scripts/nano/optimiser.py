"""Muon for the matrices of the layers, AdamW for embeddings, norms, gates and kernels."""
import torch

MOMENTUM = 0.95
SQUEEZE = (3.4445, -4.7750, 2.0315)  # quintic that drives singular values towards one
NARROW = 64  # matrices with a side below this (the gates' projections) are left to AdamW


def orthogonal(x):
    """Nearly orthogonal factor of each [rows <= columns] matrix in x [count, rows, columns]."""
    a, b, c = SQUEEZE
    x = x.bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        s = x @ x.mT
        x = a * x + (b * s + c * (s @ s)) @ x
    return x.float()


class Muon:
    """Momentum made orthogonal; matrices of one shape (or its transpose) go through one batched product.

    A step has root mean square 0.2 * rate, about what AdamW's has, so that both share one rate.
    """

    def __init__(self, matrices, decay):
        self.decay = decay
        self.stacks = {}
        for p in matrices:
            self.stacks.setdefault(tuple(sorted(p.shape)), []).append((p, torch.zeros_like(p)))

    @torch.no_grad()
    def step(self, rate):
        for (rows, columns), members in self.stacks.items():
            wide = []
            for p, momentum in members:
                momentum.lerp_(p.grad, 1 - MOMENTUM)
                update = p.grad.lerp(momentum, MOMENTUM)
                wide.append(update if p.shape[0] == rows else update.mT)
            scale = 0.2 * columns ** 0.5
            for (p, _), update in zip(members, orthogonal(torch.stack(wide))):
                p.mul_(1 - rate * self.decay)
                p.add_(update if p.shape[0] == rows else update.mT, alpha=-rate * scale)


class Optimiser:
    def __init__(self, module, decay):
        matrices, others = [], []
        for name, p in module.named_parameters():
            is_matrix = p.ndim == 2 and min(p.shape) >= NARROW and "embed" not in name
            (matrices if is_matrix else others).append(p)
        self.parameters = matrices + others
        self.muon = Muon(matrices, decay)
        self.adamw = torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0, fused=others[0].is_cuda)

    def step(self, rate):
        """Clip, step and clear the gradients."""
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.muon.step(rate)
        for group in self.adamw.param_groups:
            group["lr"] = rate
        self.adamw.step()
        for p in self.parameters:
            p.grad = None
