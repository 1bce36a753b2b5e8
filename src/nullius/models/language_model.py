"""A subject: the untouched transformers model with its tokenizer, its anatomy and its identity."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from nullius.errors import SubjectError, UsageError
from nullius.models.anatomy import Anatomy


@dataclass(frozen=True)
class Provenance:
    """Where a subject came from. quantisation: empty for full-precision files."""

    source: str
    licence: str = ""
    quantisation: str = ""

    def to_dict(self) -> dict[str, str]:
        """Return it as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Batch:
    """Token ids [B, T], left-padded, with their mask [B, T] (1 where a token is real)."""

    input_ids: Tensor
    attention_mask: Tensor

    @property
    def position_ids(self) -> Tensor:
        """Positions counted from the first real token [B, T]."""
        return (self.attention_mask.cumsum(-1) - 1).clamp(min=0)

    def beginning(self) -> int:
        """How many tokens all texts begin with; 0 where some are padded."""
        if not bool(self.attention_mask.all()):
            return 0
        differs = (self.input_ids != self.input_ids[:1]).any(0)
        return int(differs.int().argmax()) if bool(differs.any()) else self.input_ids.shape[1]


class _Counter:
    """A hook that counts the tokens that go through an embedding. Holds no model, so that a copied model counts for itself."""

    def __init__(self) -> None:
        self.tokens = 0

    def __call__(self, _module: Any, args: Any, kwargs: Any) -> None:
        self.tokens += (args[0] if args else kwargs["input"]).numel()


class LanguageModel:
    """A causal language model. `hf` is exactly what transformers loaded: logits with and without the wrapper are bit-identical.

    parameters: their number. chat: whether the tokenizer has a chat template. tokens_seen: tokens (padding included) fed so far.
    Beginning of text: every text gets one leading token, the tokenizer's own when it adds one (Gemma, Llama), else the document separator of
    pretraining (`<|endoftext|>`: GPT-2, NeoX, Qwen, SmolLM), else its BOS; none where there is none of these. A text that already begins with
    it (a filled chat template) gets no second one. `encode(bos=False)` leaves it out.
    """

    def __init__(self, hf: Any, tokenizer: Any, name: str, weights_sha256: str, provenance: Provenance) -> None:
        self.hf = hf.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.weights_sha256 = weights_sha256
        self.provenance = provenance
        self.anatomy = Anatomy(hf)
        self.parameters: int = sum(p.numel() for p in hf.parameters())
        self.chat: bool = bool(getattr(tokenizer, "chat_template", None))
        self.bos_id = _bos(tokenizer)
        self.pad_id: int = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
        self._counter = _Counter()
        self.anatomy.embed.register_forward_pre_hook(self._counter, with_kwargs=True)

    @classmethod
    def wrap(cls, hf: Any, tokenizer: Any, name: str = "toy") -> LanguageModel:
        """Make a subject of a model and a tokenizer that are already there; its hash is that of its parameters."""
        digest = hashlib.sha256()
        for key, value in sorted(hf.state_dict().items()):
            digest.update(key.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return cls(hf, tokenizer, name, digest.hexdigest(), Provenance("made in this process"))

    @property
    def tokens_seen(self) -> int:
        """Tokens fed to the model so far, padding included."""
        return self._counter.tokens

    @tokens_seen.setter
    def tokens_seen(self, tokens: int) -> None:
        self._counter.tokens = tokens

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.hf.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return next(self.hf.parameters()).dtype

    def tokens(self, text: str) -> list[int]:
        """Token ids of a text, without any special token."""
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def str_tokens(self, text: str) -> list[str]:
        """The tokens of a text as text, the leading one of `encode` included: what stands at which position."""
        return [self.tokenizer.decode([token]) for token in self.encode([text]).input_ids[0].tolist()]

    def first_token(self, text: str) -> int:
        """First token id of a continuation (a leading space counts). Raises SubjectError for an empty one.

        Read behind a full stop, because some tokenizers (Llama 2) put a space of their own before whatever begins a text.
        """
        before, whole = self.tokens("."), self.tokens(f".{text}")
        ids = whole[len(before) :] if whole[: len(before)] == before else self.tokens(text)
        if not text or not ids:
            raise SubjectError(f"'{text}' has no token in the vocabulary of {self.name}")
        return ids[0]

    def single_token(self, text: str) -> int:
        """Token id of a continuation that is one token (a leading space counts). Raises UsageError for any other, and shows its tokens."""
        before, whole = self.tokens("."), self.tokens(f".{text}")
        found = whole[len(before) :] if whole[: len(before)] == before else self.tokens(text)
        if len(found) == 1:
            return found[0]
        parts = " | ".join(self.tokenizer.convert_ids_to_tokens(found)) or "nothing"
        spaced = not text.startswith(" ") and bool(text) and len(self.tokens(f" {text}")) == 1
        raise UsageError(
            f"'{text}' is not one token of {self.name} but {len(found)} ({parts}): "
            + (f"' {text}', with a space before it, is one" if spaced else "take another word, or first_token for the first of them")
        )

    def token_ids(self, tokens: Any) -> Tensor:
        """Token ids as a tensor on the model's device, of the shape of `tokens`: ids, or strings of one token each, nested as they come.

        Raises UsageError for a string that is not one token, an id outside the vocabulary, and what is neither.
        """

        def read(item: Any) -> Any:
            if isinstance(item, str):
                return self.single_token(item)
            return [read(one) for one in item] if isinstance(item, (list, tuple)) else item

        try:
            found = torch.as_tensor(read(tokens), device=self.device)
        except (ValueError, TypeError):
            raise UsageError("answers must be token ids, or strings of one token each, in rows of one length") from None
        size = self.anatomy.unembedding().shape[0]
        if found.numel() and (found.is_floating_point() or int(found.min()) < 0 or int(found.max()) >= size):
            wrong = found if found.is_floating_point() else found[(found < 0) | (found >= size)]
            raise UsageError(f"{wrong.flatten()[0].item()} is no token of {self.name}: its vocabulary has ids 0 to {size - 1}")
        return found.long()

    def batch(self, texts: Sequence[str] | Batch) -> Batch:
        """Return texts as a batch on the model's device: encoded, or as they are. Raises UsageError for one text that stands in no list, and for a
        batch that is padded on the right."""
        if not isinstance(texts, Batch):
            return self.encode(texts)
        if not bool(texts.attention_mask[:, -1].all()):
            row = int((texts.attention_mask[:, -1] == 0).nonzero()[0])
            raise UsageError(f"text {row} of the batch is padded on the right: pad on the left (`encode` and `pad` do)")
        return Batch(texts.input_ids.to(self.device), texts.attention_mask.to(self.device))

    def encode(self, texts: Sequence[str], bos: bool = True) -> Batch:
        """Tokenise and left-pad. Special tokens written out in a text count as such (chat templates). Raises UsageError for one text in no list."""
        _in_a_list(texts)
        rows = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if len(texts) else []
        lead = [self.bos_id] if bos and self.bos_id is not None else []
        return self.pad([row if lead and row[:1] == lead else lead + row for row in rows])

    def pad(self, rows: Sequence[Sequence[int]]) -> Batch:
        """Left-pad rows of token ids into a batch on the model's device. Raises SubjectError for an empty row."""
        if not rows or not all(len(row) for row in rows):
            raise SubjectError("a text without tokens cannot be fed to a model; give it at least one word")
        if any(isinstance(row, str) for row in rows):
            raise UsageError("rows of token ids are wanted here, not texts: `encode` takes those")
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.pad_id)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, width - len(row) :] = torch.tensor(row)
            mask[i, width - len(row) :] = 1
        return Batch(ids.to(self.device), mask.to(self.device))

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        return {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "position_ids": batch.position_ids,
            "use_cache": False,
        }

    def hidden(self, batch: Batch) -> Tensor:
        """Run the decoder body: output of the final norm [B, T, d_model]. No vocabulary projection is made."""
        return self.anatomy.decoder(**self._inputs(batch)).last_hidden_state

    def logits(self, batch: Batch, positions: Literal["last", "all"] = "last") -> Tensor:
        """Logits as transformers makes them (soft-capping and scaling included): [B, V] at the last position, or [B, T, V]."""
        if positions == "all":
            return self.hf(**self._inputs(batch)).logits
        return self.hf(**self._inputs(batch), logits_to_keep=1).logits[:, -1]

    @torch.no_grad()
    def last_logits(self, texts: Sequence[str], batch_size: int = 32, bos: bool = True) -> Tensor:
        """Logits after each text [n, V], float32 on the CPU; texts of similar length share a batch."""
        rows: list[Tensor | None] = [None] * len(texts)
        for chosen in self.by_length(texts, batch_size):
            found = self.logits(self.encode([texts[i] for i in chosen], bos)).float().cpu()
            for i, row in zip(chosen, found, strict=True):
                rows[i] = row
        return torch.stack([row for row in rows if row is not None])

    def by_length(self, texts: Sequence[str], batch_size: int) -> list[list[int]]:
        """Cut item numbers into batches of similar length, longest first (an early end when memory does not suffice); what fits into one batch keeps
        its order, so that row i of an intervention is text i."""
        _in_a_list(texts)
        if 0 < len(texts) <= batch_size:
            return [list(range(len(texts)))]
        rows = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if len(texts) else []
        order = sorted(range(len(texts)), key=lambda i: -len(rows[i]))
        return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]

    @torch.no_grad()
    def generate(self, texts: Sequence[str], max_new_tokens: int, batch_size: int = 16) -> list[str]:
        """Greedy continuations, without the prompts and special tokens."""
        from transformers import GenerationConfig

        # spelt out: what is left unset comes from the model's own config, which may ask for sampling or a repetition penalty
        ends = self.hf.generation_config.eos_token_id
        greedy = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            pad_token_id=self.pad_id,
            eos_token_id=self.tokenizer.eos_token_id if ends is None else ends,
        )
        answers = [""] * len(texts)
        for chosen in self.by_length(texts, batch_size):
            batch = self.encode([texts[i] for i in chosen])
            out = self.hf.generate(input_ids=batch.input_ids, attention_mask=batch.attention_mask, generation_config=greedy)
            new = out[:, batch.input_ids.shape[1] :]
            for i, text in zip(chosen, self.tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
                answers[i] = text
        return answers


def _in_a_list(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise UsageError(f"one text stands in a list: ['{texts[:20]}'], not '{texts[:20]}'")


def untrained(model: LanguageModel, seed: int) -> LanguageModel:
    """Return a subject of the same architecture and tokenizer with freshly initialised weights: the control that knows nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hf = type(model.hf)(copy.deepcopy(model.hf.config)).to(dtype=model.dtype)
    return LanguageModel.wrap(hf.to(model.device), model.tokenizer, f"{model.name} (untrained)")


def _bos(tokenizer: Any) -> int | None:
    plain = tokenizer("a")["input_ids"]
    if plain and plain[0] in tokenizer.all_special_ids:
        return plain[0]
    separator = tokenizer.get_vocab().get("<|endoftext|>")
    return separator if separator is not None else tokenizer.bos_token_id
