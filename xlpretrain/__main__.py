"""Program of each rank: torchrun --nproc-per-node N -m xlpretrain CONFIG [key=value ...]"""

from __future__ import annotations

import argparse
import faulthandler
import os
import signal
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from xlpretrain.errors import (
    FINISHED,
    STOPPED_EARLY,
    OutOfMemoryError,
    XLPretrainError,
    exit_rank,
    print_error_once,
)
from xlpretrain.run_dir import rank_log
from xlpretrain.run_dir.goodput import describe
from xlpretrain.run_dir.layout import RunDir
from xlpretrain.run_dir.lease import LAUNCH_ID_ENV
from xlpretrain.run_dir.outcome import code_of_rank
from xlpretrain.run_dir.stop import block_signals
from xlpretrain.run_dir.watchdog import LAUNCHER, Watchdog
from xlpretrain.tracking.console import outlive_console

if TYPE_CHECKING:  # imported late: torch takes seconds
    from xlpretrain.planning.fitting.memory_limits import MemoryLimit
    from xlpretrain.run_dir.stop import StopReason
    from xlpretrain.train.run import Run


def main(arguments: list[str] | None = None, *, keep_log: bool = False) -> int:
    """Run one rank. Returns the exit code of the run: 0, 2, 75 or 76.

    keep_log: also write the output of this process to the run folder.
    """
    parser = argparse.ArgumentParser(prog="python -m xlpretrain", description="Run one rank of a training run.")
    parser.add_argument("config", type=Path, help="YAML file of the run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config changes, such as optimizer.lr=1e-4")
    parser.add_argument(
        "--allow-recipe-change", action="store_true", help="allow a resumed run to change optimizer and schedule"
    )
    parser.add_argument("--force-takeover", action="store_true", help="take over a run that a process appears to own")
    parser.add_argument("--take-over", action="store_true", help=argparse.SUPPRESS)  # its former name
    options = parser.parse_args(arguments)
    if options.take_over and os.environ.get("RANK", "0") == "0":
        print("warning: --take-over is now --force-takeover; the next version removes --take-over", file=sys.stderr)
    if keep_log and (known := os.environ.get(rank_log.RUN)):
        rank_log.copy_to(RunDir(Path(known)).rank_log(int(os.environ["RANK"])))
    try:
        return run(
            options.config,
            options.overrides,
            allow_recipe_change=options.allow_recipe_change,
            take_over=options.force_takeover or options.take_over,
            keep_log=keep_log,
        )
    except XLPretrainError as error:
        return print_error_once(error)


def run(path: Path, overrides: list[str], *, allow_recipe_change: bool, take_over: bool, keep_log: bool = False) -> int:
    """Train. Raises `XLPretrainError` for errors that the user can fix."""
    block_signals()
    with Watchdog() as watchdog:  # before the slow imports, during which the launcher may be killed
        from xlpretrain import distributed
        from xlpretrain.config import run_config
        from xlpretrain.planning.fitting.memory_limits import memory_limit, ranks_on_this_machine
        from xlpretrain.planning.fitting.out_of_memory import explained_if_out_of_memory
        from xlpretrain.train.setup import set_up_run

        config = run_config.load(path, overrides)
        config.engine.prepare_process()
        device = distributed.init(timeout_s=config.watchdog.collective_timeout_s)
        limit = memory_limit(device, ranks_here=ranks_on_this_machine())
        try:
            with explained_if_out_of_memory(config, limit, device=device):
                run = set_up_run(
                    config,
                    device=device,
                    allow_recipe_change=allow_recipe_change,
                    take_over=take_over,
                    launch_id=os.environ.get(LAUNCH_ID_ENV, ""),
                    watchdog=watchdog,
                )
            if keep_log:
                rank_log.copy_to(run.folder.rank_log(distributed.rank()))
            with closing(run.lease), run.recorder:
                stopped = _train(run, limit)
            watchdog.close()  # ranks may now end at different times
            distributed.barrier()
        except OutOfMemoryError as error:
            exit_rank(print_error_once(error))  # at once, since the other ranks wait for this one
        finally:
            distributed.shutdown()
    return STOPPED_EARLY if stopped else FINISHED


def _train(run: Run, limit: MemoryLimit) -> StopReason | None:
    """Train, and write the final status. limit: of memory, before the run was set up."""
    from xlpretrain.planning.fitting.out_of_memory import explained_if_out_of_memory
    from xlpretrain.train.loop import train

    recorder = run.recorder
    try:
        with explained_if_out_of_memory(run.config, limit, device=run.engine.device):
            stopped = train(run)
    except XLPretrainError as error:
        run.watchdog.close()  # all ranks have the error, and exit at different times
        recorder.write_status("failed", step=run.state.step, reason="error", message=str(error))
        raise
    state, reason = ("stopped", stopped) if stopped else ("finished", "finished")
    recorder.write_status(state, step=run.state.step, reason=reason)
    recorder.plot()  # after the status, since little time may be left
    recorder.print(describe(recorder.goodput.metrics()))
    recorder.print(f"{state} at step {run.state.step} of {run.max_steps}; {run.folder.path}")
    return stopped


if __name__ == "__main__":
    outlive_console()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C before training starts: exit without a traceback
    faulthandler.enable()  # prints a traceback on a crash in C++
    ours = LAUNCHER in os.environ or "TORCHELASTIC_RUN_ID" not in os.environ
    exit_rank(code_of_rank(main(keep_log=True), parent_knows=ours))
