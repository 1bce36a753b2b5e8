"""Questions with an answer whose first telling token is known: fed as token ids, so that a digit behind a space is met where it is told apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nullius.errors import SubjectError, UsageError
from nullius.instruments import patching, resumable, wavefront
from nullius.models import hooks
from nullius.models.language_model import Batch, LanguageModel


@dataclass(frozen=True)
class Questions:
    """rows: token ids of each prompt, up to the token that tells answers apart. targets: that token of the right answer [n]."""

    prompts: tuple[str, ...]
    rows: tuple[tuple[int, ...], ...]
    targets: NDArray[np.int64]

    def batch(self, model: LanguageModel) -> Batch:
        """All rows as one batch."""
        return model.pad(self.rows)

    def where(self, keep: NDArray[np.bool_]) -> Questions:
        """Return some of them."""
        chosen = np.flatnonzero(keep)
        return Questions(tuple(self.prompts[i] for i in chosen), tuple(self.rows[i] for i in chosen), self.targets[chosen])

    def log_probs(self, model: LanguageModel, size: int = 32) -> NDArray[np.float64]:
        """Log-probability of the right answer's token [n], in nats."""
        return self.scores(model, size)[0]

    def right(self, model: LanguageModel, size: int = 32) -> NDArray[np.float64]:
        """1 where the most probable token is the right answer's [n]."""
        return self.scores(model, size)[1]

    @torch.no_grad()
    def scores(self, model: LanguageModel, size: int = 32) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Both, `log_probs` and `right`, of one run."""
        found = [
            torch.stack([part.log_softmax(-1).gather(1, at)[:, 0].double(), (part.argmax(-1) == at[:, 0]).double()]).cpu().numpy()
            for part, at in self._logits(model, size)
        ]
        log_probs, right = np.concatenate(found, 1)
        return log_probs, right

    def columns(self, model: LanguageModel, spans: Sequence[Sequence[tuple[int, int]]]) -> list[list[int]]:
        """For each prompt the columns of its batch whose tokens touch any of its spans of characters. UsageError without a fast tokenizer."""
        if not model.tokenizer.is_fast:
            raise UsageError(f"the tokenizer of {model.name} does not tell which characters a token covers")
        width, out = max(map(len, self.rows)), []
        for prompt, row, wanted in zip(self.prompts, self.rows, spans, strict=True):
            offsets = model.tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            lead = int(len(model.tokens(prompt)) > 0 and row[0] == model.bos_id)
            shift = width - len(row) + lead
            out.append([shift + i for i, (a, b) in enumerate(offsets) if any(a < stop and start < b for start, stop in wanted)])
        return out

    def _logits(self, model: LanguageModel, size: int) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        run = self._run(model)
        for start in range(0, len(self.rows), size):
            part = slice(start, start + size)
            yield run(self.rows[part]), torch.tensor(self.targets[part], device=model.device)[:, None]

    def _run(self, model: LanguageModel) -> Callable[[Sequence[Sequence[int]]], torch.Tensor]:
        """Logits behind rows; what all rows begin with (worked examples) is run once, where that is half of them and the model bears it."""

        def plain(rows: Sequence[Sequence[int]]) -> torch.Tensor:
            return model.logits(model.pad(rows)).float()

        def behind(rows: Sequence[Sequence[int]]) -> torch.Tensor:
            last = wavefront.run_suffix(model, base, model.pad(rows).input_ids, shared)[:, -1]
            return model.anatomy.logits(last).float()

        shared = self._shared()
        if not shared or not runs_from_middle(model):
            return plain
        base = wavefront.run_base(model, model.pad(self.rows[:1]))
        return behind if reads_alike(model, base) else plain

    def _shared(self) -> int:
        """How many tokens all rows begin with; 0 where they differ in length, or share less than half of it."""
        length = len(self.rows[0]) if self.rows else 0
        if len(self.rows) < 2 or any(len(row) != length for row in self.rows):
            return 0
        differs = (i for i, column in enumerate(zip(*self.rows, strict=True)) if len(set(column)) > 1)
        shared = min(next(differs, length), length - 1)
        return shared if 2 * shared >= length else 0


def runs_from_middle(model: LanguageModel) -> bool:
    """Whether texts can be run from their middle: the architecture allows it, and nobody's hooks are open, which would miss what is not run."""
    anatomy = model.anatomy
    if anatomy.decoder._forward_pre_hooks or any(hooks.hooked(part) for part in (*anatomy.layers, anatomy.final_norm, anatomy.unembed)):
        return False
    try:
        resumable.check(model)
    except SubjectError:
        return False
    return True


def reads_alike(model: LanguageModel, base: wavefront.Base) -> bool:
    """Whether logits made from the final norm are the model's own."""
    gap = (model.anatomy.logits(base.last).float() - base.logits).abs().max()
    return bool(gap <= patching.TOLERANCE[model.dtype] * max(1.0, float(base.logits.abs().max())))


def ask(model: LanguageModel, items: Sequence[Any] | Iterable[Any], prompts: Sequence[str] = (), answers: Sequence[str] = ()) -> Questions:
    """Make questions of items with a `prompt` and an `answer` (which begins with its space), or of prompts and answers beside them.

    Where a tokenizer makes the space before the answer a token of its own, that token belongs to the prompt. Raises UsageError for an answer
    without a token of its own, and where prompts and answers differ in number.
    """
    prompts = list(prompts) or [item.prompt for item in items]
    answers = list(answers) or [item.answer for item in items]
    if len(prompts) != len(answers):
        raise UsageError(f"{len(prompts)} prompts and {len(answers)} answers: give one of each for every question")
    lead = [model.bos_id] if model.bos_id is not None else []
    rows, targets = [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids, bare = model.tokens(prompt + answer), model.tokens(f"{prompt} ")
        shared = next((i for i, (a, b) in enumerate(zip(ids, bare, strict=False)) if a != b), min(len(ids), len(bare)))
        if shared >= len(ids):
            raise UsageError(f"'{answer}' has no token of its own behind '{prompt[-40:]}'")
        own = [] if lead and ids[:1] == lead else lead
        rows.append((*own, *ids[:shared]))
        targets.append(ids[shared])
    return Questions(tuple(prompts), tuple(rows), np.array(targets))
