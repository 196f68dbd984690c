"""The progress of a build: a live line on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

PLAIN_LINE_EVERY_S = 10.0

Advance = Callable[[float], None]


class ProgressReporter:
    """Prints the progress of stages and records the duration of each (`seconds`, by name)."""

    def __init__(self, console: Console):
        self.console = console
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, unit: str, total: float | None = None, *, done: float = 0) -> Iterator[Advance]:
        """Run a stage of `total` units (None if unknown), of which `done` are done already. Yields a function to call
        with the number of units just done."""
        begin, first = time.perf_counter(), done
        with self._show(name, unit, total, done) as show:

            def advance(units: float) -> None:
                nonlocal done
                done += units
                show(done)

            yield advance
        self.seconds[name] = time.perf_counter() - begin
        self.console.print(f"{name}: {_count(done - first)} {unit} in {self.seconds[name]:.1f} s", highlight=False)

    @contextmanager
    def _show(self, name: str, unit: str, total: float | None, first: float) -> Iterator[Advance]:
        if self.console.is_terminal:
            bar = BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[count]} {task.fields[unit]}")
            columns = SpinnerColumn(), TextColumn("{task.description}"), *bar, TimeRemainingColumn()
            with Progress(*columns, console=self.console, transient=True) as progress:
                task = progress.add_task(name, total=total, unit=unit, completed=int(first), count=_count(first))
                yield lambda done: progress.update(task, completed=done, count=_count(done))
            return
        begin = last = time.perf_counter()
        self.console.print(f"{name} ...", highlight=False)

        def print_line(done: float) -> None:
            nonlocal last
            now = time.perf_counter()
            if now - last >= PLAIN_LINE_EVERY_S:
                last = now
                of = f" of {_count(total)}" if total else ""
                left = (total - done) * (now - begin) / (done - first) if total and done > first else None
                estimate = "" if left is None else f", about {timedelta(seconds=round(left))} left"
                self.console.print(f"{name}: {_count(done)}{of} {unit}{estimate}", highlight=False)

        yield print_line


def _count(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:,.1f}"
