"""`nullius web`, `nullius worker`, `nullius mcp`, `nullius export`: the pages, the process that executes what they queue, and their copies.

The web stands on the same floor as the command line, which therefore knows it by name only.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import Annotated, Any

import typer


def web(
    host: Annotated[str, typer.Option(help="The address to listen on; others than this machine's own need --shared.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port to listen on.")] = 8000,
    shared: Annotated[bool, typer.Option("--shared", help="For a lab: accounts, sign-in, limits. Needs --base-url.")] = False,
    base_url: Annotated[str, typer.Option(help="What people type, with --shared: https://papers.lab.example.")] = "",
    maintainer: Annotated[list[str] | None, typer.Option(help="E-mail address of a maintainer (repeat for several).")] = None,
    private: Annotated[bool, typer.Option("--private", help="Close reading too to whoever has not opened the one-time address.")] = False,
    browser: Annotated[bool, typer.Option(help="Open the one-time address in a browser.")] = True,
    worker: Annotated[bool, typer.Option(help="Start a worker that executes the runs that pages queue.")] = True,
) -> None:
    """The feed as a web page: browse, search, vote, run, watch, read the verdict."""
    serving = _web("serving")
    setup = _web("settings").settings(
        host, port, shared=shared, private=private, base_url=base_url, maintainers=frozenset(maintainer or ())
    )
    serving.serve(setup, browser=browser and not shared, worker=worker, say=lambda line: typer.echo(line))


def worker(
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 ...; one worker for each device (default: the best there is).")
    ] = None,
    full_minutes: Annotated[float, typer.Option(min=1, help="The longest that a run at full scale may take.")] = 24 * 60,
    quick_minutes: Annotated[float, typer.Option(min=0.1, help="The longest that a quick run may take.")] = 10,
    memory_gb: Annotated[
        float | None, typer.Option(min=0.5, help="The most memory of a run (default: four fifths of this machine's).")
    ] = None,
    until_empty: Annotated[bool, typer.Option("--until-empty", help="End when nothing is waiting any more.")] = False,
) -> None:
    """Execute queued runs, one at a time, each in a process of its own with limits."""
    import signal

    from nullius.lab.worker import Limits, Worker

    limits = Limits(quick_minutes * 60, full_minutes * 60)
    if memory_gb is not None:
        limits = replace(limits, memory_bytes=int(memory_gb * 2**30))
    one = Worker(device, limits, say=lambda line: typer.echo(line))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: one.stop())
    typer.echo("worker: waiting for runs (Ctrl-C ends it)")
    one.work(idle=lambda: not until_empty)


def mcp() -> None:
    """Serve assistants over standard input and output (Model Context Protocol)."""
    _web("assistants").over_stdio()


def export(
    folder: Annotated[str, typer.Argument(help="A new or empty folder.")],
    base_url: Annotated[str, typer.Option(help="Where the copy will stand, for feeds and canonical links.")] = "http://127.0.0.1:8000",
) -> None:
    """Write the site as files, to read on any static host."""
    count = _web("export").export(folder, base_url, say=lambda line: typer.echo(line, err=True))
    typer.echo(f"wrote {count} files to {folder}")


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (web, worker, mcp, export):
        app.command()(command)


def _web(module: str) -> Any:
    """A module of the web."""
    return import_module(f"nullius.web.{module}")
