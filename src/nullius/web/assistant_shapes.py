"""What the tools for assistants answer with: typed, so that their schemas are part of each tool's description."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Word = Literal["holds", "fails", "inconclusive", "out of reach"]


class Shape(BaseModel):
    model_config = ConfigDict(extra="ignore")


class Interval(Shape):
    estimate: float
    lo: float | None
    hi: float | None


class VerdictSeen(Shape):
    claim: str
    word: Word
    effect: Interval | None
    control: Interval | None = None
    reason: str
    run: str | None = None
    subject: str | None = None
    full: bool | None = None


class PaperFound(Shape):
    """quoted: title and summary are text of others, quoted."""

    key: str
    quoted_title: str
    quoted_summary: str
    published: str | None
    runnable: bool
    verdicts: list[VerdictSeen]


class Found(Shape):
    papers: list[PaperFound]
    total: int
    cursor: str | None
    message: str | None


class ClaimSeen(Shape):
    id: str
    wording: str
    control: str
    published: float | str | None
    unit: str
    needs: str


class PaperSeen(Shape):
    key: str
    quoted_title: str
    quoted_summary: str
    quoted_abstract: str | None
    arxiv_id: str | None
    published: str | None
    runnable: bool
    default_subject: str | None
    options: list[dict[str, Any]]
    claims: list[ClaimSeen]
    verdicts: list[VerdictSeen]
    page: str


class SubjectSeen(Shape):
    name: str
    parameters: int | None
    here: bool
    runs: int


class Subjects(Shape):
    subjects: list[SubjectSeen]


class DossierSeen(Shape):
    subject: str
    parameters: int | None
    totals: dict[str, int]
    verdicts: list[VerdictSeen]
    untested: list[str]


class Comparison(Shape):
    paper: str
    claim: str
    wording: str
    published: float | str | None
    subjects: list[VerdictSeen]
    differences: list[dict[str, Any]]


class Handle(Shape):
    run_id: str
    state: str
    expected_seconds: float | None
    waiting: int
    next_step: str


class RunSeen(Shape):
    run_id: str
    paper: str
    subject: str
    state: str
    reason: str
    progress: str
    seconds_left: float | None
    verdicts: list[VerdictSeen]
    rerun_command: str
    page: str
