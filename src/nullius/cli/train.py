"""`nullius train`: pretrain or finetune as a YAML file says; under `torchrun` over many processes."""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn

from nullius.cli.layout import show
from nullius.cli.progress import QUIET_SECONDS, clock
from nullius.errors import NulliusError, UsageError

SPEAK_SECONDS = 2.0


class Board:
    """What the terminal shows of a run: on a terminal a bar with the newest numbers, elsewhere a line for each report."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.live = self.console.is_terminal and not self.console.is_dumb_terminal
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.completed}/{task.total}"),
        )
        self.bars = Progress(*columns, TimeRemainingColumn(), console=self.console, transient=True)
        self.task: TaskID | None = None
        self.part, self.spoken, self.began = "", 0.0, time.monotonic()

    def __enter__(self) -> Board:
        if self.live:
            self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live:
            self.bars.stop()

    def preparing(self, label: str, done: int, total: int | None) -> None:
        """Draw how far the data is; the numbers are kilobytes."""
        if self.live:
            self._bar(label, label, done, total)
        elif time.monotonic() - self.spoken >= QUIET_SECONDS:
            self.spoken = time.monotonic()
            show(self.console, f"{label} {done}/{total} kB")

    def step(self, done: int, total: int, facts: dict[str, float]) -> None:
        """Draw the newest numbers."""
        words = f"loss {facts['loss']:.4f}  {facts['tokens_per_second']:,.0f} tokens/s"
        words += f"  {100 * facts['utilisation']:.1f}% of peak" if "utilisation" in facts else ""
        words += f"  {facts['peak_memory'] / 2**30:.1f} GiB"
        if self.live:
            self._bar("training", words, done, total)
        else:
            show(self.console, f"step {done}/{total}  {words}  rate {facts['rate']:.2e}  {clock(time.monotonic() - self.began)} gone")

    def note(self, text: str) -> None:
        """Draw a line that stays."""
        show(self.bars.console if self.live else self.console, text)

    def _bar(self, part: str, words: str, done: int, total: int | None) -> None:
        if self.task is None or part != self.part:
            if self.task is not None:
                self.bars.remove_task(self.task)
            self.part, self.task = part, self.bars.add_task(words, total=total)
        self.bars.update(self.task, description=words, completed=done, total=total)


def train(
    config: Annotated[Path, typer.Argument(help="A YAML file: docs/training.md names every key, examples/ has some to begin with.")],
    changes: Annotated[list[str] | None, typer.Option("--set", "-s", help="Change a key of the file: -s optimiser.rate=1e-3.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ... (default: the best there is).")] = None,
) -> None:
    """Train a model as CONFIG says, or go on with it. Over many GPUs: torchrun --nproc-per-node 8 --no-python nullius train CONFIG."""
    from nullius.training import config as configuration
    from nullius.training import program, stopping

    first = os.environ.get("RANK", "0") == "0"
    try:
        wanted = configuration.load(config, changes or [])
        with Board(None if first else Console(quiet=True)) as board:
            result = program.train(wanted, board, device)
    except NulliusError as error:
        if first or isinstance(error, stopping.OutOfMemory):
            raise
        # One process says what was wrong: it is given time, for a launcher ends all when one has ended. With 130, Ctrl-C, `main` would say more
        time.sleep(SPEAK_SECONDS)
        sys.exit(1 if error.exit_code == 130 else error.exit_code)
    if first:
        loss = "" if math.isnan(result.loss) else f", loss {result.loss:.4f}"  # none was made when all steps had been made before
        held_out = f", held-out loss {result.held_out:.4f}" if result.held_out is not None else ""
        typer.echo(f"{result.steps} steps{loss}{held_out}: {result.checkpoint}")


def curves(
    runs: Annotated[list[Path], typer.Argument(help="Folders of training runs (their `out`), or their metrics.jsonl.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write: .html (interactive) or .svg.")] = Path("training.html"),
) -> None:
    """Draw the losses and speeds of training runs, finished or going on, as the figures of studies are drawn."""
    from nullius.lab import drawing, interactive, training_curves

    drawn = training_curves.figure({str(run): training_curves.read(run) for run in runs})
    if out.suffix not in (".html", ".svg"):
        raise UsageError(f"{out} is neither .html nor .svg")
    try:
        out.write_text(interactive.html(drawn) if out.suffix == ".html" else drawing.svg(drawn), "utf-8")
    except OSError as error:
        raise NulliusError(f"cannot write {out}: {error.strerror}") from None
    typer.echo(f"{out}")
