"""Sentence vectors of papers, made in the background: newest first, some hundred at a time, kept in the database and in the search files."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa

from nullius.errors import NulliusError
from nullius.feed import catalogue
from nullius.feed.database import reading, writing
from nullius.feed.readable import readable
from nullius.feed.search import minilm, vectors, weights, words
from nullius.feed.tables import embedding, paper, standing
from nullius.lab.schema import insert_new

MODEL = weights.NAME
BATCH = 64
AHEAD = 20  # batches read at once: to find the next ones among many that have their vectors takes as long as embedding some
COLUMNS = [paper.c[name] for name in ("id", "slug", "title", "abstract", "summary", "their_summary")]
Encode = Callable[[Sequence[str]], vectors.Floats]


def text_of(row: Mapping[str, Any]) -> str:
    """Return what is embedded of a paper: title and abstract; of one of the catalogue our sentence and paragraph for an abstract.

    The model reads 256 tokens, of which the catalogue's longest entry takes 224. Claims are left out: they drew vectors away from what is asked.
    """
    ours = catalogue.abouts().get(row["slug"], "")
    rest = f"{row['summary']} {ours}" if ours else row["abstract"] or row["summary"] or row["their_summary"] or ""
    return f"{readable(row['title'])}. {readable(rest)}"


def missing(limit: int = 1) -> int:
    """Return how many papers have no vector yet, counted up to `limit`."""
    with reading() as connection:
        chosen = _without(limit).subquery()
        return connection.execute(sa.select(sa.func.count()).select_from(chosen)).scalar() or 0


def _without(limit: int) -> sa.Select[Any]:
    has = sa.exists(sa.select(embedding.c.paper).where(embedding.c.paper == paper.c.id, embedding.c.model == MODEL))
    query = sa.select(*COLUMNS).where(standing, ~has)
    return query.order_by(paper.c.published.desc().nulls_last(), paper.c.id.desc()).limit(limit)


def embed(
    *, most: int | None = None, seconds: float | None = None, device: str = "cpu", progress: Callable[[int], None] = lambda done: None
) -> int:
    """Embed papers that have no vector (or lost it when their text changed), newest first; return how many. One process at a time.

    The word index is brought up to date first: whoever embeds in the background keeps search whole.

    most, seconds: stop after so many papers, or so long. device: cpu (numpy), or one of torch's. Raises NulliusError without weights.
    """
    from filelock import FileLock, Timeout

    if not weights.here():
        raise NulliusError("the weights for search by meaning are not here; `nullius feed index` fetches them")
    words.open_index().update()
    where = words.folder() / "vectors"
    where.mkdir(parents=True, exist_ok=True)
    end = None if seconds is None else time.monotonic() + seconds
    done = 0
    try:
        with FileLock(where / "writing.lock", timeout=0):
            _complete(where)
            encode = _encoder(device)
            for batch in _batches():
                done += _embed_batch(where, encode, batch)
                progress(done)
                if (most is not None and done >= most) or (end is not None and time.monotonic() > end):
                    break
    except Timeout:
        pass  # another process is at it
    vectors.forget(where)  # who embeds and then searches finds what was embedded
    return done


def _encoder(device: str) -> Encode:
    if device == "cpu":
        return minilm.load(weights.folder()).encode
    from nullius.models.minilm.on_device import encoder

    return encoder(weights.folder(), device)


def _batches() -> Iterator[list[tuple[int, str]]]:
    """Give (number, text) of papers without a vector until there are none."""
    while True:
        with reading() as connection:
            rows = [dict(row) for row in connection.execute(_without(AHEAD * BATCH)).mappings()]
        if not rows:
            return
        for start in range(0, len(rows), BATCH):
            yield [(row["id"], text_of(row)) for row in rows[start : start + BATCH]]


def _embed_batch(where: Any, encode: Encode, batch: Sequence[tuple[int, str]]) -> int:
    found = encode([text for _, text in batch])
    packed, scales = vectors.quantise(found)
    numbers = [number for number, _ in batch]
    vectors.append(where, numbers, packed, scales)  # before the table: what is lost in between is made again
    with writing() as connection:
        found_now = connection.execute(sa.select(*COLUMNS).where(paper.c.id.in_(numbers))).mappings()
        present = {row["id"]: text_of(dict(row)) for row in found_now}
        connection.execute(embedding.delete().where(embedding.c.paper.in_(numbers), embedding.c.model == MODEL))
        rows = [
            {"paper": number, "model": MODEL, "text_sha256": _digest(text), "vector": packed[i].tobytes(), "scale": float(scales[i])}
            for i, (number, text) in enumerate(batch)
            if present.get(number) == text  # else it was changed meanwhile, and comes again
        ]
        insert_new(connection, embedding, rows)  # another worker may be embedding the same papers
    return len(batch)


def _complete(where: Any) -> None:
    """Bring the files up to the table, when they were removed."""
    held = vectors.open_vectors(where)
    with reading() as connection:
        total = connection.execute(sa.select(sa.func.count()).select_from(embedding).where(embedding.c.model == MODEL)).scalar() or 0
    if total <= len(held):
        return
    last = 0
    while True:
        query = sa.select(embedding.c.paper, embedding.c.vector, embedding.c.scale).where(
            embedding.c.model == MODEL, embedding.c.paper > last
        )
        with reading() as connection:
            rows = connection.execute(query.order_by(embedding.c.paper).limit(10_000)).all()
        if not rows:
            return
        last = rows[-1].paper
        there = held.have([row.paper for row in rows])
        fresh = [row for row, known in zip(rows, there, strict=True) if not known]
        if fresh:
            packed = np.frombuffer(b"".join(row.vector for row in fresh), np.int8).reshape(len(fresh), -1)
            vectors.append(where, [row.paper for row in fresh], packed, np.array([row.scale for row in fresh], np.float32))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
