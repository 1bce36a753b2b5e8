"""What every study claims, offers and takes, as plain data, without importing the studies here: they bring torch, and a page needs none.

A process of its own imports them once and writes the answer into the cache folder, under a hash of all that it depends on.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import nullius
from nullius.errors import NulliusError
from nullius.lab import studies
from nullius.paths import cache_dir

ROOT = Path(nullius.__file__).parent
_lock = threading.Lock()


def described() -> dict[str, dict[str, Any]]:
    """Return slug → question, minutes, subject (the default one), trains_its_own, options, claims (as in nullius.paper/1).

    A study that cannot be imported is left out. Raises NulliusError when no description can be made at all.
    """
    return _described(fingerprint())


def known(slug: str | None) -> dict[str, Any] | None:
    """Return the description of one study, or None where a paper has none."""
    return described().get(slug) if slug else None


def claims(slug: str | None) -> list[dict[str, Any]]:
    """Return the claims registered today for a paper."""
    found = known(slug)
    return found["claims"] if found else []


@cache
def fingerprint() -> str:
    """Hash of names, sizes and times of all source outside the web: whatever can change a description. Taken once, when a server starts."""
    paths = [path for path in sorted(ROOT.rglob("*.py")) if path.relative_to(ROOT).parts[0] not in ("web", "cli")]
    facts = [(str(path), stat.st_mtime_ns, stat.st_size) for path in paths if (stat := path.stat())]
    return hashlib.sha256(repr((nullius.__version__, facts)).encode()).hexdigest()[:16]


@lru_cache(maxsize=2)
def _described(digest: str) -> dict[str, dict[str, Any]]:
    path = cache_dir() / "studies" / f"{digest}.json"
    with _lock:
        if not path.is_file():
            done = subprocess.run([sys.executable, "-m", "nullius.web.registry", str(path)], capture_output=True, text=True, check=False)
            if done.returncode:
                raise NulliusError(f"the studies cannot be read: {done.stderr.strip().splitlines()[-1:] or done.returncode}")
    found: dict[str, dict[str, Any]] = json.loads(path.read_text("utf-8"))
    return found


def describe_all() -> dict[str, dict[str, Any]]:
    """Import every study and describe it. Slow, and heavy."""
    found: dict[str, dict[str, Any]] = {}
    for slug in sorted(studies.modules()):
        try:
            study = studies.get(slug)
        except Exception as error:  # one broken study must not take the others from the page
            print(f"{slug}: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        options = [{"name": option.name, "values": list(option.values), "help": option.help} for option in study.options]
        about = {"question": studies.question(slug), "minutes": study.minutes, "subject": study.subject, "options": options}
        found[slug] = about | {"trains_its_own": study.trains_its_own, "claims": [studies.describe(claim) for claim in study.claims]}
    return found


if __name__ == "__main__":
    from nullius.lab.artefacts import write_text

    write_text(sys.argv[1], json.dumps(describe_all(), ensure_ascii=False))
