"""MiniLM in numpy: the same vectors as in transformers, from weights that stay in their file."""

import math

import numpy as np
import pytest

from nullius.models.minilm import forward, weights

CACHE = weights.folder()


def test_tensors_are_views_of_their_file(tmp_path):
    from safetensors.numpy import load_file, save_file

    made = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(5, np.float32), "ids": np.arange(3)}
    save_file(made, tmp_path / "model.safetensors")
    found = forward.mapped(tmp_path / "model.safetensors")
    assert found.keys() == {"a", "b"}  # only what the forward pass needs: float32
    for name, value in found.items():
        assert np.array_equal(value, load_file(tmp_path / "model.safetensors")[name])
        assert not value.flags.writeable


def test_erf_is_the_error_function():
    x = np.linspace(-6, 6, 2001).astype(np.float32)
    assert np.abs(forward.erf(x) - [math.erf(value) for value in x]).max() < 1e-6


@pytest.mark.subject
@pytest.mark.skipif(
    not all((CACHE / name).is_file() for name in weights.SHA256), reason="the weights of MiniLM are not here (nullius feed index)"
)
def test_the_model_agrees_with_transformers():
    from nullius.models.minilm.on_device import encoder

    texts = ["who is bound to what", "", "A much longer text about attention heads. " * 60, "日本語"]
    ours = forward.load(CACHE).encode(texts)
    theirs = encoder(CACHE, "cpu")(texts)
    assert np.abs(ours - theirs).max() < 1e-6
    assert np.allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)
