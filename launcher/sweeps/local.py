"""Train the runs of a sweep on this machine, one after another or several at a time."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.finished import print_if_finished
from launcher.local import torchrun
from launcher.local.options import StartOptions
from launcher.pool import Command, Event, Pool, Slot, describe_failure, divide_machine, log_sizes
from launcher.sweeps.variants import Variant, variants
from xlpretrain.config import run_config
from xlpretrain.config.run_config import RunConfig
from xlpretrain.errors import FINISHED, STOPPED_EARLY, ConfigError, XLPretrainError
from xlpretrain.run_dir import outcome
from xlpretrain.run_dir.layout import RunDir
from xlpretrain.tracking.console import format_duration, outlive_console
from xlpretrain.train.setup import resolve_run

_FAILED = 1


def run_sweep(
    config: Path, overrides: Sequence[str], sweeps: Sequence[str], options: StartOptions, *, num_jobs: int
) -> tuple[list[RunDir], int]:
    """Train all runs of a sweep that are not finished. Returns their folders and the exit code.

    Runs exist already if the command was cut: they are resumed. A run that fails does not keep the others from
    training. With several jobs, each has an equal share of the GPUs or cores, and its output is in
    runs_dir/.sweeps/RUN.log. Raises `XLPretrainError`, in one report for all runs, before anything is written.
    """
    outlive_console()
    slots = divide_machine(num_jobs, num_processes=options.num_processes)
    num_processes = options.num_processes or (None if num_jobs == 1 else len(slots[0].gpus or [0]))
    found = variants(sweeps)
    base = run_config.load(config, overrides)
    settings = [run_config.load(config, _overrides(base, overrides, variant)) for variant in found]
    _check(settings, options, num_processes)
    commands = []
    for each, variant in zip(settings, found, strict=True):
        if not print_if_finished(each):
            arguments = [str(config), *_overrides(base, overrides, variant), *_flags(options, num_processes)]
            log = None if num_jobs == 1 else each.folder.path.parent / ".sweeps" / f"{each.name}.log"
            commands.append(Command(each.name, [sys.executable, "-m", "launcher", "train", *arguments], log))
    return [each.folder for each in settings], _run(commands, slots)


def _overrides(base: RunConfig, overrides: Sequence[str], variant: Variant) -> list[str]:
    return [*overrides, *variant.overrides, f"name={base.name}{variant.suffix}"]


def _check(settings: Sequence[RunConfig], options: StartOptions, num_processes: int | None) -> None:
    """Raise `ConfigError` with the problems of all runs."""
    problems = []
    for each in settings:
        world_size = num_processes or torchrun.default_num_processes(each.smallest_batch)
        try:
            resolve_run(each, world_size=world_size, allow_recipe_change=options.allow_recipe_change)
            outcome.refuse_if_stopped(each.folder)
        except XLPretrainError as error:
            problems.append(str(error) if str(error).startswith(each.name) else f"{each.name}: {error}")
    if problems:
        raise ConfigError("\n".join(problems))


def _flags(options: StartOptions, num_processes: int | None) -> list[str]:
    """The options of a sweep as those of `xlpretrain train`."""
    flags = [] if num_processes is None else [f"--nproc={num_processes}"]
    flags += [f"--max-restarts={options.max_restarts}"] if options.max_restarts else []
    flags += ["--allow-recipe-change"] if options.allow_recipe_change else []
    return [*flags, *(["--force-takeover"] if options.take_over else [])]


def _run(commands: Sequence[Command], slots: Sequence[Slot]) -> int:
    """Run the commands and print how each ends. Returns the exit code."""
    numbers = {command.name: f"[{number}/{len(commands)}]" for number, command in enumerate(commands, 1)}
    codes, sizes = dict[str, int](), log_sizes(commands)

    def on_event(event: Event, command: Command, code: int | None, seconds: float) -> None:
        if code is not None:
            codes[command.name] = code
        print(f"{numbers[command.name]} {command.name}: {_described(event, command, code, seconds, sizes)}", flush=True)

    pool = Pool(slots, on_event)
    pool.run(commands)
    failed = [name for name, code in codes.items() if code not in (FINISHED, STOPPED_EARLY)]
    if pool.stopped_by:
        left = len(commands) - sum(code == FINISHED for code in codes.values())
        name = signal.Signals(pool.stopped_by).name
        print(f"stopped by {name}: {left} runs are left; rerun the command to continue", file=sys.stderr)
        return STOPPED_EARLY
    if failed:
        print(f"{len(failed)} of {len(commands)} runs failed: {', '.join(failed)}", file=sys.stderr)
        return _FAILED
    return STOPPED_EARLY if STOPPED_EARLY in codes.values() else FINISHED


def _described(event: Event, command: Command, code: int | None, seconds: float, sizes: Mapping[str, int]) -> str:
    """Text for an event. sizes: of the logs before the commands started."""
    if event == "started":
        return "started" if command.log is None else f"started; its output is in {command.log}"
    took = f"after {format_duration(seconds)}"
    if code == FINISHED:
        return f"finished {took}"
    if code == STOPPED_EARLY or event == "stopped":
        return f"stopped early {took}; rerun the command to resume it"
    return f"failed {took}, {describe_failure(code, command.log, since=sizes[command.name])}"
