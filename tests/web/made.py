"""What the tests of the web find in the feed: real records of runs, made by the lab from samples that are drawn here."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from datetime import date
from pathlib import Path

import numpy as np
import sqlalchemy as sa
from tests.lab import tiny

from nullius.errors import NulliusError
from nullius.feed import papers, tables
from nullius.feed.database import writing
from nullius.feed.text import key
from nullius.lab import Lab, runner
from nullius.lab.journal import now
from nullius.lab.studies import Study, get
from nullius.web import registry

SCRIPT = '<script>alert("x")</script> & "quoted" <img src=x onerror=alert(1)>'
HOSTILE = "2511.00001"


def standing_in(slug: str, seed: int) -> Study:
    """A study with a real paper's claims that draws its samples: some effects are there, some are not, one subject lacks everything."""
    real = get(slug)

    def measure(lab: Lab) -> None:
        rng = np.random.default_rng(seed)
        lab.note("samples are drawn, not measured")
        for i, claim in enumerate(real.claims):
            n = 40
            size = 0.9 if i % 3 == 0 else 0.0
            treated, control = rng.normal(size, 0.3, n), rng.normal(0, 0.3, n)
            if claim.expect.kind in ("trend", "ordering"):
                levels = {name: rng.normal(size * (len(claim.expect.levels) - k), 0.3, n) for k, name in enumerate(claim.expect.levels)}
                lab.finding(claim.id, treated=levels, control={name: rng.normal(0, 0.3, n) for name in claim.expect.levels})
            elif claim.expect.kind == "correlation":
                x = rng.normal(0, 1, n)
                lab.finding(claim.id, treated=(x, size * x + rng.normal(0, 0.3, n)), control=(x, rng.normal(0, 1, n)))
            else:
                lab.finding(claim.id, treated=treated, control=control)
        lab.figure(tiny.FIGURE)

    return Study(slug, real.claims, measure, real.module, real.minutes)


def failing(slug: str) -> Study:
    """A study that breaks down."""

    def measure(lab: Lab) -> None:
        raise RuntimeError("no more <b>memory</b>")

    return Study(slug, get(slug).claims, measure, get(slug).module, 1.0)


def subject(name: str):  # type: ignore[no-untyped-def]
    """The tiny model under another name and hash."""
    made = tiny.subject()
    made.name = name
    made.weights_sha256 = (name.encode().hex() * 20)[:64]
    return made


def fill() -> None:
    """Fill a data folder."""
    registry.refresh()
    for i, name in enumerate(("smollm2-135m", "gemma3-270m")):
        for slug in ("factual-recall", "concept-depth"):
            runner.run(standing_in(slug, seed=i), subject(name), seed=i)
    with contextlib.suppress(NulliusError):
        runner.run(failing("embers"), subject("smollm2-135m"))
    with writing() as connection:
        for number, (arxiv, title) in enumerate(((HOSTILE, SCRIPT), ("2511.00002", "A paper of an earlier day $O(n^2)$"))):
            row = {"arxiv_id": arxiv, "title": title, "title_key": key(title), "abstract": f"{SCRIPT} An abstract. Two sentences."}
            row |= {"published": date(2025, 11, 3), "date_inferred": False, "withdrawn": False, "votes": 0, "notes": 0, "heat": 0.0}
            made = connection.execute(tables.paper.insert().values(**row, added=now(), changed=now())).inserted_primary_key
            connection.execute(tables.paper_author.insert().values(paper=made[0], position=0, name="Ada <i>Lovelace</i>", name_key="ada"))
            connection.execute(tables.paper_day.insert().values(paper=made[0], day=date(2025, 11, 4 - number), source="test"))
        connection.execute(sa.insert(tables.paper_name).values(name="old-name", paper=papers.find_in(connection, "embers").id))


def copied(library: Path, folder: Path) -> None:
    """A copy of the library to change: whole, though others may be opening and closing its databases at this moment."""
    shutil.copytree(library, folder, ignore=shutil.ignore_patterns("*.db", "*.db-wal", "*.db-shm"))
    for database in library.glob("*.db"):
        with contextlib.closing(sqlite3.connect(database)) as one, contextlib.closing(sqlite3.connect(folder / database.name)) as other:
            one.backup(other)
