"""Whether a model can be run from the middle of a text, and with more rows than it was called for: what sweeps and path patching rest on.

Most decoders can: what their layers are called with (mask, rotary embedding, prefix) is the same for every row. Some make their masks or biases for
the batch that came in (BLOOM, Falcon with ALiBi, XGLM), or lay texts end to end inside a layer (OPT, Llama 4). It is tried once for each model, on
two short texts: what comes out of a run over a suffix must be what comes out of the whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch

from nullius.errors import NulliusError, SubjectError
from nullius.instruments import wavefront
from nullius.models.anatomy import Anatomy
from nullius.models.language_model import LanguageModel

_tried: WeakKeyDictionary[Anatomy, bool] = WeakKeyDictionary()
INSTEAD = "sweeps and path patching cannot be done on it; taps, interventions, generation, lenses and probes can"


@torch.no_grad()
def check(model: LanguageModel) -> None:
    """Raise SubjectError where a model's layers cannot be run so. Not tried while somebody's hooks are open: they would be tried with it."""
    anatomy = model.anatomy
    if anatomy.lies_flat:
        _tried[anatomy] = False
    if anatomy not in _tried and not _hooked(model):
        _tried[anatomy] = True  # what is called below asks again
        try:
            _tried[anatomy] = _same(model)
        except torch.OutOfMemoryError:
            del _tried[anatomy]
            raise
        except (NulliusError, RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError):  # the model's own code
            _tried[anatomy] = False
    if not _tried.get(anatomy, True):
        raise SubjectError(f"the layers of {anatomy.family} cannot be run from the middle of a text: {INSTEAD}")


@contextmanager
def rows_joining(model: LanguageModel) -> Iterator[None]:
    """While open, a model that does not bear rows that join on the way (GPT-BigCode) says so in one line."""
    try:
        yield
    except RuntimeError as error:
        if "is invalid for input of size" not in str(error):
            raise
        raise SubjectError(
            f"{model.anatomy.family} does not bear rows that join on the way up: path patching cannot be done on it"
        ) from None


def _same(model: LanguageModel) -> bool:
    size = len(model.anatomy.unembedding())
    batch = model.pad([[i % size for i in row] for row in ((1, 2, 3, 4, 5, 6), (2, 3, 4, 5, 7, 8))])
    base = wavefront.run_base(model, batch)
    rows = base.stream[0][:, 2:].repeat(2, 1, 1)
    last = wavefront.climb(model, base, [2], 0, lambda layer: [wavefront.Joining(2, 0, rows)] if layer == 0 else [], 512)[2]
    plain = base.last.repeat(2, 1)
    tolerance = 1e-3 if model.dtype in (torch.float32, torch.float64) else 5e-2
    return float((last - plain).float().norm()) <= tolerance * float(plain.float().norm())


def _hooked(model: LanguageModel) -> bool:
    """Whether hooks are open on any layer."""
    return any(part._forward_hooks or part._forward_pre_hooks for layer in model.anatomy.layers for part in layer.modules())
