"""Errors meant for people: what was wrong, where, what to do; never a traceback at the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NulliusError(Exception):
    """An error whose message is one clear line for the user. The command line prints it and exits with `exit_code`."""

    exit_code = 1


class UsageError(NulliusError):
    """The user asked for something that does not exist or does not fit (an unknown paper, a wrong option)."""

    exit_code = 2


class SubjectError(NulliusError):
    """A subject cannot be found, fetched, verified or loaded."""


class StudyError(NulliusError):
    """A study broke its contract: a claim without control, an unregistered claim, a claim left out."""


def nearest(name: str, known: Iterable[str], n: int = 3) -> str:
    """Return `"; nearest: a, b"` for a misspelt name, or an empty string when nothing is close.

    >>> nearest("factual-recal", ["factual-recall", "embers"])
    '; nearest: factual-recall'
    """
    close = difflib.get_close_matches(name.lower(), list(known), n=n, cutoff=0.5)
    return f"; nearest: {', '.join(close)}" if close else ""
