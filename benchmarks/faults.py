"""A thousand kills: the web server, the worker and its runs, importers and the sender of digests are killed (SIGKILL) at random moments.

    python benchmarks/faults.py                       a thousand, about a quarter of an hour of one core
    python benchmarks/faults.py --importer 20 --seed 5
    python benchmarks/faults.py --postgres            on PostgreSQL, whose server is started from its wheel

What is killed is a real process with connections of its own, forked from one that has everything loaded. Half of the moments are drawn from the
time that it takes when nobody kills it, half from its moments that matter: before and after a statement, at a commit, an fsync, a move of a
file, an answer of the SMTP server. After each kill a new process opens the database and checks it; the first thing that is lost, doubled or
half there ends the program with one line and exit code 1. Only processes that were alive when they were killed count.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

from killed.processes import LONGEST, Violation, adopt_orphans, afresh, new_database, start_postgres

KINDS = {"importer": 300, "sender": 250, "server": 300, "worker": 150}


def template(folder: Path, log: Path, claims: bool) -> None:
    """Make a database with the catalogue in it, to be copied. claims: those of all studies too, which takes their import."""
    os.environ["NULLIUS_DATA"] = str(folder)
    folder.mkdir()
    afresh(_fill, claims, log=log)


def _fill(claims: bool) -> None:
    from nullius.feed import claims as feed_claims
    from nullius.feed import database
    from nullius.lab import schema

    database.make_ready(schema.url())
    if claims:
        feed_claims.refresh()


def kind_of(name: str) -> tuple[Any, int]:
    """Return the class that kills a kind of process, and after how many kills it begins anew. What they need is loaded here, before any fork."""
    if name == "server":
        from killed import server

        return server.Server, server.EPISODE
    if name == "worker":
        from killed import worker

        worker.load()
        return worker.Worker, worker.EPISODE
    if name == "importer":
        import nullius.feed.importers.running
        import nullius.feed.search.words
        from killed import importer

        return importer.Importer, importer.EPISODE
    import nullius.feed.digest.deliveries  # noqa: F401
    from killed import sender

    return sender.Sender, sender.EPISODE


def used() -> float:
    """Return the processor seconds of this process and of all that it has waited for."""
    own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime


def killing(name: str, n: int, seed: int, made: Path, where: Path) -> None:
    """Kill n processes of a kind, and print what became of it."""
    began, cpu = time.monotonic(), used()
    kind, episode = kind_of(name)
    gc.collect()
    gc.freeze()
    rng, how = random.Random(f"{seed} {name}"), Counter[str]()
    notes: Counter[str] = Counter()
    while sum(how.values()) < n:
        folder = where / f"{name}-{sum(how.values())}"
        new_database(made, folder)
        one = kind(folder, where / f"{name}.log", rng)
        while one.kills < episode and sum(how.values()) < n:
            if done := one.kill():
                how[done] += 1
        one.finish()
        notes["unknown"] += getattr(one, "unknown", 0)
        notes["mails"] += getattr(one, "days", 0)
        shutil.rmtree(folder)
    ways = ", ".join(f"{number} {way}" for way, number in sorted(how.items()))
    more = f"; {notes['unknown']} deliveries 'unknown' of {12 * (notes['mails'] - 1)}" if notes["mails"] else ""
    spent = used() - cpu
    print(
        f"| {name} | {sum(how.values())} | {ways}{more} | 0 | {spent:.0f} s | {spent / max(1, n):.2f} s | {time.monotonic() - began:.0f} s |",
        flush=True,
    )


def main() -> int:
    """Kill, check, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in KINDS:
        parser.add_argument(f"--{name}", type=int, help="how many (default: 150 to 300, or none when another kind is named)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--postgres", action="store_true")
    chosen = parser.parse_args()
    numbers = {name: getattr(chosen, name) for name in KINDS}
    otherwise = KINDS if all(number is None for number in numbers.values()) else {}
    numbers = {name: otherwise.get(name, 0) if number is None else number for name, number in numbers.items()}
    where = Path(tempfile.mkdtemp(prefix="nullius-faults-"))
    os.nice(10)
    os.environ.pop("NULLIUS_DATABASE", None)
    held = Path(tempfile.mkdtemp(prefix="nullius-postgres-"))  # not below the data: where this runs as root, the server is another user
    server = start_postgres(held) if chosen.postgres else None
    adopt_orphans()
    print(
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC · {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", end=" · "
    )
    print(f"Python {platform.python_version()}, {'PostgreSQL' if server else 'SQLite'}, seed {chosen.seed}\n")
    print("| killed | times | how | violations | processor | a kill | wall |\n| --- | --- | --- | --- | --- | --- | --- |")
    try:
        template(where / "template", where / "template.log", bool(numbers["server"]))
        for name, number in numbers.items():
            if number:
                killing(name, number, chosen.seed, where / "template", where)
    except Violation as violation:
        print(f"VIOLATION: {violation} (data and logs are left in {where})")
        return 1
    finally:
        if server:  # nothing of it is to be kept
            server.send_signal(signal.SIGQUIT)
            server.wait(LONGEST)
        shutil.rmtree(held, ignore_errors=True)
    shutil.rmtree(where)
    return 0


if __name__ == "__main__":
    sys.exit(main())
