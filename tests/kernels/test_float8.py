"""Matrices of eight bits: what is kept of each number, both orders, products exact, and the kernels under the interpreter (on a GPU: as they are)."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from nullius.kernels import float8

HERE = torch.device("cuda" if torch.cuda.is_available() and float8.works(torch.device("cuda")) else "cpu")
RELATIVE = {False: 2.0**-4, True: 2.0**-3}  # half a unit in the last place of three, of two bits
SMALLEST = {False: 2.0**-10, True: 2.0**-17}  # half of the smallest number above 0


def matrices(*shapes, spread=1.0, seed=0):
    torch.manual_seed(seed)
    return [torch.randn(shape) * spread for shape in shapes]


@settings(max_examples=40, deadline=None)
@given(spread=st.floats(1e-18, 1e18), seed=st.integers(0, 1000))
def test_factors_are_powers_of_two_that_use_the_range(spread, seed):
    a, b = matrices((5, 7), (3, 7), spread=spread, seed=seed)
    factor = float8.factor([a, b])
    assert torch.frexp(factor)[0] == 0.5
    assert 224 <= float(max(a.abs().max(), b.abs().max()) / factor) <= 448


def test_factors_of_nothing_and_of_no_number():
    assert float8.factor([torch.zeros(2, 2)]) > 0
    assert float8.factor([torch.tensor([[1.0, torch.nan]])]).isnan()


@pytest.mark.parametrize("wide", [False, True])
def test_numbers_are_rounded_to_the_nearest(wide):
    (x,) = matrices((256, 128), spread=50.0)
    rows, columns = float8.narrow([x.to(HERE)], torch.tensor(0.25, device=HERE), wide, False)
    x = x.clamp(-0.25 * torch.finfo(rows.dtype).max, 0.25 * torch.finfo(rows.dtype).max)
    kept = rows.float().cpu() * 0.25
    assert ((kept - x).abs() <= (RELATIVE[wide] * x.abs()).clamp(min=0.25 * SMALLEST[wide])).all()
    assert torch.equal(columns.float().cpu(), rows.float().T.cpu())


@pytest.mark.parametrize("wide", [False, True])
def test_too_large_is_the_largest_and_no_number_stays_none(wide):
    x = torch.zeros(128, 128, device=HERE)
    x[0, :5] = torch.tensor([1e9, -1e9, torch.nan, torch.inf, 1.0])
    rows, columns = float8.narrow([x], torch.tensor(1.0, device=HERE), wide, False)
    largest = torch.finfo(rows.dtype).max
    for kept in (rows[0, :5].float().cpu(), columns[:5, 0].float().cpu()):
        assert kept[[0, 1, 3, 4]].tolist() == [largest, -largest, largest, 1.0]
        assert kept[2].isnan()


@pytest.mark.parametrize(("shapes", "stacked"), [(((384, 128), (384, 256)), False), (((128, 384), (256, 384), (128, 384)), True)])
def test_together_as_one_by_one(shapes, stacked):
    parts, factor = [x.to(HERE) for x in matrices(*shapes)], torch.tensor(2.0**-6, device=HERE)
    rows, columns = float8.narrow(parts, factor, False, stacked)
    one_by_one = [float8.narrow([part], factor, False, stacked) for part in parts]
    assert torch.equal(rows.float(), torch.cat([each.float() for each, _ in one_by_one], 0 if stacked else 1))
    assert torch.equal(columns.float(), torch.cat([each.float() for _, each in one_by_one], 1 if stacked else 0))


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_products_of_what_is_kept(dtype, fast):
    a, b = (x.to(HERE) for x in matrices((128, 256), (384, 256)))
    of_a, of_b = (float8.factor([x]) for x in (a, b))
    (a8, _), (b8, _) = float8.narrow([a], of_a, False, False), float8.narrow([b], of_b, False, False)
    exact = (a8.double() * of_a.double()) @ (b8.double() * of_b.double()).T
    found = float8.multiply(a8, b8, of_a, of_b, dtype, fast)
    assert found.dtype == dtype
    assert ((found.double() - exact).norm() / exact.norm()) < (3e-3 if dtype == torch.bfloat16 else 2e-3 if fast else 1e-4)


def test_the_gradient_of_swiglu_is_autograds():
    d_h, gate, up = matrices((256, 128), (256, 128), (256, 128))
    g, u = (x.double().requires_grad_() for x in (gate, up))
    expected = torch.cat(torch.autograd.grad(torch.nn.functional.silu(g) * u, (g, u), d_h.double()), 1)
    factor = torch.tensor(2.0**-4, device=HERE)
    rows, columns = float8.narrow_swiglu_gradient(*(x.to(HERE) for x in (d_h, gate, up)), factor)
    kept = rows.double().cpu() * 2.0**-4
    assert ((kept - expected).abs() <= (1.001 * RELATIVE[True] * expected.abs()).clamp(min=2.0**-4 * SMALLEST[True])).all()
    assert torch.equal(columns.float(), rows.float().T)
    assert gradcheck(lambda g, u: torch.nn.functional.silu(g) * u, (g[:2, :4], u[:2, :4]))


def unwritten(parts, factor, wide, stacked, narrow=float8.narrow):
    """Sixteen columns are not written, as on a GPU once."""
    rows, columns = narrow(parts, factor, wide, stacked)
    columns[:16] = 0
    return rows, columns


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("narrow", unwritten),
        ("narrow_swiglu_gradient", lambda d_h, *others, made=float8.narrow_swiglu_gradient: made(-d_h, *others)),
        ("multiply", lambda *given, made=float8.multiply, **how: 1.1 * made(*given, **how)),
        ("multiply", lambda *given, **how: 1 / 0),  # does not compile, say
    ],
)
def test_a_device_is_right_or_it_is_said(name, broken, monkeypatch):
    assert float8.right(HERE)
    monkeypatch.setattr(float8, name, broken)
    assert not float8.right(HERE)


@pytest.mark.skipif(HERE.type == "cpu", reason="needs a GPU that multiplies eight bits")
def test_kernels_keep_exactly_what_the_definition_keeps():
    x, y = matrices((1024, 256), (1024, 128), spread=3.0)
    for dtype in (torch.bfloat16, torch.float32):
        given, factor = [x.to(dtype), y.to(dtype)], torch.tensor(2.0**-6)
        for wide in (False, True):
            here = float8.narrow([part.to(HERE) for part in given], factor.to(HERE), wide, False)
            for kept, plain in zip(here, float8.narrow(given, factor, wide, False), strict=True):
                assert torch.equal(kept.cpu().float(), plain.float())


@pytest.mark.skipif(HERE.type == "cpu", reason="needs a GPU that multiplies eight bits")
def test_the_kernel_of_swiglus_gradient_is_its_definition():
    given, factor = matrices((1024, 256), (1024, 256), (1024, 256)), torch.tensor(2.0**-6)
    for dtype in (torch.bfloat16, torch.float32):
        parts = [part.to(dtype) for part in given]
        plain, _ = float8.narrow_swiglu_gradient(*parts, factor)
        rows, columns = (kept.cpu().float() for kept in float8.narrow_swiglu_gradient(*(part.to(HERE) for part in parts), factor.to(HERE)))
        assert torch.equal(columns, rows.T)
        close = (rows - plain.float()).abs() <= 2 * RELATIVE[True] * plain.float().abs()  # a sigmoid's last bit may decide where to round
        assert close.all()
        assert (rows == plain.float()).float().mean() > 0.999


@pytest.mark.skipif(HERE.type == "cpu", reason="needs a GPU that multiplies eight bits")
def test_sides_that_do_not_fill_tiles_are_refused():
    with pytest.raises(ValueError, match=r"multiples of 128 .*, got \[128, 48\]"):
        float8.narrow([torch.zeros(128, 48, device=HERE)], torch.ones((), device=HERE), False, False)


def by_kernels() -> None:
    """Called under the interpreter, on numbers that eight bits hold: where it rounds to the next power of two it forgets the carry."""
    from nullius.kernels import float8_triton

    float8.TILE, float8.GRADIENT_TILE = 32, (32, 16)
    torch.manual_seed(0)
    x, y = (torch.randint(-7, 8, (96, 64)).float() / 8 for _ in range(2))
    factor = torch.tensor(2.0**-3)
    for wide in (False, True):
        for stacked in (False, True):
            expected = float8.narrow([x, y], factor, wide, stacked)
            rows, columns = (torch.zeros_like(kept) for kept in expected)
            first, second = (slice(None, 96), slice(96, None)) if stacked else (slice(None, 64), slice(64, None))
            for part, here in ((x, first), (y, second)):
                float8_triton.narrow(part, factor, *((rows[here], columns[:, here]) if stacked else (rows[:, here], columns[here])))
            same((rows, columns), expected)
    d_h, up = (torch.randint(-2, 3, (96, 64)).float() for _ in range(2))
    gate = torch.randint(-1, 2, (96, 64)).float() * 40  # open, half open, closed
    expected = float8.narrow_swiglu_gradient(d_h, gate, up, factor)
    rows, columns = (torch.zeros_like(kept) for kept in expected)
    float8_triton.narrow_swiglu_gradient(d_h, gate, up, factor, rows, columns)
    same((rows, columns), expected)


def same(found: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> None:
    """Number by number, and not all of them 0."""
    for kept, plain in zip(found, expected, strict=True):
        assert torch.equal(kept.float(), plain.float())
        assert plain.float().abs().mean() > 0.5


def test_kernels_under_the_interpreter():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    script = "from tests.kernels.test_float8 import by_kernels; by_kernels()"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
