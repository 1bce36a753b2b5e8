"""What every study claims, offers and takes, as the feed keeps it: no study is imported here, since studies bring torch, and a page needs none."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import sqlalchemy as sa

from nullius.errors import NulliusError
from nullius.feed import claims as feed_claims
from nullius.feed.database import reading
from nullius.feed.tables import claim, study
from nullius.lab.schema import url

FRESH_SECONDS = 30.0
log = logging.getLogger("nullius.web")
_lock = threading.Lock()
_held: dict[str, tuple[float, dict[str, dict[str, Any]]]] = {}


def described() -> dict[str, dict[str, Any]]:
    """Return slug → question, minutes, subject (the default one), trains_its_own, options, claims (as in nullius.paper/1)."""
    name = str(url())
    kept = _held.get(name)
    if kept and kept[0] > time.monotonic():
        return kept[1]
    found = _read()
    if found:
        _held[name] = (time.monotonic() + FRESH_SECONDS, found)
    return found


def _read() -> dict[str, dict[str, Any]]:
    names = ("question", "minutes", "subject", "trains_its_own", "options")
    with reading() as connection:
        found = {row["slug"]: {**{n: row[n] for n in names}, "claims": []} for row in connection.execute(sa.select(study)).mappings()}
        query = sa.select(claim.c.slug, claim.c.description).where(claim.c.retired_at.is_(None)).order_by(claim.c.slug, claim.c.position)
        for slug, description in connection.execute(query):
            if slug in found:
                found[slug]["claims"].append(description)
    return found


def refresh() -> None:
    """See that the feed has read every study as it is now. Takes seconds when one has changed, nothing otherwise."""
    with _lock:
        try:
            feed_claims.refresh()
        except NulliusError as error:  # one broken study must not take the others from the page
            log.warning("%s", error)
        _held.clear()


def known(slug: str | None) -> dict[str, Any] | None:
    """Return the description of one study, or None where a paper has none."""
    return described().get(slug) if slug else None


def instruments(slug: str | None) -> list[str]:
    """Return the names of the instruments that a paper's claims rest on."""
    return list(dict.fromkeys(name for claim in claims(slug) for name in claim["rests_on"]))


def claims(slug: str | None) -> list[dict[str, Any]]:
    """Return the claims registered today for a paper."""
    found = known(slug)
    return list(found["claims"]) if found else []
