"""How fast the pages are, what watching costs, and what pages and runs cost each other. Prints; asserts nothing.

    python benchmarks/web.py pages            requests a second at 50 connections, from one server process
    python benchmarks/web.py anew             a day of 53 cards and a matrix of 20 x 10, made anew each time
    python benchmarks/web.py paint            first paint in a browser (playwright, Chromium), its cache empty
    python benchmarks/web.py watch            200 watchers of one run
    python benchmarks/web.py beside           pages beside a run, and a run beside pages
    python benchmarks/web.py all --seconds 5  everything, each for so long

The server is `nullius web` in a process of its own, on a data folder made for the purpose. On a machine that does other things as well, wall time
says little: beside it stands the processor time that the server used for each request, which is what a request costs.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx
import psutil

CONNECTIONS, WATCHERS = 50, 200
SUBJECTS, CLAIMS = 20, 10  # of the matrix
PAPER = "factual-recall"
PAGES = {"day": "/", "day as JSON": "/index.json", "paper, 20 x 10": f"/papers/{PAPER}", "search": "/search?q=who+is+bound+to+what"}


def fill(folder: Path) -> None:
    """Make a data folder: the catalogue with all claims, and one paper with a verdict for each of 10 claims on each of 20 subjects."""
    os.environ["NULLIUS_DATA"] = str(folder)
    os.environ.pop("NULLIUS_DATABASE", None)
    from tests.feed.made import add_run

    from nullius.feed import claims, heat
    from nullius.feed.database import writing
    from nullius.feed.search import words
    from nullius.feed.tables import claim

    claims.refresh()
    with writing() as connection:
        about = connection.execute(claim.select().where(claim.c.slug == PAPER)).mappings().first()
        connection.execute(claim.delete().where(claim.c.slug == PAPER))
        names = [f"claim-{i}" for i in range(CLAIMS)]
        for i, name in enumerate(names):
            row = {"slug": PAPER, "claim_id": name, "digest": f"digest {name}"[:16], "position": i}
            own = {"id": name, "digest": row["digest"], "wording": f"It is said that {name}"}
            connection.execute(claim.insert().values(**row, description={**about["description"], **own}))
    for i in range(SUBJECTS):
        word = ("holds", "fails", "inconclusive")[i % 3]
        add_run(PAPER, "smollm2-135m" if i == 0 else f"{i:02}-subject", dict.fromkeys(names, word))
    for slug in ("embers", "concept-depth", "mixing-mechanisms"):
        add_run(slug, "smollm2-135m", {"one": "holds", "two": "fails"})
    heat.catch_up()
    words.open_index().update()


@contextmanager
def serving(folder: Path) -> Iterator[tuple[psutil.Process, str]]:
    """Run the server; give its process and address."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [sys.executable, "-m", "nullius.cli.main", "web", "--port", str(port), "--no-browser", "--no-worker"]
    environment = {**os.environ, "NULLIUS_DATA": str(folder)}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    base, end = f"http://127.0.0.1:{port}", time.monotonic() + 120
    try:
        while True:
            try:
                httpx.get(f"{base}/health", timeout=5)
                break
            except httpx.HTTPError:
                if time.monotonic() > end or process.poll() is not None:
                    raise SystemExit("the server did not start") from None
                time.sleep(0.1)
        yield psutil.Process(process.pid), base
    finally:
        process.terminate()
        process.wait(30)


def used(process: psutil.Process) -> float:
    """Return the processor seconds that a process used so far."""
    return float(sum(process.cpu_times()[:2]))


def at(times: list[float], share: float) -> float:
    """Return a percentile."""
    return sorted(times)[min(len(times) - 1, int(share * len(times)))]


# ------------------------------------------------------------------------------------------------------------------------ pages


CLIENT = """
import asyncio, json, os, sys, time
path, port, connections, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
ask = f"GET {path} HTTP/1.1\\r\\nHost: 127.0.0.1:{port}\\r\\nAccept: text/html\\r\\nAccept-Encoding: gzip\\r\\n\\r\\n".encode()
times, sizes = [], []
async def one(end):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.perf_counter() < end:
        began = time.perf_counter()
        writer.write(ask)
        head = await reader.readuntil(b"\\r\\n\\r\\n")
        if not head.startswith(b"HTTP/1.1 200"):
            sys.stderr.write(head.decode()), os._exit(1)
        size = int(head.lower().partition(b"content-length: ")[2].split(b"\\r")[0])
        await reader.readexactly(size)
        times.append(1000 * (time.perf_counter() - began)), sizes.append(size)
async def main():
    end = time.perf_counter() + seconds
    await asyncio.gather(*(one(end) for _ in range(connections)))
asyncio.run(main())
print(json.dumps([times, sizes[0]]))
"""


def load(base: str, path: str, seconds: float, connections: int = CONNECTIONS) -> tuple[list[float], int]:
    """Ask for a page over many connections from a process of its own; return milliseconds of each request, and the bytes of one answer."""
    import json

    command = [sys.executable, "-c", CLIENT, path, base.rpartition(":")[2], str(connections), str(seconds)]
    times, size = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=seconds + 60).stdout)
    return times, size


def pages(folder: Path, seconds: float) -> None:
    """Print requests a second, and what a first visit takes."""
    print("| page | requests/s, 50 connections | p50, p95 ms | server's processor ms a request | = requests/s of a whole core | kB gz |")
    print("| --- | --- | --- | --- | --- | --- |")
    with serving(folder) as (process, base):
        for name, path in PAGES.items():
            load(base, path, 1.0)
            before, began = used(process), time.perf_counter()
            times, size = load(base, path, seconds)
            spent, wall = used(process) - before, min(seconds, time.perf_counter() - began)
            cost = 1000 * spent / len(times)
            shown = f"{at(times, 0.5):.0f}, {at(times, 0.95):.0f} | {cost:.2f} | {1000 / cost:.0f} | {size / 1000:.1f}"
            print(f"| {name} | {len(times) / wall:.0f} | {shown} |", flush=True)
        with httpx.Client(base_url=base, headers={"accept-encoding": "gzip"}) as client:
            html = client.get("/").text
            wanted = ["/", *dict.fromkeys(re.findall(r'(?:src|href)="(/assets/[^"]+|/static/[^"]+)"', html))]
            sizes = [int(client.get(path).headers["content-length"]) for path in wanted]
        print(f"\nfirst visit of the day: {sum(sizes) / 1000:.1f} kB in {len(sizes)} requests ({', '.join(wanted)})")
        print(f"resident memory of the server: {process.memory_info().rss / 1e6:.0f} MB", flush=True)


def anew(folder: Path, seconds: float) -> None:
    """Print what a page costs that is made anew for each request: no network, the app is called in this process."""
    os.environ["NULLIUS_DATA"] = str(folder)
    from nullius.web import app, settings, site

    site.CACHE_SECONDS = 0.0
    made = app.create(settings.settings(port=8000))

    async def ask() -> None:
        transport = httpx.ASGITransport(made)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
            for name, path in PAGES.items():
                wall, own = [], []
                for i in range(10 + int(20 * seconds)):
                    began, cpu = time.perf_counter(), time.process_time()
                    answer = await client.get(f"{path}{'&' if '?' in path else '?'}n={i}")
                    answer.raise_for_status()
                    if i >= 10:
                        wall.append(1000 * (time.perf_counter() - began)), own.append(1000 * (time.process_time() - cpu))
                shown = f"{at(own, 0.5):.0f}, {at(own, 0.95):.0f} | {at(wall, 0.5):.0f}, {at(wall, 0.95):.0f}"
                print(f"| {name} | {shown} | {answer.text.count('<li class=')} | {len(wall)} |", flush=True)

    print("| page, made anew | processor p50, p95 ms | wall p50, p95 ms | items | n |\n| --- | --- | --- | --- | --- |")
    asyncio.run(ask())


# ------------------------------------------------------------------------------------------------------------------------ watch


async def _watch(base: str, process: psutil.Process, seconds: float) -> tuple[float, int, int]:
    """Let 200 watch one run that reports twice a second; return the server's share of a core, messages that arrived, and were to arrive."""
    from ulid import ULID

    from nullius.lab import journal

    run_id = str(ULID())
    values = {"slug": PAPER, "asked_subject": "smollm2-135m", "full": False, "seed": 0, "options": {}, "rerun_of": None}
    journal.begin_run({"id": run_id, **values})
    arrived, over, beats = 0, asyncio.Event(), int(seconds * 2)
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
        before, began = used(process), time.perf_counter()
        for i in range(beats):
            event = {"at": journal.now(), "kind": "step", "payload": {"label": "tuning", "done": i, "total": 100}}
            await asyncio.to_thread(journal.pulse, run_id, i, [event])
            await asyncio.sleep(0.5)
        share = (used(process) - before) / (time.perf_counter() - began)
        over.set()
        await asyncio.to_thread(journal.end_run, run_id, {"state": "aborted", "reason": "the benchmark is over"})
        await asyncio.wait(watchers, timeout=20)
    return share, arrived, beats


def watch(folder: Path, seconds: float) -> None:
    """Print what 200 watchers of one run cost."""
    os.environ["NULLIUS_DATA"] = str(folder)
    with serving(folder) as (process, base):
        share, arrived, beats = asyncio.run(_watch(base, process, max(seconds, 10)))
    print(f"{WATCHERS} watchers of one run: {100 * share:.1f} % of a core; {arrived} messages arrived of {beats} reports")


# ----------------------------------------------------------------------------------------------------------------------- beside

STUDY = """
import os, sys, time
os.nice(10)
import torch
import nullius
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
subject = nullius.load("smollm2-135m")
texts = [f"The number {i} comes before the number {i + 1} and after the number" for i in range(8)]
subject.last_logits(texts)
print("ready", flush=True)
for line in sys.stdin:
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(int(line)):
        subject.last_logits(texts)
    print(time.perf_counter() - wall, time.process_time() - cpu, flush=True)
"""


def beside(folder: Path, seconds: float) -> None:
    """Print what a run (forward passes of the default subject, niced as the worker does) and pages (5 readers) cost each other."""
    import json
    from statistics import median

    run = subprocess.Popen([sys.executable, "-c", STUDY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert run.stdin is not None
    assert run.stdout is not None
    run.stdout.readline()

    def go(n: int) -> None:
        print(n, file=run.stdin, flush=True)

    def result() -> tuple[float, float]:
        wall, cpu = run.stdout.readline().split()
        return float(wall), float(cpu)

    go(3)
    passes = max(3, int(3 * seconds / result()[0]))
    reader = [sys.executable, "-c", READER]
    alone, together, quiet, busy = [], [], [], []
    with serving(folder) as (process, base):
        for _ in range(4):
            reading = subprocess.Popen([*reader, base, str(seconds)], stdout=subprocess.PIPE, text=True)
            quiet += json.loads(reading.communicate()[0])
            go(passes)
            alone.append(result())
            reading = subprocess.Popen([*reader, base, "600"], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
            time.sleep(1.0)
            before = used(process)
            go(passes)
            together.append(result())
            share = (used(process) - before) / together[-1][0]
            busy += json.loads(reading.communicate("stop")[0])
    run.stdin.close()
    run.wait(30)
    slower = [100 * (b[i] / a[i] - 1) for i in (0, 1) for a, b in zip(alone, together, strict=True)]
    half = len(slower) // 2
    print(f"a run of {passes} passes beside 5 readers (10 pages a second, {100 * share:.0f} % of a core): ", end="")
    print(f"{median(slower[:half]):+.1f} % wall, {median(slower[half:]):+.1f} % processor time (medians of {half} pairs)")
    shown = "; ".join(
        f"{name} p50 {at(t, 0.5):.0f}, p95 {at(t, 0.95):.0f}, most {max(t):.0f} ms" for name, t in (("no run", quiet), ("run", busy))
    )
    print(f"a page of the day asked for by a reader: {shown}")


READER = """
import asyncio, json, random, sys, threading, time
import httpx
base, seconds = sys.argv[1], float(sys.argv[2])
stop = threading.Event()
if seconds > 100:
    threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
times = []
async def one(client, end, i):
    n = 0
    while time.perf_counter() < end and not stop.is_set():
        await asyncio.sleep(random.uniform(0.3, 0.7))
        began = time.perf_counter()
        (await client.get("/", params={"n": f"{i} {n}"})).raise_for_status()
        times.append(1000 * (time.perf_counter() - began))
        n += 1
async def main():
    async with httpx.AsyncClient(base_url=base, timeout=60) as client:
        end = time.perf_counter() + seconds
        await asyncio.gather(*(one(client, end, i) for i in range(5)))
asyncio.run(main())
print(json.dumps(times))
"""


def paint(folder: Path, seconds: float) -> None:
    """Print how long a browser with nothing in its cache takes to the first thing that it shows, on loopback."""
    from playwright.sync_api import sync_playwright

    asked = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
    with serving(folder) as (_, base), sync_playwright() as playwright:
        # None: Playwright's own Chromium
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name in ("day", "paper, 20 x 10", "search"):
            times: list[float] = []
            end = time.perf_counter() + seconds
            while time.perf_counter() < end or len(times) < 3:
                context = browser.new_context()
                page = context.new_page()
                page.goto(base + PAGES[name])
                while (shown := page.evaluate(asked)) is None:  # wait_for_function would evaluate text, which the page's policy forbids
                    page.wait_for_timeout(20)
                times.append(float(shown))
                context.close()
            print(f"first paint, {name}: p50 {at(times, 0.5):.0f}, p95 {at(times, 0.95):.0f} ms of {len(times)} visits", flush=True)
        browser.close()


PARTS = {"pages": pages, "anew": anew, "paint": paint, "watch": watch, "beside": beside}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=[*PARTS, "all"], nargs="?", default="all")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--data", default="", help="a data folder that this program made before (kept); made there where it is new")
    chosen = parser.parse_args()
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("fastapi", "starlette", "uvicorn", "sqlalchemy", "jinja2"))
    where = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} · Python {platform.python_version()}"
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC · {where}, {versions}\n", flush=True)
    folder = Path(chosen.data or tempfile.mkdtemp(prefix="nullius-web-")) / "data"
    try:
        if not folder.exists():
            subprocess.run([sys.executable, __file__, "fill", str(folder)], check=True)
        for name in PARTS if chosen.what == "all" else [chosen.what]:
            PARTS[name](folder, chosen.seconds)
            print(flush=True)
    finally:
        if not chosen.data:
            shutil.rmtree(folder.parent, ignore_errors=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["fill"]:  # in a process of its own, which then opens no database
        fill(Path(sys.argv[2]))
    else:
        main()
