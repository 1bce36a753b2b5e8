"""Three small transformers that track what is in which box: one half trained, the same trained on, and a stranger from another seed.

They stand in for a base model, its tuned descendant and an unrelated model. All have four layers of four heads. The base is the checkpoint
whose accuracy on new prompts is nearest to a given one; the tuned model is the same weights, trained on sums and boxes in turns; the
stranger is trained like both from another seed, until it is as good as the tuned one.

From a random start a network of this size needs thousands of steps before it finds how to look anything up. Two priors bring that down to a
hundred: the heads of the first layer begin by looking back one, two, three and four tokens, as a short convolution would, and in later layers
queries and keys begin alike, as do reading and writing (mimetic initialisation, Trockman & Kolter 2023). What the heads are used for is
learned. A start that has not begun to learn after `patience` steps is given up for another.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from nullius.errors import NulliusError
from nullius.models.language_model import LanguageModel
from nullius.paths import cache_dir
from nullius.stimuli import boxes

VERSION = 1  # of the recipe below: what it makes is cached under a digest of this number and of the plan
STYLE: boxes.Style = "short"  # in the long one the last word, "the", has been said before: a network of this size takes that for a hint
LOOK = 5.0  # how sharply the first layer's heads look back at first
DIGITS = tuple("0123456789")
NAMES = ("base", "tuned", "stranger")


@dataclass(frozen=True)
class Plan:
    """What is trained. boxes: told in a prompt. base: accuracy at which the base is taken. good: accuracy at which training ends.

    steps: at most, of each training. patience, starts: see above. batch: rows of a step; a row asks `questions` times. every: steps between
    looks at the accuracy.
    """

    seed: int = 0
    boxes: int = 4
    objects: int = 12
    labels: int = 8
    d_model: int = 64
    layers: int = 4
    base: float = 0.65
    good: float = 0.97
    steps: int = 400
    patience: int = 150
    starts: int = 8
    batch: int = 32
    questions: int = 6
    rate: float = 3e-3
    every: int = 5

    @property
    def digest(self) -> str:
        """SHA-256 (16 hex digits) of the plan and of the recipe's version."""
        return hashlib.sha256(json.dumps([VERSION, asdict(self)], sort_keys=True).encode()).hexdigest()[:16]

    @property
    def words(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The objects and labels that the trackers know."""
        return boxes.OBJECTS[: self.objects], boxes.LABELS[: self.labels]


@dataclass(frozen=True)
class Trackers:
    """The three models, with their accuracy on new prompts when training ended, and the steps that each took."""

    base: LanguageModel
    tuned: LanguageModel
    stranger: LanguageModel
    accuracy: dict[str, float]
    steps: dict[str, int]


def tokenizer(plan: Plan) -> PreTrainedTokenizerFast:
    """One token a word."""
    objects, labels = plan.words
    words = ["<|endoftext|>", "in", "has", ",", ".", "+", "=", *DIGITS, *objects, *labels]
    tokens = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<|endoftext|>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokens, unk_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>")


def fresh(plan: Plan, words: int, seed: int) -> Any:
    """A network that has seen nothing, with the priors told above; torch's global generator is left as it was."""
    heads = 4
    config = Qwen2Config(
        vocab_size=words, hidden_size=plan.d_model, intermediate_size=2 * plan.d_model, num_hidden_layers=plan.layers,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=256, tie_word_embeddings=True, initializer_range=0.1,
    )  # fmt: skip
    d_head = plan.d_model // heads
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        hf = Qwen2ForCausalLM(config)
        turn = 1.0 / (10000.0 ** (torch.arange(0, d_head, 2) / d_head))  # rotary angle of each pair of dimensions, per token
        for number, layer in enumerate(hf.model.layers):
            attention = layer.self_attn
            for head in range(heads):
                own = slice(head * d_head, (head + 1) * d_head)
                alike, through = (torch.linalg.qr(torch.randn(plan.d_model, plan.d_model))[0][:d_head] for _ in range(2))
                attention.v_proj.weight[own] = 1.2 * through
                attention.o_proj.weight[:, own] = 1.2 * through.T
                if number:
                    attention.q_proj.weight[own] = attention.k_proj.weight[own] = 1.4 * alike
                else:
                    back = turn * (head + 1)
                    attention.q_proj.bias[own] = LOOK * torch.cat([torch.ones_like(back), torch.zeros_like(back)])
                    attention.k_proj.bias[own] = LOOK * torch.cat([back.cos(), back.sin()])
            for part in (attention.q_proj, attention.k_proj):
                if number:
                    part.bias.normal_(std=0.3)
                else:
                    part.weight.mul_(0.3)
    return hf


class _Rows:
    """Rows of tokens to train on: the boxes told, then questions and answers; or sums. Targets are the answers and the results."""

    def __init__(self, plan: Plan, tokens: PreTrainedTokenizerFast, rng: np.random.Generator) -> None:
        self.plan, self.ids, self.rng = plan, tokens.get_vocab(), rng

    def _of(self, text: str) -> list[int]:
        for mark in ",.":
            text = text.replace(mark, f" {mark}")
        return [self.ids[word] for word in text.split()]

    def boxes(self) -> tuple[list[int], list[int]]:
        """One row about boxes, with the positions of its answers."""
        objects, labels = self.plan.words
        item = boxes.draw(self.rng, 1, self.plan.boxes, objects=objects, labels=labels, style=STYLE)[0]
        row, targets = [0, *self._of(item.told)], []
        for index in self.rng.integers(self.plan.boxes, size=self.plan.questions):
            asked = item.about(int(index))
            row += self._of(asked.prompt[len(item.told) :])
            targets.append(len(row))
            row += self._of(f"{asked.answer}.")
        return row, targets

    def sums(self) -> tuple[list[int], list[int]]:
        """One row of sums of two digits that make one digit."""
        row, targets = [0], []
        for _ in range(2 * self.plan.questions):
            a = int(self.rng.integers(10))
            b = int(self.rng.integers(10 - a))
            row += self._of(f"{a} + {b} =")
            targets.append(len(row))
            row += self._of(f"{a + b}.")
        return row, targets

    def batch(self, mixed: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids [batch, T], padded on the right, and row and position of each target."""
        made = [self.sums() if mixed and i % 2 else self.boxes() for i in range(self.plan.batch)]
        width = max(len(row) for row, _ in made)
        ids = torch.tensor([row + [0] * (width - len(row)) for row, _ in made])
        where = [(i, at) for i, (_, targets) in enumerate(made) for at in targets]
        rows, columns = (torch.tensor(part) for part in zip(*where, strict=True))
        return ids, rows, columns


def accuracy(model: LanguageModel, items: boxes.Stimuli[boxes.Boxes], batch_size: int = 256) -> np.ndarray:
    """1 where the greedy next token is the answer [n]."""
    found = model.last_logits(items.field("prompt"), batch_size).argmax(-1).numpy()
    return (found == np.array([model.first_token(answer) for answer in items.field("answer")])).astype(float)


def train(plan: Plan, device: torch.device | str = "cpu", on_step: Callable[[str, int, int], None] | None = None) -> Trackers:
    """Train the three. Raises NulliusError when one of them does not learn the task within the plan's steps and starts."""
    tokens = tokenizer(plan)
    tell = on_step or (lambda _name, _done, _steps: None)
    trained: dict[str, Trained] = {}
    for name, first, then in (("base", 0, "tuned"), ("stranger", 1000, "stranger")):
        for start in range(plan.starts):
            seed = 10_000 * plan.seed + first + start
            fresh_one = fresh(plan, len(tokens), seed).to(device)
            half = _fit(plan, fresh_one, tokens, name, seed, plan.base, False, partial(tell, name))
            if half is not None:
                break
        else:
            raise NulliusError(f"no start of {plan.starts} began to learn the boxes in {plan.patience} steps: try another seed")
        trained[name] = half
        good = plan.good if name == "base" else trained["tuned"].accuracy
        more = _fit(plan, copy.deepcopy(half.hf), tokens, then, seed + 500, good, True, partial(tell, then))
        if more is None:
            raise NulliusError(f"the {then} tracker did not reach {good:.2f} in {plan.steps} steps: try another seed")
        trained[then] = replace(more, steps=more.steps + (half.steps if then == name else 0))
    wrapped = {name: LanguageModel.wrap(one.hf.eval(), tokens, f"{name} tracker") for name, one in trained.items()}
    return Trackers(
        wrapped["base"], wrapped["tuned"], wrapped["stranger"], {name: one.accuracy for name, one in trained.items()},
        {name: one.steps for name, one in trained.items()},
    )  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """A network as it was at a step, and its accuracy then."""

    hf: Any
    steps: int
    accuracy: float


def _fit(
    plan: Plan,
    hf: Any,
    tokens: PreTrainedTokenizerFast,
    name: str,
    seed: int,
    wanted: float,
    mixed: bool,
    tell: Callable[[int, int], None],
) -> Trained | None:
    """Train in place until the accuracy on new prompts is `wanted`; return the network as it was when nearest to that.

    mixed: sums too. None where it did not begin to learn (where it starts from nothing), or did not get there.
    """
    objects, labels = plan.words
    probe = boxes.draw(np.random.default_rng(plan.seed + 77), 400, plan.boxes, objects=objects, labels=labels, style=STYLE)
    model = LanguageModel.wrap(hf, tokens, name)
    rows = _Rows(plan, tokens, np.random.default_rng(seed))
    optimiser = torch.optim.AdamW(hf.parameters(), lr=plan.rate, weight_decay=0.0, betas=(0.9, 0.98))
    best: tuple[float, int, float, Any] | None = None
    for step in range(plan.steps + 1):
        if step % plan.every == 0:
            score = float(accuracy(model, probe).mean())
            if best is None or abs(score - wanted) < best[0] or (mixed and score > best[2]):
                best = (abs(score - wanted), step, score, copy.deepcopy(hf.state_dict()))
            if score >= wanted:
                break
            if step == plan.steps or (not mixed and step >= plan.patience and score < (1 / plan.boxes + wanted) / 2):
                return None
        optimiser.param_groups[0]["lr"] = plan.rate * min(1.0, (step + 1) / 30)
        ids, row, column = (part.to(hf.device) for part in rows.batch(mixed))
        hidden = hf.model(input_ids=ids).last_hidden_state[row, column - 1]
        loss = nn.functional.cross_entropy(hf.lm_head(hidden), ids[row, column])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(hf.parameters(), 1.0)
        optimiser.step()
        tell(step + 1, plan.steps)
    assert best is not None
    kept = Qwen2ForCausalLM(hf.config).to(hf.device)
    kept.load_state_dict(best[3])
    return Trained(kept, best[1], best[2])


def load(plan: Plan, device: torch.device | str = "cpu", on_step: Callable[[str, int, int], None] | None = None) -> Trackers:
    """The trackers of a plan: from the cache folder where they are, else trained and put there, whole or not at all."""
    folder = cache_dir() / "trackers" / plan.digest
    with FileLock(str(folder.parent.parent / f".trackers-{plan.digest}.lock")):
        if not (folder / "trackers.json").exists():
            _save(train(plan, device, on_step), plan, folder)
    told = json.loads((folder / "trackers.json").read_text("utf-8"))
    tokens, wrapped = tokenizer(plan), {}
    for name in NAMES:
        hf = fresh(plan, len(tokens), 0)
        hf.model.load_state_dict(load_file(folder / f"{name}.safetensors"))  # the unembedding is the embedding
        wrapped[name] = LanguageModel.wrap(hf.to(device), tokens, f"{name} tracker")
    return Trackers(wrapped["base"], wrapped["tuned"], wrapped["stranger"], told["accuracy"], told["steps"])


def _save(made: Trackers, plan: Plan, folder: Path) -> None:
    staging = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        staging.mkdir(parents=True)
        for name in NAMES:
            weights = getattr(made, name).hf.model.state_dict()
            save_file({key: value.detach().cpu().contiguous() for key, value in weights.items()}, staging / f"{name}.safetensors")
        told = {"plan": asdict(plan), "accuracy": made.accuracy, "steps": made.steps}
        (staging / "trackers.json").write_text(json.dumps(told, indent=1), "utf-8")
        os.replace(staging, folder)
    except OSError as error:
        raise NulliusError(f"cannot keep the trackers in {folder}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
