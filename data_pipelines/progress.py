"""What a build is doing: a live line on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

PLAIN_LINE_EVERY_S = 10.0


class Stages:
    """Tells the stages of some work as they pass, and keeps how long each took (`seconds`, by name)."""

    def __init__(self, console: Console):
        self.console = console
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, unit: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """A stage that deals with `total` units, if that is known; call what it gives as units are done."""
        begin, done = time.perf_counter(), 0
        with self._show(name, unit, total) as show:

            def advance(units: int) -> None:
                nonlocal done
                done += units
                show(done)

            yield advance
        self.seconds[name] = time.perf_counter() - begin
        self.console.print(f"{name}: {done:,} {unit} in {self.seconds[name]:.1f} s", highlight=False)

    @contextmanager
    def _show(self, name: str, unit: str, total: int | None) -> Iterator[Callable[[int], None]]:
        if self.console.is_terminal:
            bar = BarColumn(), TaskProgressColumn(), TextColumn("{task.completed:,} {task.fields[unit]}")
            columns = SpinnerColumn(), TextColumn("{task.description}"), *bar, TimeRemainingColumn()
            with Progress(*columns, console=self.console, transient=True) as progress:
                task = progress.add_task(name, total=total, unit=unit)
                yield lambda done: progress.update(task, completed=done)
            return
        last = time.perf_counter()
        self.console.print(f"{name} ...", highlight=False)

        def print_line(done: int) -> None:
            nonlocal last
            if time.perf_counter() - last >= PLAIN_LINE_EVERY_S:
                last = time.perf_counter()
                of = f" of {total:,}" if total else ""
                self.console.print(f"{name}: {done:,}{of} {unit}", highlight=False)

        yield print_line
