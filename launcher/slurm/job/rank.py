"""One rank of a run on Slurm: srun ... python -m launcher.slurm.job.rank RUN

Its rank comes from Slurm's environment variables, or from torchrun's if torchrun started it; MASTERS and the port come
from launcher.slurm.job.attempt. Its output is appended to its log.
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
    """Run one rank. Returns its exit code, which is 0 after an early stop: Slurm would take 75 for a failure."""
    outlive_console()
    os.environ["MASTER_ADDR"] = allocation.choose_address()
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        os.environ["RANK"] = os.environ["SLURM_PROCID"]
        os.environ["LOCAL_RANK"] = os.environ["SLURM_LOCALID"]
    rank = int(os.environ["RANK"])
    job, restart = os.environ.get("SLURM_JOB_ID", "?"), os.environ.get("SLURM_RESTART_COUNT", "0")
    rank_log.move_to(run.rank_log(rank), where=f"job {job}, restart {restart}, {os.uname().nodename}")
    faulthandler.enable()  # prints a traceback on a crash in C++
    records = SlurmFolder.of(run)
    # Changes to a started run were checked at submission.
    code = train([str(records.config), "--allow-recipe-change"])
    if rank == 0:
        atomic_write(records.exit_code, f"{code}\n")
    return code_of_rank(code, parent_knows=False)


if __name__ == "__main__":
    exit_rank(main(RunDir(Path(sys.argv[1]))))
