"""Papers and vectors in numbers for benchmarks/search.py: real abstracts, papers of their recombined sentences, sums of real vectors."""

from __future__ import annotations

import datetime
import lzma
import os
import random
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np

CATEGORIES = ("cs.CL", "cs.LG", "cs.AI", "math.AG", "hep-th", "astro-ph")


def abstracts() -> Iterator[tuple[str, str]]:
    """Give (title, abstract) of the corpus."""
    if "NULLIUS_ABSTRACTS" not in os.environ:
        raise SystemExit("NULLIUS_ABSTRACTS must name a file of abstracts (.txt.xz, see the head of this program)")
    with lzma.open(os.environ["NULLIUS_ABSTRACTS"], "rt", encoding="utf-8") as file:
        block: list[str] = []
        for line in file:
            if line.strip():
                block.append(line.strip())
            elif block:
                yield block[0], " ".join(block[1:])
                block = []


def compose(count: int) -> None:
    """Write so many papers of recombined sentences into the tables of the SQLite database, by hand: importing them is another benchmark's."""
    from nullius.feed.database import reading
    from nullius.lab import schema

    with reading():
        pass  # the tables and the catalogue are there now
    pool = list(abstracts())
    titles = [title.split() for title, _ in pool]
    sentences = [sentence for _, text in pool for sentence in re.split(r"(?<=[.!?]) +", text) if len(sentence) > 30]
    draw = random.Random(0)
    connection = sqlite3.connect(str(schema.url().database), isolation_level=None)
    connection.execute("PRAGMA synchronous = OFF")
    first = connection.execute("SELECT max(id) + 1 FROM paper").fetchone()[0]
    tables = ("paper", "paper_author", "paper_category", "paper_day", "paper_source")
    found = connection.execute("SELECT name, sql, tbl_name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL").fetchall()
    indices = [(name, sql) for name, sql, table in found if table in tables]
    for name, _ in indices:
        connection.execute(f"DROP INDEX {name}")
    paper = "id, arxiv_id, title, title_key, abstract, published, date_inferred, n_authors, primary_category, withdrawn, heat, votes, notes"
    for start in range(0, count, 20_000):
        numbers = range(first + start, first + min(start + 20_000, count))
        days = [str(datetime.date(2000, 1, 1) + datetime.timedelta(days=number % 9000)) for number in numbers]
        kinds = [CATEGORIES[number % len(CATEGORIES)] for number in numbers]
        names = [[f"Author {draw.randrange(200_000)}", f"Second {draw.randrange(50_000)}"] for _ in numbers]
        rows = []
        for number, day, kind in zip(numbers, days, kinds, strict=True):
            one, other = draw.choice(titles), draw.choice(titles)
            title = " ".join(one[: len(one) // 2] + other[len(other) // 2 :])
            text = " ".join(draw.choices(sentences, k=7))
            rows.append((number, f"cs/{number:07}", title, title.casefold(), text, day, kind, number / 100))
        connection.execute("BEGIN")
        values = "?, ?, ?, ?, ?, ?, 0, 2, ?, 0, ?, 0, 0, '2026-01-01T00:00:00.000Z', '2026-01-01T00:00:00.000Z'"
        connection.executemany(f"INSERT INTO paper ({paper}, added, changed) VALUES ({values})", rows)
        who = [(number, place, name, name) for number, pair in zip(numbers, names, strict=True) for place, name in enumerate(pair)]
        connection.executemany("INSERT INTO paper_author VALUES (?, ?, ?, ?)", who)
        connection.executemany("INSERT INTO paper_category VALUES (?, ?)", zip(numbers, kinds, strict=True))
        connection.executemany("INSERT INTO paper_day VALUES (?, ?, 'arxiv')", zip(numbers, days, strict=True))
        source = "INSERT INTO paper_source (paper, source, external_id, payload_sha256, fetched_at) VALUES (?, 'arxiv', ?, '', '')"
        connection.executemany(source, ((number, f"cs/{number:07}") for number in numbers))
        connection.execute("COMMIT")
    for _, sql in indices:
        connection.execute(sql)
    connection.close()


def vectors_like(folder: str) -> None:
    """Write a vector for each paper, newest number first as the embedding does: sums of two real ones and noise, or random directions."""
    import sqlalchemy as sa

    from nullius.feed.database import reading
    from nullius.feed.search import vectors, words
    from nullius.feed.tables import paper

    generator = np.random.default_rng(0)
    real = vectors.open_vectors(Path(folder) / "search" / "vectors") if folder else None
    with reading() as connection:
        last = connection.execute(sa.select(sa.func.max(paper.c.id))).scalar() or 0
    for stop in range(last, 0, -50_000):
        numbers = np.arange(stop, max(stop - 50_000, 0), -1)
        made = generator.standard_normal((len(numbers), 384)).astype(np.float32)
        if real is not None:
            one, other = (real.bytes[generator.integers(len(real.numbers), size=len(numbers))] / np.float32(400) for _ in range(2))
            made = one + np.float32(0.7) * other + np.float32(0.02) * made
        made /= np.linalg.norm(made, axis=1, keepdims=True)
        vectors.append(words.folder() / "vectors", numbers.tolist(), *vectors.quantise(made))
