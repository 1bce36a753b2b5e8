"""When a digest is due: an hour of the subscriber's own day, whatever the clocks do there."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from nullius.errors import UsageError

SCHEDULES = ("daily", "weekdays", "weekly")
LATE_HOURS = 12  # a digest later than this waits for its next period


@dataclass(frozen=True)
class Schedule:
    """daily, weekdays or weekly, at an hour in a time zone; weekday: of a weekly one, Monday is 0."""

    kind: str
    hour: int
    tz: str
    weekday: int = 0

    def check(self) -> None:
        """Raise UsageError for a schedule that no calendar has."""
        if self.kind not in SCHEDULES:
            raise UsageError(f"a digest comes {', '.join(SCHEDULES[:-1])} or {SCHEDULES[-1]}, not '{self.kind}'")
        if not 0 <= self.hour <= 23 or not 0 <= self.weekday <= 6:
            raise UsageError("the hour is 0 to 23, the weekday 0 (Monday) to 6")
        zone(self.tz)


@dataclass(frozen=True)
class Period:
    """key: the local date, or the ISO week of a weekly digest. due: when it is to be sent. since: when the period before it was due."""

    key: str
    due: datetime
    since: datetime


def zone(name: str) -> ZoneInfo:
    """Return a time zone. Raises UsageError for a name that is none."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise UsageError(f"'{name[:60]}' is no time zone; write one like Europe/Rome") from None


def due(day: date, hour: int, tz: str) -> datetime:
    """Return the moment (UTC) of an hour on a local day. An hour that spring skips is the next valid one; of one that autumn doubles, the first."""
    return datetime.combine(day, time(hour), zone(tz)).astimezone(UTC)


def current(schedule: Schedule, now: datetime) -> Period:
    """Return the period whose moment came last, up to and including `now` (UTC)."""
    today = now.astimezone(zone(schedule.tz)).date()
    # a day ahead: where clocks skip an hour at midnight, the local date and the moment of that hour can lie on different sides
    days = (today + timedelta(days=back) for back in range(1, -16, -1))
    found = [day for day in days if _falls(schedule, day) and due(day, schedule.hour, schedule.tz) <= now]
    day, before = found[0], found[1]
    key = "{}-W{:02}".format(*day.isocalendar()[:2]) if schedule.kind == "weekly" else day.isoformat()
    return Period(key, due(day, schedule.hour, schedule.tz), due(before, schedule.hour, schedule.tz))


def _falls(schedule: Schedule, day: date) -> bool:
    if schedule.kind == "weekly":
        return day.weekday() == schedule.weekday
    return schedule.kind == "daily" or day.weekday() < 5


def in_time(period: Period, now: datetime, began: datetime) -> bool:
    """Whether a period is to be planned now: it came due after the subscription began, and not too long ago."""
    return began < period.due and now - period.due < timedelta(hours=LATE_HOURS)


def moment(at: datetime) -> str:
    """Return a moment as the database has it."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds")
