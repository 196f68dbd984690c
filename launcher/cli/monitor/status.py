"""The command `xlpretrain status`: a table of runs, or the details of one run."""

from __future__ import annotations

import shlex
import time
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from launcher.cli.monitor import find_runs, run_status
from launcher.cli.monitor.run_status import RunStatus
from launcher.slurm.records import AttemptEnd, AttemptStart, SlurmFolder
from xlpretrain.tracking.console import format_duration
from xlpretrain.tracking.printing import AnswerConsole

_STYLES = {"RUNNING": "green", "PENDING": "yellow", "COMPLETED": "blue", "local: running": "green"}
_BAD = ("FAILED", "crashed", "failed", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")


def show_all(runs_dir: Path) -> None:
    """Print one line for each run below a folder. Raises `LaunchError` if the folder does not exist."""
    found = find_runs.list_runs(runs_dir)
    if not found:
        print(
            f"{runs_dir}: no runs; start one with `xlpretrain train` or `xlpretrain submit`, or look elsewhere with"
            " --runs-dir"
        )
        return
    names = ("run", "state", "step", "done", "loss", "tokens/s", "left", "heartbeat", "restarts", "host")
    table = Table(*names, box=None, header_style="bold", pad_edge=False)
    for name in ("run", "state"):
        table.columns[names.index(name)].overflow = "fold"
    for view in run_status.collect(found):
        table.add_row(
            _plain(str(view.run.path.relative_to(runs_dir))),
            _styled(view.state),
            _steps(view),
            "" if view.share is None else f"{view.share:.0%}",
            "" if view.loss is None else f"{view.loss:.4g}",
            "" if view.tokens_per_second is None else f"{view.tokens_per_second:,.0f}",
            "" if view.left_s is None else format_duration(view.left_s),
            "" if view.heartbeat_s is None else format_duration(view.heartbeat_s),
            str(view.restarts),
            view.host,
        )
    _console().print(table)


def show_one(path: Path) -> None:
    """Print the details of a run. Raises `LaunchError` if there is none."""
    [view] = run_status.collect([find_runs.require(path)])
    console = _console()
    console.print(_facts(view))
    history = _history(view)
    if history.row_count:
        console.print()
        console.print(history)


def _facts(view: RunStatus) -> Table:
    table = Table.grid(padding=(0, 2))

    def add(name: str, value: str | Text) -> None:
        if value:
            table.add_row(Text(name, style="bold"), value)

    add("run", _plain(str(view.run.path)))
    add("state", _styled(view.state))
    add("forked from", "" if view.branch is None else _plain(view.branch.describe()))
    if view.job is not None:
        nodes = view.job_state.nodes if view.job_state is not None else ""
        where = f", on {nodes}" if nodes else f", {view.job.nodes} nodes requested"
        add("job", f"{view.job.job_id} on {view.job.cluster}, submitted {_when(view.job.submitted_at)}{where}")
    share = "" if view.share is None else f" ({view.share:.1%})"
    left = "" if view.left_s is None else f", {format_duration(view.left_s)} left"
    add("step", f"{_steps(view)}{share}{left}")
    valid = "" if view.valid_loss is None else f" (held-out: {view.valid_loss:.5g})"
    add("loss", "" if view.loss is None else f"{view.loss:.5g}{valid}")
    add("speed", "" if view.tokens_per_second is None else f"{view.tokens_per_second:,.0f} tokens/s")
    add("heartbeat", "" if view.heartbeat_s is None else f"{format_duration(view.heartbeat_s)} ago")
    add("restarts", str(view.restarts))
    if view.status is not None and view.host:
        num_ranks = view.status.world_size
        add("rank 0", f"{view.host}, {num_ranks} rank{'' if num_ranks == 1 else 's'}")
    add("late rank", "" if view.status is None else Text(_plain(view.status.straggler), style="yellow"))
    add("message", Text(view.message, style="red"))
    add("excluded", ", ".join(SlurmFolder.of(view.run).read_excluded()))
    if view.run.stop_file.exists():
        add("STOP", f"stays stopped until `xlpretrain resume {shlex.quote(str(view.run.path))}`")
    logs = sorted(log.name for log in view.run.logs.glob("*") if log.is_file()) if view.run.logs.is_dir() else []
    shown = logs if len(logs) <= 6 else [*logs[:5], f"{len(logs) - 5} more"]
    add("logs", f"{_plain(str(view.run.logs))}: {', '.join(shown)}" if logs else "")
    return table


def _history(view: RunStatus) -> Table:
    """Table of the attempts on Slurm and their outcomes."""
    table = Table("started", "job", "nodes", "ranks", "from", "ended", "to", "outcome", box=None, header_style="bold")
    start: AttemptStart | None = None
    for event in [*view.events, None]:
        if isinstance(event, AttemptEnd):
            _add_start(table, start, event)
            start = None
            continue
        if start is not None:  # the end of this attempt was not recorded
            _add_start(table, start, None)
        start = event
    return table


def _add_start(table: Table, start: AttemptStart | None, end: AttemptEnd | None) -> None:
    first = ["", "", "", "", ""]
    if start is not None:
        job = f"{start.job_id}, restart {start.restart}" if start.restart else start.job_id
        first = [_when(start.at), job, ",".join(start.nodes), str(start.world_size), str(start.step)]
    last = ["", "", ""]
    if end is not None:
        outcome = end.outcome if not end.message else f"{end.outcome}: {end.message}"
        last = [_when(end.at), str(end.step), outcome]
    table.add_row(*first, *last)


def _console() -> Console:
    return AnswerConsole(markup=False)


def _styled(state: str) -> Text:
    known = next((style for words, style in _STYLES.items() if state.startswith(words)), "")
    return Text(state, style="red" if any(word in state for word in _BAD) else known)


def _steps(view: RunStatus) -> str:
    return f"{view.step:,}/{view.max_steps:,}" if view.max_steps else f"{view.step:,}"


def _plain(name: str) -> str:
    """Escape characters that would move the cursor or end the line."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in name)


def _when(moment: float) -> str:
    today = time.strftime("%Y-%m-%d")
    shown = datetime.fromtimestamp(moment).strftime("%Y-%m-%d %H:%M:%S")
    return shown.removeprefix(f"{today} ")
