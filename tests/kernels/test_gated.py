"""Gated linear attention: chunks against the recurrence in float64, values and all gradients; planted gates; clear refusals."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nullius.errors import NulliusError
from nullius.kernels.gated import gated_linear_attention, operator, step


def tensors(batch, length, heads, key, value, strength, seed=0):
    """q, k, v, log decay, initial state; strength divides logsigmoid: small is a strong gate."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    q, k = draw(batch, length, heads, key), draw(batch, length, heads, key)
    gate = F.logsigmoid(draw(batch, length, heads, key)) / strength
    return q, k, draw(batch, length, heads, value), gate, draw(batch, heads, key, value)


def values_and_gradients(x, backend, **kwargs):
    leaves = [t.clone().requires_grad_() for t in x]
    o, end = gated_linear_attention(*leaves[:4], initial_state=leaves[4], return_state=True, backend=backend, **kwargs)
    weight = torch.linspace(-1, 1, o.numel(), dtype=o.dtype).view(o.shape)
    return [o.detach(), end.detach(), *torch.autograd.grad((o * weight).sum() + end.square().sum(), leaves)]


def close(a, b, tolerance):
    """Relative error in the Frobenius norm. Under strong gates the gate's gradient is a difference of nearly equal terms of order 1, so its
    error counts against at least 0.01."""
    return float((a - b).norm() / b.norm().clamp(min=1e-2)) < tolerance


@settings(max_examples=25, deadline=None)
@given(
    length=st.integers(1, 150),
    heads=st.integers(1, 2),
    key=st.sampled_from([1, 5, 16]),
    value=st.sampled_from([1, 7]),
    strength=st.sampled_from([0.05, 1.0, 16.0]),
    seed=st.integers(0, 99),
)
def test_chunks_are_the_recurrence(length, heads, key, value, strength, seed):
    x = tensors(2, length, heads, key, value, strength, seed)
    for ours, exact in zip(values_and_gradients(x, "chunks"), values_and_gradients(x, "recurrence"), strict=True):
        assert close(ours, exact, 1e-9)


def test_single_precision_under_a_gate_of_minus_fifty():
    x = tensors(1, 200, 2, 16, 8, 16.0)
    x[3][:, 70] = -50.0
    x[3][:, 71:75] = -49.0  # five in one chunk: past what the fast form can hold
    exact = values_and_gradients(x, "recurrence")
    ours = values_and_gradients([t.float() for t in x], "chunks")
    assert all(torch.isfinite(t).all() for t in ours)
    assert all(close(a.double(), b, 1e-5) for a, b in zip(ours, exact, strict=True))


def test_gradients_by_autograd():
    x = [t[:, :9] if i < 4 else t for i, t in enumerate(tensors(1, 9, 1, 3, 2, 1.0))]
    leaves = [t.clone().requires_grad_() for t in x]

    def function(*t):
        return gated_linear_attention(*t[:4], initial_state=t[4], return_state=True, backend="chunks")

    # steps of 1e-6 may lift a gate above 0, which is refused: keep away from it
    leaves[3] = (leaves[3].detach() - 0.01).requires_grad_()
    assert torch.autograd.gradcheck(function, leaves)


def test_gate_one_is_linear_attention():
    q, k, v, *_ = tensors(2, 40, 2, 8, 4, 1.0)
    scores = torch.einsum("bihd,bjhd->bhij", q, k).tril() * 8**-0.5
    expected = torch.einsum("bhij,bjhv->bihv", scores, v)
    assert torch.allclose(gated_linear_attention(q, k, v, None), expected)
    assert torch.allclose(gated_linear_attention(q, k, v, torch.zeros_like(q)), expected)


def test_a_constant_gate_is_retnet():
    q, k, v, *_ = tensors(2, 40, 2, 8, 4, 1.0)
    rate = torch.tensor([-0.1, -0.7], dtype=torch.float64)
    distance = torch.arange(40)[:, None] - torch.arange(40)[None, :]
    decay = (rate[:, None, None] * distance).exp().tril()
    expected = torch.einsum("bhij,bjhv->bihv", torch.einsum("bihd,bjhd->bhij", q, k) * decay, v) * 8**-0.5
    assert torch.allclose(gated_linear_attention(q, k, v, rate), expected)
    assert torch.allclose(gated_linear_attention(q, k, v, rate.expand(2, 40, 2)), expected)


def test_a_closed_gate_cuts_the_past():
    """Outputs from the reset on do not change when everything before it does, to the last bit."""
    q, k, v, gate, _ = tensors(1, 60, 1, 8, 4, 16.0)
    gate[:, 30] = -torch.inf
    first = gated_linear_attention(q, k, v, gate, backend="recurrence")
    other = [torch.cat([t[:, :30].flip(1), t[:, 30:]], 1) for t in (q, k, v)]
    assert torch.equal(first[:, 30:], gated_linear_attention(*other, gate, backend="recurrence")[:, 30:])
    gate[:, 30] = -800.0
    chunked = gated_linear_attention(q, k, v, gate, backend="chunks")
    assert torch.allclose(chunked[:, 30:], gated_linear_attention(*other, gate, backend="chunks")[:, 30:], atol=1e-12)
    assert torch.allclose(chunked, first, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("closed", [-torch.inf, -1e30, -1000.0])
def test_gates_that_are_zero_are_zero(dtype, tolerance, closed):
    """The logarithm of a gate of 0 is −∞: in one token, in neighbours, in some channels, at the ends."""
    x = tensors(2, 80, 2, 8, 4, 16.0)
    x[3][:, 30], x[3][:, 40:43], x[3][:, 50, :, :3], x[3][:, 0], x[3][:, -1, 0] = (closed,) * 5
    exact = values_and_gradients(x, "recurrence")
    ours = values_and_gradients([t.to(dtype) for t in x], "chunks")
    assert all(close(a.double(), b, tolerance) for a, b in zip(ours, exact, strict=True))


def test_autocast_does_not_reach_inside():
    x = [t.float() for t in tensors(1, 100, 2, 8, 4, 16.0)]
    plain = values_and_gradients(x, "chunks")
    with torch.autocast("cpu", torch.bfloat16):
        cast = values_and_gradients(x, "chunks")
    assert all(close(a, b, 1e-6) for a, b in zip(cast, plain, strict=True))


def test_packed_sequences_are_separate_ones():
    x = tensors(1, 100, 2, 8, 4, 1.0)
    state = torch.randn(3, 2, 8, 4, dtype=torch.float64)
    offsets = [0, 1, 40, 100]
    o, end = gated_linear_attention(*x[:4], initial_state=state, return_state=True, cu_seqlens=torch.tensor(offsets))
    for i in range(3):
        part = [t[:, offsets[i] : offsets[i + 1]] for t in x[:4]]
        alone, last = gated_linear_attention(*part, initial_state=state[i : i + 1], return_state=True, backend="recurrence")
        assert torch.allclose(o[:, offsets[i] : offsets[i + 1]], alone)
        assert torch.allclose(end[i : i + 1], last)


def test_decoding_token_by_token():
    q, k, v, gate, state = tensors(2, 12, 2, 8, 4, 1.0)
    whole, last = gated_linear_attention(q, k, v, gate, initial_state=state, return_state=True)
    memory = state.clone()
    for t in range(12):
        o, memory = step(q[:, t], k[:, t], v[:, t], gate[:, t], memory)
        assert torch.allclose(o, whole[:, t])
    assert torch.allclose(memory, last)


@pytest.mark.parametrize("form", ["channels", "heads and rows", "heads", "none"])
def test_one_token_of_every_gate(form):
    q, k, v, gate, state = tensors(2, 3, 2, 8, 4, 1.0)
    given = {"channels": gate, "heads and rows": gate[..., 0], "heads": gate[0, 0, :, 0], "none": None}[form]
    whole = gated_linear_attention(q, k, v, given, initial_state=state)
    memory = state.clone()
    for t in range(3):
        o, memory = step(q[:, t], k[:, t], v[:, t], given if form in ("heads", "none") else given[:, t], memory)
        assert torch.allclose(o, whole[:, t])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: (x[0], x[1][:, :1], *x[2:]), "q and k must both be"),
        (lambda x: (*x[:2], x[2][:1], *x[3:]), "v must be"),
        (lambda x: (*x[:3], x[3][..., :3], x[4]), r"log_decay must be \[B, H, K\] = \[2, 2, 8\]"),
        (lambda x: (*x[:3], -x[3], x[4]), "a positive value"),
        (lambda x: (*x[:4], x[4][:1]), r"state must be \[B, H, K, V\] = \[2, 2, 8, 4\]"),
    ],
)
def test_one_token_that_does_not_fit_is_named(change, message):
    q, k, v, gate, state = tensors(2, 1, 2, 8, 4, 1.0)
    with pytest.raises(NulliusError, match=message):
        step(*change((q[:, 0], k[:, 0], v[:, 0], gate[:, 0], state)))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"cu_seqlens": [0, 10]}, "cu_seqlens must be a tensor of whole numbers"),
        ({"cu_seqlens": torch.tensor([0.0, 10.0])}, "cu_seqlens must be a tensor of whole numbers"),
        ({"cu_seqlens": torch.tensor(10)}, "cu_seqlens must be a tensor of whole numbers"),
        ({"backend": "chunk"}, "no backend 'chunk'; nearest: chunks"),
        ({"backend": "triton"}, "the Triton kernels need a CUDA device; q lies on cpu"),
        ({"log_decay": -0.1}, "log_decay must be a tensor, or None for no decay; got -0.1"),
        ({"log_decay": torch.zeros(1, device="meta")}, "log_decay lies on meta, q on cpu"),
        ({"initial_state": torch.zeros(1, 1, 4, 4, device="meta")}, "initial_state lies on meta, q on cpu"),
        ({"q": torch.zeros(1, 10, 1, 0), "k": torch.zeros(1, 10, 1, 0), "log_decay": None}, "K = 0"),
    ],
)
def test_arguments_of_another_kind_are_named(more, message):
    given = dict(zip(("q", "k", "v", "log_decay"), (t.float() for t in tensors(1, 10, 1, 4, 4, 1.0)), strict=False))
    with pytest.raises(NulliusError, match=message):
        gated_linear_attention(**{**given, **more})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: (x[0], x[1][:, :5], x[2], x[3]), "q and k must both be"),
        (lambda x: (x[0], x[1], x[2][:, :5], x[3]), "v must be"),
        (lambda x: (x[0], x[1], x[2], x[3][..., :3]), "log_decay must be"),
        (lambda x: (x[0], x[1], x[2], -x[3]), "a positive value"),
        (lambda x: (x[0], x[1], x[2], x[3] * torch.nan), "NaN"),
        (lambda x: (x[0], x[1], x[2].float(), x[3]), "share one floating type"),
        (lambda x: tuple(t[:, :0] for t in x[:4]), "no tokens"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(NulliusError, match=message):
        gated_linear_attention(*change(tensors(1, 10, 1, 4, 4, 1.0)))


@pytest.mark.parametrize("offsets", [[0, 5], [1, 10], [0, 6, 6, 10], [0]])
def test_offsets_that_do_not_fit_are_refused(offsets):
    with pytest.raises(NulliusError, match="cu_seqlens"):
        gated_linear_attention(*tensors(1, 10, 1, 4, 4, 1.0)[:4], cu_seqlens=torch.tensor(offsets))


INTERPRETED = """
import torch
from nullius.kernels.gated import gated_linear_attention
from tests.kernels.test_gated import close, tensors, values_and_gradients
strong, odd = ((1, 40, 1, 16, 16), 0.02), ((1, 20, 1, 5, 16), 1.0)
single = ((1, 1, 1, 16, 16), 1.0)
for shape, strength in (((1, 33, 2, 16, 16), 16.0), ((2, 150, 1, 24, 40), 1.0), strong, ((1, 300, 1, 16, 16), 16.0), odd, single):
    x = tensors(*shape, strength)
    exact = values_and_gradients(x, "recurrence")
    ours = values_and_gradients([t.float() for t in x], "triton")
    for a, b in zip(ours, exact):
        assert close(a.double(), b, 1e-6 if strength < 1 else 2e-6), (shape, strength)
# gates that are 0: in one token, in neighbours, in some channels, in the first token
x = tensors(1, 80, 1, 16, 16, 16.0)
x[3][:, 30], x[3][:, 40:43], x[3][:, 50, :, :3], x[3][:, 0] = (-torch.inf,) * 4
for a, b in zip(values_and_gradients([t.float() for t in x], "triton"), values_and_gradients(x, "recurrence")):
    assert close(a.double(), b, 3e-5)
# in 16 bits; the gate in 16 or 32; two blocks, strong gates, and some between
for length, strength, wide in ((600, 16.0, False), (150, 0.02, True), (100, 0.5, False), (100, 4.0, True)):
    x = [t.half() for t in tensors(1, length, 1, 16, 24, strength)]
    x[3] = x[3].float() if wide else x[3]
    exact = values_and_gradients([t.double() for t in x], "recurrence")
    for i, (a, b) in enumerate(zip(values_and_gradients(x, "triton"), exact)):
        assert close(a.double(), b, 1e-3), (length, strength, wide, i)
# one gate that is none, among closed ones, ends it
for wrong in (1e-3, float("nan")):
    x = [t.float() for t in tensors(1, 20, 1, 20, 16, 1.0)[:4]]
    x[3][0, 3] = -torch.inf
    gated_linear_attention(*x, backend="triton")
    x[3][0, 17, 0, 18] = wrong
    try:
        gated_linear_attention(*x, backend="triton")
        raise AssertionError(wrong)
    except RuntimeError as error:
        assert "must be" in str(error), error
x = tensors(1, 60, 1, 16, 16, 1.0)
x = (*x[:4], torch.randn(3, 1, 16, 16, dtype=torch.float64))
packed = {"cu_seqlens": torch.tensor([0, 1, 20, 60])}
for a, b in zip(values_and_gradients([t.float() for t in x], "triton", **packed), values_and_gradients(x, "recurrence", **packed)):
    assert close(a.double(), b, 1e-5)
"""


BRAIN_FLOATS = """
import tests.kernels.interpreted
import torch
from nullius.kernels.gated import gated_linear_attention, triton_operator
from tests.kernels.test_gated import close, tensors
triton_operator.WALK_BY_TILE = 32  # what is for wide keys, as these take long
def run(x, upstream, backend):
    leaves = [t.clone().requires_grad_() for t in x]
    o, end = gated_linear_attention(*leaves[:4], initial_state=leaves[4], return_state=True, backend=backend)
    return [o.detach(), end.detach(), *torch.autograd.grad([o, end], leaves, [upstream.to(o.dtype), 3 * end.detach()])]
# of the output, the last state, gradients of q, k, v, the gate, the first state: bf16 itself rounds by 1.7e-3
bounds = (2.7e-3, 1.8e-3, 2e-3, 2.5e-3, 2.8e-3, 3e-3, 2.3e-3)
# the last: two segments of whole chunks, loaded by tile
for length, strength in ((150, 16.0), (100, 0.02), (100, 2.0), (640, 16.0)):
    x = [t.bfloat16() if i < 3 else t.float() for i, t in enumerate(tensors(1, length, 1, 32, 32, strength))]
    upstream = tensors(1, length, 1, 32, 32, 1.0, seed=1)[2].bfloat16()
    exact = run([t.double() for t in x], upstream, "recurrence")
    ours = run(x, upstream, "triton")
    for i, (a, b, bound) in enumerate(zip(ours, exact, bounds)):
        assert close(a.double(), b, bound), (length, strength, i)
    # where no gradients and no last states are wanted, less is made
    assert torch.equal(ours[0], gated_linear_attention(*x[:4], initial_state=x[4], backend="triton")), (length, strength)
# tensors at any address: a tile must begin at a multiple of 16 bytes
x = [t.bfloat16() for t in tensors(1, 64, 1, 32, 16, 16.0)]
moved = [torch.empty(t.numel() + 1, dtype=t.dtype)[1:].view(t.shape).copy_(t) for t in x]
for a, b in zip(run(x, x[2], "triton"), run(moved, moved[2], "triton")):
    assert close(a.double(), b.double(), 1e-3)
"""


@pytest.mark.parametrize("script", [INTERPRETED, BRAIN_FLOATS], ids=["float32 and float16", "bfloat16"])
def test_triton_kernels_under_the_interpreter(script):
    """The Triton kernels, interpreted on the CPU, against the recurrence in float64 (a process of its own: the choice is made at import)."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_gates_that_are_the_same_along_an_axis_are_written_out_for_the_kernels():
    triton_operator = pytest.importorskip("nullius.kernels.gated.triton_operator")
    q = torch.zeros(2, 5, 3, 4)
    for form in (
        None,
        torch.rand(2, 5, 3).neg(),
        torch.rand(3).neg(),
        torch.rand(2, 5, 3, 4).neg().transpose(0, 1).contiguous().transpose(0, 1),
    ):
        gate = operator._gate(form, q)
        read = triton_operator.laid_out(q, q, q, gate, None)[3]
        assert read.is_contiguous()
        assert torch.equal(read, gate)


def test_a_kernel_is_started_as_compiled_the_second_time(monkeypatch):
    triton_operator = pytest.importorskip("nullius.kernels.gated.triton_operator")
    started = []

    class Compiled:
        function, packed_metadata = "function", "metadata"

        @staticmethod
        def run(*given):
            started.append(given)

    class Kernel:
        __name__, arg_names = "kernel", ("x", "n", "FLAG", "C")

        def __getitem__(self, grid):
            return lambda *arguments, **constants: Compiled

    call, kernel, x = triton_operator._Launches((0, 8), 1, 16, 16, torch.float32, torch.device("cpu")), Kernel(), torch.zeros(3)
    call.constants[kernel] = {"C": 16, "num_warps": 4}
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: "stream", raising=False)
    for flag in (True, True, False):
        call.launch(kernel, (4, 2, 1), x, 7, FLAG=flag)
    assert started == [(4, 2, 1, "stream", "function", "metadata", None, None, None, x.data_ptr(), 7, True, 16)]


def test_a_gpu_too_old_falls_back_and_says_so_once(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5) if device.index == 0 else (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    old, new = (SimpleNamespace(is_cuda=True, dtype=torch.bfloat16, device=torch.device("cuda", i)) for i in (0, 1))
    operator._serves.cache_clear()
    with pytest.warns(UserWarning, match=r"^Tesla T4 \(compute capability 7\.5\) is too old .* which need 8\.0: it runs in plain PyTorch"):
        assert operator._choose("auto", old, old) == "chunks"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert operator._choose("auto", old, old) == "chunks"
        assert operator._choose("auto", new, new) == "triton"
    operator._serves.cache_clear()
