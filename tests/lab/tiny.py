"""A subject of a few thousand parameters and a study of a second, for tests that start processes and kill them."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nullius.errors import NulliusError
from nullius.lab import Claim, Figure, Lab, Panel, Series, above_control, drawing, runner, study
from nullius.models.language_model import LanguageModel

WORDS = ["<s>", "the", "a", "cat", "dog", "sees", "hears", "river", "doctor", "window", "garden", "letter", "market", "bottle", "forest"]
FIGURE = Figure("rise", "rise", (Panel("", "item", "rise", (Series("rise", [1.0, 2.0], [1.0, 2.0]),)),))


def subject() -> LanguageModel:
    """A random Llama of two layers over sixteen words; always the same."""
    tokens = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<s>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 2}
    hf = LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), max_position_embeddings=64, **sizes))
    return LanguageModel.wrap(hf, PreTrainedTokenizerFast(tokenizer_object=tokens, bos_token="<s>", unk_token="<s>"), "tiny")


@study(
    "tiny-study",
    claims=(
        Claim("said-before", "A word said before is more probable", above_control(0.1), control="another word"),
        Claim("seen-twice", "A word said twice is more probable still", above_control(0.1), control="another word"),
    ),
)
def tiny_study(lab: Lab) -> None:
    """Thirty items, a note, a figure."""
    words = [WORDS[i] for i in lab.rng.permutation(range(1, len(WORDS)))]
    lab.note(f"first word: {words[0]}")
    for claim, text in (("said-before", "the {0} sees the"), ("seen-twice", "the {0} hears the {0} sees the")):
        rows = [lab.subject.last_logits([text.format(word)])[0] for word in lab.progress(words, claim)]
        own = [float(row[WORDS.index(word)]) for row, word in zip(rows, words, strict=True)]
        other = [float(row[WORDS.index(word)]) for row, word in zip(rows, words[1:] + words[:1], strict=True)]
        lab.finding(claim, treated=own, control=other)
    lab.figure(FIGURE)


@study("endless", claims=(Claim("never", "Never decided", above_control(), control="nothing"),))
def endless(lab: Lab) -> None:
    """Says one note and goes on until it is stopped."""
    lab.note("begun")
    for _ in lab.progress(range(10**9), "waiting"):
        time.sleep(0.01)


SUBJECT = subject()
# Once, in the process from which all others are forked: the drawing libraries, and everything there is as no business of their collectors
drawing.svg(FIGURE), drawing.html(FIGURE)
gc.freeze()


def run_tiny(
    folder: str, database: str | None = None, before: Callable[[], None] | None = None, which: str = "tiny_study", limit: int = 0
) -> None:
    """What a process of its own does: one run in a data folder (database: where the journal is, if not there).

    Exit code 0, 1 (its one line stands in FOLDER.line) or 130 (Ctrl-C).
    """
    os.environ["NULLIUS_DATA"] = folder
    os.environ.pop("NULLIUS_DATABASE", None)
    if database:
        os.environ["NULLIUS_DATABASE"] = database
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if limit:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if before is not None:
        before()
    try:
        runner.run({"tiny_study": tiny_study, "endless": endless}[which], SUBJECT)
    except NulliusError as error:
        Path(f"{folder}.line").write_text(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def small_disk(folder: str, size: str) -> None:
    """Give this process a disk of its own, of `size`, in place of a folder. Exit code 77 when it has no right to."""
    new_mount_namespace = 0x20000
    if ctypes.CDLL(None, use_errno=True).unshare(new_mount_namespace):
        sys.exit(77)
    for command in (["mount", "--make-rprivate", "/"], ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]):
        if subprocess.run(command, capture_output=True, check=False).returncode:
            sys.exit(77)


def die_at(point: int) -> None:
    """Arrange that this process is killed at its `point`-th moment: before a statement to the database, a commit, or a move of a file."""
    import sqlalchemy as sa

    passed = [0]

    def moment(*_args: object) -> None:
        passed[0] += 1
        if passed[0] == point:
            os.kill(os.getpid(), signal.SIGKILL)

    sa.event.listen(sa.Engine, "before_cursor_execute", moment)
    sa.event.listen(sa.Engine, "commit", moment)
    for name in ("fsync", "replace"):
        original = getattr(os, name)

        def wrapped(*args: object, original: Callable = original) -> object:
            moment()
            return original(*args)

        setattr(os, name, wrapped)
