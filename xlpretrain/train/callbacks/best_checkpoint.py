"""The best evaluation of a run: its checkpoint is kept, and without a better one the run is over."""

from __future__ import annotations

from xlpretrain.evaluation.held_out import EvalResult
from xlpretrain.train.run import Run


def update_best(run: Run, found: EvalResult) -> None:
    """Remember this step's evaluation if it is the best one so far; the first of equals stays."""
    by_accuracy, best = run.config.eval.best == "accuracy", run.state.best_value
    value = found.main.accuracy if by_accuracy else found.loss
    if best is None or (value > best if by_accuracy else value < best):
        run.state.best_step, run.state.best_value = run.state.step, value


def should_save(run: Run) -> bool:
    """True if this step's evaluation is the best one and its checkpoint, which is to be kept, is not yet on the
    disk."""
    state = run.state
    return run.config.checkpoint.keep_best and state.best_step == state.step and run.saver.saved_at != state.step


def patience_exhausted(run: Run) -> bool:
    """True if the last `stop.patience` evaluations brought no improvement."""
    patience, best = run.config.stop.patience, run.state.best_step
    return patience is not None and best is not None and run.state.step - best >= patience * run.config.eval.every_steps
