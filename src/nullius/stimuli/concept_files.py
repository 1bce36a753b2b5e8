"""The data sets of Jin et al. 2024 (arXiv 2404.07066), read from a folder of the user's: nullius ships none of them.

| set          | kind        | file                              | text, and what makes label 1                                        |
| ------------ | ----------- | --------------------------------- | ------------------------------------------------------------------- |
| cities       | factual     | cities.csv                        | statement; label 1. Also read: city                                 |
| common-claim | factual     | common_claim.csv                  | examples; label True (Neither is left out)                          |
| counterfact  | factual     | counterfact*.csv                  | statement; label 1. Also read: subject                              |
| stsa         | emotional   | stsa.binary.train                 | one item a line: label, space, text                                 |
| imdb         | emotional   | imdb.csv, movie_reviews.jsonl     | text; label 1                                                       |
| sarcasm      | emotional   | sarcasm.json, isarcasm_task*.csv  | headline; is_sarcastic 1 (one JSON object a line), or text; sarcastic |
| hateeval     | emotional   | hateeval.tsv                      | text; HS 1                                                          |
| strategyqa   | inferential | StrategyQA_task.json              | input and target without its leading Yes or No; target begins with Yes |
| coinflip     | inferential | coin_flip.json                    | question; answer yes                                                |

Any file may be gzip- or xz-compressed. Source: the repository that goes with the paper, Hugging Face for IMDb.
"""

from __future__ import annotations

import csv
import gzip
import json
import lzma
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nullius.errors import NulliusError, UsageError
from nullius.stimuli.concepts import Concept, Kind

Row = tuple[str, int, str]  # text, label, group ("" when an item stands alone)


@dataclass(frozen=True)
class Source:
    """How one data set is read: file name patterns, the parser of a file, and what a subject would be told."""

    name: str
    kind: Kind
    patterns: tuple[str, ...]
    rows: Callable[[str, str], Iterable[Row]]  # (file name without compression suffix, content)
    instruction: str
    question: str
    published: int  # items that the paper uses, both classes together


def _table(name: str, content: str) -> Iterable[dict[str, str]]:
    return csv.DictReader(content.splitlines(keepends=True), delimiter="\t" if name.endswith(".tsv") else ",")


def _objects(name: str, content: str) -> Iterable[dict[str, Any]]:
    """Rows of a .csv or .tsv, of a JSON list, of {"examples": [...]}, or of one JSON object a line."""
    if name.endswith((".csv", ".tsv")):
        return _table(name, content)
    try:
        whole = json.loads(content)
    except json.JSONDecodeError:
        return [json.loads(line) for line in content.splitlines() if line.strip()]
    return whole["examples"] if isinstance(whole, dict) else whole


def _statements(group: str) -> Callable[[str, str], Iterable[Row]]:
    return lambda name, content: [(row["statement"], int(row["label"]), row[group]) for row in _table(name, content)]


def _common_claim(name: str, content: str) -> Iterable[Row]:
    return [(row["examples"], int(row["label"] == "True"), "") for row in _table(name, content) if row["label"] in ("True", "False")]


def _stsa(name: str, content: str) -> Iterable[Row]:
    return [(line[2:], int(line[0]), "") for line in content.splitlines() if line.strip()]


def _imdb(name: str, content: str) -> Iterable[Row]:
    return [(row["text"], int(row["label"]), "") for row in _objects(name, content)]


def _sarcasm(name: str, content: str) -> Iterable[Row]:
    headline = [(row.get("headline") or row.get("text"), row.get("is_sarcastic", row.get("sarcastic"))) for row in _objects(name, content)]
    return [(text, int(label), "") for text, label in headline if text and label is not None]


def _hateeval(name: str, content: str) -> Iterable[Row]:
    return [(row["text"], int(row["HS"]), "") for row in _table(name, content)]


def _strategyqa(name: str, content: str) -> Iterable[Row]:
    rows = []
    for row in _objects(name, content):
        answer, _, explanation = row["target"].partition(".")
        rows.append((f"{row['input']} {explanation.strip()}", int(answer.strip() == "Yes"), ""))
    return rows


def _coinflip(name: str, content: str) -> Iterable[Row]:
    return [(row["question"], int(row["answer"] == "yes"), "") for row in _objects(name, content)]


TRUE = ("Judge whether the statement is true or false.", "Is this statement true?")
PRAISE = ("Judge whether the opinion is positive or negative.", "Is this opinion positive?")
SOURCES = (
    Source("cities", "factual", ("cities.csv",), _statements("city"), *TRUE, 1496),
    Source("common-claim", "factual", ("common_claim.csv",), _common_claim, *TRUE, 6000),
    Source("counterfact", "factual", ("counterfact*.csv",), _statements("subject"), *TRUE, 4000),
    Source("stsa", "emotional", ("stsa.binary.train",), _stsa, *PRAISE, 6920),
    Source("imdb", "emotional", ("imdb.csv", "movie_reviews.jsonl"), _imdb, *PRAISE, 2000),
    Source(
        "sarcasm", "emotional", ("sarcasm.json", "isarcasm_task*.csv"), _sarcasm,
        "Judge whether the text is sarcastic.", "Is this text sarcastic?", 6000,
    ),
    Source("hateeval", "emotional", ("hateeval.tsv",), _hateeval, "Judge whether the text is hateful.", "Is this text hateful?", 6000),
    Source(
        "strategyqa", "inferential", ("StrategyQA_task.json",), _strategyqa,
        "Judge whether the answer to the question is yes or no.", "Is the answer yes?", 2290,
    ),
    Source(
        "coinflip", "inferential", ("coin_flip.json",), _coinflip,
        "Judge whether the coin is heads up at the end.", "Is the coin heads up now?", 500,
    ),
)  # fmt: skip


def from_folder(folder: str | Path, rng: np.random.Generator, limit: int | None = None) -> tuple[Concept, ...]:
    """Return the sets whose files are in `folder` (or below it), balanced, each of the paper's size at most (`limit`: smaller still).

    Items are drawn at random within each class; the paper takes the first ones. Texts that occur twice are read once.
    Raises UsageError when the folder does not exist or holds none of the files, NulliusError for a file that cannot be read.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UsageError(f"no folder {root} to read concept data sets from")
    found = []
    for source in SOURCES:
        path = _find(root, source.patterns)
        if path is not None:
            found.append(_read(source, path, rng, min(source.published, limit or source.published)))
    if not found:
        wanted = ", ".join(pattern for source in SOURCES for pattern in source.patterns)
        raise UsageError(f"{root} holds none of the concept data sets: {wanted} (each may be .gz or .xz)")
    return tuple(found)


def _find(root: Path, patterns: tuple[str, ...]) -> Path | None:
    for pattern in patterns:
        for suffix in ("", ".gz", ".xz"):
            paths = sorted(root.rglob(pattern + suffix))
            if paths:
                return paths[0]
    return None


def _read(source: Source, path: Path, rng: np.random.Generator, n: int) -> Concept:
    unpack: Callable[[bytes], bytes] = {".gz": gzip.decompress, ".xz": lzma.decompress}.get(path.suffix, bytes)
    name = path.stem if path.suffix in (".gz", ".xz") else path.name
    try:
        content = unpack(path.read_bytes()).decode("utf-8")
        rows = list({row[0]: row for row in source.rows(name, content)}.values())
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError, KeyError, ValueError, TypeError) as error:
        raise NulliusError(f"cannot read {path} as the data set '{source.name}': {type(error).__name__}: {error}") from None
    labels = np.array([label for _, label, _ in rows])
    per_class = min(n // 2, int((labels == 0).sum()), int((labels == 1).sum()))
    if per_class < 10:
        raise NulliusError(f"{path} holds fewer than 10 usable items of one class")
    items = np.sort(np.concatenate([rng.permutation(np.flatnonzero(labels == value))[:per_class] for value in (0, 1)]))
    groups = np.array([rows[i][2] or f"item {i}" for i in items])
    return Concept(source.name, source.kind, tuple(rows[i][0] for i in items), labels[items], groups, source.instruction, source.question)
