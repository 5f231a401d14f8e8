"""Training twin of the `qwen3_5` text model in plain torch, without a cache.

Parameter names equal the checkpoint's below `model.language_model.` (trunk) and `mtp.` (head), so that
state dicts are saved without renaming; `evaluate.py` compares the logits with transformers'.

Letters in shapes: B rows, T tokens (a multiple of CHUNK), H heads, D head width, N chunks, C = CHUNK.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

from shape import (CONV, EPS, HEAD_DIM, HEADS, HIDDEN, INTERMEDIATE, KV_HEADS, LAYERS, LINEAR_DIM, LINEAR_HEADS,
                   ROPE_THETA, ROTARY, VOCAB, is_full)

CHUNK = 64
BASE = 16  # width of the diagonal blocks that `inverse_of_unit_lower` starts from


# ---- the gated delta rule, a chunk at a time --------------------------------
def inverse_of_unit_lower(strict):
    """(I - strict)^-1 for strictly lower triangular [.., C, C], as matrix products only.

    The diagonal blocks of width BASE are nilpotent, so four squarings give their inverse; neighbouring blocks
    are then merged pairwise. One big Neumann series would need large powers and lose precision.
    """
    size, lead = strict.shape[-1], strict.shape[:-2]
    count = size // BASE
    blocks = strict.reshape(*lead, count, BASE, count, BASE)
    power = torch.stack([blocks[..., i, :, i, :] for i in range(count)], dim=-3)
    inverse = torch.eye(BASE, device=strict.device, dtype=strict.dtype) + power
    for _ in range(3):
        power = power @ power
        inverse = inverse + inverse @ power
    while count > 1:
        width = size // count
        blocks = strict.reshape(*lead, count, width, count, width)
        corner = torch.stack([blocks[..., i + 1, :, i, :] for i in range(0, count, 2)], dim=-3)
        upper, lower = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        top = torch.cat([upper, torch.zeros_like(upper)], dim=-1)
        inverse = torch.cat([top, torch.cat([lower @ corner @ upper, lower], dim=-1)], dim=-2)
        count //= 2
    return inverse.squeeze(-3)


@torch.library.custom_op("q35_nano::scan", mutates_args=())
def scan(step: torch.Tensor, add: torch.Tensor) -> torch.Tensor:
    """State before each chunk, [B*H, N, D, D]: state[0] = 0, state[i + 1] = step[i] @ state[i] + add[i].

    An operator of its own, so that the compiler does not unroll the only sequential loop of the model.
    """
    state = torch.zeros_like(add)
    for i in range(add.shape[1] - 1):
        state[:, i + 1] = torch.baddbmm(add[:, i], step[:, i], state[:, i])
    return state


@scan.register_fake
def _(step, add):
    return torch.empty_like(add)


@torch.library.custom_op("q35_nano::scan_backward", mutates_args=())
def scan_backward(step: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """Gradient of `add`: what every chunk's addition does to all later states, [B*H, N, D, D]."""
    out = torch.zeros_like(grad)
    for i in range(grad.shape[1] - 2, -1, -1):
        out[:, i] = torch.baddbmm(grad[:, i + 1], step[:, i + 1].transpose(1, 2), out[:, i + 1])
    return out


@scan_backward.register_fake
def _(step, grad):
    return torch.empty_like(grad)


def _scan_setup(ctx, inputs, output):
    ctx.save_for_backward(inputs[0], output)


def _scan_grad(ctx, grad):
    step, state = ctx.saved_tensors
    add = torch.ops.q35_nano.scan_backward(step, grad.contiguous())
    return add @ state.transpose(-1, -2), add


scan.register_autograd(_scan_grad, setup_context=_scan_setup)


def gated_delta(q, k, v, log_decay, beta):
    """q, k, v [B, H, T, D] and log_decay, beta [B, H, T], all float32; returns [B, H, T, D]."""
    batch, heads, length, dim = q.shape
    n = length // CHUNK
    q = q * torch.rsqrt((q * q).sum(-1, keepdim=True) + EPS) * dim ** -0.5
    k = k * torch.rsqrt((k * k).sum(-1, keepdim=True) + EPS)
    q, k, v = (x.reshape(batch * heads, n, CHUNK, dim) for x in (q, k, v))
    beta = beta.reshape(batch * heads, n, CHUNK, 1)
    total = log_decay.reshape(batch * heads, n, CHUNK).cumsum(-1)
    past = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=q.device).tril()
    decay = (total.unsqueeze(-1) - total.unsqueeze(-2)).masked_fill(~past, float("-inf")).exp()
    kb = k * beta
    inverse = inverse_of_unit_lower(-(kb @ k.transpose(-1, -2) * decay).tril(-1))
    since_start = total.exp().unsqueeze(-1)
    written = inverse @ (v * beta)
    erased = inverse @ (kb * since_start)
    to_end = (k * (total[..., -1:] - total).exp().unsqueeze(-1)).transpose(-1, -2)
    end = total[..., -1].exp()[..., None, None]
    eye = torch.eye(dim, device=q.device, dtype=q.dtype)
    state = torch.ops.q35_nano.scan(end * eye - to_end @ erased, to_end @ written)
    inner = q @ k.transpose(-1, -2) * decay
    out = (q * since_start) @ state + inner @ (written - erased @ state)
    return out.reshape(batch, heads, length, dim)


# ---- layers -----------------------------------------------------------------
def unit_rms(x):
    x = x.float()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS)


class Norm(nn.Module):
    """RMSNorm whose stored weight is centred on zero, as Qwen3.5 stores it."""

    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        return (unit_rms(x) * (1.0 + self.weight.float())).type_as(x)


class GatedNorm(nn.Module):
    """RMSNorm of the delta rule's output times silu(gate); its weight is stored plainly."""

    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x, gate):
        return (self.weight * unit_rms(x) * F.silu(gate.float())).type_as(gate)


class Conv(nn.Module):
    """Causal depthwise convolution [B, T, channels], as CONV shifted products."""

    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, CONV).uniform_(-0.5, 0.5))

    def forward(self, x):
        taps = self.weight.squeeze(1).to(x.dtype)
        padded = F.pad(x, (0, 0, CONV - 1, 0))
        return sum(padded[:, i:i + x.shape[1]] * taps[:, i] for i in range(CONV))


class DeltaNet(nn.Module):
    def __init__(self):
        super().__init__()
        width = LINEAR_HEADS * LINEAR_DIM
        self.in_proj_qkv = nn.Linear(HIDDEN, 3 * width, bias=False)
        self.in_proj_z = nn.Linear(HIDDEN, width, bias=False)
        self.in_proj_b = nn.Linear(HIDDEN, LINEAR_HEADS, bias=False)
        self.in_proj_a = nn.Linear(HIDDEN, LINEAR_HEADS, bias=False)
        self.conv1d = Conv(3 * width)
        step = torch.exp(torch.empty(LINEAR_HEADS).uniform_(-6.9, -2.3))  # 0.001 to 0.1
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))
        self.A_log = nn.Parameter(torch.empty(LINEAR_HEADS).uniform_(1, 16).log())
        self.norm = GatedNorm(LINEAR_DIM)
        self.out_proj = nn.Linear(width, HIDDEN, bias=False)

    def forward(self, x):
        batch, length, _ = x.shape
        mixed = F.silu(self.conv1d(self.in_proj_qkv(x)))
        q, k, v = (t.reshape(batch, length, LINEAR_HEADS, LINEAR_DIM).transpose(1, 2).float()
                   for t in mixed.chunk(3, dim=-1))
        # [B, H, T] at once: with nn.Linear and a transpose after it, compiled backward passes fail on strides
        columns = x.transpose(1, 2)
        beta = (self.in_proj_b.weight @ columns).float().sigmoid()
        step = F.softplus((self.in_proj_a.weight @ columns).float() + self.dt_bias[:, None])
        log_decay = -self.A_log.exp()[:, None] * step
        with torch.autocast(x.device.type, enabled=False):
            mixed = gated_delta(q, k, v, log_decay, beta)
        z = self.in_proj_z(x).reshape(batch, length, LINEAR_HEADS, LINEAR_DIM)
        return self.out_proj(self.norm(mixed.transpose(1, 2), z).reshape(batch, length, -1))


def rope_tables(length, device):
    """cos and sin, [length, ROTARY]; the halves repeat because rotation pairs i with i + ROTARY / 2."""
    rates = 1.0 / ROPE_THETA ** (torch.arange(0, ROTARY, 2, device=device).float() / ROTARY)
    angles = torch.arange(length, device=device).float()[:, None] * rates
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x, tables):
    cos, sin = (t.to(x.dtype) for t in tables)
    turn, keep = x[..., :ROTARY], x[..., ROTARY:]
    half = torch.cat([-turn[..., ROTARY // 2:], turn[..., :ROTARY // 2]], dim=-1)
    return torch.cat([turn * cos + half * sin, keep], dim=-1)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(HIDDEN, HEADS * HEAD_DIM * 2, bias=False)  # query and gate of each head
        self.k_proj = nn.Linear(HIDDEN, KV_HEADS * HEAD_DIM, bias=False)
        self.v_proj = nn.Linear(HIDDEN, KV_HEADS * HEAD_DIM, bias=False)
        self.o_proj = nn.Linear(HEADS * HEAD_DIM, HIDDEN, bias=False)
        self.q_norm, self.k_norm = Norm(HEAD_DIM), Norm(HEAD_DIM)

    def forward(self, x, tables):
        batch, length, _ = x.shape
        q, gate = self.q_proj(x).view(batch, length, HEADS, 2 * HEAD_DIM).chunk(2, dim=-1)
        k = self.k_proj(x).view(batch, length, KV_HEADS, HEAD_DIM)
        v = self.v_proj(x).view(batch, length, KV_HEADS, HEAD_DIM).transpose(1, 2)
        q = rotate(self.q_norm(q).transpose(1, 2), tables)
        k = rotate(self.k_norm(k).transpose(1, 2), tables)
        group = HEADS // KV_HEADS
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed = mixed.transpose(1, 2).reshape(batch, length, -1)
        return self.o_proj(mixed * gate.reshape(batch, length, -1).sigmoid())


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_proj = nn.Linear(HIDDEN, INTERMEDIATE, bias=False)
        self.up_proj = nn.Linear(HIDDEN, INTERMEDIATE, bias=False)
        self.down_proj = nn.Linear(INTERMEDIATE, HIDDEN, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, full):
        super().__init__()
        self.full = full
        if full:
            self.self_attn = Attention()
        else:
            self.linear_attn = DeltaNet()
        self.mlp = Mlp()
        self.input_layernorm, self.post_attention_layernorm = Norm(HIDDEN), Norm(HIDDEN)

    def forward(self, x, tables):
        y = self.input_layernorm(x)
        x = x + (self.self_attn(y, tables) if self.full else self.linear_attn(y))
        return x + self.mlp(self.post_attention_layernorm(x))


def start_matrices(module):
    """Normal with variance 1 / inputs; matrices that write into the residual stream start smaller."""
    for name, p in module.named_parameters():
        if p.ndim == 2:
            scale = 0.02 if "embed" in name else p.shape[1] ** -0.5
            if name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight")):
                scale *= (2 * LAYERS) ** -0.5
            nn.init.normal_(p, std=scale)


class Trunk(nn.Module):
    """Tokens [B, T] to normed states [B, T, HIDDEN]; logits are states @ embed_tokens.weight^T."""

    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCAB, HIDDEN)
        self.layers = nn.ModuleList(Layer(is_full(i)) for i in range(LAYERS))
        self.norm = Norm(HIDDEN)
        start_matrices(self)

    def forward(self, tokens):
        tables = rope_tables(tokens.shape[1], tokens.device)
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, tables)
        return self.norm(x)


class Mtp(nn.Module):
    """Predicts token t+2 from the trunk's normed state at t and the embedding of token t+1."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2 * HIDDEN, HIDDEN, bias=False)
        self.layers = nn.ModuleList([Layer(True)])
        self.norm = Norm(HIDDEN)
        self.pre_fc_norm_embedding, self.pre_fc_norm_hidden = Norm(HIDDEN), Norm(HIDDEN)
        start_matrices(self)

    def forward(self, state, next_embedding):
        x = torch.cat([self.pre_fc_norm_embedding(next_embedding), self.pre_fc_norm_hidden(state)], dim=-1)
        return self.norm(self.layers[0](self.fc(x), rope_tables(x.shape[1], x.device)))
