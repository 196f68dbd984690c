"""Options of the commands that start ranks on this machine. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StartOptions:
    """Options of `train`, `resume` and `finetune` for starting a run.

    Attributes:
        num_processes: number of ranks; None: one per GPU, or two without GPUs.
        max_restarts: maximum number of restarts after a crash.
        allow_recipe_change: allow a run with checkpoints to change its optimizer and schedule.
        take_over: claim the run even if another process appears to own it.
    """

    num_processes: int | None = None
    max_restarts: int = 0
    allow_recipe_change: bool = False
    take_over: bool = False
