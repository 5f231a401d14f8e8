#!/usr/bin/env python3
"""Gain of calibrated scales and error feedback for symmetric INT8 (Core ML): KL to the float model for each method.

    scripts/bench/int8_scales.py CHECKPOINT CALIBRATION_TEXT HELD_OUT_TEXT [--tokens 12000]

Needs torch and transformers. Matrices are quantized per row or in blocks of 32 columns:
- nearest: scale = largest / 127, as `q35-convert coreml` writes it;
- weight error, output error: the best of 41 scales between 0.6 and 1 of that, by the squared error of the weights, or
  of the outputs (the error's norm under the second moments of the matrix's inputs);
- feedback: nearest scales, each column's error fed into later columns under those moments (GPTQ).
"""

import argparse

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

WINDOW = 512


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("calibration")
    parser.add_argument("held_out")
    parser.add_argument("--tokens", type=int, default=12000)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.checkpoint)
    model = AutoModelForCausalLM.from_pretrained(options.checkpoint, dtype=torch.float32).eval()

    def windows(path):
        ids = tokenizer(open(path).read(), add_special_tokens=False)["input_ids"][: options.tokens]
        return torch.tensor(ids[: len(ids) // WINDOW * WINDOW]).view(-1, WINDOW)

    moments, hooks = {}, []
    matrices = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    for name, matrix in matrices.items():
        def add(_, inputs, name=name):
            x = inputs[0].reshape(-1, inputs[0].shape[-1]).double()
            moments[name] = moments.get(name, 0) + x.T @ x
        hooks.append(matrix.register_forward_pre_hook(add))
    run(model, windows(options.calibration))
    for hook in hooks:
        hook.remove()

    text = windows(options.held_out)
    expected = run(model, text)
    floats = {name: matrix.weight.detach().clone() for name, matrix in matrices.items()}
    print(f"{text.numel()} tokens\n{'':>28} {'mean KL':>10} {'top-1':>7}")
    for block in (None, 32):
        for way in ("nearest", "weight error", "output error", "feedback"):
            for name, matrix in matrices.items():
                moment = moments[name] / moments[name].diagonal().mean()
                matrix.weight.data = quantized(floats[name].double(), moment, block, way).float()
            found = run(model, text)
            kl = sum((e.exp() * (e - f)).sum(-1).double().sum() for e, f in zip(expected, found)) / text.numel()
            same = sum((e.argmax(-1) == f.argmax(-1)).sum() for e, f in zip(expected, found)) / text.numel()
            form = "per row" if block is None else "blocks of 32"
            print(f"{form + ', ' + way:>28} {kl:10.3e} {same:7.2%}", flush=True)


def run(model, windows):
    with torch.no_grad():
        return [model(window[None]).logits[0].log_softmax(-1) for window in windows]


def quantized(w, moment, block, way):
    rows, columns = w.shape
    width = block or columns
    largest = w.view(rows, -1, width).abs().amax(-1, keepdim=True) / 127
    largest[largest == 0] = 1
    if way == "feedback":
        return feedback(w, moment, largest.expand(-1, -1, width).reshape(rows, columns))
    if way == "nearest":
        return (torch.round(w.view(rows, -1, width) / largest).clamp(-127, 127) * largest).view(rows, columns)
    best, chosen = None, None
    for factor in torch.linspace(0.6, 1, 41).tolist():
        scale = largest * factor
        tried = torch.round(w.view(rows, -1, width) / scale).clamp(-127, 127) * scale
        error = tried - w.view(rows, -1, width)
        if way == "weight error":
            loss = error.square().sum(-1, keepdim=True)
        else:
            parts = moment.view(columns // width, width, columns // width, width)
            parts = parts.diagonal(dim1=0, dim2=2)
            loss = torch.einsum("rbi,ijb,rbj->rb", error, parts, error)[..., None]
        better = loss < best if best is not None else torch.ones_like(loss, dtype=torch.bool)
        best = torch.where(better, loss, best) if best is not None else loss
        chosen = torch.where(better, tried, chosen) if chosen is not None else tried
    return chosen.view(rows, columns)


def feedback(w, moment, scale):
    columns = w.shape[1]
    damped = moment + 0.01 * moment.diagonal().mean() * torch.eye(columns, dtype=moment.dtype)
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    left, out = w.clone(), torch.empty_like(w)
    for column in range(columns):
        s = scale[:, column]
        out[:, column] = torch.round(left[:, column] / s).clamp(-127, 127) * s
        error = (left[:, column] - out[:, column]) / inverse[column, column]
        left[:, column:] -= error[:, None] * inverse[column, column:]
    return out


main()
