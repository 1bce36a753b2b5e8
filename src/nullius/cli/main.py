"""The command line. Thin: each command calls a function below it and draws what comes back.

Heavy rooms (torch, transformers, scipy) are imported inside the commands that need them, so that `nullius papers` answers at once.
"""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from nullius import __version__
from nullius.cli import calibrate, digest, feed, models, train, web
from nullius.cli.layout import console, paragraph, print_json
from nullius.errors import NulliusError, UsageError

app = typer.Typer(
    name="nullius",
    help="Take nobody's word for it: language-model papers that run. Choose a paper, choose a model, read the verdict.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)

app.add_typer(models.app, name="models")
app.add_typer(feed.app, name="feed")
app.add_typer(digest.app, name="digest")

AsJson = Annotated[bool, typer.Option("--json", help="Print documented, versioned JSON (docs/records.md) and nothing else.")]
Model = Annotated[str | None, typer.Option("--model", "-m", help="A name from `nullius models`, a hub id, a directory or a GGUF file.")]
Models = Annotated[list[str] | None, typer.Option("--model", "-m", help="Repeat for several subjects.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ... (default: the best there is).")]
Seed = Annotated[int, typer.Option(help="All randomness of the run derives from it.")]
Full = Annotated[bool, typer.Option("--full", help="The paper's own sizes (meant for a GPU).")]


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Options that stand before a command."""
    if version:
        typer.echo(f"nullius {__version__}")
        raise typer.Exit()


@app.command()
def papers(
    search: Annotated[str, typer.Option("--search", "-s", help="Words, a slug, an arXiv id, filters (docs/feed.md): all papers.")] = "",
    runnable: Annotated[bool, typer.Option("--runnable", help="Only papers that have a study.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the catalogue of papers, newest first, or search all papers, imported ones too."""
    if search:
        feed.search(f"{search} runnable:yes" if runnable else search, as_json)
        return
    from nullius.feed import catalogue

    found = [paper for paper in catalogue.papers() if paper.runs or not runnable]
    if as_json:
        print_json({"schema": "nullius.papers/1", "papers": [paper.to_dict() for paper in found]})
        return
    out = console()
    for paper in found:
        state = "runs" if paper.runs else "not runnable yet"
        authors = f"{paper.authors} author{'s' if paper.authors > 1 else ''}"
        paragraph(out, Text.assemble((paper.slug, "bold"), f"  {paper.title}"), hanging=4)
        paragraph(out, paper.summary, indent=4)
        paragraph(out, Text(f"{paper.date} · {authors} · arXiv {paper.arxiv} · {paper.question} · {state}", style="dim"), indent=4)
    paragraph(out, f"{len(found)} papers, {sum(paper.runs for paper in found)} runnable: nullius run SLUG")


@app.command()
def show(
    key: Annotated[str, typer.Argument(help="A paper (slug, arXiv id) or a run (id, or its beginning).")], as_json: AsJson = False
) -> None:
    """Show a paper (its claims, what they need, verdicts so far) or one run."""
    from nullius.feed import catalogue

    known = [paper.slug for paper in catalogue.papers()] + [paper.arxiv for paper in catalogue.papers()]
    if (
        key.isalnum() and key not in known and (len(key) == 26 or (len(key) >= 6 and key.upper() == key))
    ):  # a run's whole id, or its beginning
        _show_run(key, as_json)
        return
    paper = catalogue.paper(key)
    from nullius.cli import report
    from nullius.lab import calibration, journal, studies

    study = studies.get(paper.slug) if paper.runs else None
    claims = [studies.describe(claim) for claim in study.claims] if study else []
    options = [asdict(option) for option in study.options] if study else []
    verdicts = journal.latest_verdicts(slug=paper.slug)
    if as_json:
        print_json({"schema": "nullius.paper/1", **paper.to_dict(), "claims": claims, "options": options, "verdicts": verdicts})
        return
    report.render_paper(paper.to_dict(), claims, verdicts, console(), calibration.lines_of(claims), options)


def _show_run(key: str, as_json: bool) -> None:
    from nullius.cli import report
    from nullius.lab import calibration, journal

    record = journal.get_run(key)
    if as_json:
        print_json(record)
    else:
        report.render_run(record, console(), calibration.lines_of(record["verdicts"]))


@app.command()
def run(
    paper: Annotated[str, typer.Argument(help="The slug or arXiv id of a paper that has a study.")],
    model: Model = None,
    full: Full = False,
    seed: Seed = 0,
    device: Device = None,
    option: Annotated[list[str] | None, typer.Option("--option", "-o", help="name=value, one of the study's declared options.")] = None,
    as_json: AsJson = False,
) -> None:
    """Test a paper's claims on a subject: figure and verdict."""
    from nullius.cli import report
    from nullius.feed import catalogue
    from nullius.lab import calibration, studies

    chosen = studies.get(catalogue.paper(paper).slug)
    options = dict(_pair(text) for text in option or [])
    progress = report.Progress(chosen.slug, minutes=None if full else chosen.minutes)
    with progress:
        from nullius.lab import runner

        record = runner.run(
            chosen, chosen.subject if model is None else model, seed=seed, full=full, options=options, device=device, listener=progress
        )
    if as_json:
        print_json(record.to_dict())
    else:
        report.render_run(record.to_dict(), console(), calibration.lines_of(record.to_dict()["verdicts"]))


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"an option is written name=value, not '{text}'")
    return name, value


@app.command()
def runs(
    paper: Annotated[str | None, typer.Argument(help="Only runs of this paper.")] = None,
    model: Model = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="At most this many, newest first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List runs, newest first, failed and aborted ones too."""
    from nullius.cli import report
    from nullius.feed import catalogue
    from nullius.lab import journal

    slug = catalogue.paper(paper).slug if paper else None
    found = journal.list_runs(slug=slug, subject=model, limit=limit)
    if as_json:
        print_json({"schema": "nullius.runs/1", "runs": found})
    else:
        report.render_runs(found, console(), slug, model)


@app.command()
def rerun(run_id: Annotated[str, typer.Argument(help="The id of a run, or its beginning.")], as_json: AsJson = False) -> None:
    """Run again with the same subject, seed and options: the same numbers, or which input differs."""
    from nullius.cli import report
    from nullius.lab import journal
    from nullius.lab import rerun as reruns

    original = journal.get_run(run_id)
    progress = report.Progress(original["slug"], minutes=original["wall_seconds"] / 60 if original["wall_seconds"] else None)
    with progress:
        comparison = reruns.rerun(original, listener=progress)
    if as_json:
        print_json(comparison.to_dict())
    else:
        report.render_rerun(comparison.to_dict(), console())
    if not comparison.same:
        raise typer.Exit(3)


@app.command()
def compare(
    paper: Annotated[str, typer.Argument(help="The paper whose claims are compared.")], models: Models = None, as_json: AsJson = False
) -> None:
    """One paper, several subjects: verdicts side by side, a forest plot, paired differences where stimuli are shared."""
    from nullius.cli import report
    from nullius.feed import catalogue
    from nullius.lab import comparison

    result = comparison.compare(catalogue.paper(paper).slug, models or [])
    if as_json:
        print_json(result)
    else:
        report.render_compare(result, console())


@app.command()
def dossier(
    model: Annotated[str, typer.Argument(help="The subject.")] = "smollm2-135m",
    run_missing: Annotated[bool, typer.Option("--run", help="First run every study that has no verdict on this subject yet.")] = False,
    full: Full = False,
    seed: Seed = 0,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """A report card: every verdict about one subject."""
    from nullius.cli import report
    from nullius.lab import dossiers

    if run_missing:
        from nullius.lab import runner

        for study in dossiers.missing(model, full=full):
            with report.Progress(study.slug, minutes=study.minutes) as progress:
                runner.run(study, model, seed=seed, full=full, device=device, listener=progress)
    result = dossiers.dossier(model)
    if as_json:
        print_json(result)
    else:
        report.render_dossier(result, console())


@app.command()
def results(out: Annotated[str, typer.Option("--out", help="Write there instead of printing.")] = "") -> None:
    """Print every verdict so far, on each subject, as a Markdown page (docs/results.md is made by this command)."""
    from nullius.lab import dossiers

    page = dossiers.results_page()
    if out:
        from nullius.lab.artefacts import write_text

        write_text(out, page)
        typer.echo(f"wrote {out}")
    else:
        typer.echo(page)


# after the commands above, in the order in which `nullius --help` lists them
web.register(app)
calibrate.register(app)
app.command()(train.train)
app.command()(train.curves)


def main() -> None:
    """Entry point: errors for people are one line on stderr and a non-zero exit; Ctrl-C exits with 130."""
    _make_writable()
    try:
        app()
    except SystemExit as stop:
        if stop.code == 130:  # Typer's exit code for Ctrl-C
            _say("nullius: interrupted; a run in progress is kept, marked aborted", 130)
        raise
    except NulliusError as error:
        _say(f"nullius: {error}", error.exit_code)
    except ModuleNotFoundError as missing:
        if not missing.name or missing.name.startswith("nullius"):
            raise
        _say(f"nullius: {missing.name} is missing; the page, importers and mail are an extra of their own: pip install 'nullius[web]'", 1)
    except OSError as error:
        _say(f"nullius: {error.strerror or error}{f': {error.filename}' if error.filename else ''}", 1)


def _make_writable() -> None:
    """Let any text be written to both streams: what an encoding lacks becomes a question mark, what goes to a closed stream is lost."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started this; the lowest free descriptor is its own, which no file of ours may get
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _say(line: str, exit_code: int) -> NoReturn:
    Console(stderr=True, soft_wrap=True).print(line, style="red" if sys.stderr.isatty() else "", highlight=False, markup=False)
    sys.exit(exit_code)


__all__ = ["app", "main"]

if __name__ == "__main__":
    main()
