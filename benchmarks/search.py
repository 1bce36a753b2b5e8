"""Search: quality and speed, printed.

    OMP_NUM_THREADS=1 python benchmarks/search.py quality [--among 2000] [--half report|tune|all] [--words]
    OMP_NUM_THREADS=1 python benchmarks/search.py remembered [--among 2000] [--words]
    OMP_NUM_THREADS=1 python benchmarks/search.py model
    OMP_NUM_THREADS=1 python benchmarks/search.py speed [--papers 100000] [--like FOLDER]

Real abstracts come from NULLIUS_ABSTRACTS, an xz file of blocks between blank lines, title in the first line and abstract in the second. Quality:
the catalogue's papers among real ones, three queries each (search_queries.toml, written before tuning); half was for tuning, half is reported.
Remembered: one query more for each, written later, of which none was tuned on. --words: without vectors, where embedding would take hours.

Speed, wall and CPU time (they differ on a busy machine): whole requests, warm, one process that does nothing else. Up to as many papers as there
are abstracts they are imported; more are made by recombining sentences of the real ones and written straight into the tables. Vectors take the
place of hours of embedding: --like names the data folder of a quality run, and they are sums of two of its real ones with noise; else they are
random directions. A search costs the same; recall against the exact order is told of the former only, since random ones have no neighbours.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sqlite3
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
import psutil

from many_papers import CATEGORIES, abstracts, compose, vectors_like

KINDS = ("title", "paraphrase", "question")
WAYS = ("words", "meaning", "both")
IMPORTED = 100_000  # papers up to which they are imported abstracts


def fill(count: int) -> tuple[float, float]:
    """Import so many abstracts as arXiv records; return the seconds that writing took, wall and CPU."""
    from nullius.feed.database import writing
    from nullius.feed.importers import store
    from nullius.feed.importers.records import Record

    def records() -> Iterator[Record]:
        number = round_ = 0
        while True:
            for title, abstract in abstracts():
                day = datetime.date(2000, 1, 1) + datetime.timedelta(days=number % 9000)
                name = f"{day:%y%m}.{number // 10 % 100_000:05}" if round_ == 0 else f"a{chr(97 + round_)}/{number % 10_000_000:07}"
                category = CATEGORIES[number % len(CATEGORIES)]
                yield Record(
                    source="arxiv", external_id=f"{name}-{number}", arxiv_id=f"cs/{number:07}", title=title if not round_ else f"{title} {round_}",
                    abstract=abstract, authors=(f"Author {number % 5000}", f"Second {number % 777}"), published=day, categories=(category,),
                    primary_category=category, days=(day,),
                )  # fmt: skip
                number += 1
            round_ += 1

    wall = cpu = 0.0
    stream = islice(records(), count)
    while batch := list(islice(stream, 500)):
        started = clocks()
        with writing() as connection:
            store.write(connection, batch)
        wall, cpu = wall + clocks()[0] - started[0], cpu + clocks()[1] - started[1]
    return wall, cpu


def held() -> int:
    """Return how many papers the database has."""
    import sqlalchemy as sa

    from nullius.feed.database import reading
    from nullius.feed.tables import paper

    with reading() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(paper)).scalar_one()


def build() -> None:
    """Build the word index and print how long it took."""
    from nullius.feed.search import words

    index = words.open_index()
    started = clocks()
    done = index.update(threads=2, heap=300_000_000, wait=True)
    size = sum(file.stat().st_size for file in index.where.iterdir())
    spent = f"{clocks()[0] - started[0]:.1f} s (CPU {clocks()[1] - started[1]:.1f} s)"
    print(f"word index of {done:,} papers built in {spent}; {size / 1e9:.2f} GB", flush=True)


def prepared(among: int, only_words: bool) -> dict[str, int]:
    """Bring the database to so many papers, indexed and embedded; return the number of each paper of the catalogue."""
    from nullius.feed import catalogue, claims, papers
    from nullius.feed.search import embedding, weights, words

    claims.refresh()
    if held() < among:
        fill(among)
    words.open_index().update(wait=True)
    if not only_words:
        weights.fetch_weights()
        started = clocks()
        done = embedding.embed()
        print(f"{done:,} papers embedded in {clocks()[0] - started[0]:.0f} s (CPU {clocks()[1] - started[1]:.0f} s)")
    return {entry.slug: papers.find(entry.slug).id for entry in catalogue.papers()}


def places(texts: dict[str, str], numbers: dict[str, int], way: str) -> np.ndarray:
    """Return at which place each query finds its paper; infinity where it does not."""
    from nullius.feed.search import engine

    found = {slug: engine.rank(text, by=way) for slug, text in texts.items()}
    at = [found[slug].index(numbers[slug]) + 1 if numbers[slug] in found[slug] else np.inf for slug in texts]
    return np.array(at, float)


def row(kind: str, way: str, at: np.ndarray) -> str:
    """Return a line of figures: recall at 1, 3 and 10 and mean reciprocal rank with its interval."""
    lo, hi = interval(1 / at)
    recalls = " ".join(f"{(at <= n).mean():5.2f}" for n in (1, 3, 10))
    return f"{kind:<11} {way:<8} {recalls}  {(1 / at).mean():.2f} [{lo:.2f}, {hi:.2f}]"


HEAD = f"{'query':<11} {'by':<8} {'R@1':>5} {'R@3':>5} {'R@10':>5}  MRR"


def quality(among: int, half: str, only_words: bool) -> None:
    """Print recall and mean reciprocal rank, with 95 % bootstrap intervals over papers, per kind of query and way of searching."""
    from nullius.feed import papers

    queries = tomllib.loads((Path(__file__).parent / "search_queries.toml").read_text("utf-8"))
    slugs = sorted(queries)
    slugs = {"tune": slugs[0::2], "report": slugs[1::2], "all": slugs}[half]
    numbers = prepared(among, only_words)
    titles = {slug: papers.get(numbers[slug]).raw_title for slug in slugs}
    print(f"{half} half: {len(slugs)} papers among {among:,} other real ones; 95 % intervals\n{HEAD}")
    for kind in ("full title", *KINDS):
        texts = titles if kind == "full title" else {slug: queries[slug][kind] for slug in slugs}
        ranks = {way: places(texts, numbers, way) for way in (WAYS[:1] if only_words else WAYS)}
        for way, at in ranks.items():
            print(row(kind, way, at))
        if only_words:
            continue
        better = max(("words", "meaning"), key=lambda way: (1 / ranks[way]).mean())
        difference = 1 / ranks["both"] - 1 / ranks[better]
        lo, hi = interval(difference)
        print(f"{kind:<11} both − {better}: {difference.mean():+.2f} [{lo:+.2f}, {hi:+.2f}]")


def remembered(among: int, only_words: bool) -> None:
    """Print the same of the queries that hold no word of the title: all 53, none of which was tuned on; then each that is not found first."""
    queries = tomllib.loads((Path(__file__).parent / "search_queries.toml").read_text("utf-8"))
    texts = {slug: queries[slug]["remembered"] for slug in sorted(queries)}
    numbers = prepared(among, only_words)
    print(f"all {len(texts)} papers among {among:,} other real ones; no word of the title; 95 % intervals\n{HEAD}")
    ranks = {way: places(texts, numbers, way) for way in (WAYS[:1] if only_words else WAYS)}
    for way, at in ranks.items():
        print(row("remembered", way, at))
    print("not first (place by words, meaning, both):")
    for i, (slug, text) in enumerate(texts.items()):
        own = [at[i] for at in ranks.values()]
        if own[-1] > 1:
            print(f"  {slug:<24} {' '.join(f'{place:>4.0f}' for place in own)}  {text}")


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a mean."""
    draws = np.random.default_rng(0).integers(len(values), size=(10_000, len(values)))
    lo, hi = np.percentile(values[draws].mean(1), [2.5, 97.5])
    return float(lo), float(hi)


def speed(count: int, like: str) -> None:
    """Fill a database, index it and measure searching it, each in a process of its own: what one held is no part of what a search holds."""
    from nullius.feed.search import weights

    weights.fetch_weights()
    for step in ("fill", "build", "vectors", "requests"):
        command = [sys.executable, __file__, step, "--papers", str(count), "--data", os.environ["NULLIUS_DATA"], "--like", like]
        subprocess.run(command, check=True)


def requests(like: str) -> None:
    """Print the time of whole requests, and what a process that serves searches holds in memory."""
    from nullius.feed.search import engine

    queries = tomllib.loads((Path(__file__).parent / "search_queries.toml").read_text("utf-8"))
    texts = [queries[slug][kind] for slug in sorted(queries) for kind in KINDS]
    filtered = [f"{text} after:2010 cat:cs.CL" for text in texts[::3]]
    for text in texts[:20]:
        engine.search(text)
    for name, ask, asked in (("plain", whole, texts), ("filtered", whole, filtered), ("words only", words_only, texts)):
        spent = np.array([timed(ask, text) for text in asked]) * 1000
        (wall_median, cpu_median), (wall_p95, cpu_p95) = np.percentile(spent, [50, 95], axis=0)
        print(f"{name:<10} n={len(spent)}  median {wall_median:.0f} ms (CPU {cpu_median:.0f})  p95 {wall_p95:.0f} ms (CPU {cpu_p95:.0f})")
    memory = psutil.Process().memory_info()
    print(f"memory: {memory.rss / 1e6:.0f} MB resident, of it {memory.shared / 1e6:.0f} MB of mapped files", flush=True)
    if like:
        print(f"meaning: {recall(texts):.3f} of the exact ten nearest are among the ten found")
    shell = []
    for text in texts[:5]:
        started, before = time.perf_counter(), os.times()
        subprocess.run([sys.executable, "-m", "nullius.cli.main", "papers", "--search", text, "--json"], check=True, capture_output=True)
        after = os.times()
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        shell.append((time.perf_counter() - started, cpu))
    wall, cpu = np.median(shell, axis=0)
    print(f"nullius papers --search, from the shell: median {wall:.2f} s (CPU {cpu:.2f} s)")


def recall(texts: list[str]) -> float:
    """Return which part of the exact ten nearest vectors is found; the exact ones by the product with every vector."""
    from nullius.feed.search import minilm, vectors, weights, words

    held = vectors.open_vectors(words.folder() / "vectors")
    asked = minilm.load(weights.folder()).encode(texts)
    scores = np.empty((len(held.numbers), len(texts)), np.float32)
    for start in range(0, len(scores), vectors.CHUNK):
        part = slice(start, start + vectors.CHUNK)
        scores[part] = (held.bytes[part].astype(np.float32) * held.scales[part, None]) @ asked.T
    exact = [set(held.numbers[np.argpartition(-column, 10)[:10]].tolist()) for column in scores.T]
    return float(np.mean([len(best & set(held.nearest(query, 10)[0])) / 10 for best, query in zip(exact, asked, strict=True)]))


def model() -> None:
    """Print how long the sentence model takes to be ready, what it holds, and how many abstracts it embeds in a second of one core."""
    from nullius.feed.search import minilm, weights

    weights.fetch_weights()
    before, started = psutil.Process().memory_info().rss, clocks()
    loaded = minilm.load(weights.folder())
    loaded.encode(["ready"])
    ready = clocks()
    held = psutil.Process().memory_info()
    print(
        f"ready in {ready[0] - started[0]:.2f} s (CPU {ready[1] - started[1]:.2f}); process {held.rss / 1e6:.0f} MB, {before / 1e6:.0f} of it before"
    )
    texts = [f"{title}. {text}" for title, text in islice(abstracts(), 256)]
    started = clocks()
    for start in range(0, len(texts), 64):
        loaded.encode(texts[start : start + 64])
    wall, cpu = clocks()[0] - started[0], clocks()[1] - started[1]
    print(f"{len(texts)} abstracts embedded: {len(texts) / cpu:.1f} in a second of processor, {len(texts) / wall:.1f} on the wall")
    held = psutil.Process().memory_info()
    print(f"process afterwards {held.rss / 1e6:.0f} MB, torch imported: {'torch' in sys.modules}")


def clocks() -> tuple[float, float]:
    """Return wall and CPU time of this process, in seconds."""
    return time.perf_counter(), time.process_time()


def timed(ask: Callable[[str], object], text: str) -> tuple[float, float]:
    """Return the seconds of one request: wall and CPU."""
    started = clocks()
    ask(text)
    return clocks()[0] - started[0], clocks()[1] - started[1]


def whole(text: str) -> str:
    """Search, and make the answer's page of JSON."""
    from nullius.feed.search import engine
    from nullius.lab.records import dumps

    return dumps(engine.search(text).to_dict())


def words_only(text: str) -> tuple[list[int], list[float]]:
    """Give the best 200 papers that have any of the words, as the word index does: no titles first, no cards."""
    from nullius.feed.search import engine, words

    index = words.open_index()
    searcher = index.searcher()
    found, _ = index.any_of(text.split(), searcher)
    return index.top(searcher, found, engine.BEST) if found is not None else ([], [])


def main() -> None:
    """Run what was asked for in a data folder of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "what",
        choices=("quality", "remembered", "model", "speed", "fill", "build", "vectors", "requests"),
        help="the last four: steps of speed",
    )
    parser.add_argument("--among", type=int, default=2000)
    parser.add_argument("--half", choices=("tune", "report", "all"), default="report")
    parser.add_argument("--words", action="store_true", help="quality of search by words only")
    parser.add_argument("--papers", type=int, default=100_000)
    parser.add_argument("--like", default="", help="data folder of a quality run, whose vectors those of speed are made from")
    parser.add_argument("--data", default="", help="keep the database there, and take up one that is there already")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NULLIUS_DATA"] = arguments.data or folder
        if arguments.what in ("quality", "remembered", "model", "speed"):
            versions = (
                f"Python {platform.python_version()}, numpy {np.__version__}, tantivy {version('tantivy')}, SQLite {sqlite3.sqlite_version}"
            )
            machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
            print(f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC · {machine} · {versions}", flush=True)
        if arguments.what == "quality":
            quality(arguments.among, arguments.half, arguments.words)
        elif arguments.what == "remembered":
            remembered(arguments.among, arguments.words)
        elif arguments.what == "model":
            model()
        elif arguments.what == "speed":
            speed(arguments.papers, arguments.like)
        elif arguments.what == "fill":
            started = clocks()
            if arguments.papers <= IMPORTED:
                fill(arguments.papers)
            else:
                compose(arguments.papers)
            print(
                f"{arguments.papers:,} papers written in {clocks()[0] - started[0]:.1f} s (CPU {clocks()[1] - started[1]:.1f} s)",
                flush=True,
            )
        elif arguments.what == "build":
            build()
        elif arguments.what == "vectors":
            vectors_like(arguments.like)
        else:
            requests(arguments.like)


if __name__ == "__main__":
    main()
