"""The logit lens: what the model would say if it stopped at a layer (nostalgebraist 2020); with a translator per layer, the tuned lens.

Logits of all layers, texts and positions together are never held: states are (small), and a few rows of logits at a time are made and reduced to
what is asked of them: the best tokens, a target's log-probability and rank, the entropy, the divergence from what the model says at its end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nullius.errors import UsageError
from nullius.instruments import checks, taps
from nullius.models.language_model import Batch, LanguageModel

LOGITS_HELD = 2**25  # numbers in the logits held at a time: 128 MB in float32
Translate = Callable[[int, Tensor], Tensor]  # layer, states [N, d_model] → states as the last layer would have them [N, d_model]


@dataclass(frozen=True)
class Lens:
    """What is read at each layer, at N places: the last token of each text, or all real tokens, text by text.

    layers: [L]. best: token ids [L, N, k], most probable first. target: log-probability of the place's target [L, N], rank: how many tokens are
    more probable (0: none) [L, N]; None without targets. entropy [L, N] and kl [L, N]: in nats; kl is KL(what the model says ‖ what the lens says).
    """

    layers: tuple[int, ...]
    best: Tensor
    entropy: Tensor
    kl: Tensor
    target: Tensor | None = None
    rank: Tensor | None = None


def to_logits(model: LanguageModel, states: Tensor) -> Tensor:
    """Logits [.., V] in float32 of states of the residual stream [.., d_model]: final norm, vocabulary, scale and soft-cap if there are such.

    Raises UsageError for another width.
    """
    checks.wide(states, model.anatomy.d_model, f"states of {model.name}")
    return model.anatomy.logits(model.anatomy.final_norm(states.to(model.dtype)))


def rows_at_once(model: LanguageModel) -> int:
    """How many rows of logits may be held at a time."""
    return max(1, LOGITS_HELD // len(model.anatomy.unembedding()))


def states_of(
    model: LanguageModel, batch: Batch, layers: Sequence[int] | None = None, positions: Literal["last", "all"] = "last"
) -> tuple[tuple[int, ...], Tensor]:
    """Layers [L] and their resid_post [L + 1, N, d_model] at the last tokens, or at all real tokens, the last layer's behind them.

    Raises UsageError for layers that do not exist or are no list, other positions, and states that are not finite.
    """
    if isinstance(layers, int):
        raise UsageError(f"layers must be a list: [{layers}], not {layers}")
    if not isinstance(positions, str) or positions not in ("last", "all"):
        raise UsageError(f"a lens reads the 'last' token of each text, or 'all' real ones, not {positions!r}")
    top = model.anatomy.n_layers - 1
    wanted = tuple(range(top + 1)) if layers is None else tuple(layer % (top + 1) if -top - 2 < layer < 0 else layer for layer in layers)
    found = checks.finite(taps.read(model, batch, ["resid_post"], (*wanted, top), positions)["resid_post"], f"the states of {model.name}")
    return wanted, found if positions == "last" else found[:, batch.attention_mask.bool()]


@torch.no_grad()
def read(
    model: LanguageModel,
    batch: Batch | Sequence[str],
    targets: Tensor | Sequence[int | str] | None = None,
    *,
    layers: Sequence[int] | None = None,
    positions: Literal["last", "all"] = "last",
    top: int = 5,
    translate: Translate | None = None,
) -> Lens:
    """Read the residual stream behind each layer as if it were the last.

    targets: token ids, or words of one token [N]. translate: None for the plain logit lens. At the last layer the plain lens is the model
    itself. Raises UsageError for an unknown layer or none, targets of another number than there are places, and states, or a translation of them,
    that are not finite (a NaN has rank 0: nothing is above it) or of another shape.
    """
    layers, states = states_of(model, model.batch(batch), layers, positions)
    checks.at_least(len(layers), 1, "the number of layers read by a lens")
    n = states.shape[1]
    targets = None if targets is None else model.token_ids(list(targets) if not isinstance(targets, Tensor) else targets)
    if targets is not None and tuple(targets.shape) != (n,):
        raise UsageError(f"the lens reads {n} places; targets are {list(targets.shape)}")
    if not 1 <= top <= len(model.anatomy.unembedding()):
        raise UsageError(f"top must lie between 1 and the vocabulary's {len(model.anatomy.unembedding())} tokens, not {top}")
    best = torch.empty(len(layers), n, top, dtype=torch.long)
    entropy, kl, target = (torch.empty(len(layers), n) for _ in range(3))
    rank = torch.empty(len(layers), n, dtype=torch.long)
    step = rows_at_once(model)
    for start in range(0, n, step):
        part = slice(start, min(start + step, n))
        end = to_logits(model, states[-1, part]).log_softmax(-1)
        for i, layer in enumerate(layers):
            here = states[i, part]
            said = to_logits(model, here if translate is None else _translated(translate, layer, here)).log_softmax(-1)
            best[i, part] = said.topk(top).indices.cpu()
            entropy[i, part] = -(said.exp() * said).sum(-1).cpu()
            kl[i, part] = (end.exp() * (end - said)).sum(-1).cpu()
            if targets is not None:
                own = said.gather(1, targets[part, None].to(said.device))
                target[i, part], rank[i, part] = own[:, 0].cpu(), (said > own).sum(1).cpu()
    return Lens(layers, best, entropy, kl) if targets is None else Lens(layers, best, entropy, kl, target, rank)


def _translated(translate: Translate, layer: int, states: Tensor) -> Tensor:
    found = translate(layer, states)
    if found.shape != states.shape:
        raise UsageError(
            f"a translation of layer {layer} must keep the shape of the states, {list(states.shape)}; it gave {list(found.shape)}"
        )
    return checks.finite(found, f"translated states of layer {layer}")
