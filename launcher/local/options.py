"""Options of the commands that start ranks on this machine. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StartOptions:
    """Options with which `train`, `resume` and `finetune` start a run.

    Attributes:
        num_processes: number of ranks; None: one per GPU, or two without GPUs.
        max_restarts: limit on restarts after a crash.
        allow_recipe_change: accept another optimizer or schedule for a run that has checkpoints.
        take_over: claim the run although another process appears to own it.
    """

    num_processes: int | None = None
    max_restarts: int = 0
    allow_recipe_change: bool = False
    take_over: bool = False
