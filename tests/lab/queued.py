"""What a worker's child is in these tests: the real one, for studies of a second and a subject that needs no file."""

from __future__ import annotations

import os
import socket
import sys
import time

from tests.lab import tiny

from nullius.errors import UsageError
from nullius.lab import Claim, Lab, above_control, runner, studies, study, worker

CLAIMS = (Claim("never", "Never decided", above_control(), control="nothing"),)


@study("deaf", claims=CLAIMS)
def deaf(lab: Lab) -> None:
    """Starts a process of its own, and ignores being asked to stop."""
    import signal
    import subprocess

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    helper = subprocess.Popen(["sleep", "1000"])
    lab.note(f"helper {helper.pid}")
    for _ in lab.progress(range(10**9), "waiting"):
        time.sleep(0.01)


@study("hungry", claims=CLAIMS)
def hungry(lab: Lab) -> None:
    """Takes memory until it is stopped."""
    held = []
    for _ in lab.progress(range(10**9), "eating"):
        held.append(b"x" * 2**24)
        time.sleep(0.005)


@study("talkative", claims=CLAIMS)
def talkative(lab: Lab) -> None:
    """Tells a server on this machine what it should keep to itself."""
    lab.note("secrets: " + ", ".join(sorted(name for name in os.environ if "SECRET" in name or "TOKEN" in name)))
    socket.create_connection(("127.0.0.1", 9), timeout=1)


@study("crashing", claims=CLAIMS)
def crashing(lab: Lab) -> None:
    """Dies without a word."""
    os.kill(os.getpid(), 11)


STUDIES = {s.slug: s for s in (tiny.tiny_study, tiny.endless, deaf, hungry, talkative, crashing)}


def get(slug: str) -> studies.Study:
    if slug not in STUDIES:
        raise UsageError(f"no study for '{slug}'")
    return STUDIES[slug]


if __name__ == "__main__":
    studies.get = get
    runner._load = lambda subject, device: tiny.SUBJECT
    worker._fetch = lambda subject, device: None
    sys.exit(worker._main(sys.argv[1:]))
