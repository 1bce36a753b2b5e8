"""What a digest says: new verdicts first, then papers that this subscription has not sent yet."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from nullius.feed import cards
from nullius.feed.digest.clock import moment
from nullius.feed.shapes import Card
from nullius.feed.tables import account, delivered_paper, paper, paper_author, paper_day, standing
from nullius.feed.text import key
from nullius.feed.verdicts import hashes_of
from nullius.lab.schema import finding, run, verdict
from nullius.lab.schema import subject as subject_table

MOST_VERDICTS = 30
SHARED_SECONDS = 60.0
GLYPHS = {"holds": "●", "fails": "✕", "inconclusive": "◐", "out of reach": "○"}


@dataclass(frozen=True)
class NewVerdict:
    """A verdict that a finished run gave in the period."""

    slug: str
    claim: str
    wording: str
    word: str
    subject: str
    run: str
    effect: float | None
    lo: float | None
    hi: float | None

    @property
    def glyph(self) -> str:
        return GLYPHS[self.word]

    @property
    def interval(self) -> str:
        """The effect with its interval, as text; empty where nothing was measured."""
        if self.effect is None:
            return ""
        ends = ("…" if end is None else f"{end:.2f}" for end in (self.lo, self.hi))
        return f"{self.effect:.2f} [{', '.join(ends)}]"


@dataclass(frozen=True)
class Contents:
    """What goes into one mail. about: whose verdicts they are, for the subject line."""

    verdicts: tuple[NewVerdict, ...]
    papers: tuple[Card, ...]
    about: str

    @property
    def empty(self) -> bool:
        """Whether there is nothing to say: then no mail is sent."""
        return not self.verdicts and not self.papers


@dataclass
class Shared:
    """What the mails of one round have in common, for a minute: thousands of subscriptions ask for the same papers."""

    values: dict[tuple[Any, ...], Any] = field(default_factory=dict)
    until: float = 0.0

    def get(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """Return what was made for a key, made now where there is none."""
        if time.monotonic() > self.until:
            self.values, self.until = {}, time.monotonic() + SHARED_SECONDS
        if key not in self.values:
            self.values[key] = make()
        return self.values[key]


def of(
    connection: sa.Connection, wanted: Any, since: datetime, until: datetime, delivery: int | None = None, shared: Shared | None = None
) -> Contents:
    """Return the contents of a subscription (a row of `subscription`) for a period, after `since` up to `until`.

    delivery: the mail that it is for; papers that this very mail was given earlier do not count as sent. shared: of the round that it is part of.
    """
    shared = shared or Shared()
    kind, target = wanted["kind"], wanted["target"]
    if kind == "paper":
        return Contents(_verdicts(connection, since, until, slug=target), (), target)
    if kind == "subject":
        return Contents(_verdicts(connection, since, until, subject=target), (), target)
    own = sa.select(account.c.subject).where(account.c.id == wanted["account"])
    mine = connection.execute(own).scalar() if wanted["account"] is not None else None
    verdicts = _verdicts(connection, since, until, subject=mine) if mine and kind == "daily" else ()
    chosen = shared.get(("chosen", kind, target, since, until), lambda: _candidates(connection, kind, target, since, until))
    sent = sa.select(delivered_paper.c.paper).where(delivered_paper.c.subscription == wanted["id"])
    if delivery is not None:
        sent = sent.where(delivered_paper.c.delivery != delivery)
    before = set(connection.execute(sent).scalars())
    fresh = tuple(number for number in chosen if number not in before)[: wanted["at_most"]]
    shown = shared.get(("cards", fresh, mine), lambda: cards.by_ids(connection, fresh, subject=mine or ""))
    return Contents(verdicts, shown, mine or "")


def _verdicts(
    connection: sa.Connection, since: datetime, until: datetime, *, slug: str = "", subject: str | None = None
) -> tuple[NewVerdict, ...]:
    query = sa.select(run.c.slug, verdict.c.claim, verdict.c.word, verdict.c.detail, subject_table.c.name, run.c.id)
    query = query.add_columns(finding.c.effect, finding.c.lo, finding.c.hi).join(run, run.c.id == verdict.c.run_id)
    query = query.join(subject_table, subject_table.c.sha256 == run.c.subject_sha256)
    query = query.outerjoin(finding, sa.and_(finding.c.run_id == run.c.id, finding.c.claim == verdict.c.claim))
    query = query.where(run.c.state == "done", run.c.finished > moment(since), run.c.finished <= moment(until))
    if slug:
        query = query.where(run.c.slug == slug)
    if subject is not None:
        query = query.where(run.c.subject_sha256.in_(hashes_of(connection, subject)))
    rows = connection.execute(query.order_by(run.c.finished.desc(), run.c.id, verdict.c.position).limit(MOST_VERDICTS))
    return tuple(
        NewVerdict(row.slug, row.claim, row.detail.get("wording", ""), row.word, row.name, row.id, row.effect, row.lo, row.hi)
        for row in rows
    )


def _candidates(connection: sa.Connection, kind: str, target: str, since: datetime, until: datetime) -> list[int]:
    """Numbers of papers of a kind, in the order in which they are to be shown."""
    alive = (standing, paper.c.withdrawn.is_(False))
    if kind == "trending":
        query = sa.select(paper.c.id).where(*alive, paper.c.heat.is_not(None)).order_by(paper.c.heat.desc(), paper.c.id).limit(100)
        return list(connection.execute(query).scalars())
    if kind == "daily":
        days = paper_day.c.day.between(since.astimezone(UTC).date(), until.astimezone(UTC).date())
        query = sa.select(paper.c.id).join(paper_day, paper_day.c.paper == paper.c.id).where(*alive, days)
        query = query.group_by(paper.c.id).order_by(sa.func.max(paper_day.c.day).desc(), paper.c.votes.desc(), paper.c.id)
        return list(connection.execute(query).scalars())
    arrived = (paper.c.added > moment(since), paper.c.added <= moment(until))
    if kind == "author":
        query = sa.select(paper.c.id).join(paper_author, paper_author.c.paper == paper.c.id)
        query = query.where(*alive, *arrived, paper_author.c.name_key == key(target)).distinct()
        return list(connection.execute(query.order_by(paper.c.id)).scalars())
    from nullius.feed.search import engine  # the word index is opened only for those who search

    new = set(connection.execute(sa.select(paper.c.id).where(*alive, *arrived)).scalars())
    return [hit.card.id for hit in engine.search(target, limit=500).hits if hit.card.id in new] if new else []
