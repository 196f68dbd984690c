"""What each rank runs: torchrun --nproc-per-node N -m xlpretrain CONFIG [key=value ...]"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from xlpretrain.errors import FINISHED, STOPPED_EARLY, XLPretrainError, tell_once


def main(arguments: list[str] | None = None) -> int:
    """Train one rank's part. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m xlpretrain", description="Pretrain: one rank of a run.")
    parser.add_argument("config", type=Path, help="YAML file of the run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to it, such as optimizer.lr=1e-4")
    parser.add_argument(
        "--allow-recipe-change", action="store_true", help="let a resumed run change optimizer and schedule"
    )
    options = parser.parse_args(arguments)
    try:
        return run(options.config, options.overrides, allow_recipe_change=options.allow_recipe_change)
    except XLPretrainError as error:
        return tell_once(error)


def run(path: Path, overrides: list[str], *, allow_recipe_change: bool) -> int:
    """Train. Raises `XLPretrainError` for what the user can mend."""
    from xlpretrain import config as configuration
    from xlpretrain import distributed
    from xlpretrain.build import build
    from xlpretrain.trainer import train

    config = configuration.load(path, overrides)
    device = distributed.start()
    try:
        run = build(
            config,
            device=device,
            allow_recipe_change=allow_recipe_change,
            launch_id=os.environ.get("XLPRETRAIN_LAUNCH_ID", ""),
        )
        with run.recorder as recorder:
            try:
                stopped = train(run)
            except XLPretrainError as error:
                recorder.tell("failed", step=run.state.step, reason="error", message=str(error))
                raise
            recorder.plot()
            state, reason = ("stopped", stopped) if stopped else ("finished", "finished")
            recorder.tell(state, step=run.state.step, reason=reason)
            recorder.say(f"{state} at step {run.state.step} of {run.max_steps}; {run.folder.path}")
        distributed.barrier()
    finally:
        distributed.stop()
    # torchrun would turn 75 into a long traceback and its own 1; there, status.json tells a planned stop.
    return STOPPED_EARLY if stopped and "TORCHELASTIC_RUN_ID" not in os.environ else FINISHED


if __name__ == "__main__":
    sys.exit(main())
