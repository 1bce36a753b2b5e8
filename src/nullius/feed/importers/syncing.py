"""What `nullius feed sync` fetches: Hugging Face's daily papers and arXiv's records of a set since the last time, and missing abstracts."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from urllib.parse import parse_qsl, urlencode, urlsplit

import sqlalchemy as sa

from nullius.feed.database import reading
from nullius.feed.importers import huggingface
from nullius.feed.importers.fetch import Fetcher
from nullius.feed.importers.running import Report, import_from
from nullius.feed.tables import import_run, paper

API = "https://export.arxiv.org/api/query"
OAI = "https://oaipmh.arxiv.org/oai"
SET = "cs:cs:CL"
DAYS = 7


def sync(
    *,
    days: int = DAYS,
    oai_set: str = SET,
    hub: str | None = None,
    oai: str = OAI,
    api: str = API,
    fetcher: Fetcher | None = None,
    say: Callable[[str], None] = lambda line: None,
    today: datetime.date | None = None,
) -> list[Report]:
    """Fetch what is new; one report for each day of the hub, one for abstracts of the catalogue that are missing (search by meaning needs them),
    one for arXiv's set. What fails stands in its report, the others go on.

    days: how far to look back the first time; later all since the last time is fetched, however long ago, and of these days whatever is missing.
    hub: Hugging Face's address (default: HF_ENDPOINT, else huggingface.co). oai_set: a set of arXiv's; empty for none.
    """
    today = today or datetime.datetime.now(datetime.UTC).date()
    hub = hub or os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    fetcher = fetcher or Fetcher(say=say)
    reports = []
    for day in _days(hub, today, days):
        reports.append(import_from(huggingface.address(hub, day, 0), fetcher=fetcher, say=say, today=today))
        if reports[-1].error:  # a source that does not answer for one day will not for the next
            break
    if missing := _without_abstract():
        asked = f"{api}?{urlencode({'id_list': ','.join(missing), 'max_results': len(missing)})}"
        reports.append(import_from(asked, fetcher=fetcher, say=say, today=today))
    if oai_set:
        reports.append(import_from(_oai_address(oai, oai_set, today, days), fetcher=fetcher, say=say, today=today))
    return reports


def _without_abstract() -> list[str]:
    """The arXiv ids of the catalogue's papers whose abstract was never imported."""
    query = sa.select(paper.c.arxiv_id).where(paper.c.slug.is_not(None), paper.c.arxiv_id.is_not(None), paper.c.abstract.is_(None))
    with reading() as connection:
        return list(connection.execute(query.order_by(paper.c.arxiv_id).limit(500)).scalars())


def _days(hub: str, today: datetime.date, days: int) -> list[datetime.date]:
    """The days to ask the hub for, oldest first: those of the last `days`, and all behind the newest that is settled, unless they are settled.

    A day is settled when it was read to its end on the day after the next or later: a day's page grows while zones of time are still in it.
    """
    settled = set()
    for query, started in _finished(f"{hub.rstrip('/')}/api/daily_papers"):
        if set(query) <= {"date", "p", "limit"} and query.get("p", "0") == "0" and (day := _day(query.get("date", ""))) is not None:
            settled |= {day} if started > day + datetime.timedelta(days=1) else set()
    first = min([today - datetime.timedelta(days=days), *([max(settled) + datetime.timedelta(days=1)] if settled else [])])
    span = [first + datetime.timedelta(days=i) for i in range((today - first).days + 1)]
    return [day for day in span if day not in settled]


def _oai_address(oai: str, oai_set: str, today: datetime.date, days: int) -> str:
    """What to ask arXiv: the unfinished list of last time, else what changed since the last finished one of this set, from the day before it."""
    query = sa.select(import_run.c.address, import_run.c.cursor, import_run.c.state)
    query = query.where(
        import_run.c.address.startswith(f"{oai}?", autoescape=True), import_run.c.address.contains(urlencode({"set": oai_set}))
    )
    with reading() as connection:
        last = connection.execute(query.order_by(import_run.c.id.desc()).limit(1)).first()
    if last is not None and last.cursor and last.state != "done" and dict(parse_qsl(urlsplit(last.address).query)).get("set") == oai_set:
        return str(last.address)
    # one that asked for a span that ended says nothing of what came after it
    read = [started for asked, started in _finished(f"{oai}?") if asked.get("set") == oai_set and "until" not in asked]
    since = max(read) - datetime.timedelta(days=1) if read else today - datetime.timedelta(days=days)
    return f"{oai}?{urlencode({'verb': 'ListRecords', 'metadataPrefix': 'arXivRaw', 'set': oai_set, 'from': since.isoformat()})}"


def _finished(base: str) -> list[tuple[dict[str, str], datetime.date]]:
    """What was asked of an address, by imports that came to their end, and the day on which each began."""
    query = sa.select(import_run.c.address, import_run.c.started).where(
        import_run.c.address.startswith(base, autoescape=True), import_run.c.state == "done"
    )
    with reading() as connection:
        rows = connection.execute(query).all()
    return [(dict(parse_qsl(urlsplit(row.address).query)), datetime.date.fromisoformat(row.started[:10])) for row in rows]


def _day(text: str) -> datetime.date | None:
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        return None
