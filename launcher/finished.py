"""The check for finished runs that every command which starts a run makes first. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xlpretrain.run_dir import outcome

if TYPE_CHECKING:  # torch takes seconds
    from xlpretrain.config.run_config import RunConfig


def print_if_finished(config: RunConfig) -> bool:
    """Print a message if a run is finished, so that another attempt would do nothing. Returns True if it is."""
    message = outcome.nothing_left(
        config.folder,
        max_steps=config.max_steps,
        patience=config.stop.patience,
        eval_every_steps=config.eval.every_steps,
    )
    if message is not None:
        print(message)
    return message is not None
