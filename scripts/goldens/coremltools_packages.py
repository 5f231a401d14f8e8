#!/usr/bin/env python3
"""Golden files for crates/mil-eval: small Core ML packages made by coremltools, with expected outputs.

    coremltools_packages.py OUT_DIR        (crates/mil-eval/tests/golden)

Every package comes with NAME.safetensors: `in.X` and `out.Y`, each with a first axis of calls; states last from call to
call. Expected outputs are those of the torch module in float32 (its weights rounded to what the package holds), or, for
programs built by hand, of numpy. The metadata names the function and coremltools' version. Inputs are from a fixed seed.

Needs: torch, coremltools, numpy, safetensors. Runs on Linux; nothing is executed by Core ML.
"""
import argparse
import logging
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import nn

logging.disable(logging.WARNING)
import coremltools as ct  # noqa: E402
import coremltools.optimize.coreml as cto  # noqa: E402
from coremltools.converters.mil import Builder as mb  # noqa: E402
from coremltools.converters.mil.mil import types  # noqa: E402

SINGLE = ct.precision.FLOAT32


class StatefulAttention(nn.Module):
    """A key/value cache in one state, written at a position, read by scaled dot product attention."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(32, 32, bias=bias) for bias in (True, False, False))
        self.register_buffer("cache", torch.zeros(2, 2, 8, 16, dtype=torch.float16))

    def forward(self, x, position, mask):
        heads = lambda y: y.reshape(1, 1, 2, 16).transpose(1, 2)  # noqa: E731
        at = position.to(torch.int32)
        self.cache[0:1, :, at : at + 1] = heads(self.k(x)).half()
        self.cache[1:2, :, at : at + 1] = heads(self.v(x)).half()
        keys, values = self.cache[0:1].float(), self.cache[1:2].float()
        out = nn.functional.scaled_dot_product_attention(heads(self.q(x)), keys, values, attn_mask=mask)
        return out.transpose(1, 2).reshape(1, 1, 32)


class GatedDeltaStep(nn.Module):
    """One step of a gated delta rule with its short convolution, states as inputs and outputs."""

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(24, 3 * 2 * 8, bias=False)
        self.gates = nn.Linear(24, 4)
        self.taps = nn.Parameter(torch.randn(48, 4) / 2)

    def forward(self, x, window, state):
        window = torch.cat([window, self.project(x).transpose(1, 2)], -1)
        mixed = nn.functional.silu((window * self.taps).sum(-1))
        q, k, v = (part.reshape(1, 2, 8) for part in mixed.chunk(3, -1))
        q, k = q * torch.rsqrt((q * q).sum(-1, keepdim=True) + 1e-6), k * torch.rsqrt((k * k).sum(-1, keepdim=True) + 1e-6)
        beta, rate = self.gates(x).reshape(1, 2, 2).unbind(-1)
        decay = torch.exp(-nn.functional.softplus(rate))[..., None, None]
        state = state * decay
        news = (v - (state * k[..., None]).sum(-2)) * torch.sigmoid(beta)[..., None]
        state = state + k[..., None] * news[..., None, :]
        return (state * q[..., None]).sum(-2), window[..., 1:], state


class Mixture(nn.Module):
    """Operators that other people's models use: convolutions, norms, pooling of axes, gathers, splits, activations."""

    def __init__(self):
        super().__init__()
        self.depthwise = nn.Conv1d(12, 12, 3, groups=12, padding=1)
        self.strided = nn.Conv1d(12, 6, 4, stride=2, dilation=2)
        self.norm = nn.LayerNorm(18)
        self.table = nn.Embedding(10, 12)

    def forward(self, ids, x):
        y = self.table(ids).transpose(1, 2) + x
        y = nn.functional.gelu(self.depthwise(y))
        y = self.norm(nn.functional.pad(self.strided(y), (1, 0)))
        a, b = torch.split(y, [7, 11], -1)
        a = torch.cumsum(torch.softmax(a, -1), -1)
        b = torch.tanh(b.abs().sqrt()).clamp(0.1, 0.8) ** 2
        y = torch.cat([a, b], -1)
        y = torch.where(y > y.mean(-1, keepdim=True), y, torch.exp(-y)) + torch.tril(torch.ones(6, 18))
        best = torch.topk(y, 3, dim=-1)[0]
        return y, best, y.argmax(-1).to(torch.int32), torch.einsum("bik,bjk->bij", y, y)


class Head(nn.Module):
    """Two layers, to be quantized."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(64, 64, bias=False), nn.Linear(64, 64)

    def forward(self, x):
        return self.down(nn.functional.silu(self.up(x)))


def rounded(module):
    """The module with weights that fp16 holds exactly, so that precision of storage is no question."""
    for tensor in [*module.parameters(), *module.buffers()]:
        tensor.data = tensor.data.half().to(tensor.dtype)
    return module.eval()


def convert(module, inputs, outputs, **more):
    traced = torch.jit.trace(module, tuple(torch.zeros(shape, dtype=torch.int32 if kind is np.int32 else torch.float32)
                                           for shape, kind in inputs.values()), check_trace=False)
    tensors = [ct.TensorType(name=name, shape=shape, dtype=kind) for name, (shape, kind) in inputs.items()]
    more = {"compute_precision": SINGLE, "minimum_deployment_target": ct.target.iOS18, "skip_model_load": True, **more}
    return ct.convert(traced, inputs=tensors, outputs=[ct.TensorType(name=name) for name in outputs], **more)


class Goldens:
    def __init__(self, out):
        self.out, self.random = out, np.random.default_rng(35)

    def draw(self, inputs, calls):
        numbers = lambda shape, kind: (self.random.integers(0, 8, shape) if kind is np.int32  # noqa: E731
                                       else self.random.normal(size=shape)).astype(kind)
        return [{name: numbers(shape, kind) for name, (shape, kind) in inputs.items()} for _ in range(calls)]

    def write(self, name, model, calls, results, function="main"):
        path = self.out / f"{name}.mlpackage"
        shutil.rmtree(path, ignore_errors=True)
        if isinstance(model, Path):
            shutil.copytree(model, path)
        else:
            model.save(str(path))
        self.expect(name, calls, results, function)

    def expect(self, name, calls, results, function):
        stack = lambda prefix, rows: {f"{prefix}.{key}": np.ascontiguousarray(np.stack([row[key] for row in rows]))  # noqa: E731
                                      for key in rows[0]}
        metadata = {"function": function, "coremltools": ct.__version__}
        save_file({**stack("in", calls), **stack("out", results)}, str(self.out / f"{name}.safetensors"), metadata)

    def module(self, name, module, inputs, outputs, calls=3, **more):
        module = rounded(module)
        drawn = self.draw(inputs, calls)
        model = convert(module, inputs, outputs, **more)
        self.write(name, model, drawn, [self.run(module, call, outputs) for call in drawn])
        return model, module, drawn

    @staticmethod
    def run(module, call, outputs):
        with torch.no_grad():
            results = module(*(torch.from_numpy(value) for value in call.values()))
        results = results if isinstance(results, tuple) else (results,)
        return {name: value.detach().clone().numpy() for name, value in zip(outputs, results)}


def stateful(goldens):
    inputs = {"x": ((1, 1, 32), np.float32), "position": ((1,), np.int32), "mask": ((1, 1, 1, 8), np.float32)}
    module = rounded(StatefulAttention())
    state = ct.StateType(wrapped_type=ct.TensorType(shape=(2, 2, 8, 16), dtype=np.float16), name="cache")
    model = convert(module, inputs, ["y"], states=[state])
    module.cache.zero_()
    calls = goldens.draw(inputs, 5)
    for step, call in enumerate(calls):
        call["position"] = np.array([step], np.int32)
        call["mask"] = np.where(np.arange(8) <= step, 0, -1e4).astype(np.float32).reshape(1, 1, 1, 8)
    goldens.write("stateful_attention", model, calls, [goldens.run(module, call, ["y"]) for call in calls])


def functions(goldens):
    """Two functions over one weight file."""
    module = rounded(Head())
    with tempfile.TemporaryDirectory() as work:
        description = ct.utils.MultiFunctionDescriptor()
        for name, rows in (("wide", 5), ("narrow", 1)):
            inputs = {"x": ((rows, 64), np.float32)}
            convert(module, inputs, ["y"]).save(f"{work}/{name}.mlpackage")
            description.add_function(f"{work}/{name}.mlpackage", src_function_name="main", target_function_name=name)
        description.default_function_name = "narrow"
        both = Path(work) / "both.mlpackage"
        ct.utils.save_multifunction(description, str(both))
        calls = goldens.draw({"x": ((5, 64), np.float32)}, 2)
        goldens.write("two_functions", both, calls, [goldens.run(module, call, ["y"]) for call in calls], "wide")


def quantized(goldens):
    """What coremltools' own compression writes; expected are the numbers it stands for, computed in numpy."""
    inputs = {"x": ((2, 64), np.float32)}
    module = rounded(Head())
    up, down = module.up.weight.detach().numpy(), module.down.weight.detach().numpy()

    def expected(call, change):
        y = call["x"] @ change(up).T
        y = y / (1 + np.exp(-y))
        return {"y": (y @ change(down).T + module.down.bias.detach().numpy()).astype(np.float32)}

    def of_constants(model):
        """The weights as coremltools itself decompresses them."""
        plain = ct.optimize.coreml.decompress_weights(model)
        found = ct.optimize.coreml.get_weights_metadata(plain, weight_threshold=1024)
        by_shape = [np.asarray(meta.val, np.float32) for meta in found.values() if np.ndim(meta.val) == 2]
        return lambda weight: min(by_shape, key=lambda other: np.abs(other - weight).max())

    symmetric = cto.OptimizationConfig(cto.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=0))
    blocks = cto.OptimizationConfig(cto.OpLinearQuantizerConfig(
        mode="linear", dtype="int4", granularity="per_block", block_size=32, weight_threshold=0))
    palette = cto.OptimizationConfig(cto.OpPalettizerConfig(mode="uniform", nbits=4, weight_threshold=0))
    grouped = cto.OptimizationConfig(cto.OpPalettizerConfig(
        mode="uniform", nbits=6, granularity="per_grouped_channel", group_size=16, weight_threshold=0))
    cases = [("int8_channels", ct.target.iOS18, cto.linear_quantize_weights, symmetric),
             ("int8_affine_ios16", ct.target.iOS16, cto.linear_quantize_weights, symmetric),
             ("int4_blocks", ct.target.iOS18, cto.linear_quantize_weights, blocks),
             ("palette4", ct.target.iOS18, cto.palettize_weights, palette),
             ("palette4_ios16", ct.target.iOS16, cto.palettize_weights, palette),
             ("palette6_groups", ct.target.iOS18, cto.palettize_weights, grouped)]
    for name, target, compress, config in cases:
        model = convert(module, inputs, ["y"], minimum_deployment_target=target)
        model = compress(model, config)
        calls = goldens.draw(inputs, 2)
        change = of_constants(model)
        goldens.write(name, model, calls, [expected(call, change) for call in calls])


def loop(goldens):
    """Control flow: x is doubled until its sum exceeds a limit; then a branch by a comparison."""

    @mb.program(input_specs=[mb.TensorSpec((4,)), mb.TensorSpec((1,))], opset_version=ct.target.iOS18)
    def prog(x, limit):
        def go_on(x, n):
            return mb.squeeze(x=mb.less(x=mb.reduce_sum(x=x, axes=[0], keep_dims=True), y=limit))

        def body(x, n):
            return mb.mul(x=x, y=2.0), mb.add(x=n, y=1)

        grown, rounds = mb.while_loop(_cond=go_on, _body=body, loop_vars=(x, np.int32(0)))
        odd = mb.equal(x=mb.floor_div(x=rounds, y=2), y=mb.floor_div(x=mb.add(x=rounds, y=1), y=2))
        chosen = mb.cond(pred=odd, _true_fn=lambda: mb.identity(x=grown), _false_fn=lambda: mb.mul(x=grown, y=-1.0))
        return mb.identity(x=chosen, name="y"), mb.identity(x=rounds, name="rounds")

    model = ct.convert(prog, compute_precision=SINGLE, minimum_deployment_target=ct.target.iOS18, skip_model_load=True)
    calls, results = [], []
    for limit in (1.0, 9.0, 100.0):
        x, rounds = np.array([0.1, 0.2, 0.5, 0.4], np.float32), 0
        calls.append({"x": x, "limit": np.array([limit], np.float32)})
        while x.sum() < limit:
            x, rounds = x * 2, rounds + 1
        results.append({"y": x if rounds % 2 == 0 else -x, "rounds": np.int32(rounds)})
    goldens.write("loop", model, calls, results)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(35)
    goldens = Goldens(out)
    stateful(goldens)
    goldens.module("delta_step", GatedDeltaStep(), {
        "x": ((1, 1, 24), np.float32), "window": ((1, 48, 3), np.float32), "memory": ((1, 2, 8, 8), np.float32),
    }, ["y", "window_out", "memory_out"])
    goldens.module("mixture", Mixture(), {"ids": ((1, 40), np.int32), "x": ((1, 12, 40), np.float32)},
                   ["y", "best", "places", "products"])
    functions(goldens)
    quantized(goldens)
    loop(goldens)
    for package in sorted(out.glob("*.mlpackage")):
        print(package.name, sum(file.stat().st_size for file in package.rglob("*") if file.is_file()), "bytes")


if __name__ == "__main__":
    main()
