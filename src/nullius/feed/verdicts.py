"""The lab's verdicts as pages need them: one cell per (wording of a claim, subject's weights), matrices, counts, and what is contested."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from nullius.feed.shapes import Cell, ClaimRow, Estimate, Matrix, SubjectColumn
from nullius.feed.tables import claim
from nullius.lab.schema import finding, run, subject, verdict


def cells(connection: sa.Connection, slugs: Iterable[str] | None = None, hashes: Iterable[str] | None = None) -> list[Cell]:
    """Return a cell per (paper, claim's digest, subject's hash), in the order of the study's claims. Limited to papers and subjects if given."""
    group = (run.c.slug, verdict.c.digest, run.c.subject_sha256)
    rank = sa.func.row_number().over(partition_by=group, order_by=(run.c.full.desc(), run.c.finished.desc(), run.c.id.desc()))
    columns: list[sa.ColumnElement[Any]] = [
        run.c.slug,
        verdict.c.claim,
        verdict.c.digest,
        verdict.c.position,
        verdict.c.word,
        run.c.subject_sha256,
        run.c.id,
    ]
    columns += [run.c.full, run.c.seed, run.c.finished, rank.label("rank"), sa.func.count().over(partition_by=group).label("runs")]
    columns += [sa.func.count().over(partition_by=(*group, verdict.c.word)).label("agreeing")]
    ranked = sa.select(*columns).join(run, run.c.id == verdict.c.run_id).where(run.c.state == "done", run.c.subject_sha256.is_not(None))
    if slugs is not None:
        ranked = ranked.where(run.c.slug.in_(list(slugs)))
    if hashes is not None:
        ranked = ranked.where(run.c.subject_sha256.in_(list(hashes)))
    first = ranked.subquery()
    numbers = [finding.c[name] for name in ("n", "effect", "lo", "hi", "control", "control_lo", "control_hi")]
    query = sa.select(first, *numbers, verdict.c.detail).where(first.c.rank == 1)
    query = query.join(verdict, sa.and_(verdict.c.run_id == first.c.id, verdict.c.claim == first.c.claim))
    query = query.outerjoin(finding, sa.and_(finding.c.run_id == first.c.id, finding.c.claim == first.c.claim))
    rows = connection.execute(query.order_by(first.c.slug, first.c.position, first.c.subject_sha256)).mappings()
    return [_cell(dict(row)) for row in rows]


def _cell(row: Mapping[str, Any]) -> Cell:
    detail = row["detail"]
    own = {
        name: row[name]
        for name in ("slug", "claim", "digest", "subject_sha256", "word", "full", "seed", "finished", "runs", "agreeing", "n")
    }
    effect = _estimate(row["effect"], row["lo"], row["hi"])
    control = _estimate(row["control"], row["control_lo"], row["control_hi"])
    return Cell(**own, run=row["id"], effect=effect, control=control, reason=detail.get("reason", ""), p_holm=detail.get("p_holm"))


def _estimate(value: float | None, lo: float | None, hi: float | None) -> Estimate | None:
    if value is None:
        return None
    return Estimate(value, -math.inf if lo is None else lo, math.inf if hi is None else hi)


def hashes_of(connection: sa.Connection, name: str) -> list[str]:
    """Return the hashes of the subjects known by a name (its own, the one it was asked by, or the first 8 digits or more of its hash)."""
    by_hash = subject.c.sha256.startswith(name, autoescape=True) if len(name) >= 8 else sa.false()
    asked = sa.select(run.c.subject_sha256).where(run.c.asked_subject == name, run.c.subject_sha256.is_not(None))
    query = sa.select(subject.c.sha256).where(sa.or_(subject.c.name == name, subject.c.sha256.in_(asked), by_hash))
    return list(connection.execute(query).scalars())


def matrix(connection: sa.Connection, slug: str) -> Matrix:
    """Return claims × subjects of a paper: today's claims first, then wordings of the past that have verdicts."""
    found = {(cell.digest, cell.subject_sha256): cell for cell in cells(connection, [slug])}
    query = sa.select(claim).where(claim.c.slug == slug).order_by(claim.c.retired_at.is_not(None), claim.c.position)
    tested = {digest for digest, _ in found}
    rows = [_row(dict(row)) for row in connection.execute(query).mappings() if row["retired_at"] is None or row["digest"] in tested]
    known = {row.digest for row in rows}
    for cell in found.values():  # verdicts on a wording from before this database knew of claims
        if cell.digest not in known:
            known.add(cell.digest)
            rows.append(_from_verdict(connection, cell))
    about = sa.select(subject).where(subject.c.sha256.in_({digest for _, digest in found})).order_by(subject.c.parameters, subject.c.name)
    columns = [SubjectColumn(row.sha256, row.name, row.parameters, row.architecture) for row in connection.execute(about)]
    return Matrix(tuple(rows), tuple(columns), found)


def _row(row: Mapping[str, Any]) -> ClaimRow:
    about = row["description"]
    own = {name: about[name] for name in ("wording", "published", "unit", "control")}
    return ClaimRow(claim=row["claim_id"], digest=row["digest"], retired=row["retired_at"] is not None, description=about, **own)


def _from_verdict(connection: sa.Connection, cell: Cell) -> ClaimRow:
    query = sa.select(verdict.c.detail).where(verdict.c.run_id == cell.run, verdict.c.claim == cell.claim)
    detail = connection.execute(query).scalar_one()
    known = connection.execute(sa.select(claim.c.slug).where(claim.c.slug == cell.slug).limit(1)).first()
    own = {name: detail.get(name) for name in ("wording", "published")} | {"unit": detail.get("unit", "")}
    about = {name: detail.get(name) for name in ("statistic", "kind", "margin", "rests_on")}
    control = detail.get("control_wording", "")
    return ClaimRow(claim=cell.claim, digest=cell.digest, control=control, retired=known is not None, description=about, **own)


def decided(connection: sa.Connection, first: str, last: str) -> dict[str, int]:
    """Return how many verdicts of each word finished runs gave from one day to another (ISO dates, both included)."""
    query = sa.select(verdict.c.word, sa.func.count()).join(run, run.c.id == verdict.c.run_id)
    query = query.where(run.c.state == "done", run.c.finished >= first, run.c.finished < last + "T~")
    found = {row[0]: row[1] for row in connection.execute(query.group_by(verdict.c.word))}
    return {word: found.get(word, 0) for word in ("holds", "fails", "inconclusive", "out of reach")}


def contested(connection: sa.Connection) -> dict[str, float]:
    """Return, for each paper with verdicts, the sum over claims of min(h, f) / (h + f + 1), with h and f the subjects on which it holds, fails."""
    words: dict[tuple[str, str], list[str]] = {}
    for cell in cells(connection):
        words.setdefault((cell.slug, cell.digest), []).append(cell.word)
    scores: dict[str, float] = {}
    for (slug, _), given in words.items():
        holds, fails = given.count("holds"), given.count("fails")
        scores[slug] = scores.get(slug, 0.0) + min(holds, fails) / (holds + fails + 1)
    return scores


def subjects_tested(connection: sa.Connection) -> dict[str, int]:
    """Return on how many subjects each paper was run to the end."""
    query = sa.select(run.c.slug, sa.func.count(run.c.subject_sha256.distinct())).where(run.c.state == "done").group_by(run.c.slug)
    return {row[0]: row[1] for row in connection.execute(query)}
