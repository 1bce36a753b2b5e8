"""Search: quality and speed, printed.

    OMP_NUM_THREADS=1 python benchmarks/search.py quality [--among 2000] [--half report|tune|all]
    OMP_NUM_THREADS=1 python benchmarks/search.py speed [--papers 100000]

Real abstracts come from NULLIUS_ABSTRACTS, an xz file of blocks between blank lines, title in the first line and abstract in the second. Quality:
the catalogue's papers among real ones, three queries each (search_queries.toml, written before tuning); half was for tuning, half is reported.
Speed, wall and CPU time (they differ on a busy machine): whole requests, warm, one process, over all abstracts there are (repeated under
other titles when more are asked for); vectors are
random where embedding would take hours, which costs a search the same.
"""

from __future__ import annotations

import argparse
import datetime
import lzma
import os
import platform
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import psutil

KINDS = ("title", "paraphrase", "question")
WAYS = ("words", "meaning", "both")
CATEGORIES = ("cs.CL", "cs.LG", "cs.AI", "math.AG", "hep-th", "astro-ph")


def abstracts() -> Iterator[tuple[str, str]]:
    """Give (title, abstract) of the corpus."""
    with lzma.open(os.environ["NULLIUS_ABSTRACTS"], "rt", encoding="utf-8") as file:
        block: list[str] = []
        for line in file:
            if line.strip():
                block.append(line.strip())
            elif block:
                yield block[0], " ".join(block[1:])
                block = []


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
                    source="arxiv", external_id=f"{name}-{number}", arxiv_id=f"x/{number:09}", title=title if not round_ else f"{title} {round_}",
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


def quality(among: int, half: str) -> None:
    """Print recall at 1 and 10 and mean reciprocal rank, with 95 % bootstrap intervals over papers, per kind of query and way of searching."""
    from nullius.feed import claims, papers
    from nullius.feed.search import embedding, engine, weights, words

    queries = tomllib.loads((Path(__file__).parent / "search_queries.toml").read_text("utf-8"))
    slugs = sorted(queries)
    slugs = {"tune": slugs[0::2], "report": slugs[1::2], "all": slugs}[half]
    claims.refresh()
    fill(among)
    words.open_index().update(wait=True)
    weights.fetch_weights()
    started = time.perf_counter()
    done = embedding.embed()
    print(f"{done:,} papers embedded in {time.perf_counter() - started:.0f} s")
    numbers = {slug: papers.find(slug).id for slug in slugs}
    titles = {slug: papers.get(numbers[slug]).raw_title for slug in slugs}
    print(f"{half} half: {len(slugs)} papers among {among:,} other real ones; 95 % intervals")
    print(f"{'query':<11} {'by':<8} {'R@1':>5} {'R@10':>5}  MRR")
    for kind in ("full title", *KINDS):
        ranks: dict[str, np.ndarray] = {}
        for way in WAYS:
            found = [engine.rank(titles[slug] if kind == "full title" else queries[slug][kind], by=way) for slug in slugs]
            places = [
                ranking.index(numbers[slug]) + 1 if numbers[slug] in ranking else np.inf for slug, ranking in zip(slugs, found, strict=True)
            ]
            ranks[way] = np.array(places, float)
            reciprocal = 1 / ranks[way]
            lo, hi = interval(reciprocal)
            print(
                f"{kind:<11} {way:<8} {(ranks[way] <= 1).mean():5.2f} {(ranks[way] <= 10).mean():5.2f}  {reciprocal.mean():.2f} [{lo:.2f}, {hi:.2f}]"
            )
        better = max(("words", "meaning"), key=lambda way: (1 / ranks[way]).mean())
        difference = 1 / ranks["both"] - 1 / ranks[better]
        lo, hi = interval(difference)
        print(f"{kind:<11} both − {better}: {difference.mean():+.2f} [{lo:+.2f}, {hi:+.2f}]")


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a mean."""
    draws = np.random.default_rng(0).integers(len(values), size=(10_000, len(values)))
    lo, hi = np.percentile(values[draws].mean(1), [2.5, 97.5])
    return float(lo), float(hi)


def speed(count: int) -> None:
    """Print the time of whole requests and of building the index."""
    from nullius.feed import papers
    from nullius.feed.search import engine, vectors, weights, words

    queries = tomllib.loads((Path(__file__).parent / "search_queries.toml").read_text("utf-8"))
    wall, cpu = fill(count)
    print(f"{count:,} papers written in {wall:.1f} s (CPU {cpu:.1f} s)")
    index = words.open_index()
    started = clocks()
    index.update(threads=2, heap=300_000_000, wait=True)
    print(f"word index built in {clocks()[0] - started[0]:.1f} s (CPU {clocks()[1] - started[1]:.1f} s)")
    weights.fetch_weights()
    generator = np.random.default_rng(0)
    first = papers.find("embers").id
    for start in range(0, count + 53, 50_000):
        rows = min(50_000, count + 53 - start)
        made = generator.standard_normal((rows, 384)).astype(np.float32)
        made /= np.linalg.norm(made, axis=1, keepdims=True)
        vectors.append(words.folder() / "vectors", range(min(first, 1) + start, min(first, 1) + start + rows), *vectors.quantise(made))
    texts = [queries[slug][kind] for slug in sorted(queries) for kind in KINDS]
    filtered = [f"{text} after:2010 cat:cs.CL" for text in texts[::3]]
    for text in texts[:20]:
        engine.search(text)
    for name, asked in (("plain", texts), ("filtered", filtered)):
        spent = np.array([timed(text) for text in asked]) * 1000
        (wall_median, cpu_median), (wall_p95, cpu_p95) = np.percentile(spent, [50, 95], axis=0)
        print(f"{name:<9} n={len(spent)}  median {wall_median:.0f} ms (CPU {cpu_median:.0f})  p95 {wall_p95:.0f} ms (CPU {cpu_p95:.0f})")
    print(f"memory in use {psutil.Process().memory_info().rss / 1e6:.0f} MB")
    shell = []
    for text in texts[:5]:
        started, before = time.perf_counter(), os.times()
        subprocess.run([sys.executable, "-m", "nullius.cli.main", "papers", "--search", text, "--json"], check=True, capture_output=True)
        after = os.times()
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        shell.append((time.perf_counter() - started, cpu))
    wall, cpu = np.median(shell, axis=0)
    print(f"nullius papers --search, from the shell: median {wall:.2f} s (CPU {cpu:.2f} s)")


def clocks() -> tuple[float, float]:
    """Return wall and CPU time of this process, in seconds."""
    return time.perf_counter(), time.process_time()


def timed(text: str) -> tuple[float, float]:
    """Return the seconds of one request, its page of JSON included: wall and CPU."""
    from nullius.feed.search import engine
    from nullius.lab.records import dumps

    started = clocks()
    dumps(engine.search(text).to_dict())
    return clocks()[0] - started[0], clocks()[1] - started[1]


def main() -> None:
    """Run what was asked for in a data folder of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("quality", "speed"))
    parser.add_argument("--among", type=int, default=2000)
    parser.add_argument("--half", choices=("tune", "report", "all"), default="report")
    parser.add_argument("--papers", type=int, default=100_000)
    parser.add_argument("--data", default="", help="keep the database there, and take up one that is there already")
    arguments = parser.parse_args()
    versions = f"Python {platform.python_version()}, numpy {np.__version__}"
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC · {machine} · {versions}")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NULLIUS_DATA"] = arguments.data or folder
        if arguments.what == "quality":
            quality(arguments.among, arguments.half)
        else:
            speed(arguments.papers)


if __name__ == "__main__":
    main()
