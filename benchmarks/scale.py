"""The feed with many papers: importing them, and a web server over them. Prints; asserts nothing.

    OMP_NUM_THREADS=1 python benchmarks/scale.py import [--papers 2500000] [--data FOLDER]
    OMP_NUM_THREADS=1 python benchmarks/scale.py web --data FOLDER
    OMP_NUM_THREADS=1 python benchmarks/scale.py lists --data FOLDER

Import: records as arXiv's OAI-PMH gives them (arXivRaw), made of recombined sentences of the real abstracts that NULLIUS_ABSTRACTS names, from
files of 100,000 that another process writes while nothing is timed. Web: memory of a server over a data folder that is there already (an
import's, or that of `benchmarks/search.py speed --data FOLDER`), after pages of every kind and searches were asked for, and how long each takes.
Lists: the same folder's lists of papers, asked for in this process.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from urllib.parse import parse_qsl, quote_plus, urlsplit
from xml.sax.saxutils import escape

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx

from web import at, serving, used

A_FILE = 100_000  # papers: about 180 MB, of the 200 that an import takes
CATEGORIES = ("cs.CL", "cs.LG", "cs.AI", "math.AG", "hep-th", "astro-ph")


def import_(chosen: argparse.Namespace) -> None:
    """Import files of records one after another, as `nullius feed import FILE` does; print seconds, memory and size."""
    from nullius.feed import database
    from nullius.feed.importers import running
    from nullius.feed.search import words
    from nullius.lab import schema
    from nullius.paths import data_dir

    database.make_ready(schema.url())
    path = data_dir() / "records.xml"
    writer = subprocess.Popen(
        [sys.executable, __file__, "files", str(path), str(chosen.papers)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdin is not None
    assert writer.stdout is not None
    wall = cpu = done = 0.0
    for _ in range(-(-chosen.papers // A_FILE)):  # not until so many are new: two records may have one id
        print(file=writer.stdin, flush=True)
        writer.stdout.readline()
        began = clocks()
        report = running.import_from(str(path))
        last = [now - then for now, then in zip(clocks(), began, strict=True)]
        wall, cpu, done = wall + last[0], cpu + last[1], done + report.new
        load = os.getloadavg()[0]
        print(
            f"{done:,.0f} papers: the last file {last[0]:.1f} s wall, {last[1]:.1f} s processor, load {load:.1f}; {report.summary}",
            flush=True,
        )
    writer.stdin.close()
    writer.wait(60)
    path.unlink()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    size = sum(
        Path(f"{schema.url().database}{end}").stat().st_size for end in ("", "-wal") if Path(f"{schema.url().database}{end}").exists()
    )
    print(
        f"import of {done:,.0f} papers: {wall:.0f} s wall, {cpu:.0f} s processor; peak memory {peak:.0f} MB; database {size / 1e9:.2f} GB"
    )
    began = clocks()
    indexed = words.open_index().update(threads=2, heap=300_000_000, wait=True)
    spent = [now - then for now, then in zip(clocks(), began, strict=True)]
    held = sum(file.stat().st_size for file in words.open_index().where.glob("*") if file.is_file())
    print(f"word index of {indexed:,} papers: {spent[0]:.0f} s wall, {spent[1]:.0f} s processor; {held / 1e9:.2f} GB")


def web(chosen: argparse.Namespace) -> None:
    """Serve a data folder; print how long each page takes (each time with another address, so that none is kept) and what the server holds."""
    import sqlalchemy as sa

    from nullius.feed.database import reading
    from nullius.feed.tables import paper, paper_day
    from search import KINDS

    with reading() as connection:
        total = connection.execute(sa.select(sa.func.max(paper.c.id))).scalar_one()
        days = list(connection.execute(sa.select(paper_day.c.day).distinct().order_by(paper_day.c.day.desc()).limit(40)).scalars())
        some = list(connection.execute(sa.select(paper.c.id).where(paper.c.id % max(1, total // 30) == 5).limit(30)).scalars())
    queries = tomllib.loads((Path(__file__).parent / "search_queries.toml").read_text("utf-8"))
    texts = [queries[slug][KINDS[i % 3]] for i, slug in enumerate(sorted(queries))]
    pages = {
        "day": [f"/day/{day}" for day in days[:30]],
        "week": [f"/week/{day.isocalendar().year}-W{day.isocalendar().week:02}" for day in days[:10]],
        "month": ["/month"] * 5,
        "trending, 7, 30 and 365 days": [f"/trending?days={span}" for span in (7, 30, 365)] * 5,
        "a paper with its similar ones": [f"/papers/p{number}" for number in some],
        "search": [f"/search?q={quote_plus(text)}" for text in texts],
        "papers by the API": ["/api/v1/papers"] * 5,
    }
    print("| page | n | wall p50, p95 ms | server's processor ms a request | resident MB after |\n| --- | --- | --- | --- | --- |")
    with serving(Path(chosen.data)) as (process, base), httpx.Client(base_url=base, timeout=300, follow_redirects=True) as client:
        client.get("/").raise_for_status()
        for name, paths in pages.items():
            times, before = [], used(process)
            for i, path in enumerate(paths):
                began = time.perf_counter()
                answer = client.get(
                    path, params={**dict(parse_qsl(urlsplit(path).query)), "n": str(i)} if not path.startswith("/api") else None
                )
                answer.raise_for_status()
                times.append(1000 * (time.perf_counter() - began))
            cost = 1000 * (used(process) - before) / len(paths)
            rss = process.memory_info().rss / 1e6
            print(f"| {name} | {len(paths)} | {at(times, 0.5):.0f}, {at(times, 0.95):.0f} | {cost:.0f} | {rss:.0f} |", flush=True)
        memory = process.memory_info()
        print(f"\n{total:,} papers; resident memory {memory.rss / 1e6:.0f} MB, of it {memory.shared / 1e6:.0f} MB of mapped files")


def lists(_chosen: argparse.Namespace) -> None:
    """Print the processor time of each list of papers: the median of five."""
    from nullius.feed import listings

    orders: tuple[listings.Order, ...] = ("newest", "voted", "contested", "untested")
    asked: dict[str, Callable[[], object]] = {"trending": listings.trending, "trending, 30 days": lambda: listings.trending(within=30)}
    asked |= {f"all papers, {order}": lambda order=order: listings.papers(order=order) for order in orders}
    for name, ask in asked.items():
        times = []
        for _ in range(5):
            began = time.process_time()
            ask()
            times.append(1000 * (time.process_time() - began))
        print(f"{name}: {at(times, 0.5):.0f} ms", flush=True)


def files(path: Path, count: int) -> None:
    """Write a file of records for every line that comes in, until there are as many as wanted."""
    from search import abstracts

    pool = list(abstracts())
    titles = [title.split() for title, _ in pool]
    sentences = [sentence for _, text in pool for sentence in re.split(r"(?<=[.!?]) +", text) if len(sentence) > 30]
    draw = random.Random(0)
    for start in range(0, count, A_FILE):
        sys.stdin.readline()
        with path.open("w", encoding="utf-8") as out:
            out.write('<?xml version="1.0" encoding="UTF-8"?>\n<OAI-PMH xmlns="http://www.openarchives.org/OAI/2.0/"><ListRecords>\n')
            for number in range(start, min(start + A_FILE, count)):
                out.write(record(number, titles, sentences, draw))
            out.write("</ListRecords></OAI-PMH>\n")
        print("written", flush=True)


def record(number: int, titles: list[list[str]], sentences: list[str], draw: random.Random) -> str:
    """A record of arXivRaw: about 25,000 papers a month, seven sentences, four authors of 400,000."""
    day = datetime(1998, 1, 1) + timedelta(days=number // 250)
    one, other = draw.choice(titles), draw.choice(titles)
    title = " ".join(one[: len(one) // 2] + other[len(other) // 2 :])
    people = ", ".join(f"{chr(65 + draw.randrange(26))}. Author{draw.randrange(400_000)}" for _ in range(4))
    name = f"{day:%y%m}.{number % 100_000:05}"
    kinds = " ".join(draw.sample(CATEGORIES, 2))
    return (
        f"<record><header><identifier>oai:arXiv.org:{name}</identifier><datestamp>{day:%Y-%m-%d}</datestamp><setSpec>cs</setSpec></header>"
        f'<metadata><arXivRaw xmlns="http://arxiv.org/OAI/arXivRaw/"><id>{name}</id><submitter>A. Author</submitter>'
        f'<version version="v1"><date>{day:%a, %d %b %Y} 10:00:00 GMT</date><size>100kb</size></version><title>{escape(title)}</title>'
        f"<authors>{people}</authors><categories>{kinds}</categories><comments>12 pages, 3 figures</comments>"
        f"<license>http://arxiv.org/licenses/nonexclusive-distrib/1.0/</license><abstract>{escape(' '.join(draw.choices(sentences, k=7)))}"
        "</abstract></arXivRaw></metadata></record>\n"
    )


def clocks() -> tuple[float, float]:
    """Return wall and processor time, in seconds."""
    return time.perf_counter(), time.process_time()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("import", "web", "lists"))
    parser.add_argument("--papers", type=int, default=2_500_000)
    parser.add_argument("--data", default="", help="keep the data there")
    chosen = parser.parse_args()
    names = ("fastapi", "uvicorn", "sqlalchemy", "tantivy", "numpy")
    where = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} · Python {platform.python_version()}"
    print(
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC · {where}, {', '.join(f'{name} {metadata.version(name)}' for name in names)}\n", flush=True
    )
    folder = chosen.data or tempfile.mkdtemp(prefix="nullius-scale-")
    os.environ["NULLIUS_DATA"] = folder
    os.environ.pop("NULLIUS_DATABASE", None)
    try:
        {"import": import_, "web": web, "lists": lists}[chosen.what](chosen)
    finally:
        if not chosen.data:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["files"]:
        files(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
