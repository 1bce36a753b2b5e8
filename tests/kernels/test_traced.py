"""The operator in a compiled graph: one node, right in values and gradients, by either back end; a layer of the decoder is one graph."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from tests.kernels.test_gated import close, tensors, values_and_gradients

from nullius.errors import NulliusError
from nullius.kernels.gated import gated_linear_attention
from nullius.kernels.gated.traced import _forward
from nullius.models import architectures
from nullius.models.architectures.context import see


def compiled(x, backend, state=True):
    """Values and gradients as `values_and_gradients` gives them, from one graph; None where there is no first state."""
    torch._dynamo.reset()
    leaves = [t.clone().requires_grad_() for t in x]

    @torch.compile(fullgraph=True, backend="aot_eager")
    def operator(q, k, v, gate, first):
        return gated_linear_attention(q, k, v, gate, initial_state=first if state else None, return_state=True, backend=backend)

    o, end = operator(*leaves)
    weight = torch.linspace(-1, 1, o.numel(), dtype=o.dtype).view(o.shape)
    return [o.detach(), end.detach(), *torch.autograd.grad((o * weight).sum() + end.square().sum(), leaves, allow_unused=True)]


def check(backend, shape, strength, state):
    """Compare with the recurrence in float64."""
    x = tensors(*shape, strength)
    x = x if state else (*x[:4], torch.zeros_like(x[4]))
    ours = compiled([t.float() for t in x], backend, state)
    assert (ours[-1] is None) == (not state)
    for a, b in zip(ours, values_and_gradients(x, "recurrence"), strict=True):
        assert a is None or close(a.double(), b, 5e-3 if strength < 1 else 2e-5), (backend, shape, strength, state)


@pytest.mark.parametrize("state", [True, False])
def test_chunks_in_one_graph(state):
    check("chunks", (2, 70, 2, 16, 8), 16.0, state)
    check("chunks", (1, 40, 1, 5, 7), 0.05, state)


INTERPRETED = """
from tests.kernels.test_traced import check
check("triton", (1, 9, 2, 16, 16), 16.0, False)
check("triton", (1, 10, 1, 16, 16), 1.0, True)
check("triton", (1, 70, 1, 16, 16), 16.0, False)  # cut into segments, whose first states are results of the operator too
"""


def test_triton_in_one_graph_under_the_interpreter():
    """The graph is made on shapes that are foretold without a launch (a process of its own: Triton chooses the interpreter at import)."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_operator_keeps_the_dispatchers_rules():
    """Shapes and strides foretold are those computed, no result shares memory with an argument, gradients agree with the eager ones."""
    q, k, v, gate, state = (t.float().requires_grad_() for t in tensors(1, 20, 2, 4, 6, 1.0))
    for first in (state, None):
        torch.library.opcheck(_forward, (q, k, v, gate, first, 0.5, None, False))


def test_gradients_of_the_last_state_alone():
    x = [t.requires_grad_() for t in tensors(1, 20, 2, 4, 6, 1.0)]
    found = []
    for function in (gated_linear_attention, torch.compile(gated_linear_attention, fullgraph=True, backend="aot_eager")):
        _, end = function(*x[:4], return_state=True)
        found.append(torch.autograd.grad(end.sum(), x[1:4]))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b)


def test_a_compiled_operator_refuses_what_is_no_gate():
    q, k, v, gate, _ = tensors(1, 10, 1, 4, 4, 1.0)
    with pytest.raises(NulliusError, match="a positive value"):
        torch.compile(gated_linear_attention, fullgraph=True, backend="aot_eager")(q, k, v, -gate)


@pytest.mark.parametrize("mixer", ["gla", "scalar", "retnet", "ungated", "softmax"])
def test_a_layer_is_one_graph(mixer):
    """Compiled under autocast without a break: fullgraph refuses any; with values and gradients of the layer as it is."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    small = {"vocab_size": 20, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "mixer": mixer}
    layer = architectures.create({"model_type": "nullius", **small}).model.layers[0].train()
    x = torch.randn(2, 40, 32, dtype=torch.bfloat16)
    found = []
    for way in (layer.forward, torch.compile(layer.forward, fullgraph=True, backend="aot_eager")):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            out = way(x, see(x, None, None, None, None))
        out.float().square().mean().backward()
        found.append([out, *(parameter.grad for parameter in layer.parameters())])
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-2, atol=1e-5)
