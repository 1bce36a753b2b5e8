"""The tuned lens (Belrose et al. 2023, arXiv 2303.08112): an affine translator per layer, trained so that the lens says what the model says in
the end.

The states of a layer lie in a basis of their own; a plain logit lens mistakes that for not knowing. Translator: h ↦ h + A h + b, from A = 0, b =
0 (the logit lens), minimising KL(model ‖ lens) over tokens of any plain text, in a stream: states of one batch are held, logits of a few of its
tokens.
What the translators are worth is said on texts that they were not trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nullius.errors import UsageError
from nullius.instruments import checks, lens
from nullius.models.language_model import LanguageModel


@dataclass(frozen=True)
class TunedLens:
    """Translators. matrix: A [L, d_model, d_model], bias: b [L, d_model], float32. weights: the hash of the subject that they belong to."""

    matrix: Tensor
    bias: Tensor
    weights: str

    def __call__(self, layer: int, states: Tensor) -> Tensor:
        """States [N, d_model] of a layer (−1: the last) as the last layer would have them. The last layer's own are left as they are.

        Raises UsageError for a layer that does not exist, and states of another width.
        """
        last = len(self.matrix)
        if not -last - 1 <= layer <= last:
            raise UsageError(f"layer {layer} does not exist: these translators are of layers 0 to {last - 1}, and {last} is the last")
        layer %= last + 1
        checks.wide(states, self.bias.shape[1], "states to translate")
        if layer == last:
            return states
        x = states.float()
        return x + x @ self.matrix[layer].to(x.device) + self.bias[layer].to(x.device)

    def save(self, path: str | Path) -> None:
        """Write it to a safetensors file. Raises UsageError where that cannot be written."""
        tensors = {"matrix": self.matrix.cpu().contiguous(), "bias": self.bias.cpu().contiguous()}
        try:
            save_file(tensors, str(path), {"weights_sha256": self.weights})
        except (OSError, SafetensorError) as error:
            raise UsageError(f"the tuned lens cannot be written to {path}: {str(error).splitlines()[0]}") from None

    @classmethod
    def load(cls, path: str | Path, model: LanguageModel) -> TunedLens:
        """Read it back. Raises UsageError for no such file, or translators of another subject."""
        try:
            with safe_open(str(path), "pt") as file:
                found = cls(file.get_tensor("matrix"), file.get_tensor("bias"), (file.metadata() or {}).get("weights_sha256", ""))
        except (OSError, SafetensorError):
            raise UsageError(f"no tuned lens in {path}") from None
        if found.weights != model.weights_sha256:
            raise UsageError(
                f"the tuned lens in {path} was trained on other weights than those of {model.name}: train one with tuned_lens.fit"
            )
        return found


@dataclass(frozen=True)
class Fitted:
    """A lens and what it is worth on held-out texts: KL from the model's own answer in nats, mean over tokens, by layer [L]; `plain`: the logit
    lens."""

    lens: TunedLens
    kl: Tensor
    plain: Tensor


def fit(
    model: LanguageModel,
    texts: Sequence[str],
    held_out: Sequence[str],
    *,
    epochs: int = 1,
    batch_size: int = 8,
    learning_rate: float = 1e-3,
    seed: int = 0,
    watch: Iterable[int] | None = None,
) -> Fitted:
    """Train translators for all layers but the last, whose lens is the model itself.

    Adam with a learning rate that falls to 0 linearly, one step a batch for every layer alike, gradients clipped to norm 1. The subject's weights
    take no gradient and stay as they are. watch: passes over `range(epochs)`, showing progress. Raises UsageError where there are no texts, or
    one is both trained on and held out, for a subject of one layer, and for steps, batches or a learning rate of nothing.
    """
    if isinstance(texts, str) or isinstance(held_out, str):
        raise UsageError("a tuned lens needs lists of texts, not one text")
    for value, what in ((epochs, "epochs"), (batch_size, "batch_size"), (model.anatomy.n_layers - 1, "the layers to translate")):
        checks.at_least(value, 1, what)
    if not 0 < learning_rate < float("inf"):
        raise UsageError(f"learning_rate must be above 0, not {learning_rate}")
    if not texts or not held_out or set(texts) & set(held_out):
        raise UsageError("a tuned lens needs texts to train on and others, none of them the same, to be tested on")
    layers, d = model.anatomy.n_layers - 1, model.anatomy.d_model
    matrix = torch.zeros(layers, d, d, device=model.device, requires_grad=True)
    bias = torch.zeros(layers, d, device=model.device, requires_grad=True)
    optimiser = torch.optim.Adam([matrix, bias], learning_rate)
    steps = epochs * -(-len(texts) // batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    made = TunedLens(matrix, bias, model.weights_sha256)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs) if watch is None else watch:
        order = torch.randperm(len(texts), generator=generator).tolist()
        for start in range(0, len(order), batch_size):
            _step(model, made, [texts[i] for i in order[start : start + batch_size]])
            for layer in range(layers):  # layers are problems of their own: each is clipped by itself
                size = torch.sqrt(matrix.grad[layer].square().sum() + bias.grad[layer].square().sum())  # type: ignore[index]
                shrink = (1 / size.clamp(min=1e-12)).clamp(max=1)
                matrix.grad[layer] *= shrink  # type: ignore[index]
                bias.grad[layer] *= shrink  # type: ignore[index]
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
    done = TunedLens(matrix.detach(), bias.detach(), model.weights_sha256)
    return Fitted(done, held_out_kl(model, held_out, done, batch_size), held_out_kl(model, held_out, None, batch_size))


def held_out_kl(model: LanguageModel, texts: Sequence[str], translate: lens.Translate | None = None, batch_size: int = 8) -> Tensor:
    """Mean over all tokens of KL(model ‖ lens), in nats, at every layer but the last [L]. Raises UsageError where there are no texts."""
    if isinstance(texts, str) or not texts:
        raise UsageError("a lens is tested on a list of texts, one at least")
    total, count = torch.zeros(model.anatomy.n_layers - 1), 0
    for chosen in model.by_length(texts, batch_size):
        batch = model.encode([texts[i] for i in chosen])
        layers = range(model.anatomy.n_layers - 1)
        found = lens.read(model, batch, layers=layers, positions="all", top=1, translate=translate).kl
        total, count = total + found.sum(1), count + found.shape[1]
    return total / count


def _step(model: LanguageModel, made: TunedLens, texts: Sequence[str]) -> None:
    """Add up the gradient of the mean over tokens, layer by layer, a few rows of logits at a time."""
    layers, states = lens.states_of(model, model.encode(texts), range(model.anatomy.n_layers - 1), "all")
    n = states.shape[1]
    with _frozen(model):
        for part in _parts(n, lens.rows_at_once(model)):
            with torch.no_grad():
                end = lens.to_logits(model, states[-1, part]).log_softmax(-1)
            for i, layer in enumerate(layers):
                said = lens.to_logits(model, made(layer, states[i, part])).log_softmax(-1)
                torch.nn.functional.kl_div(said, end, reduction="sum", log_target=True).div(n).backward()


def _parts(n: int, step: int) -> Iterator[slice]:
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


class _frozen:
    """While open, the final norm and the vocabulary take no gradient."""

    def __init__(self, model: LanguageModel) -> None:
        parts = [*model.anatomy.final_norm.parameters(), *model.anatomy.unembed.parameters()]
        self.open = [p for p in parts if p.requires_grad]

    def __enter__(self) -> None:
        for p in self.open:
            p.requires_grad_(False)

    def __exit__(self, *_error: object) -> None:
        for p in self.open:
            p.requires_grad_(True)
