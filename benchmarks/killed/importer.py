"""The importer and its index: whole batches, nothing lost or doubled, the index readable, and in the end what an import without kills gives."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

from killed.processes import LONGEST, Child, Span, afresh, arm, must, new_database, passed, sound

EPISODE = 20
PAPERS, BATCH = 240, 40


class Importer:
    """Kills importers: of a file, and of a source on the network that gives out resumption tokens."""

    def __init__(self, folder: Path, log: Path, rng: random.Random) -> None:
        from nullius.feed.importers import running

        running.BATCH = BATCH
        self.folder, self.log, self.rng = folder, log, rng
        self.kills = 0
        self.source = _Source(log)
        self.others = {self.source.child.pid}
        path = folder / "papers.json"
        path.write_text(json.dumps(_papers()), "utf-8")
        self.addresses = [str(path), f"{self.source.address}/oai?set=cs:cs:CL"]
        self.whole: dict[str, str] = {}
        for address in self.addresses:  # what it comes to when nobody kills it
            self._begin()
            child = Child(_import, address, 0, log=log)
            must(child.over(LONGEST) and child.status == 0, f"an import that nobody kills fails; see {log}")
            self.span = Span(time.monotonic() - child.started, passed())
            self.whole[address] = afresh(_check, self.home, True, log=log)
        self._begin()

    def _begin(self) -> None:
        """A new database, and something to import into it."""
        self.address = self.rng.choice(self.addresses)
        self.home = self.folder / "home"
        shutil.rmtree(self.home, ignore_errors=True)
        new_database(self.folder, self.home)

    def kill(self) -> str:
        """Kill once; returns how, or '' when the import had ended before."""
        kill = self.span.draw(self.rng)
        child = Child(_import, self.address, kill.point, log=self.log)
        killed = child.kill_at(kill)
        if not killed:
            must(child.status == 0, f"an import fails after one that was killed; see {self.log}")
        afresh(_check, self.home, not killed, log=self.log)
        self.kills += killed
        if not killed:
            self._end()
        return f"{'file' if self.address == self.addresses[0] else 'network'}, {kill.by}" if killed else ""

    def _end(self) -> None:
        found = afresh(_check, self.home, True, log=self.log)
        must(found == self.whole[self.address], "an import that was killed on the way gives other papers than one that was not")
        self._begin()

    def finish(self) -> None:
        """The last import goes through, and gives what one without kills gives."""
        child = Child(_import, self.address, 0, log=self.log)
        must(child.over(LONGEST) and child.status == 0, f"the last import fails; see {self.log}")
        self._end()
        self.source.child.kill()


class _Source:
    """The tests' server that speaks as arXiv does, in a process of its own."""

    def __init__(self, log: Path) -> None:
        receiving, sending = os.pipe()
        self.child = Child(_speak, sending, log=log)
        os.close(sending)
        with os.fdopen(receiving) as incoming:
            self.address = incoming.readline().strip()
        os.environ["NULLIUS_IMPORT_HOSTS"] = self.address.removeprefix("http://")


def _speak(out: int) -> None:
    from tests.feed import source_server

    with source_server.serving() as source:
        source.papers = [source_server.entry(number) for number in range(1, PAPERS + 1)]
        source.page = BATCH
        os.write(out, f"{source.address}\n".encode())
        os.close(out)
        time.sleep(24 * 3600)


def _papers() -> list[dict[str, Any]]:
    from tests.feed import source_server

    return [source_server.daily(source_server.entry(number)) for number in range(1, PAPERS + 1)]


def _import(address: str, point: int) -> None:
    from nullius.feed.importers import running
    from nullius.feed.search import words

    arm(point)
    report = running.import_from(address)
    must(not report.error, report.error)
    words.open_index().update()


def _check(folder: Path, ended: bool) -> str:
    """See that whole batches are there and that the index can be read. Returns a digest of what was imported, but for the times."""
    import sqlalchemy as sa

    from nullius.feed import tables
    from nullius.feed.database import reading
    from nullius.feed.search import words

    paper, source = tables.paper, tables.paper_source
    sound(folder)
    with reading() as connection:
        numbers = connection.execute(sa.select(paper.c.id).order_by(paper.c.id)).scalars().all()
        place = {number: i for i, number in enumerate(numbers)}  # PostgreSQL gives no number twice: what was killed leaves gaps
        columns = [column for column in paper.c if column.name not in ("added", "changed")]
        rows = connection.execute(sa.select(*columns).where(paper.c.slug.is_(None)).order_by(paper.c.id)).all()
        origins = connection.execute(sa.select(source.c.paper).where(source.c.source != "catalogue")).scalars().all()
        parts: list[Any] = [[(place[row.id], *row[1:]) for row in rows]]
        for table in (tables.paper_author, tables.paper_category, tables.paper_day, tables.signal):
            found = connection.execute(sa.select(table).order_by(*table.primary_key)).mappings()
            parts.append([tuple(place[value] if name == "paper" else value for name, value in row.items()) for row in found])
    must(len({row.title_key for row in rows}) == len(rows), "a paper is there twice")
    must(sorted(row.id for row in rows) == sorted(origins), "papers and their origins do not agree")
    must(len(rows) % BATCH == 0, f"{len(rows)} papers: a batch is there in part")
    must(not ended or len(rows) == PAPERS, f"{len(rows)} papers after an import of {PAPERS}")
    index = words.open_index()
    must(ended or index.searcher().num_docs <= len(numbers), "the index holds papers that the database does not")
    index.update()
    query = index.phrase("title", "paper number")
    must(query is not None and index.count(index.searcher(), query) == len(rows), "the index does not hold what the database holds")
    must(index.searcher().num_docs == len(numbers), "the index holds a paper twice, or not at all")
    return hashlib.sha256(repr(parts).encode()).hexdigest()
