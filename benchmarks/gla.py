"""Gated linear attention on a GPU: checks, then times, then prints a table.

    python benchmarks/gla.py [--check [float32 bfloat16 float16]] [--tokens 32768] [--kernels] [--peer | --peer-untuned]

Peers, when installed: flash-linear-attention (chunk_gla) and PyTorch's softmax attention. Times are medians of CUDA events in ms: forward,
forward + backward as called from Python, and forward + backward replayed from a CUDA graph, which leaves out the processor that launches.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import statistics
from collections.abc import Callable
from datetime import date

import torch
import triton
from triton.runtime.autotuner import Autotuner
from triton.testing import do_bench

from nullius.kernels.gated import gated_linear_attention

TYPES = ["float32", "bfloat16", "float16"]
HEADS = {"4 x 256 x 512": (4, 256, 512), "4 x 128 x 256": (4, 128, 256)}


def inputs(batch: int, length: int, heads: int, key: int, value: int, dtype: torch.dtype, normaliser: float = 16.0) -> list[torch.Tensor]:
    """q, k, v, log decay (as the layer of the paper makes it: logsigmoid / 16) and an upstream gradient."""
    shapes = [(batch, length, heads, width) for width in (key, key, value, key, value)]
    q, k, v, gate, upstream = (torch.randn(shape, device="cuda", dtype=torch.float32) for shape in shapes)
    gate = torch.nn.functional.logsigmoid(gate) / normaliser
    return [x.to(dtype) for x in (q, k, v, gate, upstream)]


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative error in the Frobenius norm; where the truth nearly vanishes (the gate of a single token), against at least 0.01."""
    return float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-2))


def gradients(function, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Output and gradients of q, k, v and the gate."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors[:4]]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, tensors[4].to(out.dtype))]


def check(peer: Callable[..., torch.Tensor] | None, types: list[str]) -> None:
    """Compare with plain PyTorch in float64 (itself tested against the recurrence) over types, gate strengths, odd lengths; print errors."""
    print("relative errors against float64: o, dq, dk, dv, dgate; in 16 bits dgate also with the gate in fp32, as the peer has it")
    for dtype in (getattr(torch, name) for name in types):
        for batch, length, heads, key, value, normaliser in (
            (2, 200, 2, 64, 64, 16.0), (1, 333, 2, 128, 256, 1.0), (1, 130, 1, 256, 512, 16.0), (1, 2000, 2, 64, 128, 16.0),
            (1, 100, 2, 48, 80, 0.1), (1, 100, 2, 64, 64, 0.02), (1, 1, 2, 64, 64, 1.0), (1, 200, 1, 512, 512, 16.0), (1, 1500, 1, 40, 24, 4.0),
        ):  # fmt: skip
            x = inputs(batch, length, heads, key, value, dtype, normaliser)
            exact = gradients(lambda *t: gated_linear_attention(*t, backend="chunks"), [t.double() for t in x])
            ours = gradients(lambda *t: gated_linear_attention(*t, backend="triton"), x)
            line = " ".join(f"{error(a, b):.1e}" for a, b in zip(ours, exact, strict=True))
            wide = [t.float() if i == 3 else t for i, t in enumerate(x)]
            if dtype != torch.float32:
                line += f" / {error(gradients(lambda *t: gated_linear_attention(*t, backend='triton'), wide)[4], exact[4]):.1e}"
            if peer and dtype != torch.float32:
                line += "   fla " + " ".join(f"{error(a, b):.1e}" for a, b in zip(gradients(peer, wide), exact, strict=True))
            print(f"{str(dtype)[6:]:8} T={length:5} K={key:3} V={value:3} gate/{normaliser:<5} ours {line}", flush=True)
        forms(dtype)
        packed(dtype)


def forms(dtype: torch.dtype) -> None:
    """The other forms of the gate, which is in fp32 as layers make it: o, dq, dk, dv, and the gradient of the gate where there is one."""
    for batch, length, heads, key, value in ((32, 512, 4, 64, 128), (2, 333, 1, 128, 256)):
        *x, _, upstream = inputs(batch, length, heads, key, value, dtype)
        scalar = torch.nn.functional.logsigmoid(torch.randn(batch, length, heads, device="cuda")) / 16
        fixed = torch.log1p(-(2.0 ** (-5.0 - torch.arange(heads, device="cuda"))))
        for name, gate in (("of token and head", [scalar]), ("of head", [fixed]), ("none", [])):
            found = []
            for backend, kind in (("triton", None), ("chunks", torch.float64)):
                leaves = [t.detach().to(kind or t.dtype).requires_grad_() for t in (*x, *gate)]
                o = gated_linear_attention(*leaves[:3], *leaves[3:] or [None], backend=backend)
                found.append([o.detach(), *torch.autograd.grad(o, leaves, upstream.to(o.dtype))])
            line = " ".join(f"{error(a, b):.1e}" for a, b in zip(*found, strict=True))
            print(f"{str(dtype)[6:]:8} {batch} x T={length:5} H={heads} K={key:3} V={value:3} gate {name:17} ours {line}", flush=True)


def packed(dtype: torch.dtype) -> None:
    """The same for sequences of different lengths in one row, with an initial state each; also the last states and the gradient of the first."""
    x = inputs(1, 3000, 2, 64, 96, dtype, 4.0)
    offsets, first = torch.tensor([0, 1, 70, 1500, 3000], device="cuda"), torch.randn(4, 2, 64, 96, device="cuda")
    found = []
    for backend, kind in (("triton", None), ("chunks", torch.float64)):
        leaves = [t.detach().to(kind or t.dtype).requires_grad_() for t in (*x[:4], first)]
        o, end = gated_linear_attention(*leaves[:4], initial_state=leaves[4], return_state=True, cu_seqlens=offsets, backend=backend)
        grads = torch.autograd.grad([o, end], leaves, [x[4].to(o.dtype), torch.ones_like(end)])
        found.append([o.detach(), *grads[:4], end.detach(), grads[4]])
    line = " ".join(f"{error(a, b):.1e}" for a, b in zip(*found, strict=True))
    print(f"{str(dtype)[6:]:8} four sequences packed, K= 64 V= 96 gate/4.0   ours {line} (last: states, d first state)", flush=True)


def find_peer(tuned: bool) -> Callable[..., torch.Tensor] | None:
    """fla's operator, if installed. Untuned, each of its kernels takes one of its configurations: for errors and memory, not for time."""
    if importlib.util.find_spec("fla") is None:
        return None
    if not tuned:
        begin = Autotuner.__init__  # fla's own tuner is one of these; not `triton.autotune`

        def with_one(self, fn, arg_names, configs, *rest, **more):
            begin(self, fn, arg_names, [next((each for each in configs if each.num_warps == 4), configs[0])], *rest, **more)

        Autotuner.__init__ = with_one
    from fla.ops.gla import chunk_gla

    return lambda q, k, v, g: chunk_gla(q, k, v, g)[0]


def times(tokens: int, peer: Callable[..., torch.Tensor] | None) -> None:
    """Print forward and forward + backward, with peak memory, over sequence lengths at a fixed number of tokens."""
    functions = {"nullius": lambda *t: gated_linear_attention(*t, backend="triton")}
    if peer:
        functions["fla"] = peer
    print(f"{tokens} tokens, bf16; forward / forward + backward / the same from a graph, in ms; peak memory above the inputs")
    for name, (heads, key, value) in HEADS.items():
        for length in (2048, 8192, 32768):
            x = inputs(tokens // length, length, heads, key, value, torch.bfloat16)
            for label, function in functions.items():
                forward, whole, graph, memory = measure(function, x)
                print(f"{name}  T={length:6}  {label:8} {forward:6.3f} / {whole:6.3f} / {graph:6.3f}  {memory:5.0f} MB", flush=True)


def measure(function: Callable[..., torch.Tensor], x: list[torch.Tensor]) -> tuple[float, float, float, float]:
    """Return median ms forward, forward + backward, the same replayed from a graph; peak MB above the inputs."""
    leaves = [t.detach().clone().requires_grad_() for t in x[:4]]

    def both() -> None:
        torch.autograd.grad(function(*leaves), leaves, x[4])

    both()
    with torch.no_grad():
        forward = do_bench(lambda: function(*leaves), warmup=25, rep=100, return_mode="median")
    whole = do_bench(both, warmup=25, rep=150, return_mode="median")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    both()
    torch.cuda.synchronize()
    memory = (torch.cuda.max_memory_allocated() - before) / 2**20
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        both()
    return forward, whole, do_bench(graph.replay, warmup=25, rep=100, return_mode="median"), memory


def kernels(tokens: int) -> None:
    """Print how long each kernel of forward + backward takes on the GPU, in microseconds: those of the same name in the order of their launch."""
    runs = 5
    for name, (heads, key, value) in HEADS.items():
        for length in (2048, 8192):
            x = inputs(tokens // length, length, heads, key, value, torch.bfloat16)
            leaves = [t.requires_grad_() for t in x[:4]]
            found: dict[str, list[float]] = {}
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                for _ in range(runs + 1):
                    torch.autograd.grad(gated_linear_attention(*leaves, backend="triton"), leaves, x[4])
                torch.cuda.synchronize()
            for event in sorted(profile.events(), key=lambda event: event.time_range.start):
                if event.device_type == torch.autograd.DeviceType.CUDA:
                    found.setdefault(event.name[:24], []).append(event.time_range.elapsed_us())
            each = {kernel: len(took) // (runs + 1) for kernel, took in found.items()}
            medians = {
                kernel: "+".join(f"{statistics.median(took[each[kernel] + i :: each[kernel]]):.0f}" for i in range(each[kernel]))
                for kernel, took in found.items()
                if each[kernel]
            }
            print(f"{name}  T={length:6}  " + "  ".join(f"{kernel} {took}" for kernel, took in medians.items()), flush=True)


def softmax(tokens: int) -> None:
    """Time PyTorch's softmax attention, 16 heads of 128."""
    for length in (2048, 8192, 32768):
        q, k, v, upstream = (torch.randn(tokens // length, 16, length, 128, device="cuda", dtype=torch.bfloat16) for _ in range(4))
        leaves = [t.requires_grad_() for t in (q, k, v)]
        for backend in (torch.nn.attention.SDPBackend.FLASH_ATTENTION, torch.nn.attention.SDPBackend.CUDNN_ATTENTION):
            with torch.nn.attention.sdpa_kernel(backend):

                def attend(leaves=leaves):
                    return torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=True)

                with torch.no_grad():
                    forward = do_bench(attend, warmup=50, rep=150, return_mode="median")
                whole = do_bench(
                    lambda attend=attend, leaves=leaves, u=upstream: torch.autograd.grad(attend(), leaves, u), warmup=50, rep=200
                )
            print(f"softmax 16 x 128  T={length:6}  {backend.name.lower()} {forward:.2f} / {whole:.2f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check",
        nargs="*",
        choices=TYPES,
        help="compare with float64 before timing, in these types (none named: in all; float32 compiles long)",
    )
    parser.add_argument("--peer", action="store_true", help="also flash-linear-attention (its autotuning takes minutes)")
    parser.add_argument(
        "--peer-untuned", action="store_true", help="the same for its errors and memory, without tuning: its times mean nothing"
    )
    parser.add_argument("--tokens", type=int, default=32768, help="of a step that is timed; 0: none")
    parser.add_argument("--kernels", action="store_true", help="also how long each kernel takes")
    arguments = parser.parse_args()
    print(
        f"{date.today()}  {torch.cuda.get_device_name()}  torch {torch.__version__}  triton {triton.__version__}  {platform.python_version()}"
    )
    other = find_peer(arguments.peer) if arguments.peer or arguments.peer_untuned else None
    if arguments.check is not None:
        check(other, arguments.check or TYPES)
    if arguments.tokens:
        times(arguments.tokens, other)
        if arguments.kernels:
            kernels(arguments.tokens)
        softmax(arguments.tokens)
