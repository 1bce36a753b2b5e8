"""Search as pages and JSON need it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nullius.feed import catalogue
from nullius.feed import papers as feed_papers


def like(found: Mapping[str, Any], n: int) -> list[int]:
    """Return the numbers of papers like one, nearest first."""
    hits = [entry for entry in catalogue.search(f"{found['title']} {found['summary'] or ''}", limit=n + 1) if entry.slug != found["slug"]]
    return [feed_papers.find(entry.slug).id for entry in hits[:n]]
