"""One rank of a run on Slurm: srun ... python -m launcher.slurm.job.rank RUN

The environment tells it who it is: Slurm's own variables, or torchrun's where that started it; MASTERS and the port
come from launcher.slurm.job.attempt. What it says goes to its log, and is added to what starts before it have said.
"""

from __future__ import annotations

import faulthandler
import os
import sys
from pathlib import Path

from launcher.slurm.job import allocation
from launcher.slurm.records import SlurmFolder
from xlpretrain.__main__ import main as train
from xlpretrain.errors import exit_rank
from xlpretrain.file_system.atomic_files import atomic_write
from xlpretrain.run_dir import rank_log
from xlpretrain.run_dir.layout import RunDir
from xlpretrain.run_dir.outcome import code_of_rank
from xlpretrain.tracking.console import outlive_console


def main(run: RunDir) -> int:
    """Train one rank's part. Returns its exit code, which is 0 after an early stop: Slurm takes 75 for a failure."""
    outlive_console()
    os.environ["MASTER_ADDR"] = allocation.choose_address()
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        os.environ["RANK"] = os.environ["SLURM_PROCID"]
        os.environ["LOCAL_RANK"] = os.environ["SLURM_LOCALID"]
    rank = int(os.environ["RANK"])
    job, restart = os.environ.get("SLURM_JOB_ID", "?"), os.environ.get("SLURM_RESTART_COUNT", "0")
    rank_log.move_to(run.rank_log(rank), where=f"job {job}, restart {restart}, {os.uname().nodename}")
    faulthandler.enable()  # so that a crash in C++ tells where
    records = SlurmFolder.of(run)
    # What may change in a run that was begun was looked at when it was submitted.
    code = train([str(records.config), "--allow-recipe-change"])
    if rank == 0:
        atomic_write(records.exit_code, f"{code}\n")
    return code_of_rank(code, parent_knows=False)


if __name__ == "__main__":
    exit_rank(main(RunDir(Path(sys.argv[1]))))
