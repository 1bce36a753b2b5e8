"""Runs and papers made up for the feed's tests."""

from __future__ import annotations

import itertools

from nullius.feed import database, papers
from nullius.feed.importers import store
from nullius.feed.importers.records import Record
from nullius.lab import schema

_numbers = itertools.count(1)


def add_run(slug, subject, words, *, finished="2026-01-05T10:00:00.000+00:00", full=False, state="done", account=None, effect=0.4):
    """A run of a paper on a subject (its hash is its name repeated) with a verdict per claim: {claim: word} or {(claim, digest): word}."""
    run_id = f"{next(_numbers):026}"
    sha256 = (subject * 64)[:64]
    with database.writing() as connection:
        if connection.execute(schema.subject.select().where(schema.subject.c.sha256 == sha256)).first() is None:
            facts = {"parameters": 1000, "architecture": "toy", "chat": False, "provenance": {}}
            connection.execute(schema.subject.insert().values(sha256=sha256, name=subject, **facts))
        values = {"id": run_id, "slug": slug, "asked_subject": subject, "subject_sha256": sha256, "full": full, "seed": 0, "options": {}}
        values |= {"state": state, "reason": "", "started": finished, "finished": finished, "heartbeat": finished}
        connection.execute(schema.run.insert().values(**values, host="", pid=0, pid_started=0.0))
        for position, (name, word) in enumerate(words.items()):
            claim, digest = name if isinstance(name, tuple) else (name, f"digest {name}"[:16])
            detail = {
                "claim": claim,
                "digest": digest,
                "wording": f"It is said that {claim}",
                "word": word,
                "reason": "because",
                "p_holm": 0.01,
            }
            detail |= {"published": None, "unit": "", "control_wording": "none", "rests_on": [], "kind": "above_control", "margin": 0.0}
            measured = word != "out of reach"
            detail["effect"] = {"estimate": effect, "lo": effect - 0.1, "hi": effect + 0.1} if measured else None
            detail["control"] = {"estimate": 0.0, "lo": -0.1, "hi": 0.1} if measured else None
            row = {"run_id": run_id, "position": position, "claim": claim, "digest": digest, "word": word, "detail": detail}
            connection.execute(schema.verdict.insert().values(**row))
            if measured:
                numbers = {"effect": effect, "lo": effect - 0.1, "hi": effect + 0.1, "control": 0.0, "control_lo": -0.1, "control_hi": 0.1}
                row = {"run_id": run_id, "claim": claim, "digest": digest, "n": 20, "n_clusters": 20, "samples": "0" * 16}
                connection.execute(schema.finding.insert().values(**row, **numbers))
        if account is not None:
            connection.execute(schema.request.insert().values(run_id=run_id, account=account, asked=finished))
    return run_id


def add_papers(*records):
    """Write records and return the numbers of their papers, by arXiv id or title."""
    with database.writing() as connection:
        store.write(connection, list(records))
        return [papers.find_in(connection, record.arxiv_id).id for record in records if record.arxiv_id]


def paper(number, version=1, **values):
    """A record of an arXiv paper."""
    arxiv = f"2401.{number:05}"
    own = {"source": "arxiv", "external_id": f"{arxiv}v{version}", "version": version, "arxiv_id": arxiv, "title": f"Paper number {number}"}
    return Record(**own | values)
