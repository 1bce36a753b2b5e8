"""Shapes of the JSON API, for its OpenAPI description and for whoever checks answers against it. Keys may be added within /v1, never taken away."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Word = Literal["holds", "fails", "inconclusive", "out of reach"]
State = Literal["queued", "running", "done", "failed", "cancelled", "aborted"]


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class ProblemBody(Open):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    advice: str | None = None
    see: str | None = None


class Interval(Open):
    """95 % interval; an open end is null."""

    estimate: float
    lo: float | None
    hi: float | None


class Chip(Open):
    claim: str
    word: Word
    effect: Interval | None
    run: str
    reason: str


class Card(Open):
    """A paper as lists have it. chips: verdicts on the subject that was asked for. seconds: expected time of a quick run on it."""

    key: str
    title: str
    summary: str
    summary_by: str
    authors: int | None
    published: str | None
    date_inferred: bool
    category: str | None
    withdrawn: bool
    votes: int
    notes: int
    voted: bool
    saved: bool
    runnable: bool
    seconds: float | None
    chips: list[Chip]


class Papers(BaseModel):
    papers: list[Card]
    total: int
    cursor: str | None = Field(description="Give it back to go on; null at the end.")
    message: str | None = None


class ClaimBody(Open):
    id: str
    slug: str
    wording: str
    statistic: str
    kind: str
    margin: float
    control: str
    published: float | str | None
    unit: str
    needs: str
    rests_on: list[str]
    digest: str


class Claims(BaseModel):
    claims: list[ClaimBody]


class PaperBody(Open):
    paper: dict[str, Any]
    card: Card
    study: dict[str, Any] | None
    matrix: dict[str, Any] | None
    subject: str


class Matrix(Open):
    slug: str
    subjects: list[dict[str, Any]]
    claims: list[dict[str, Any]]
    earlier: list[dict[str, Any]]


class Votes(BaseModel):
    votes: int
    voted: bool


class SubjectRow(Open):
    name: str
    parameters: int | None
    architecture: str | None
    licence: str | None
    here: bool
    runs: int
    tally: dict[str, int]


class Subjects(BaseModel):
    subjects: list[SubjectRow]


class Dossier(Open):
    subject: dict[str, Any]
    questions: dict[str, list[dict[str, Any]]]
    missing: list[str]
    tally: dict[str, int]


class Compared(Open):
    slug: str
    claims: list[dict[str, Any]]


class Instruments(BaseModel):
    instruments: list[dict[str, Any]]


class Run(Open):
    """nullius.run/1, see docs/records.md; while it runs also `progress`."""

    id: str
    slug: str
    asked_subject: str
    full: bool
    seed: int
    state: State
    reason: str
    started: str
    finished: str | None
    verdicts: list[dict[str, Any]]
    rerun: str


class Runs(BaseModel):
    runs: list[Run]
    cursor: str | None


class RunWish(BaseModel):
    """What to run. options: of the study, out of its declared values."""

    model_config = ConfigDict(extra="forbid")

    paper: str = Field(min_length=1, max_length=200)
    subject: str = Field(default="smollm2-135m", min_length=1, max_length=1000)
    scale: Literal["quick", "full"] = "quick"
    seed: int = Field(default=0, ge=0, lt=2**63)
    options: dict[str, str] = Field(default_factory=dict, max_length=50)


class Started(BaseModel):
    id: str
    state: State
    expected_seconds: float | None
    waiting: int = Field(description="How many runs stand before it.")
    page: str
    events: str


class SavedEntry(BaseModel):
    paper: Card
    created: str
    note: str
    collection: str
    read_at: str | None


class Saved(BaseModel):
    saved: list[SavedEntry]
    cursor: str | None


class SaveWish(BaseModel):
    """What is kept beside a saved paper; what is left out stays as it is."""

    model_config = ConfigDict(extra="forbid")

    note: str | None = Field(default=None, max_length=5000)
    collection: str | None = Field(default=None, max_length=100)
    read: bool | None = None


class ImportRow(Open):
    id: str
    source: str
    address: str
    state: str
    error: str
    started: str
    seen: int
    new: int
    changed: int
    rejected: int


class Imports(BaseModel):
    imports: list[ImportRow]


class ImportWish(BaseModel):
    """What to import: an address of a source on the list, or the text of a document. date: the day of a page that does not say it."""

    model_config = ConfigDict(extra="forbid")

    address: str = Field(default="", max_length=2000)
    text: str = ""
    date: str = Field(default="", pattern=r"^(\d{4}-\d{2}-\d{2})?$")


class ImportReport(Open):
    id: str
    seen: int
    new: int
    changed: int
    rejected: int
    error: str
    summary: str
    rejects: list[dict[str, str]]


class Subscription(Open):
    """atom: where the same is read without mail."""

    id: str
    kind: str
    target: str
    schedule: str
    hour: int
    weekday: int
    tz: str
    at_most: int
    state: Literal["pending", "active", "paused", "suspended", "left"]
    atom: str


class Subscriptions(BaseModel):
    subscriptions: list[Subscription]


class SubscriptionWish(BaseModel):
    """What to send (a search, an author, a paper's slug or a subject's name as `target`), when, and how many papers at most."""

    model_config = ConfigDict(extra="forbid")

    email: str = Field(min_length=3, max_length=254)
    kind: Literal["daily", "trending", "search", "author", "paper", "subject"]
    target: str = Field(default="", max_length=500)
    schedule: Literal["daily", "weekdays", "weekly"] = "daily"
    hour: int = Field(default=7, ge=0, le=23)
    weekday: int = Field(default=0, ge=0, le=6, description="Of a weekly one; Monday is 0.")
    tz: str = Field(default="UTC", min_length=1, max_length=60)
    at_most: int = Field(default=10, ge=1, le=50)


class Asked(BaseModel):
    """The same answer whether the address is known or not."""

    asked: Literal[True] = True
    atom: str
