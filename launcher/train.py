"""Training on this machine: what `train`, `resume` and `finetune` have in common."""

from __future__ import annotations

from pathlib import Path

import xlpretrain
from launcher import torchrun
from xlpretrain import config as configuration
from xlpretrain.build import prepare
from xlpretrain.console import outlive_console
from xlpretrain.errors import ConfigError
from xlpretrain.finetune import sum_up


def start_training(
    config: Path,
    overrides: list[str],
    num_processes: int | None,
    *,
    allow_recipe_change: bool,
    max_restarts: int,
    take_over: bool,
    stopped_before: bool = False,
) -> int:
    """Check everything, then start the ranks. `stopped_before`: the user's wish to stop is over."""
    outlive_console()
    settings = configuration.load(config, overrides)
    num_processes = num_processes or torchrun.default_num_processes(settings.global_batch_size)
    settings, _, _ = prepare(settings, world_size=num_processes, allow_recipe_change=allow_recipe_change)
    folder = settings.folder
    if stopped_before:
        folder.stop_file.unlink(missing_ok=True)
    elif folder.stop_file.exists():
        raise ConfigError(
            f"{folder.stop_file}: the run was stopped by its user; `xlpretrain resume {folder.path}` goes on"
        )
    status = folder.read_status()
    length = status and (status.step if settings.stop.patience is None else status.max_steps)
    if status is not None and status.state == "finished" and length == settings.max_steps:
        print(f"already finished: {status.step} steps in {folder.path}; raise max_steps to go on")
        code = 0
    else:
        code = torchrun.run(
            config,
            overrides,
            folder=folder,
            num_processes=num_processes,
            grace_s=settings.stop.grace_s,
            options=["--allow-recipe-change"] if allow_recipe_change else [],
            take_over=take_over,
            max_restarts=max_restarts,
        )
    if code == 0 and settings.objective.type == "classify":
        print(f"{folder.path}: {sum_up(xlpretrain.load(folder.path)).describe()}", flush=True)
    return code
