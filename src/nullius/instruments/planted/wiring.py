"""A transformer wired by hand: a small program becomes the weights of a real GPT-2, exactly.

The residual stream is cut into named slots, each of which holds a one-hot code. A head is stated as *match* (which slot of the asking token is
compared with which slot of the others) and *copy* (which slot it reads there, and into which it writes); a neuron as a sum of slot entries, a
threshold, and what it writes. Three tricks make what is stated exact:

- Ballast: two entries ±BALLAST at every token keep the variance of the stream constant to a part in ten thousand, and a balancing entry keeps its
  mean at 0, so that every layer norm is the identity on the slots.
- Rest: a head that finds no match attends to the first token, whose slots are empty, and writes nothing. Scores differ by SHARP nats or more.
- Neurons are rectified (`relu`), so that a sum and a threshold make an exact "and".

Heads and neurons that the program does not use write noise into the slot `out`, too faint to matter, so that an instrument has something not to find.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from nullius.models.language_model import LanguageModel

BALLAST, SHARP, LOUD = 500.0, 30.0, 10.0
START = "<|endoftext|>"

Entry = tuple[str, int]  # a slot and the place in its code


class Wiring:
    """A program in the making. words: the vocabulary; slots: name → size of its code; layers, heads, d_head, neurons: sizes of the model.

    length: the longest text in tokens, the leading one included. noise: about six times
    what an unused head or block of neurons writes into each entry of `out`. There must be a slot `out`, which the logits read. Every
    word has its own number in the slot `word`, if there is one; `first` marks the first token. Raises ValueError where the slots do not fit into
    heads · d_head.
    """

    def __init__(
        self,
        words: Sequence[str],
        slots: Mapping[str, int],
        *,
        layers: int,
        heads: int,
        d_head: int,
        length: int,
        neurons: int = 8,
        noise: float = 0.01,
        seed: int = 0,
    ) -> None:
        self.words = [START, *words]
        self.ids = {word: i for i, word in enumerate(self.words)}
        self.d_head, self.at, start = d_head, dict[str, slice](), 0
        for name, size in {**slots, "first": 1, "ballast": 2, "balance": 1}.items():
            self.at[name] = slice(start, start + size)
            start += size
        width = heads * d_head
        if start > width:
            raise ValueError(f"the slots take {start} entries, the stream has {width}")
        self.config = GPT2Config(
            vocab_size=len(self.words), n_embd=width, n_layer=layers, n_head=heads, n_inner=neurons, n_positions=length,
            activation_function="relu", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=False,
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        self.hf: Any = GPT2LMHeadModel(self.config)
        self.body: Any = self.hf.transformer
        self._wire_noise(noise, torch.Generator().manual_seed(seed))
        self.neurons = [0] * layers
        if "word" in slots:
            for i, word in enumerate(words):
                self.embed(word, "word", i)

    @torch.no_grad()
    def _wire_noise(self, noise: float, generator: torch.Generator) -> None:
        """Nothing but noise, ballast and norms that are the identity."""
        width, ballast = self.config.n_embd, self.at["ballast"].start
        for name, parameter in self.hf.named_parameters():
            if ".ln_" in name:
                parameter.fill_((2 / width) ** 0.5 * BALLAST if name.endswith("weight") else 0.0)
            else:
                parameter.zero_()
        self.body.wte.weight[:, ballast], self.body.wte.weight[:, ballast + 1] = BALLAST, -BALLAST
        self.body.wte.weight[0, self.at["first"]] = 1
        quiet = torch.ones(width)
        for name in ("first", "ballast", "balance"):
            quiet[self.at[name]] = 0
        heard = torch.zeros(width)
        heard[self.at["out"]] = 1
        for block in self.body.h:
            block.attn.c_attn.weight[:, 2 * width :] = quiet[:, None] * torch.randn(width, width, generator=generator) / width**0.5
            block.attn.c_proj.weight[:] = noise * torch.randn(width, width, generator=generator) / self.d_head**0.5 * heard
            block.mlp.c_fc.weight[:] = quiet[:, None] * torch.randn(block.mlp.c_fc.weight.shape, generator=generator) / width**0.5
            hidden = block.mlp.c_proj.weight.shape
            block.mlp.c_proj.weight[:] = noise * torch.randn(hidden, generator=generator) / hidden[0] ** 0.5 * heard

    @torch.no_grad()
    def embed(self, word: str, slot: str, number: int = 0, value: float = 1.0) -> None:
        """Let a word carry an entry of a slot."""
        self.body.wte.weight[self.ids[word], self._entry((slot, number))] = value

    @torch.no_grad()
    def place(self, position: int, slot: str, number: int = 0, value: float = 1.0) -> None:
        """Let a position (0 is the first token's) carry an entry of a slot."""
        self.body.wpe.weight[position, self._entry((slot, number))] = value

    @torch.no_grad()
    def answer(self, word: str, slot: str, number: int, value: float = LOUD) -> None:
        """Let an entry of a slot, at the last token, speak for a word."""
        self.hf.lm_head.weight[self.ids[word], self._entry((slot, number))] = value

    @torch.no_grad()
    def head(
        self,
        layer: int,
        head: int,
        *,
        match: Sequence[tuple[str, str]],
        copy: tuple[str, str],
        gain: float = 1.0,
        sharp: float = SHARP,
        tables: Sequence[tuple[str, str, torch.Tensor]] = (),
    ) -> None:
        """Wire a head. match: pairs of slots (of the asking token, of the others) whose codes must all agree; copy: from slot, to slot, times gain.

        tables: further scores in nats, as (slot of the asking token, slot of the others, table [size, size]): score(a, b) for codes a and b.
        A token scores `sharp` for each pair that agrees, the first token `sharp` for all but half a pair of them: it wins unless all agree.
        """
        width, reads = self.config.n_embd, slice(head * self.d_head, (head + 1) * self.d_head)
        fused, out = self.body.h[layer].attn.c_attn, self.body.h[layer].attn.c_proj
        q, k, v = (slice(part * width + reads.start, part * width + reads.stop) for part in range(3))
        fused.weight[:, q], fused.weight[:, k], fused.weight[:, v], out.weight[reads] = 0, 0, 0, 0
        scale, used = self.d_head**0.5, 0
        products = [(a, b, sharp * torch.eye(self._size(a), self._size(b))) for a, b in match] + list(tables)
        products.append(("always", "first", torch.tensor([[sharp * (len(match) - 0.5)]])))
        for a, b, table in products:
            size = table.shape[1]
            if used + size > self.d_head:
                raise ValueError(f"head {layer}.{head} compares more than its {self.d_head} dimensions can hold")
            there = slice(used, used + size)
            if a == "always":
                fused.bias[q][there] = table[0] * scale
            else:
                fused.weight[self.at[a], q.start + used : q.start + used + size] = table * scale
            fused.weight[self.at[b], k.start + used : k.start + used + size] = torch.eye(size)
            used += size
        source, target = copy
        size = self._size(source)
        fused.weight[self.at[source], v.start : v.start + size] = torch.eye(size)
        out.weight[reads.start : reads.start + size, self.at[target]] = gain * torch.eye(size, self._size(target))

    @torch.no_grad()
    def neuron(self, layer: int, reads: Mapping[Entry, float], threshold: float, writes: Mapping[Entry, float]) -> int:
        """Wire the next free neuron: relu(Σ weight · entry − threshold), times `writes`. Returns its number."""
        number, mlp = self.neurons[layer], self.body.h[layer].mlp
        self.neurons[layer] += 1
        mlp.c_fc.weight[:, number] = 0
        mlp.c_proj.weight[number] = 0
        mlp.c_fc.bias[number] = -threshold
        for entry, weight in reads.items():
            mlp.c_fc.weight[self._entry(entry), number] = weight
        for entry, value in writes.items():
            mlp.c_proj.weight[number, self._entry(entry)] = value
        return number

    @torch.no_grad()
    def model(self, name: str) -> LanguageModel:
        """Finish it: what writes to the stream is balanced to mean 0. Returns a subject with its own tokenizer (words and signs)."""
        balance = self.at["balance"].start
        writers = [self.body.wte.weight, self.body.wpe.weight]
        for block in self.body.h:
            writers += [block.attn.c_proj.weight, block.mlp.c_proj.weight]
        for weight in writers:
            weight[:, balance] = 0
            weight[:, balance] = -weight.sum(1)
        tokens = Tokenizer(models.WordLevel(self.ids, unk_token=START))
        tokens.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, unk_token=START, eos_token=START, pad_token=START)
        return LanguageModel.wrap(self.hf, tokenizer, name)

    def direction(self, slot: str, number: int = 0) -> torch.Tensor:
        """The unit vector of an entry in the residual stream [d_model]."""
        unit = torch.zeros(self.config.n_embd)
        unit[self._entry((slot, number))] = 1
        return unit

    def written(self, slot: str, number: int = 0) -> torch.Tensor:
        """The unit vector along which an entry is written [d_model]: the entry, and the balance that keeps the mean at 0."""
        return (self.direction(slot, number) - self.direction("balance")) / 2**0.5

    def _size(self, slot: str) -> int:
        return self.at[slot].stop - self.at[slot].start

    def _entry(self, entry: Entry) -> int:
        slot, number = entry
        if not 0 <= number < self._size(slot):
            raise ValueError(f"slot {slot} has entries 0 to {self._size(slot) - 1}, not {number}")
        return self.at[slot].start + number
