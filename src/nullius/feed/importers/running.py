"""An import from beginning to end: batches of 500 in a transaction each, the cursor with them, so that an import that is killed goes on.

Killed at any instruction, what was written is whole batches, and the same command goes on behind the last of them.
"""

from __future__ import annotations

import datetime
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import sqlalchemy as sa
from ulid import ULID

from nullius.errors import NulliusError, UsageError
from nullius.feed.database import reading, writing
from nullius.feed.importers import store
from nullius.feed.importers.decode import MOST_FROM_FILE, Document
from nullius.feed.importers.fetch import Fetcher
from nullius.feed.importers.records import Record, Reject
from nullius.feed.importers.sources import Cursor, Found, from_web, parse
from nullius.feed.merging import MERGING
from nullius.feed.tables import import_reject, import_run
from nullius.feed.text import arxiv_id, clean, one_line
from nullius.lab.journal import now
from nullius.lab.schema import take_turns

BATCH = 500
STREAM = "stream"  # the window of what comes only once: nothing tells whether it is the same as last time
MOST_REJECTS = 10_000  # kept of one import; the rest is counted


@dataclass
class Report:
    """What an import came to. error: why it ended before its end, empty when it did not; cursor: where it would go on.

    resumed: it went on where an earlier one broke off, whose records are not counted here.
    """

    id: str
    address: str
    seen: int = 0
    new: int = 0
    changed: int = 0
    rejected: int = 0
    error: str = ""
    cursor: str = ""
    resumed: bool = False
    warnings: list[str] = field(default_factory=list)
    rejects: list[dict[str, str]] = field(default_factory=list)

    @property
    def imported(self) -> int:
        """How many usable records there were, those already known included."""
        return self.seen

    @property
    def useless(self) -> bool:
        """Whether nothing usable came of it; there may be nothing left for one that goes on where another was killed."""
        return not self.imported and (bool(self.error) or bool(self.rejected) or not self.resumed)

    @property
    def summary(self) -> str:
        """Return "52 imported, 1 rejected", with how many of them were new or changed."""
        text = f"{self.imported:,} imported, {self.rejected:,} rejected"
        return f"{text} ({self.new:,} new, {self.changed:,} changed)"

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return asdict(self)


def import_from(
    address: str,
    *,
    day: datetime.date | None = None,
    fetcher: Fetcher | None = None,
    say: Callable[[str], None] = lambda line: None,
    stdin: BinaryIO | None = None,
    today: datetime.date | None = None,
) -> Report:
    """Import papers from a web address, a file, an arXiv id, or - for standard input. An import of the same that broke off is gone on with.

    day: the day of a page that does not say its own. Raises UsageError for a file that is not there. What goes wrong on the way (a source that
    does not answer, a document that breaks off) stands in the report's `error`; what came before it is kept.
    """
    if (identifier := arxiv_id(address)) is not None and not Path(address).exists():
        address = f"https://arxiv.org/abs/{identifier[0]}"
    if address.lower().startswith(("http://", "https://")):
        address = clean(address)
        window, source = "", "web"
        fetcher = fetcher or Fetcher(say=say)
        cursor = _left_off(address, window)
        if cursor:
            say("going on where the last import of this broke off")
        return _run(address, source, window, from_web(address, fetcher, cursor, day), [], cursor, today)
    with _opened(address, stdin) as (document, window):
        named = clean(address)  # of a file whose name is no text, what is
        cursor = _left_off(named, window)
        return _run(named, "file", window, _of_document(document, day, cursor), document.warnings, cursor, today)


def import_document(document: Document, *, day: datetime.date | None = None, today: datetime.date | None = None) -> Report:
    """Import papers from a document that is here already (an upload, pasted text)."""
    return _run(document.name, "file", "", _of_document(document, day, ""), document.warnings, "", today)


def _of_document(document: Document, day: datetime.date | None, cursor: str) -> Iterator[Found]:
    done = int(cursor) if cursor.isdecimal() else 0
    number = 0
    for number, found in enumerate(parse(document, day), start=1):
        if number > done:
            yield found
            if number % BATCH == 0:
                yield Cursor(str(number))
    yield Cursor("")


@contextmanager
def _opened(name: str, stdin: BinaryIO | None) -> Iterator[tuple[Document, str]]:
    if name == "-":
        if stdin is None and sys.stdin is None:
            raise UsageError("there is no standard input")
        with _held(stdin or sys.stdin.buffer, "standard input") as document:
            yield document, STREAM
        return
    if not name.strip():
        raise UsageError("import takes a web address, a file, an arXiv id or - for standard input, not nothing")
    shown = one_line(name) if len(name) <= 200 else f"{one_line(name)[:200]}…"
    try:
        path = Path(name).expanduser()
        state = path.stat()
    except (OSError, ValueError, RuntimeError):  # not there; too long, or with a NUL, for a name; of a user who is not there
        raise UsageError(f"there is no file {shown}; import takes a web address, a file, an arXiv id or - for standard input") from None
    if stat.S_ISDIR(state.st_mode):
        raise UsageError(f"{shown} is a directory; import takes one file at a time")
    with path.open("rb") as content:
        if not stat.S_ISREG(state.st_mode):  # a pipe, as <(zcat papers.json.gz)
            with _held(content, shown) as document:
                yield document, STREAM
            return
        if state.st_size > MOST_FROM_FILE:
            raise NulliusError(f"{shown} is larger than {MOST_FROM_FILE // 1_000_000} MB: import it in parts")
        yield Document(content, shown), f"{state.st_size} {state.st_mtime_ns}"


@contextmanager
def _held(source: BinaryIO, name: str) -> Iterator[Document]:
    """Keep what comes only once in a file without a name, since documents are read from their beginning more than once."""
    with tempfile.TemporaryFile() as held:
        while piece := source.read(1 << 20):
            held.write(piece)
            if held.tell() > MOST_FROM_FILE:
                raise NulliusError(f"{name} is larger than {MOST_FROM_FILE // 1_000_000} MB: import it in parts")
        yield Document(held, name)


def _left_off(address: str, window: str) -> str:
    """The cursor of the last import of this: from the web, if it did not come to its end; of a file, if it was killed."""
    if window == STREAM:
        return ""
    query = sa.select(import_run.c.cursor, import_run.c.state).where(import_run.c.address == address, import_run.c.window == window)
    with reading() as connection:
        last = connection.execute(query.order_by(import_run.c.id.desc()).limit(1)).first()
    return last.cursor if last is not None and (last.state == "running" or not window) else ""


def _run(
    address: str, source: str, window: str, found: Iterator[Found], warnings: list[str], cursor: str, today: datetime.date | None
) -> Report:
    report = Report(str(ULID()), address, cursor=cursor, resumed=bool(cursor), warnings=warnings)
    with writing() as connection:
        row = {
            "id": report.id,
            "source": source,
            "address": address,
            "window": window,
            "cursor": cursor,
            "state": "running",
            "started": now(),
        }
        connection.execute(import_run.insert().values(**row))
    batch: list[Record] = []
    rejects: list[Reject] = []
    try:
        for one in found:
            if len(batch) + len(rejects) >= BATCH and not isinstance(one, Cursor):
                _write(report, batch, rejects, today)
            if isinstance(one, Record):
                batch.append(one)
            elif isinstance(one, Reject):
                rejects.append(one)
            else:
                report.cursor = one.value
                _write(report, batch, rejects, today)
    except NulliusError as error:
        report.error = str(error)
    _write(report, batch, rejects, today, state="failed" if report.error else "done")
    return report


def _write(report: Report, batch: list[Record], rejects: list[Reject], today: datetime.date | None, state: str = "running") -> None:
    """Write what was read since the last time, and the cursor behind it, in one transaction."""
    with writing() as connection:
        take_turns(connection, MERGING)
        tally = store.write(connection, batch, today)
        report.seen, report.new, report.changed = report.seen + tally.seen, report.new + tally.new, report.changed + tally.changed
        rows = [{"import_run": report.id, "position": one.position, "reason": one.reason, "head": one.head[:200]} for one in rejects]
        room = max(0, MOST_REJECTS - report.rejected)
        if rows[:room]:
            connection.execute(import_reject.insert(), rows[:room])
        report.rejected += len(rows)
        report.rejects += [{name: row[name] for name in ("position", "reason", "head")} for row in rows[:room]]
        counts = {"seen": report.seen, "new": report.new, "changed": report.changed, "rejected": report.rejected}
        ended = {} if state == "running" else {"finished": now(), "error": report.error}
        connection.execute(
            import_run.update().where(import_run.c.id == report.id).values(**counts, cursor=report.cursor, state=state, **ended)
        )
    batch.clear()
    rejects.clear()


def imports(limit: int = 50) -> list[dict[str, Any]]:
    """Return the last imports, newest first (the columns of `import_run`)."""
    with reading() as connection:
        rows = connection.execute(sa.select(import_run).order_by(import_run.c.id.desc()).limit(limit)).mappings()
        return [dict(row) for row in rows]


def rejects_of(import_id: str, limit: int = 1000) -> list[dict[str, Any]]:
    """Return what an import left out: position, reason, head."""
    query = sa.select(import_reject).where(import_reject.c.import_run == import_id).order_by(import_reject.c.id).limit(limit)
    with reading() as connection:
        return [{name: row[name] for name in ("position", "reason", "head")} for row in connection.execute(query).mappings()]
