"""Progress of a run, on stderr: a live bar on a terminal, elsewhere at most one line in five seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column
from rich.text import Text

from nullius.cli.layout import show

QUIET_SECONDS = 5.0
WIDE = 64  # below this many columns there is no bar, only numbers


def clock(seconds: float) -> str:
    """Format a duration as 0:42, 12:05 or 2:10:00."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class _Counts(ProgressColumn):
    """How many are done, of how many."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text(f"{task.completed:.0f}" if task.completed else "")
        return Text(f"{task.completed:.0f}/{task.total:.0f}")


class _Times(ProgressColumn):
    """How long the run has taken, and how long this part will still take at the speed seen so far."""

    max_refresh = 0.5

    def __init__(self, gone: Callable[[], float], wide: bool) -> None:
        super().__init__()
        self.gone, self.wide = gone, wide

    def render(self, task: Task) -> Text:
        text = f"{clock(self.gone())}{' gone' if self.wide else ''}"
        if task.total is not None and task.time_remaining is not None:
            text += f", ~{clock(task.time_remaining)} left"
        return Text(text)


class Progress:
    """A listener of the lab. Says something at once; then a bar for the part in progress, or now and then a line.

    title: what runs. minutes: how long it is expected to take. console: where to draw (default: stderr). seconds: a clock, for tests.
    """

    def __init__(
        self, title: str, minutes: float | None = None, *, console: Console | None = None, seconds: Callable[[], float] = time.monotonic
    ) -> None:
        self.title, self.seconds = title, seconds
        self.console = console or Console(stderr=True)
        self.live = self.console.is_terminal and not self.console.is_dumb_terminal
        self.started = seconds()
        self.spoken = self.started
        self.part = ""
        self.task: TaskID | None = None
        wide = self.console.width >= WIDE
        what = TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"))
        bar = (BarColumn(bar_width=20),) if wide else ()
        columns = (SpinnerColumn(), what, *bar, _Counts(), _Times(lambda: self.seconds() - self.started, wide))
        self.bars = Bars(*columns, console=self.console, transient=True, expand=True)
        expected = f", about {clock(minutes * 60)} min" if minutes else ""
        show(self.console, f"{title}: starting{expected}")

    def __enter__(self) -> Progress:
        if self.live:
            self.task = self.bars.add_task("starting", total=None)
            self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live:
            self.bars.stop()

    def step(self, label: str, done: int, total: int | None) -> None:
        """Draw how far one part of the run is."""
        if self.live and self.task is not None:
            if label != self.part:
                self.part = label
                self.bars.remove_task(self.task)
                self.task = self.bars.add_task(label, total=total)
            self.bars.update(self.task, completed=done, total=total)
        elif not self.live:
            of = f" {done}/{total}" if total is not None else f" {done}" if done else ""
            self._say(f"{label}{of}")

    def note(self, text: str) -> None:
        """Draw a note above the bar. Where there is no bar it is left to the report, which prints all notes."""
        if self.live:
            self.bars.console.print(Text(text, style="dim"))

    def _say(self, text: str) -> None:
        now = self.seconds()
        if now - self.spoken >= QUIET_SECONDS:
            self.spoken = now
            show(self.console, f"{self.title}: {text}, {clock(now - self.started)} gone")
