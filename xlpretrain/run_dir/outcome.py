"""The outcome of an attempt of a run, and whether another attempt follows. Torch-free.

The one place for it: `train`, `resume`, `submit` and the supervisor of a Slurm job all ask here.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from xlpretrain import schema
from xlpretrain.checkpoint.files import MANIFEST, list_checkpoints, parse_step
from xlpretrain.errors import FENCED, FINISHED, STOPPED_EARLY, USER_ERROR, ConfigError
from xlpretrain.run_dir.layout import RunDir, Status

MAX_ATTEMPTS_WITHOUT_PROGRESS = 2
"""Starts in a row without a new checkpoint after which a run is not started again."""
TAKEN_OVER = "another start of the run has taken over"
STOPPED_BY_USER = "stopped by its user"

Saved = frozenset[tuple[int, int]]
"""Checkpoints, each by its step and the time at which it was written (nanoseconds since 1970)."""


@dataclass(frozen=True)
class Verdict:
    """The outcome of an attempt. code: the exit code for the user. message: the reason, unless the run is finished."""

    outcome: Literal["finished", "stopped", "failed", "fenced", "crashed"]
    code: int
    message: str = ""

    @property
    def should_restart(self) -> bool:
        """True if another attempt would continue the run."""
        return self.outcome == "crashed" or (self.outcome == "stopped" and self.message != STOPPED_BY_USER)


def classify_exit(
    status: Status | None, *, exit_code: int | None, lost: bool, stop_file: bool, last_words: str
) -> Verdict:
    """Decide how an attempt ended.

    status: as this start left it; None if it wrote none. exit_code: of rank 0, or of the first rank that failed; None
    if it is not known. lost: another start has the run. stop_file: the user wants the run stopped.
    """
    if lost:
        return Verdict("fenced", FENCED, TAKEN_OVER)
    state = status.state if status is not None else "running"
    if state == "finished":
        return Verdict("finished", FINISHED)
    if exit_code == USER_ERROR or state == "failed":
        return Verdict("failed", USER_ERROR, (status.message if status else "") or last_words)
    if state == "stopped" or exit_code == STOPPED_EARLY:
        reason = status.reason if status is not None and state == "stopped" else "status.json could not be written"
        by_user = stop_file or reason == "user"
        return Verdict("stopped", STOPPED_EARLY, STOPPED_BY_USER if by_user else f"stopped early: {reason}")
    if exit_code == FINISHED:  # the disk was too full for status.json
        return Verdict("finished", FINISHED)
    if stop_file:
        return Verdict("failed", 1, f"crashed, and its user wants it stopped: {last_words}")
    return Verdict("crashed", 1, f"crashed: {last_words}")


def code_of_rank(code: int, *, parent_knows: bool) -> int:
    """The exit code that a rank leaves with, where its run came to `code`.

    parent_knows: whether its parent is ours, or a shell. torchrun and srun take 75 for a failure, and say so at length;
    there, status.json tells a stop from an end.
    """
    return FINISHED if code == STOPPED_EARLY and not parent_knows else code


def stop_reason(*, restarts: int, limit: int, limit_name: str, attempts_without_progress: int) -> str | None:
    """The reason why a run that would go on must not be started again; None if it may.

    restarts: how often it was. attempts_without_progress: its last starts in a row that made no checkpoint.
    """
    if restarts >= limit:
        times = "once" if restarts == 1 else f"{restarts} times"
        return f"was started again {times}, which is {limit_name}" if restarts else f"{limit_name} is 0"
    if attempts_without_progress >= MAX_ATTEMPTS_WITHOUT_PROGRESS:
        return f"{MAX_ATTEMPTS_WITHOUT_PROGRESS} starts in a row brought no new checkpoint"
    return None


def newest_step(run: RunDir) -> int:
    """The step of a run's newest checkpoint; 0 if it has none."""
    return next((parse_step(path) or 0 for path in list_checkpoints(run.checkpoints)), 0)


def saved(run: RunDir) -> Saved:
    """The checkpoints that a run has. To be kept until a start has ended: see `made_progress`."""
    found = set()
    for path in list_checkpoints(run.checkpoints):
        with suppress(OSError):  # removed this instant
            found.add((parse_step(path) or 0, (path / MANIFEST).stat().st_mtime_ns))
    return frozenset(found)


def made_progress(run: RunDir, *, before: Saved) -> bool:
    """True if a checkpoint was written since `before`.

    Not whether the newest step is higher: after a damaged checkpoint a start goes on from an older one, and what it
    writes counts, even if it has a lower step or the same.
    """
    return bool(saved(run) - before)


def cost_of_ending(run: RunDir) -> str:
    """The loss if a run ends now without saving, in a few words."""
    step, newest = 0, newest_step(run)
    with suppress(ValueError, TypeError):
        status = run.read_status()
        step = status.step if status is not None else 0
    if not newest:
        return f"all {step} steps: there is no checkpoint yet"
    return f"what came after the checkpoint of step {newest}: {max(step - newest, 0)} steps"


def nothing_left(run: RunDir, *, max_steps: int | None, patience: int | None, eval_every_steps: int) -> str | None:
    """The message for a user who starts a finished run again; None if these settings leave it anything to do.

    patience, eval_every_steps: `stop.patience` and `eval.every_steps`. A run that ended because its evaluations got no
    better is finished whatever `max_steps` is, until it is given more patience.
    """
    status = run.read_status()
    if status is None or status.state != "finished":
        return None
    done = f"already finished: {status.step} steps in {run.path}"
    if max_steps is not None and status.step >= max_steps:
        return f"{done}; raise max_steps to go on"
    spent = _patience_in_steps(run)
    if status.step < status.max_steps and patience is not None and spent and patience * eval_every_steps <= spent:
        return f"{done}, since its evaluations got no better; raise stop.patience to go on"
    return None


def refuse_if_stopped(run: RunDir) -> None:
    """Raise `ConfigError` if the user has stopped a run, and not resumed it since."""
    if run.stop_file.exists():
        raise ConfigError(f"{run.stop_file}: the run was {STOPPED_BY_USER}; `xlpretrain resume {run.path}` goes on")


def _patience_in_steps(run: RunDir) -> int | None:
    """The patience that a run was last started with; None if it had none."""
    with suppress(ConfigError, OSError, TypeError, AttributeError):
        config = schema.read_yaml(run.config)
        patience, every_steps = config["stop"].get("patience"), config["eval"].get("every_steps")
        return patience * every_steps if patience else None
    return None
