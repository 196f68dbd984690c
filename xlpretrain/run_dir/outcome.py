"""Outcome of an attempt of a run, and the decision about another attempt. Torch-free.

Shared by `train`, `resume`, `submit` and the supervisor of a Slurm job.
"""

from __future__ import annotations

import shlex
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from xlpretrain import schema
from xlpretrain.checkpoint.files import MANIFEST, list_checkpoints, parse_step
from xlpretrain.errors import FENCED, FINISHED, STOPPED_EARLY, USER_ERROR, ConfigError
from xlpretrain.run_dir.layout import RunDir, Status

MAX_ATTEMPTS_WITHOUT_PROGRESS = 2
"""Number of consecutive attempts without a new checkpoint after which a run does not restart."""
TAKEN_OVER = "another attempt of the run has taken over"
STOPPED_BY_USER = "stopped by the user"

Saved = frozenset[tuple[int, int]]
"""Checkpoints as (step, time of writing in nanoseconds since 1970)."""


@dataclass(frozen=True)
class Verdict:
    """Outcome of an attempt. code: exit code for the user. message: reason, unless the run is finished."""

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
    """Determine the outcome of an attempt.

    status: status written by this attempt; None if it wrote none. exit_code: of rank 0, or of the first rank that
    failed; None if unknown. lost: another attempt owns the run. stop_file: the user has requested a stop.
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
        return Verdict("failed", 1, f"crashed after a stop request: {last_words}")
    return Verdict("crashed", 1, f"crashed: {last_words}")


def code_of_rank(code: int, *, parent_knows: bool) -> int:
    """Exit code of a rank whose run ended with `code`.

    parent_knows: True if its parent is our launcher or a shell. torchrun and srun report 75 as a failure; under them a
    stopped run exits with 0, and only status.json shows that it stopped.
    """
    return FINISHED if code == STOPPED_EARLY and not parent_knows else code


def stop_reason(*, restarts: int, limit: int, limit_name: str, attempts_without_progress: int) -> str | None:
    """Reason why a run must not restart, or None if it may.

    restarts: number so far. attempts_without_progress: consecutive latest attempts without a new checkpoint.
    """
    if restarts >= limit:
        times = "once" if restarts == 1 else f"{restarts} times"
        return f"restarted {times}, the limit set by {limit_name}" if restarts else f"{limit_name} is 0"
    if attempts_without_progress >= MAX_ATTEMPTS_WITHOUT_PROGRESS:
        return f"{MAX_ATTEMPTS_WITHOUT_PROGRESS} consecutive attempts wrote no new checkpoint"
    return None


def newest_step(run: RunDir) -> int:
    """Step of a run's newest checkpoint; 0 if it has none."""
    return next((parse_step(path) or 0 for path in list_checkpoints(run.checkpoints)), 0)


def how_to_resume(run: RunDir) -> str:
    """Message on how to resume an unfinished run, and from which checkpoint it would resume."""
    if not run.exists() and not (run.path / "slurm").is_dir():
        return "nothing was written yet: rerun the same command"
    step = newest_step(run)
    begins = f"resumes from the checkpoint of step {step}" if step else "starts over: there is no checkpoint yet"
    return f"`xlpretrain resume {shlex.quote(str(run.path))}` {begins}"


def saved(run: RunDir) -> Saved:
    """Checkpoints of a run, to compare with after an attempt (see `made_progress`)."""
    found = set()
    for path in list_checkpoints(run.checkpoints):
        with suppress(OSError):  # removed this instant
            found.add((parse_step(path) or 0, (path / MANIFEST).stat().st_mtime_ns))
    return frozenset(found)


def made_progress(run: RunDir, *, before: Saved) -> bool:
    """True if a checkpoint was written since `before` was taken.

    Does not compare steps: after a damaged checkpoint an attempt resumes from an older one, and what it writes counts
    even at the same or a lower step.
    """
    return bool(saved(run) - before)


def cost_of_ending(run: RunDir) -> str:
    """Phrase for messages: the work lost if the run is killed now."""
    step, newest = 0, newest_step(run)
    with suppress(ValueError, TypeError):
        status = run.read_status()
        step = status.step if status is not None else 0
    if not newest:
        return f"all {step} steps (there is no checkpoint yet)"
    return f"the {max(step - newest, 0)} steps since the checkpoint of step {newest}"


def nothing_left(run: RunDir, *, max_steps: int | None, patience: int | None, eval_every_steps: int) -> str | None:
    """Message for restarting a finished run; None if these settings leave work to do.

    patience, eval_every_steps: `stop.patience` and `eval.every_steps`. A run that stopped because its held-out loss did
    not improve is finished regardless of `max_steps`, until its patience is raised.
    """
    status = run.read_status()
    if status is None or status.state != "finished":
        return None
    done = f"already finished: {status.step} steps in {run.path}"
    if max_steps is not None and status.step >= max_steps:
        return f"{done}; raise max_steps to continue"
    spent = _patience_in_steps(run)
    if status.step < status.max_steps and patience is not None and spent and patience * eval_every_steps <= spent:
        return f"{done}, because the held-out loss stopped improving; raise stop.patience to continue"
    return None


def refuse_if_stopped(run: RunDir) -> None:
    """Raise `ConfigError` if the user has stopped a run and not resumed it since."""
    if run.stop_file.exists():
        raise ConfigError(f"{run.stop_file}: the run was {STOPPED_BY_USER}; `xlpretrain resume {run.path}` resumes it")


def _patience_in_steps(run: RunDir) -> int | None:
    """Patience in steps from the run's last config; None if it has none."""
    with suppress(ConfigError, OSError, TypeError, AttributeError):
        config = schema.read_yaml(run.config)
        patience, every_steps = config["stop"].get("patience"), config["eval"].get("every_steps")
        return patience * every_steps if patience else None
    return None
