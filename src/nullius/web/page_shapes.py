"""Shapes of the pages' own JSON (address + `.json`), by their `schema`: they stand in the OpenAPI description, and tests hold pages to them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from nullius.web import shapes
from nullius.web.shapes import Card, Interval, Open, SubjectRow, Word


class Page(Open):
    """What every page has: `schema`, which names its shape (not a field here, since pydantic has a use of its own for that name)."""


class Listed(Page):
    """Papers of a span of days. older, newer: the nearest spans that have papers."""

    first: str
    last: str
    older: str | None
    newer: str | None
    order: Literal["newest", "voted", "contested", "untested"]
    orders: list[str]
    count: int
    runnable: int
    cursor: str
    subject: str
    cards: list[Card]


class Day(Listed):
    day: str
    totals: dict[Word, int] | None


class Decided(Open):
    slug: str
    claim: str
    word: Word
    effect: Interval | None
    run: str
    subject: str


class PaperDecided(Open):
    slug: str
    title: str
    subject: str
    run: str
    tally: dict[Word, int]


class Span(Listed):
    kind: Literal["week", "month"]
    name: str
    decided: dict[Word, int]
    papers_decided: list[PaperDecided]
    verdicts: list[Decided]


class Hot(Card):
    """heat: the score now; parts: what it is the sum of."""

    heat: float
    parts: dict[Literal["votes", "runs", "verdicts", "upvotes", "publication"], float]


class Trending(Page):
    days: int
    spans: list[int]
    subject: str
    as_of: str
    cursor: str
    cards: list[Hot]


class Everywhere(Open):
    """tally: how many of each word; on: the subjects."""

    tally: dict[Word, int]
    on: list[str]


class Hit(Card):
    """marked, excerpt: title and summary as HTML, with the words of the query marked. everywhere: verdicts on all subjects; None without a study."""

    everywhere: Everywhere | None

    why: Literal["named", "words", "meaning", "words and meaning"]
    marked: str
    excerpt: str


class Search(Page):
    query_text: str
    papers: list[Hit]
    total: int
    cursor: str | None
    milliseconds: float
    message: str | None
    meaning: bool
    filters: list[dict[str, str]]
    dropped: list[str]
    suggestions: list[str]
    subject: str


class Note(Open):
    id: int
    by: str
    text: str
    html: str
    created: str
    replies: list[Note]


class OnePaper(shapes.PaperBody, Page):
    calibration: list[dict[str, Any]]
    figure: dict[str, Any] | None
    expected: float | None
    memory: float | None
    runs: list[dict[str, Any]]
    run_count: int
    similar_by: Literal["meaning", "newest", "instrument"]
    similar: list[Card]
    notes: list[Note]


class OneRun(Page):
    run: shapes.Run
    paper: dict[str, Any]
    live: bool
    progress: dict[str, Any] | None
    waiting: dict[str, Any] | None
    cancellable: bool
    figures: list[dict[str, Any]]
    calibration: list[dict[str, Any]]
    against: dict[str, Any] | None


class Short(Open):
    id: str
    slug: str
    asked_subject: str
    full: bool
    seed: int
    state: shapes.State
    started: str
    finished: str | None


class RunList(Page):
    open: list[Short]
    runs: list[Short]
    before: str | None
    state: str
    paper: str
    mine: bool
    worker: bool


class SubjectList(Page):
    subjects: list[SubjectRow]
    subject: str


class SubjectDossier(shapes.Dossier, Page):
    name: str
    seconds: float
    calibration: list[dict[str, Any]]


class Compare(Page):
    paper: dict[str, Any]
    tested: list[str]
    chosen: list[str]
    claims: list[dict[str, Any]]


class Calibration(Page):
    instruments: list[dict[str, Any]]


class Subscribe(Page):
    kinds: dict[str, str]
    schedules: list[str]
    feeds: list[dict[str, str]]
    mine: list[shapes.Subscription]
    mail: bool


class Library(Page):
    saved: list[shapes.SavedEntry]
    after: str | None
    collections: dict[str, int]
    collection: str | None
    unread: bool


class Account(Page):
    me: dict[str, str]
    sessions: list[dict[str, Any]]
    tokens: list[dict[str, Any]]
    identities: list[dict[str, Any]]
    scopes: list[str]


class ImportList(Page):
    imports: list[shapes.ImportRow]
    hosts: list[str]
    report: dict[str, Any] | None


class Addresses(Page):
    warnings: list[str]
    counts: dict[str, int]
    unknown: list[dict[str, Any]]
    addresses: list[dict[str, Any]]
    before: int | None
    troubled: bool


class About(Page):
    nullius: str


class Contributing(Page):
    """html: the guide to adding a study."""

    html: str


class Health(Page):
    status: Literal["ok"]
    nullius: str
    up_seconds: int
    queued: int
    running: int
    worker: bool
    verdicts: int


class Api(Page):
    operations: list[dict[str, Any]]


PAGES: dict[str, type[BaseModel]] = {
    "nullius.web.day/1": Day,
    "nullius.web.week/1": Span,
    "nullius.web.month/1": Span,
    "nullius.web.trending/1": Trending,
    "nullius.web.search/1": Search,
    "nullius.web.paper/1": OnePaper,
    "nullius.web.run/1": OneRun,
    "nullius.web.runs/1": RunList,
    "nullius.web.subjects/1": SubjectList,
    "nullius.dossier/1": SubjectDossier,
    "nullius.web.compare/1": Compare,
    "nullius.web.calibration/1": Calibration,
    "nullius.web.subscribe/1": Subscribe,
    "nullius.web.library/1": Library,
    "nullius.web.account/1": Account,
    "nullius.web.imports/1": ImportList,
    "nullius.web.addresses/1": Addresses,
    "nullius.web.about/1": About,
    "nullius.web.contributing/1": Contributing,
    "nullius.web.health/1": Health,
    "nullius.web.api/1": Api,
}


def described() -> dict[str, Any]:
    """Return JSON Schemas of all pages, under names that begin with Page, and of what they are made of."""
    models = sorted(set(PAGES.values()), key=lambda model: model.__name__)
    _, found = models_json_schema([(model, "serialization") for model in models], ref_template="#/components/schemas/Page{model}")
    return {f"Page{name}": schema for name, schema in found["$defs"].items()}
