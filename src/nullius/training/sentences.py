"""Small language models of sentences over a given list of words: made, trained from nothing with looks on the way, and asked what they expect."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nullius.models.language_model import LanguageModel
from nullius.training import evaluation
from nullius.training.config import Optimiser, Schedule
from nullius.training.optimisers import Optimisers, outside_layers
from nullius.training.passes import Passes
from nullius.training.schedules import factor

END = "<|endoftext|>"
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Size:
    """Of a GPT: layers, width, heads, and the most tokens that it can read. positions: whether it learns an embedding of each position."""

    layers: int = 2
    width: int = 64
    heads: int = 4
    context: int = 64
    positions: bool = True


def fresh(words: Sequence[str], size: Size, seed: int, name: str = "gpt", device: torch.device | None = None) -> LanguageModel:
    """Make an untrained GPT-2 whose vocabulary is the end of a sentence and these words; texts are words with spaces between.

    Without positions the embedding of positions is zero and stays so: only the causal mask tells order then (Haviv et al. 2022).
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    tokens = Tokenizer(models.WordLevel({word: i for i, word in enumerate((END, *words))}, unk_token=END))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, bos_token=END, eos_token=END, pad_token=END)
    config = GPT2Config(
        vocab_size=len(words) + 1,
        n_positions=size.context,
        n_embd=size.width,
        n_layer=size.layers,
        n_head=size.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hf: Any = GPT2LMHeadModel(config)
    if not size.positions:
        hf.transformer.wpe.weight.requires_grad_(False).zero_()
    return LanguageModel.wrap(hf.to(device or torch.device("cpu")), tokenizer, name)


def rows(model: LanguageModel, sentences: Sequence[Sequence[str]], width: int) -> Tensor:
    """Pack sentences into rows of token ids [n, width], each row beginning with an end token and every sentence followed by one.

    Whole sentences only, so that the first position of a row is always the beginning of a sentence, as it is when one is scored; what room is left
    is filled with end tokens. Longer sentences are cut.
    """
    number = model.tokenizer.get_vocab()
    end = number[END]
    packed: list[list[int]] = []
    row = [end]
    for sentence in sentences:
        ids = [*(number[word] for word in sentence), end]
        if len(row) + len(ids) > width and len(row) > 1:
            packed.append(row)
            row = [end]
        row += ids[: width - 1]
    packed.append(row)
    return torch.tensor([row + [end] * (width - len(row)) for row in packed])


def train(
    model: LanguageModel,
    data: Tensor,
    steps: int,
    *,
    rate: float,
    batch: int,
    seed: int,
    on_step: Callable[[int, int], None] | None = None,
    snapshots: Sequence[int] = (),
    on_snapshot: Callable[[int, LanguageModel], None] | None = None,
) -> None:
    """Train a model in place on rows of token ids [n, T] (see `rows`), `batch` of them a step, without replacement until all have been seen.

    Muon and AdamW; the rate rises over the first tenth of the steps and falls over the last half. On CUDA bfloat16 autocast, and passes are recorded
    (see `passes`), which transformers' GPT-2 allows: it asks the GPU for its positions, but not while it is recorded. on_step(done, steps) after
    each step; on_snapshot(step, model) before the given steps (steps: at the end).
    """
    hf, cuda = model.hf, model.device.type == "cuda"
    data = data.to(model.device)
    named = {name: p for name, p in hf.named_parameters() if p.requires_grad}
    optimisers = Optimisers(named, Optimiser("muon", rate, betas=(0.9, 0.999), weight_decay=0.1), outside_layers(hf), fused=cuda)
    order, how = _order(len(data), batch, seed), Schedule("wsd", warmup=max(1, steps // 10), decay=0.5)
    chosen = np.stack([next(order) for _ in range(steps)])
    batches = torch.from_numpy(chosen).to(model.device)  # at once: each copy makes the processor wait
    autocast = partial(torch.autocast, model.device.type, torch.bfloat16, enabled=cuda)
    passes = Passes(partial(evaluation.loss_of, hf), list(named.values()), model.device, autocast, record=cuda, note=warnings.warn)
    hf.train()
    for step in range(steps + 1):
        if step in snapshots and on_snapshot is not None:
            hf.eval()
            with torch.no_grad():
                on_snapshot(step, model)
            hf.train()
        if step == steps:
            break
        passes([data[batches[step]]])
        nn.utils.clip_grad_norm_(named.values(), 1.0)
        optimisers.step(factor(how, step, steps))
        if on_step is not None:
            on_step(step + 1, steps)
    hf.eval()


def _order(n: int, batch: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Batches of row numbers for ever: each pass in an order of its own, and a batch may reach from one pass into the next."""
    generator, waiting = np.random.default_rng(seed), np.empty(0, np.int64)
    while True:
        while len(waiting) < batch:
            waiting = np.concatenate([waiting, generator.permutation(n)])
        yield waiting[:batch]
        waiting = waiting[batch:]


@torch.no_grad()
def surprisals(model: LanguageModel, sentences: Sequence[Sequence[str]]) -> list[Floats]:
    """Surprisal in nats of each token of each sentence, the end included, read from the beginning: arrays [tokens + 1]."""
    found: list[Floats] = [np.empty(0)] * len(sentences)
    for chosen, ids in _batches(model, sentences):
        scores = model.hf(input_ids=ids[:, :-1], use_cache=False).logits.float().log_softmax(-1)
        nats = -scores.gather(2, ids[:, 1:, None])[..., 0].double().cpu().numpy()
        for i, row in zip(chosen, nats, strict=True):
            found[i] = row[: len(sentences[i]) + 1]
    return found


@torch.no_grad()
def states(model: LanguageModel, sentences: Sequence[Sequence[str]], last: int = 4) -> list[Floats]:
    """Mean over the last (up to four) layers of the residual stream at each token of each sentence: arrays [tokens, width]."""
    found: list[Floats] = [np.empty((0, 0))] * len(sentences)
    for chosen, ids in _batches(model, sentences):
        layers = model.hf(input_ids=ids[:, :-1], use_cache=False, output_hidden_states=True).hidden_states[1:]
        mean = torch.stack(layers[-last:]).float().mean(0).cpu().numpy()
        for i, row in zip(chosen, mean, strict=True):
            found[i] = row[1 : len(sentences[i]) + 1]
    return found


def _batches(model: LanguageModel, sentences: Sequence[Sequence[str]], size: int = 256) -> Iterator[tuple[list[int], Tensor]]:
    """Numbers of sentences of similar length and their tokens [n, T], an end on either side, filled up on the right where nothing looks."""
    number = model.tokenizer.get_vocab()
    end = number[END]
    order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        ids = [[end, *(number[word] for word in sentences[i]), end] for i in chosen]
        width = max(map(len, ids))
        yield chosen, torch.tensor([row + [end] * (width - len(row)) for row in ids], device=model.device)


def totals(model: LanguageModel, sentences: Sequence[Sequence[str]]) -> Floats:
    """Total surprisal in nats of each sentence, its end included [n]."""
    return np.array([each.sum() for each in surprisals(model, sentences)])
