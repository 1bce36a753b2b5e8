"""Asking for a run, cancelling one, and who may: the same for a form, the JSON API and an assistant."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from nullius.errors import NulliusError, UsageError, nearest
from nullius.lab import journal, queue
from nullius.models.sources import sources
from nullius.web import registry, verdicts, who
from nullius.web.problems import Problem, from_error
from nullius.web.settings import Settings

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


@dataclass(frozen=True)
class Wish:
    """A run as it is asked for."""

    slug: str | None
    subject: str
    full: bool = False
    seed: int = 0
    options: Mapping[str, str] = field(default_factory=dict)
    rerun_of: str | None = None


def ask(person: who.Person, wish: Wish, settings: Settings, *, threads: int | None = None, key: str | None = None) -> str:
    """Queue a run and return its id. Raises Problem where the person may not, the study has no such option, or the subject is not to be had."""
    who.need(person, "run", settings)
    study = registry.known(wish.slug)
    if study is None or wish.slug is None:
        raise Problem(422, "This paper is not runnable yet: nobody has written its study.", "CONTRIBUTING shows how to in twenty minutes.")
    offered = {option["name"]: option["values"] for option in study["options"]}
    for name, value in wish.options.items():
        if name not in offered:
            raise Problem(422, f"{wish.slug} has no option '{name[:60]}'; it has: {', '.join(offered) or 'none'}.")
        if value not in offered[name]:
            raise Problem(422, f"Option {name} takes {', '.join(offered[name])}, not '{value[:60]}'.")
    if wish.full:
        who.need(person, "run-full", settings)
    _check_subject(person, wish.subject, settings)
    waiting = None
    if person.role == "member":
        waiting = who.WAITING
        since = (datetime.now(UTC) - timedelta(days=1)).isoformat(timespec="milliseconds")
        if queue.count(person.account, since=since) >= who.A_DAY:
            raise Problem(
                429,
                f"At most {who.A_DAY} runs a day.",
                "Go on tomorrow, or run it at home: `nullius run` has no limits.",
                None,
                {"Retry-After": "3600"},
            )
    try:
        made = queue.enqueue(
            wish.slug,
            wish.subject,
            seed=wish.seed,
            full=wish.full,
            options=wish.options,
            rerun_of=wish.rerun_of,
            threads=threads,
            account=person.account,
            key=key[:200] if key else None,
            waiting=waiting,
        )
    except UsageError as error:
        if "waiting" in str(error):
            raise Problem(
                429, f"{str(error)[:1].upper()}{str(error)[1:]}.", "", ("/runs?mine=1", "Your runs"), {"Retry-After": "60"}
            ) from None
        raise Problem(409 if "key" in str(error) else 422, f"{str(error)[:1].upper()}{str(error)[1:]}.") from None
    except NulliusError as error:
        raise from_error(error, reading=False) from None
    verdicts.forget()
    return made


def _check_subject(person: who.Person, name: str, settings: Settings) -> None:
    """A name from the list for members (up to 1 B parameters); any hub id, directory or file for maintainers."""
    source = sources().get(name)
    if source is not None:
        if source.parameters > settings.max_parameters and not person.may("run-any"):
            raise Problem(
                403, f"{name} has {source.parameters / 1e9:.1f} B parameters; members run up to {settings.max_parameters / 1e9:g} B."
            )
        return
    if not name or len(name) > 1000 or not name.isprintable():
        raise Problem(422, "This is no name of a subject.", "Choose one of the list.", ("/subjects", "Subjects"))
    if not person.may("run-any"):
        raise Problem(
            403,
            f"'{name[:80]}' is not on the list of subjects{nearest(name, sources())}.",
            "Maintainers may run others.",
            ("/subjects", "Subjects"),
        )
    if "/" not in name and not name.endswith(".gguf"):
        raise Problem(
            422,
            f"Unknown subject '{name[:80]}'{nearest(name, sources())}.",
            "Give a name of the list, a hub id or a directory.",
            ("/subjects", "Subjects"),
        )


def may_cancel(person: who.Person, asked: Mapping[str, Any] | None) -> bool:
    """Whether a person may cancel a run: its own, or any for a maintainer. asked: who asked for it; None: it was begun in a terminal."""
    own = asked is not None and person.role != "visitor" and asked["account"] == person.account
    return (own and person.may("run")) or person.may("cancel-any")


def cancel(person: who.Person, run_id: str, settings: Settings) -> None:
    """Cancel a run. Raises Problem 401 or 403, and 409 when it has ended already."""
    who.need(person, "run", settings)
    if not may_cancel(person, queue.asked(run_id)):
        raise Problem(403, "This run was asked for by somebody else.", "A maintainer can cancel it.")
    by = f" by {person.name}" if settings.shared else ""
    if not queue.cancel(run_id, f"cancelled{by} on the page"):
        raise Problem(409, "This run has ended already.", "", (f"/runs/{run_id}", "The run"))
    verdicts.forget()


def worker_seen() -> bool:
    """Whether a worker holds its lock on this machine or has a run going on: whether something queued will be picked up."""
    from filelock import FileLock, Timeout

    for path in journal.data_dir().glob("worker-*.lock"):
        try:
            with FileLock(path).acquire(timeout=0):
                continue
        except Timeout:
            return True
    return bool(journal.list_runs(limit=1, state="running"))
