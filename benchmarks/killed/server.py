"""The web server, while votes, saves, notes and runs come in: what it acknowledged is there afterwards, once; the rest once or not at all."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from killed.processes import LONGEST, Child, Kill, Span, Violation, afresh, arm, must, passed, reap, sound

EPISODE = 50  # kills on one database


@dataclass
class Known:
    """What the client knows: acknowledged, and asked for without an answer."""

    votes: dict[str, bool] = field(default_factory=dict)
    saves: dict[str, bool] = field(default_factory=dict)
    notes: set[str] = field(default_factory=set)
    runs: dict[str, str] = field(default_factory=dict)  # key → id
    open: tuple[str, str] | None = None  # kind and key of what was not answered
    open_notes: set[str] = field(default_factory=set)
    unsure: set[tuple[str, str]] = field(default_factory=set)  # votes and saves whose last change was not answered


class _Killed(Exception):
    """The alarm rang: the server has just been killed."""


class Server:
    """Kills servers."""

    def __init__(self, folder: Path, log: Path, rng: random.Random) -> None:
        from nullius.web import app, registry, serving, settings

        self.folder, self.log, self.rng = folder, log, rng
        self.port = _free_port()
        self.settings = settings.settings(port=self.port)
        made = app.create(self.settings)
        serving.create = lambda _settings: made
        registry.refresh = lambda: None  # the studies were read once, and another start reads none
        self.slugs, self.cookie = afresh(_enter, self.settings, log=log)
        self.known, self.serial, self.kills = Known(), 0, 0
        self.others: set[int] = set()
        child = Child(_serve, self.settings, 0, log=log)
        self._talk(child, 10)
        self.span = Span(time.monotonic() - child.started, passed())
        child.kill()

    def kill(self) -> str:
        """Kill once; returns how."""
        kill = self.span.draw(self.rng)
        child = Child(_serve, self.settings, kill.point, log=self.log)
        killed = self._talk(child, 10_000, kill)
        child.kill()
        reap(10, self.others)
        self._check()
        self.kills += killed
        return kill.by if killed else ""

    def _check(self) -> None:
        """Look at what is there, and take that for known from here on."""
        votes, saves, notes, runs = afresh(_check, self.folder, self.known, log=self.log)
        self.known = Known(votes, saves, notes, runs, self.known.open)

    def finish(self) -> None:
        """The last start is clean: it answers, and takes once more what was asked for without an answer."""
        child = Child(_serve, self.settings, 0, log=self.log)
        self._talk(child, 3)
        child.kill()
        self._check()

    def _talk(self, child: Child, requests: int, kill: Kill | None = None) -> bool:
        """Ask for one thing after the other until the server is killed. Returns whether it was."""

        def now(*_: object) -> None:
            os.kill(child.pid, signal.SIGKILL)
            raise _Killed

        signal.signal(signal.SIGALRM, now)
        if kill and not kill.point:
            signal.setitimer(signal.ITIMER_REAL, max(0.0001, kill.seconds - (time.monotonic() - child.started)))
        try:
            line = self._connect(child)
            for _ in range(requests):
                self._ask(line)
        except _Killed:
            return True
        except (OSError, http.client.HTTPException) as error:
            must(child.over(1.0) and child.status == -signal.SIGKILL, f"the server hung up and lives: {error!r}; see {self.log}")
            return True
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return False

    def _connect(self, child: Child) -> http.client.HTTPConnection:
        end = time.monotonic() + LONGEST
        while True:
            line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LONGEST)
            try:
                line.connect()
                break
            except OSError:
                if child.over():
                    raise
                must(time.monotonic() < end, f"the server does not start; see {self.log}")
                time.sleep(0.005)
        self._send(line, "GET", "/health.json")
        if self.known.open:  # the same again: a key must give the same run
            kind, key = self.known.open
            if kind == "run":
                self._run(line, key)
            self.known.open = None
        return line

    def _send(self, line: http.client.HTTPConnection, method: str, path: str, body: Any = None, **headers: str) -> bytes:
        own = {"Cookie": f"{self.settings.cookie}={self.cookie}", **headers}
        if isinstance(body, dict):
            form = not path.startswith("/api/")
            own["Content-Type"] = "application/x-www-form-urlencoded" if form else "application/json"
            body = urlencode(body) if form else json.dumps(body)
        line.request(method, path, body, own)
        answer = line.getresponse()
        content = answer.read()
        if answer.status >= 400:
            raise Violation(f"{method} {path}: {answer.status} {content[:200]!r}")
        return content

    def _ask(self, line: http.client.HTTPConnection) -> None:
        slug, what = self.rng.choice(self.slugs), self.rng.choice(("vote", "save", "note", "run", "read"))
        self.serial += 1
        if what == "read":
            self._send(line, "GET", self.rng.choice(("/", f"/papers/{slug}", "/runs.json")))
        elif what == "run":
            self._run(line, f"key {self.serial}")
        elif what == "note":
            text = f"note {self.serial}"
            self.known.open_notes.add(text)
            self._send(line, "POST", f"/papers/{slug}/notes", {"text": text})
            self.known.open_notes.remove(text)
            self.known.notes.add(text)
        else:
            states = self.known.votes if what == "vote" else self.known.saves
            on = not states.get(slug, False)
            self.known.unsure.add((what, slug))
            if what == "vote":
                self._send(line, "POST" if on else "DELETE", f"/api/v1/papers/{slug}/vote")
            else:
                self._send(line, "POST", f"/papers/{slug}/save", {"on": "1" if on else "0"})
            self.known.unsure.remove((what, slug))
            states[slug] = on

    def _run(self, line: http.client.HTTPConnection, key: str) -> None:
        self.known.open = ("run", key)
        wish = {"paper": self.slugs[0], "subject": "smollm2-135m", "scale": "quick", "seed": 0}
        found = json.loads(self._send(line, "POST", "/api/v1/runs", wish, **{"Idempotency-Key": key}))
        must(self.known.runs.setdefault(key, found["id"]) == found["id"], "one key gave two runs")
        self.known.open = None


def _free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _serve(settings: Any, point: int) -> None:
    from nullius.web import serving

    arm(point)
    serving.serve(settings, browser=False, worker=False, say=lambda line: None)


def _enter(settings: Any) -> tuple[list[str], str]:
    """What the client starts with: papers that have a study, and the owner's cookie."""
    import sqlalchemy as sa

    from nullius.feed.database import reading
    from nullius.feed.tables import study
    from nullius.web import who

    with reading() as connection:
        slugs = sorted(connection.execute(sa.select(study.c.slug)).scalars())
    return slugs, who.enter(who.key_to_enter(settings), settings)


def _check(folder: Path, known: Known) -> tuple[dict[str, bool], dict[str, bool], set[str], dict[str, str]]:
    """See that what was acknowledged is there, once, and that counts and heat agree with what they are made of. Returns what is there."""
    import math

    import sqlalchemy as sa

    from nullius.feed import heat, tables
    from nullius.feed.database import reading, writing
    from nullius.lab.schema import request, run

    paper = tables.paper
    with reading() as connection:
        slugs = dict(connection.execute(sa.select(paper.c.id, paper.c.slug)).all())
        for table, states, what in ((tables.vote, known.votes, "vote"), (tables.saved, known.saves, "save")):
            there = Counter(slugs[number] for number in connection.execute(sa.select(table.c.paper)).scalars())
            for slug in states.keys() | there.keys():
                must((what, slug) in known.unsure or there[slug] == states.get(slug, False), f"a {what} of {slug} was lost, or came back")
                states[slug] = bool(there[slug])  # settled
        notes = Counter(connection.execute(sa.select(tables.note.c.text)).scalars())
        must(known.notes <= notes.keys() <= known.notes | known.open_notes, "a note was lost")
        must(set(notes.values()) <= {1}, "a note was written twice")
        asked = dict(connection.execute(sa.select(request.c.key, request.c.run_id)).all())
        open_key = {known.open[1]} if known.open else set()
        must(known.runs.items() <= asked.items() and asked.keys() <= known.runs.keys() | open_key, "a run was lost, or asked for twice")
        must(set(connection.execute(sa.select(run.c.id)).scalars()) == set(asked.values()), "a run that nobody asked for")
        rows = connection.execute(sa.select(paper.c.id, paper.c.votes, paper.c.notes, paper.c.heat)).all()
        votes = Counter(connection.execute(sa.select(tables.vote.c.paper)).scalars())
        written = Counter(connection.execute(sa.select(tables.note.c.paper)).scalars())
    must(all(row.votes == votes[row.id] and row.notes == written[row.id] for row in rows), "a count is not what it counts")
    with writing() as connection:
        heat.recompute(connection, [row.id for row in rows])
        fresh = dict(connection.execute(sa.select(paper.c.id, paper.c.heat)).all())
    must(all(row.heat is None or math.isclose(row.heat, fresh[row.id], abs_tol=1e-6) for row in rows), "heat is not the sum of its events")
    sound(folder)
    return known.votes, known.saves, set(notes), asked
