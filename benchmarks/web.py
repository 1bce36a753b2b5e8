"""How fast the pages are, and what watching a run costs: `python benchmarks/web.py`.

Starts a server of its own (one process, one worker process of uvicorn, no queue worker) on a copy of nothing: the catalogue, and a run that goes
on while it is watched. Prints medians and percentiles with date, machine and versions; asserts nothing.

    python benchmarks/web.py                 day page, paper page, search, 200 watchers
    python benchmarks/web.py --seconds 20    longer
    python benchmarks/web.py --data FOLDER   on a copy of a data folder, with its papers and runs
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import httpx
import psutil

CONNECTIONS, WATCHERS = 50, 200
PAGES = {
    "day": "/",
    "day, .json": "/index.json",
    "paper": "/papers/factual-recall",
    "search": "/search?q=who+is+bound+to+what",
    "api papers": "/api/v1/papers?limit=50",
}


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def start(folder: Path) -> tuple[psutil.Process, str]:
    """Start the server; return its process and address."""
    port = free_port()
    command = [sys.executable, "-m", "nullius.cli.main", "web", "--port", str(port), "--no-browser", "--no-worker"]
    environment = {**os.environ, "NULLIUS_DATA": str(folder), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    base = f"http://127.0.0.1:{port}"
    for _ in range(300):
        try:
            httpx.get(f"{base}/health", timeout=2)
            return psutil.Process(process.pid), base
        except httpx.HTTPError:
            time.sleep(0.2)
    raise SystemExit("the server did not start")


async def load(base: str, path: str, seconds: float) -> tuple[float, list[float], int]:
    """Ask for a page over 50 connections; return requests per second, milliseconds of each, and the bytes of one answer."""
    times: list[float] = []
    size = 0
    limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
    async with httpx.AsyncClient(base_url=base, limits=limits, timeout=30, headers={"accept-encoding": "gzip"}) as client:
        size = int((await client.get(path)).headers["content-length"])
        end = time.perf_counter() + seconds

        async def one() -> None:
            while time.perf_counter() < end:
                began = time.perf_counter()
                try:
                    (await client.get(path)).raise_for_status()
                except httpx.ReadError:  # a connection that stood idle for long, closed by the server as it was used again
                    continue
                times.append(1000 * (time.perf_counter() - began))

        began = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(CONNECTIONS)))
        return len(times) / (time.perf_counter() - began), times, size


async def alone(base: str, path: str, n: int = 60) -> list[float]:
    """Ask for a page n times, one after the other, past its one-second cache."""
    times = []
    async with httpx.AsyncClient(base_url=base, timeout=30) as client:
        for i in range(n):
            began = time.perf_counter()
            await client.get(f"{path}{'&' if '?' in path else '?'}nocache={i}")
            times.append(1000 * (time.perf_counter() - began))
    return times


def at(times: list[float], share: float) -> float:
    """Return a percentile."""
    return sorted(times)[min(len(times) - 1, int(share * len(times)))]


async def watch(base: str, process: psutil.Process, folder: Path, seconds: float) -> tuple[float, int]:
    """Let 200 watch one run that reports twice a second; return the server's share of a core and how many messages arrived."""
    os.environ["NULLIUS_DATA"] = str(folder)
    from nullius.lab import journal

    run_id = "01JZZZZZZZZZZZZZZZZZZZZZZZ"
    values = {"slug": "factual-recall", "asked_subject": "smollm2-135m", "full": False, "seed": 0, "options": {}, "rerun_of": None}
    journal.begin_run({"id": run_id, **values})
    arrived = 0
    over = asyncio.Event()
    limits = httpx.Limits(max_connections=WATCHERS + 10)
    async with httpx.AsyncClient(base_url=base, timeout=None, limits=limits) as client:

        async def watcher() -> None:
            nonlocal arrived
            async with client.stream("GET", f"/runs/{run_id}/live") as answer:
                async for line in answer.aiter_lines():
                    arrived += line.startswith("data:") and "strong" in line
                    if over.is_set():
                        return

        watchers = [asyncio.create_task(watcher()) for _ in range(WATCHERS)]
        await asyncio.sleep(3)
        used, began = sum(process.cpu_times()[:2]), time.perf_counter()
        for i in range(int(seconds * 2)):
            event = {"at": journal.now(), "kind": "step", "payload": {"label": "tuning", "done": i, "total": 100}}
            await asyncio.to_thread(journal.pulse, run_id, i, [event])
            await asyncio.sleep(0.5)
        share = (sum(process.cpu_times()[:2]) - used) / (time.perf_counter() - began)
        over.set()
        await asyncio.to_thread(journal.end_run, run_id, {"state": "aborted", "reason": "the benchmark is over"})
        await asyncio.wait(watchers, timeout=10)
    return share, arrived


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--data", default="")
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp()) / "data"
    if chosen.data:
        shutil.copytree(chosen.data, folder)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("fastapi", "starlette", "uvicorn", "sqlalchemy"))
    busy = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    where = f"{platform.machine()}, {os.cpu_count()} cores{busy} · Python {platform.python_version()}"
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC · {where}, {versions}")
    process, base = start(folder)
    try:
        for name, path in PAGES.items():
            asyncio.run(load(base, path, 1.0))
            rate, times, size = asyncio.run(load(base, path, chosen.seconds))
            single = asyncio.run(alone(base, path)) if not path.startswith("/api") else []
            fresh = f"; made anew, one at a time: p50 {at(single, 0.5):.0f}, p95 {at(single, 0.95):.0f} ms" if single else ""
            many = f"{rate:7.0f} requests/s at {CONNECTIONS} connections, p50 {at(times, 0.5):.0f}, p95 {at(times, 0.95):.0f} ms"
            print(f"{name:12} {many}, {size / 1000:.1f} kB gz{fresh}")
        share, arrived = asyncio.run(watch(base, process, folder, chosen.seconds))
        print(f"{WATCHERS} watchers of one run: {100 * share:.1f} % of a core, {arrived} messages")
        print(f"resident memory of the server: {process.memory_info().rss / 1e6:.0f} MB")
    finally:
        process.terminate()
        process.wait(20)
        shutil.rmtree(folder.parent, ignore_errors=True)


if __name__ == "__main__":
    main()
