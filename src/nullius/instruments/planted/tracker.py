"""A transformer wired by hand that tracks what is in which box, so that it is known which head does what.

Four layers of four heads (GPT-2, whose positions are vectors that can be read), prompts in the short style of `nullius.stimuli.boxes`. By
place, the way that Prakash et al. 2024 describe:

- 0.1 at each label told: reads at which place of the list it stands ("structure");
- 1.2 at the label asked about: looks for the same label earlier and takes that place over ("detector");
- 2.0 at the last token: takes the place over from the label asked about ("transmitter");
- 3.3 at the last token: looks at the object at that place and says it ("fetcher").

By label: 0.1 fetches the object to each label told, 2.0 takes the asked label itself over to the last token, 3.3 looks for it earlier and says
the object found there; 1.2 does nothing. All other heads write noise too faint to matter; feed-forward blocks are silent.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from nullius.models.language_model import LanguageModel
from nullius.stimuli import boxes

STRUCTURE, DETECTOR, TRANSMITTER, FETCHER = (0, 1), (1, 2), (2, 0), (3, 3)
LAYERS, HEADS, D_HEAD = 4, 4, 40
OBJECTS, LABELS = boxes.OBJECTS[:24], boxes.LABELS[:12]
# The fetcher attends softly, so that what it does changes smoothly with what it is asked, as in a model that was trained
SHARP, SOFT, LOUD, NOISE = 2.6, 1.7, 6.0, 0.003


class _Room:
    """Hands out ranges of the residual stream by name."""

    def __init__(self) -> None:
        self.size = 0
        self.at: dict[str, slice] = {}

    def take(self, **sizes: int) -> None:
        for name, size in sizes.items():
            self.at[name] = slice(self.size, self.size + size)
            self.size += size

    def __getitem__(self, name: str) -> slice:
        return self.at[name]


def wired(
    n_boxes: int = 4, by: Literal["place", "label"] = "place", broken: tuple[int, ...] = (), seed: int = 0, turned: bool = False
) -> LanguageModel:
    """Build it for prompts of `n_boxes` boxes, objects and labels among OBJECTS and LABELS.

    broken: places that the transmitter does not pass on (by place only), as an imperfect base model might; the detector sees them all the same.
    turned: each head computes the same in another basis of its own, as a model from another seed would.
    """
    room = _Room()
    room.take(object=len(OBJECTS), label=len(LABELS), place=n_boxes, want=n_boxes, structure=n_boxes, detected=n_boxes, sent=n_boxes)
    room.take(moved=len(OBJECTS), asked=len(LABELS), out=len(OBJECTS), told=1, query=1, last=1, always=1)
    words = ["<|endoftext|>", "in", "has", ",", ".", *OBJECTS, *LABELS]
    ids = {word: i for i, word in enumerate(words)}
    tokens = Tokenizer(models.WordLevel(ids, unk_token="<|endoftext|>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, unk_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    width = HEADS * D_HEAD
    assert room.size <= width
    length = 4 * n_boxes + 3
    config = GPT2Config(
        vocab_size=len(ids), n_embd=width, n_layer=LAYERS, n_head=HEADS, n_inner=8, n_positions=length + 1, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    hf: Any = GPT2LMHeadModel(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if ".ln_" not in name:
                parameter.zero_()
        embed, position, unembed = hf.transformer.wte.weight, hf.transformer.wpe.weight, hf.lm_head.weight
        for i, word in enumerate(OBJECTS):
            embed[ids[word], room["object"].start + i] = 1
            unembed[ids[word], room["out"].start + i] = LOUD
        for i, word in enumerate(LABELS):
            embed[ids[word], room["label"].start + i] = 1
        position[:, room["always"]] = 1
        for place in range(n_boxes):
            position[4 * place + 1, room["place"].start + place] = 1
            position[4 * place + 3, room["want"].start + place] = position[4 * place + 3, room["told"].start] = 1
        position[4 * n_boxes + 1, room["query"]] = position[4 * n_boxes + 2, room["last"]] = 1
        for layer in range(LAYERS):
            for head in range(HEADS):
                if (layer, head) not in (STRUCTURE, DETECTOR, TRANSMITTER, FETCHER):
                    _wire(hf, room, layer, head, noise=generator)
        if by == "place":
            _wire(hf, room, *STRUCTURE, match=("want", "place"), copy=("place", "structure"))
            _wire(hf, room, *DETECTOR, match=("label", "label"), copy=("structure", "detected"), only_told=True)
            _wire(hf, room, *TRANSMITTER, match=("last", "query"), copy=("detected", "sent"), broken=broken)
            _wire(hf, room, *FETCHER, match=("sent", "place"), copy=("object", "out"), sharp=SOFT)
        else:
            _wire(hf, room, *STRUCTURE, match=("want", "place"), copy=("object", "moved"))
            _wire(hf, room, *TRANSMITTER, match=("last", "query"), copy=("label", "asked"))
            _wire(hf, room, *FETCHER, match=("asked", "label"), copy=("moved", "out"), only_told=True, sharp=SOFT)
        if turned:
            for block in hf.transformer.h:
                for head in range(HEADS):
                    turn = torch.linalg.qr(torch.randn(D_HEAD, D_HEAD, generator=generator))[0]
                    values = slice(2 * width + head * D_HEAD, 2 * width + (head + 1) * D_HEAD)
                    own = slice(head * D_HEAD, (head + 1) * D_HEAD)
                    block.attn.c_attn.weight[:, values] = block.attn.c_attn.weight[:, values] @ turn
                    block.attn.c_proj.weight[own] = turn.T @ block.attn.c_proj.weight[own]
    return LanguageModel.wrap(hf, tokenizer, f"tracker by {by}")


def _wire(
    hf: Any,
    room: _Room,
    layer: int,
    head: int,
    *,
    match: tuple[str, str] | None = None,
    copy: tuple[str, str] | None = None,
    only_told: bool = False,
    sharp: float = SHARP,
    broken: tuple[int, ...] = (),
    noise: torch.Generator | None = None,
) -> None:
    """One head. match: what the query reads and what the key reads, equal codes attract. copy: what it reads there and where it writes that.

    only_told: labels that are asked about, not told, do not attract.
    """
    attention = hf.transformer.h[layer].attn
    fused, out = attention.c_attn.weight, attention.c_proj.weight  # [in, out] each
    width = HEADS * D_HEAD
    q, k, v = (slice(part * width + head * D_HEAD, part * width + (head + 1) * D_HEAD) for part in range(3))
    scale = (5 / width) ** 0.5  # of the layer norm: about four or five ones in each token's stream
    if noise is not None:
        fused[:, v] = NOISE * torch.randn(width, D_HEAD, generator=noise)
        out[head * D_HEAD : (head + 1) * D_HEAD, room["out"]] = NOISE * torch.randn(D_HEAD, len(OBJECTS), generator=noise)
    if match is not None:
        _code(fused[:, q], room[match[0]], sharp)
        _code(fused[:, k], room[match[1]], sharp * scale)
        if only_told:  # one more pair of dimensions, in which the label asked about repels
            fused[room["always"], q.stop - 1] = sharp
            fused[room["query"], k.stop - 1] = -2 * sharp * scale
    if copy is not None:
        _code(fused[:, v], room[copy[0]], scale)
        for place in broken:
            fused[room[copy[0]].start + place, v] = 0
        size = room[copy[1]].stop - room[copy[1]].start
        out[head * D_HEAD : head * D_HEAD + size, room[copy[1]]] = torch.eye(size)


def _code(weight: Tensor, source: slice, size: float) -> None:
    """Let the first dimensions of a head read a code off the stream."""
    n = source.stop - source.start
    weight[source, :n] = size * torch.eye(n)
