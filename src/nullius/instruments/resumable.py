"""Whether a model can be run from the middle of a text, and with more rows than it was called for: what sweeps and path patching rest on.

Most decoders can: what their layers are called with (mask, rotary embedding, prefix) is the same for every row. Some make their masks or biases for
the batch that came in (BLOOM, Falcon with ALiBi, XGLM), or lay texts end to end inside a layer (OPT, Llama 4). It is tried once for each model, on
two short texts: what comes out of a run over a suffix must be what comes out of the whole.
"""

from __future__ import annotations

from contextlib import ExitStack
from weakref import WeakKeyDictionary

import torch

from nullius.errors import NulliusError, SubjectError
from nullius.instruments import wavefront
from nullius.models.anatomy import Anatomy
from nullius.models.dataflow import with_input
from nullius.models.hooks import hooked
from nullius.models.language_model import LanguageModel

_tried: WeakKeyDictionary[Anatomy, str] = WeakKeyDictionary()  # what is in the way; nothing: ""
INSTEAD = "sweeps and path patching cannot be done on it; taps, interventions, site_paths, generation, lenses and probes can"


@torch.no_grad()
def check(model: LanguageModel) -> None:
    """Raise SubjectError where a model's layers cannot be run so. Not tried while somebody's hooks are open: they would be tried with it."""
    anatomy = model.anatomy
    if anatomy.lies_flat:
        _tried[anatomy] = "texts are laid end to end"
    other = next((layer for layer in range(anatomy.n_layers) if not anatomy.attends(layer)), None)
    if other is not None:
        _tried[anatomy] = f"layer {other} mixes tokens by {type(anatomy.attn(other)).__name__}"
    if anatomy not in _tried and not any(hooked(layer) for layer in model.anatomy.layers):
        _tried[anatomy] = ""  # what is called below asks again
        try:
            _tried[anatomy] = "" if _same(model) else "what comes out is not what the whole text gives"
        except torch.OutOfMemoryError:
            del _tried[anatomy]
            raise
        except (NulliusError, RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError) as error:  # the model's own code
            _tried[anatomy] = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if _tried.get(anatomy):
        raise SubjectError(f"the layers of {anatomy.family} cannot be run from the middle of a text ({_tried[anatomy]}): {INSTEAD}")


def _same(model: LanguageModel) -> bool:
    """Whether two texts, of which four rows arrive where the model was called with one, come out as they do whole."""
    size, anatomy = len(model.anatomy.unembedding()), model.anatomy
    most = getattr(model.hf.config.get_text_config(), "max_position_embeddings", None) or 6  # small models may take fewer tokens
    batch = model.pad([[i % size for i in row[:most]] for row in ((1, 2, 3, 4, 5, 6), (2, 3, 4, 5, 7, 8))])
    base = wavefront.run_base(model, batch, answers=batch.input_ids[:, :1])  # of which nothing is wanted
    rows, last = base.stream[0][:, 2:].repeat(2, 1, 1), []
    with ExitStack() as stack:
        stack.callback(
            anatomy.layers[0].register_forward_pre_hook(lambda _m, args, kwargs: with_input(args, kwargs, rows), with_kwargs=True).remove
        )
        stack.callback(anatomy.final_norm.register_forward_hook(lambda _m, _args, output: last.append(output[:, -1])).remove)
        try:
            wavefront.run_suffix(model, base, base.ids[:1], 2)
        except RuntimeError:
            if not last:  # else only what comes behind the final norm minds the number of rows, and that is not what sweeps go on with
                raise
    plain = base.last.repeat(2, 1).float()
    tolerance = 1e-3 if model.dtype in (torch.float32, torch.float64) else 5e-2
    return float((last[0].float() - plain).norm()) <= tolerance * float(plain.norm())
