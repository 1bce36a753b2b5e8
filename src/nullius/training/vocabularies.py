"""Tokenizers of a training run: loaded by name, or trained on the run's own text."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from nullius.errors import NulliusError, SubjectError, UsageError
from nullius.models import weights
from nullius.training import checkpoints, documents
from nullius.training.config import Source
from nullius.training.packed import Progress

SEPARATOR = "<|endoftext|>"
MADE_FROM = "made-from.json"  # beside a trained tokenizer: what it was trained from
ENOUGH = 400_000_000  # characters; more text hardly changes which merges are the most frequent


def load(name: str) -> Any:
    """Load the tokenizer of a subject (name, hub id) or of a directory. Raises SubjectError when there is none."""
    from transformers import AutoTokenizer

    from nullius.models import loading

    folder = loading.locate(name, torch.device("cpu")).folder
    newest = None if (folder / "config.json").is_file() else checkpoints.latest(folder)
    if newest is not None:
        raise UsageError(f"{name} is a training run, not a subject: name one of its checkpoints, such as {newest}")
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except NulliusError:
        raise
    except Exception as error:  # files made by anyone: whatever it is, the user gets one line
        raise SubjectError(f"no tokenizer can be loaded from {folder}: {str(error).strip().splitlines()[0]}") from None


def make(folder: Path, sources: Sequence[Source], vocabulary: int, begun: bool, progress: Progress) -> None:
    """Train a run's tokenizer into its folder, unless it is there already.

    One that is there was made from this text and in this size, or the run has checkpoints (`begun`), which are made with it: then it stays. Else it
    is left from an attempt with other text, and is made anew. Raises UsageError (see `train`), SaveError when the disk is full.
    """
    told = [vocabulary, *([weights.content_hash(documents.files(s)), s.field, s.separator] for s in sources)]
    try:
        known = json.loads((folder / MADE_FROM).read_text("utf-8"))
    except (OSError, ValueError):
        known = None
    if folder.is_dir() and (begun or known == told):
        return
    tokenizer = train(sources, vocabulary, progress)

    def write(staging: Path) -> None:
        checkpoints.write_tokenizer(tokenizer, staging)
        (staging / MADE_FROM).write_text(json.dumps(told), "utf-8")

    checkpoints.whole_folder(folder, write)


def train(sources: Sequence[Source], vocabulary: int, progress: Progress) -> Any:
    """Train a byte-level BPE (any text round-trips) of `vocabulary` entries, the document separator among them.

    Numbers are cut into single digits. The same text gives the same tokenizer. Raises UsageError for a vocabulary that the text cannot fill.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocabulary <= len(alphabet):
        raise UsageError(f"a vocabulary of {vocabulary} is too small: {len(alphabet)} bytes and the separator need {len(alphabet) + 1}")
    tokens = Tokenizer(models.BPE())
    digits = pre_tokenizers.Split(Regex(r"\d"), "isolated")
    tokens.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokens.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[SEPARATOR], initial_alphabet=sorted(alphabet), show_progress=False, min_frequency=2
    )
    _interruptibly(lambda: tokens.train_from_iterator(_texts(sources, progress), trainer))
    if tokens.get_vocab_size() < vocabulary:
        raise UsageError(f"the text is too small for a vocabulary of {vocabulary}: it gives {tokens.get_vocab_size()} entries")
    return PreTrainedTokenizerFast(tokenizer_object=tokens, bos_token=SEPARATOR, eos_token=SEPARATOR, pad_token=SEPARATOR)


def separator(tokenizer: Any) -> int:
    """Return the token that ends a document: the end of text, else the beginning. Raises UsageError when the tokenizer has neither."""
    known = tokenizer.get_vocab().get(SEPARATOR)
    for token in (known, tokenizer.eos_token_id, tokenizer.bos_token_id):
        if token is not None:
            return int(token)
    raise UsageError("the tokenizer has no token that ends a text (eos_token); take another")


def _interruptibly(work: Callable[[], None]) -> None:
    """Do what takes minutes outside Python in a thread of its own, so that a signal reaches this one at once."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
    if failed:
        raise failed[0]


def _texts(sources: Sequence[Source], progress: Progress) -> Iterator[str]:
    """Pieces of all sources in turn, so that a limit on the whole cuts none of them off."""
    streams = [_pieces(source, progress) for source in sources]
    seen = 0
    while streams and seen < ENOUGH:
        for stream in list(streams):
            piece = next(stream, None)
            if piece is None:
                streams.remove(stream)
            else:
                seen += len(piece)
                yield piece


def _pieces(source: Source, progress: Progress) -> Iterator[str]:
    for path in documents.files(source):
        total = path.stat().st_size
        for piece, _, read in documents.pieces(path, source):
            progress(f"training the tokenizer on {path.name}", read // 1000, total // 1000)
            yield piece
