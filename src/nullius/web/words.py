"""Numbers, times and verdicts as people read them: filters of the templates."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any

from markupsafe import Markup, escape

from nullius.lab import wording
from nullius.lab.figures import GLYPH

WORDS = ("holds", "fails", "inconclusive", "out of reach", "not run")
MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


def glyph(word: str) -> str:
    """The sign of a verdict; it says what the colour says."""
    return GLYPH.get(word, "·")


def kind(word: str) -> str:
    """A verdict as the name of a CSS class."""
    return word.replace(" ", "-")


def number(value: Any, digits: int = 2) -> str:
    """A number with a true minus sign: 0.41, −3.20, 1.2e-05; words as they are, a dash for nothing."""
    if value is None or value == "":
        return "–"
    if not isinstance(value, int | float) or isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}".replace(",", " ").replace("-", "−")
    size = abs(value)
    text = f"{value:.{digits}e}" if size and (size < 10**-digits / 2 or size >= 1e6) else f"{value:.{digits}f}"
    return (text if float(text) else f"{0:.{digits}f}").replace("-", "−")


def interval(found: Mapping[str, Any] | None) -> str:
    """0.41 [0.30, 0.52]; an open end is infinite."""
    return wording.interval(found["estimate"], found["lo"], found["hi"]) if found else "–"


def share(found: Mapping[str, Any] | None) -> str:
    """[0.87, 0.99]: where a share lies."""
    return f"[{found['lo']:.2f}, {found['hi']:.2f}]" if found else ""


def together(cell: Mapping[str, Any]) -> str:
    """2 of 3 hold, where runs of one thing disagree; 3 runs, where they do not; '' for a single one."""
    if cell["runs"] < 2:
        return ""
    if cell["agreeing"] == cell["runs"]:
        return f"{cell['runs']} runs"
    word = {"holds": "hold", "fails": "fail"}.get(cell["word"], cell["word"])
    return f"{cell['agreeing']} of {cell['runs']} {word}"


def probability(value: float | None) -> str:
    """0.03, <0.001"""
    if value is None:
        return "–"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def day(value: str | date | None, *, weekday: bool = False) -> str:
    """4 Nov 2025, or Tue 4 November 2025."""
    if not value:
        return ""
    when = date.fromisoformat(value[:10]) if isinstance(value, str) else value
    if weekday:
        return f"{DAYS[when.weekday()][:3]} {when.day} {MONTHS[when.month - 1]} {when.year}"
    return f"{when.day} {MONTHS[when.month - 1][:3]} {when.year}"


def near(value: str | date, to: str | date) -> str:
    """4 Nov, as seen from a day of the same year; 30 Dec 2024 from another."""
    a, b = day(value), day(to)
    return a.removesuffix(a[-5:]) if a[-4:] == b[-4:] else a


def weekday(value: str | date) -> str:
    """Tue"""
    return DAYS[(date.fromisoformat(value[:10]) if isinstance(value, str) else value).weekday()][:3]


def days(first: str | date, last: str | date) -> str:
    """3–9 Nov 2025; 29 Sep – 5 Oct 2025; 29 Dec 2025 – 4 Jan 2026."""
    a, b = (date.fromisoformat(value[:10]) if isinstance(value, str) else value for value in (first, last))
    if a.year != b.year:
        return f"{day(a)} – {day(b)}"
    return f"{a.day}–{day(b)}" if a.month == b.month else f"{a.day} {MONTHS[a.month - 1][:3]} – {day(b)}"


def month(value: str | date) -> str:
    """November 2025."""
    when = date.fromisoformat(f"{value}-01"[:10]) if isinstance(value, str) else value
    return f"{MONTHS[when.month - 1]} {when.year}"


def age(value: str | datetime | None, now: datetime | None = None) -> str:
    """just now, 5 min ago, 3 h ago, 2 days ago, then the date."""
    if not value:
        return ""
    when = datetime.fromisoformat(value) if isinstance(value, str) else value
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    seconds = ((now or datetime.now(UTC)) - when).total_seconds()
    if seconds < 60:
        return "just now"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min ago"
    if seconds < 86400:
        return f"{seconds / 3600:.0f} h ago"
    days = int(seconds // 86400)
    return f"{days} day{'s' if days > 1 else ''} ago" if days < 14 else day(when.date())


def clock(seconds: float | None) -> str:
    """0:42, 12:05, 2:10:00"""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def about(seconds: float | None) -> str:
    """~20 s, ~2 min, ~3 h"""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"~{max(5, round(seconds / 5) * 5)} s"
    return f"~{round(seconds / 60)} min" if seconds < 5400 else f"~{seconds / 3600:.1f} h"


def size(value: float | None) -> str:
    """134 M, 1.2 B: parameters."""
    if value is None:
        return "–"
    return f"{value / 1e9:.1f} B" if value >= 1e9 else f"{value / 1e6:.0f} M" if value >= 1e6 else f"{value / 1e3:.0f} k"


def bytes_(value: float | None) -> str:
    """512 B, 3.4 kB, 0.9 GB"""
    if value is None:
        return "–"
    for unit, least in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= least * 0.95:
            return f"{value / least:.1f} {unit}"
    return f"{value:.0f} B"


def plural(n: int, one: str, many: str = "") -> str:
    """1 author, 3 authors"""
    return f"{number(n)} {one if n == 1 else many or one + 's'}"


def coded(text: str) -> Markup:
    """What stands between `backticks` as code; the rest escaped."""
    return Markup("").join(Markup("<code>{}</code>").format(part) if i % 2 else escape(part) for i, part in enumerate(text.split("`")))


FILTERS = {
    "coded": coded,
    "glyph": glyph,
    "kind": kind,
    "number": number,
    "interval": interval,
    "share": share,
    "together": together,
    "probability": probability,
    "day": day,
    "near": near,
    "weekday": weekday,
    "days": days,
    "month": month,
    "age": age,
    "clock": clock,
    "about": about,
    "size": size,
    "bytes": bytes_,
    "plural": plural,
}
