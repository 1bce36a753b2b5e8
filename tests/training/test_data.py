"""From files to batches: every document once, the same order each time, shares kept, and bad files refused with file and line."""

import gzip
import json
import lzma
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nullius.errors import NulliusError, UsageError
from nullius.training import documents, packed, vocabularies
from nullius.training.config import Source
from nullius.training.mixing import Mixture
from nullius.training.packed import Packed, pack

DOCUMENTS = ["One line.\nAnd another.", "Zwei: Grüße.", "3"]
quiet = lambda label, done, total: None  # noqa: E731


def write(path: Path, texts: list[str]) -> Path:
    """Documents as the suffix asks."""
    match path.suffixes[0]:
        case ".jsonl":
            content = "".join(json.dumps({"body": text, "id": i}) + "\n" for i, text in enumerate(texts)).encode()
        case ".parquet":
            pq.write_table(pa.table({"body": texts}), path)
            return path
        case _:
            content = "\n---\n".join(texts).encode()
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    with opener(path, "wb") as file:
        file.write(content)
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.jsonl", "a.parquet", "a.txt.gz", "a.jsonl.xz"])
def test_every_kind_of_file_gives_the_same_tokens(tmp_path, tokenizer, name):
    path = write(tmp_path / name, DOCUMENTS)
    data = pack(Source(str(path), field="body", separator="---"), tokenizer, 0, quiet)
    expected = [token for text in DOCUMENTS for token in [*tokenizer(text)["input_ids"], 0]]
    assert data.ids.tolist() == expected
    assert data.ids.dtype == np.uint16
    assert data.documents == 3


@settings(max_examples=25, deadline=None)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), min_size=1, max_size=40), min_size=1))
def test_json_lines_round_trip_any_text(tmp_path_factory, tokenizer, texts):
    folder = tmp_path_factory.mktemp("any")
    if not any(text.strip() for text in texts):
        texts = [*texts, "x"]
    path = write(folder / "a.jsonl", texts)
    ids = pack(Source(str(path), field="body"), tokenizer, 0, quiet).ids.tolist()
    found, document = [], []
    for token in ids:
        if token == 0:
            found.append(tokenizer.decode(document))
            document = []
        else:
            document.append(token)
    assert found == texts
    assert not document


def test_a_parquet_file_that_is_damaged_inside_is_named(tmp_path, tokenizer):
    path = write(tmp_path / "a.parquet", [f"document {i}" for i in range(200)])
    content = bytearray(path.read_bytes())
    content[60:400] = b"\xff" * 340
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"a.parquet cannot be read as parquet: ") as caught:
        pack(Source(str(path), field="body"), tokenizer, 0, quiet)
    assert "free some space" not in str(caught.value)


def test_patterns_reach_into_folders_and_names_may_look_like_patterns(tmp_path):
    for name in ("a/x/1.txt", "b/2.txt", "[3].txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text", "utf-8")

    def found(pattern):
        return [path.relative_to(tmp_path).as_posix() for path in documents.files(Source(f"{tmp_path}/{pattern}"))]

    assert found("*/*.txt") == ["b/2.txt"]
    assert found("**/*.txt") == ["[3].txt", "a/x/1.txt", "b/2.txt"]
    assert found("[3].txt") == ["[3].txt"]


def test_long_documents_come_in_pieces_and_end_once(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "PIECE", 100)
    text = "".join(f"line {i} of a long document\n" for i in range(50))
    path = tmp_path / "long.txt"
    path.write_text(text + "---\n---\nshort\n", "utf-8")
    pieces = list(documents.pieces(path, Source(str(path), separator="---")))
    assert "".join(piece for piece, _, _ in pieces[:-2]) == text.rstrip("\n")
    assert [ends for _, ends, _ in pieces].count(True) == 3  # one of them empty
    assert len(pieces) > 10


def test_packing_is_done_once_for_each_content(tmp_path, tokenizer, monkeypatch):
    path = write(tmp_path / "a.txt", DOCUMENTS)
    first = pack(Source(str(path)), tokenizer, 0, quiet)
    monkeypatch.setattr(packed, "_make", lambda *_: pytest.fail("made again"))
    moved = path.rename(tmp_path / "b.txt")
    assert pack(Source(str(moved)), tokenizer, 0, quiet).key == first.key
    monkeypatch.undo()
    moved.write_text("other text", "utf-8")
    assert pack(Source(str(moved)), tokenizer, 0, quiet).key != first.key


def test_a_failed_packing_leaves_nothing(tmp_path, tokenizer, monkeypatch):
    path = write(tmp_path / "a.txt", ["unique to this test", *DOCUMENTS])
    monkeypatch.setenv("NULLIUS_CACHE", str(tmp_path / "cache"))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packed, "_write", full)
    with pytest.raises(NulliusError, match=r"cannot write the packed data set .*No space left on device; free some space"):
        pack(Source(str(path)), tokenizer, 0, quiet)
    assert [p.name for p in (tmp_path / "cache" / "packed").iterdir() if not p.name.endswith(".lock")] == []


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"", "a.txt is empty"),
        ("a.txt", b" \n\n", "a.txt holds no text"),
        ("a.txt", b"good\nb\xe4d\n", r"a.txt, line 2: not UTF-8 \(byte 2 of the line\)"),
        ("a.txt", b"\xff\xfeu\x00t\x00f\x00", "a.txt, line 1: not UTF-8"),
        ("a.jsonl", b'{"text": "good"}\n{"text": \n', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", b'{"txt": "good"}\n', "a.jsonl, line 1: no text under 'text'; it has txt"),
        ("a.jsonl", b'\n{"text": 3}\n', "a.jsonl, line 2: no text under 'text', but 3"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\\ud800"}\n', r"a.jsonl, line 2: not Unicode, \\ud800 is half a character"),
        ("a.jsonl", b'{"text": ' + b"[" * 100_000, "a.jsonl, line 1: not JSON"),
        ("a.jsonl", b"[1]\n", "a.jsonl, line 1: no text under 'text'"),
        ("a.parquet", b"not parquet at all", "a.parquet cannot be read as parquet"),
        ("a.txt.gz", b"not gzip", "a.txt.gz is damaged"),
        ("a.txt.xz", lzma.compress(b"text " * 999)[:-9], "a.txt.xz is damaged"),
        ("a.csv", b"x", "a.csv is of no known kind"),
    ],
)
def test_bad_files(tmp_path, tokenizer, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=words) as error:
        pack(Source(str(tmp_path / name)), tokenizer, 0, quiet)
    assert "\n" not in str(error.value)


def test_missing_files_and_columns(tmp_path, tokenizer):
    with pytest.raises(UsageError, match="no data at"):
        documents.files(Source(str(tmp_path / "*.txt")))
    path = write(tmp_path / "a.parquet", DOCUMENTS)
    with pytest.raises(UsageError, match="has no column 'text'; it has body"):
        pack(Source(str(path)), tokenizer, 0, quiet)


def made(name: str, n: int) -> Packed:
    return Packed(name, name, np.arange(n, dtype=np.uint16), 1)


def test_windows_overlap_by_one_target():
    data = made("a", 31)
    assert data.windows(10) == 3
    windows = [data.window(i, 10) for i in range(3)]
    assert all(a[-1] == b[0] for a, b in pairwise(windows))
    assert windows[2].tolist() == list(range(20, 31))
    with pytest.raises(UsageError, match="a holds 10 tokens, fewer than one sequence of 10"):
        made("a", 10).windows(10)


@settings(max_examples=30, deadline=None)
@given(weights=st.lists(st.floats(0.05, 10), min_size=1, max_size=4), steps=st.integers(1, 60), seed=st.integers(0, 9))
def test_shares_hold_at_every_moment_and_passes_are_complete(weights, steps, seed):
    sets = [made(str(k), 50 + 30 * k) for k in range(len(weights))]
    mixture = Mixture(sets, weights, 7, seed)
    drawn = mixture.next(steps)
    for done in range(1, steps + 1):
        for k, weight in enumerate(weights):
            assert abs(sum(j == k for j, _ in drawn[:done]) - done * weight / sum(weights)) < len(weights)
    for k, each in enumerate(sets):
        mine = [i for j, i in drawn if j == k]
        size = each.windows(7)
        for start in range(0, len(mine) - size + 1, size):
            assert sorted(mine[start : start + size]) == list(range(size))


def test_going_on_is_the_same_as_never_having_stopped():
    sets = [made("a", 100), made("b", 200)]
    whole, first = Mixture(sets, [1, 2], 9, 3), Mixture(sets, [1, 2], 9, 3)
    expected = whole.next(80)
    seen = first.next(31)
    second = Mixture(sets, [1, 2], 9, 3)
    second.taken = list(first.taken)
    assert seen + second.next(49) == expected
    assert Mixture(sets, [1, 2], 9, 4).next(80) != expected


def test_a_trained_tokenizer_round_trips_and_repeats_itself(corpus):
    sources = [Source(str(corpus / "text.txt"))]
    first, second = (vocabularies.train(sources, 400, quiet) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()
    assert len(first) == 400
    text = "Ein Text, 12 €, 日本"
    assert first.decode(first(text)["input_ids"]) == text
    assert len(first("123", add_special_tokens=False)["input_ids"]) == 3
    assert vocabularies.separator(first) == first.eos_token_id


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory):
    """A trained tokenizer, saved and loaded again."""
    folder = tmp_path_factory.mktemp("tokenizer")
    text = folder / "text.txt"
    text.write_text("The claim holds, the control is null: 12 of 12. " * 40, "utf-8")
    vocabularies.train([Source(str(text))], 280, quiet).save_pretrained(folder / "made")
    return vocabularies.load(str(folder / "made"))


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])), special=st.booleans())
def test_any_text_comes_back_through_a_reloaded_tokenizer(reloaded, text, special):
    """Control characters, joined emoji, bytes that no training text held, spaces before marks, and the separator's own name."""
    text = f"{text}{vocabularies.SEPARATOR} n't , {text}" if special else text
    ids = reloaded(text, add_special_tokens=False)["input_ids"]
    assert reloaded.decode(ids) == text
    assert max(ids, default=0) < len(reloaded)
    assert (vocabularies.separator(reloaded) in ids) == (vocabularies.SEPARATOR in text)


def test_bad_text_ends_the_training_of_a_tokenizer_in_its_own_words(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n{"text": \n', "utf-8")
    with pytest.raises(UsageError, match=r"a.jsonl, line 2: not JSON"):
        vocabularies.train([Source(str(path))], 300, quiet)


@pytest.mark.parametrize(("size", "words"), [(200, "too small: 256 bytes"), (60_000, "the text is too small for a vocabulary of 60000")])
def test_vocabularies_that_cannot_be(corpus, size, words):
    with pytest.raises(UsageError, match=words):
        vocabularies.train([Source(str(corpus / "text.txt"))], size, quiet)
