"""Many writers at once, each a process of its own: nothing is lost, doubled or refused. In full: `python benchmarks/feed.py writers`."""

from __future__ import annotations

import multiprocessing
import os
import random
import threading

import sqlalchemy as sa

from nullius.feed import database as feed_database
from nullius.feed import library, tables
from nullius.lab import queue
from nullius.lab.journal import now
from nullius.lab.schema import request

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.feed.test_writers"])
WRITERS, EACH = 5, 24


def write(environment: dict[str, str], number: int, told) -> None:
    """What a process of its own does: votes, takes votes back, saves, asks for runs; the last two as everybody else does at the same time."""
    os.environ.update(environment)
    rng, mine, errors = random.Random(number), set(), []
    with feed_database.reading() as connection:
        ids = connection.execute(sa.select(tables.paper.c.id).order_by(tables.paper.c.id)).scalars().all()[:6]
    for i in range(EACH):
        paper = rng.choice(ids)
        try:
            if i % 4 == 0:
                queue.enqueue("embers", "smollm2-135m", account=f"writer{number}", key=str(i))
            elif i % 4 == 1:
                queue.enqueue("embers", "smollm2-135m", account="shared", key=str(i))
                library.save("shared", ids[i % 6], note=str(number))
            elif paper in mine:
                library.unvote(f"writer{number}", paper)
                mine.remove(paper)
            else:
                library.vote(f"writer{number}", paper)
                mine.add(paper)
            library.vote("shared", ids[0])
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
    told.put((len(mine), errors))


def test_many_writers_at_once(database):
    with feed_database.writing() as connection:
        rows = [{"id": name, "role": "member", "created": now()} for name in ["shared", *(f"writer{i}" for i in range(WRITERS))]]
        connection.execute(tables.account.insert(), rows)
    environment = {name: os.environ[name] for name in ("NULLIUS_DATA", "NULLIUS_DATABASE") if name in os.environ}
    told = PROCESSES.Queue()
    started = [PROCESSES.Process(target=write, args=(environment, i, told)) for i in range(WRITERS)]
    for one in started:
        one.start()
    answers = [told.get(timeout=120) for _ in started]
    for one in started:
        one.join(60)
    assert [errors for _, errors in answers if errors] == []
    with feed_database.reading() as connection:

        def count(table):
            return connection.execute(sa.select(sa.func.count()).select_from(table)).scalar()

        votes = sum(n for n, _ in answers) + 1
        assert count(tables.vote) == votes
        assert connection.execute(sa.select(sa.func.sum(tables.paper.c.votes))).scalar() == votes
        assert count(request) == WRITERS * EACH // 4 + EACH // 4
        assert count(tables.saved) == len({i % 6 for i in range(EACH) if i % 4 == 1})


def test_there_are_connections_enough_for_the_threads_of_a_server(database):
    """A search reads the database while its index is brought up to date from it: each thread holds one connection and wants another."""
    together, failed = threading.Barrier(24), []

    def search():
        try:
            with feed_database.reading() as connection:
                together.wait(60)
                with feed_database.reading() as another:
                    assert another.execute(sa.select(1)).scalar() == connection.execute(sa.select(1)).scalar()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=search) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
