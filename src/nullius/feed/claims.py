"""What studies claim, in the database, so that pages need not import them (a study imports torch).

`python -m nullius.feed.claims SLUG...` prints what the code says, as JSON; `refresh` calls it in a process of its own for the modules that changed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from nullius.errors import NulliusError
from nullius.feed.database import reading, writing
from nullius.feed.tables import claim, paper, study
from nullius.lab import studies
from nullius.lab.journal import now
from nullius.lab.schema import upsert

SECONDS = 300


def refresh() -> list[str]:
    """Read the claims of studies whose module changed since they were read last; return their slugs. Cheap when nothing changed.

    Raises NulliusError when a study cannot be imported; those that can are written all the same.
    """
    changed = stale()
    if not changed:
        return []
    command = [sys.executable, "-m", "nullius.feed.claims", *changed]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment, check=False)
    except subprocess.TimeoutExpired:
        raise NulliusError(f"reading the claims of {', '.join(changed)} took more than {SECONDS} seconds") from None
    if done.returncode:
        raise NulliusError(
            f"the claims of {', '.join(changed)} cannot be read: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}"
        )
    found = json.loads(done.stdout)
    broken = {slug: entry["error"] for slug, entry in found.items() if "error" in entry}
    with writing() as connection:
        for slug, entry in found.items():
            if slug not in broken:
                write(connection, slug, changed[slug], entry)
    if broken:
        raise NulliusError("; ".join(f"the study '{slug}' cannot be imported: {reason}" for slug, reason in broken.items()))
    return list(changed)


def stale() -> dict[str, str]:
    """Return slug → SHA-256 of its module, for studies that were not read yet in their present form. Imports no study."""
    with reading() as connection:
        known = {row.slug: row.module_sha256 for row in connection.execute(sa.select(study.c.slug, study.c.module_sha256))}
    present = {slug: _digest(module) for slug, module in studies.modules().items()}
    return {slug: digest for slug, digest in sorted(present.items()) if known.get(slug) != digest}


def _digest(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()


def read(slug: str) -> dict[str, Any]:
    """Import a study and return what it says of itself, and its claims."""
    found = studies.get(slug)
    own = {"question": studies.question(slug), "minutes": found.minutes, "subject": found.subject, "trains_its_own": found.trains_its_own}
    return {
        "study": {**own, "options": [asdict(option) for option in found.options]},
        "claims": [studies.describe(c) for c in found.claims],
    }


def write(connection: sa.Connection, slug: str, digest: str, entry: dict[str, Any]) -> None:
    """Store what a study says; wordings that it no longer has are marked retired, one that came back no longer is."""
    # of two servers that read it at once the second waits here
    upsert(connection, study, {"slug": slug, "module_sha256": digest, **entry["study"]})
    today = {about["digest"] for about in entry["claims"]}
    gone = claim.update().where(claim.c.slug == slug, claim.c.digest.not_in(today), claim.c.retired_at.is_(None))
    connection.execute(gone.values(retired_at=now()))
    connection.execute(paper.update().where(paper.c.slug == slug).values(changed=now()))  # the word index reads the wording of claims
    for position, about in enumerate(entry["claims"]):
        key = {"slug": slug, "claim_id": about["id"], "digest": about["digest"]}
        upsert(connection, claim, {**key, "position": position, "description": about, "retired_at": None})


def _main() -> None:
    found: dict[str, Any] = {}
    for slug in sys.argv[1:]:
        try:
            found[slug] = read(slug)
        except Exception as error:  # one study that cannot be imported must not hide the others
            found[slug] = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(found))


if __name__ == "__main__":
    _main()
