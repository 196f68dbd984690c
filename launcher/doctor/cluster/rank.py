"""One rank of the check of collectives on a cluster: srun ... python -m launcher.doctor.cluster.rank REQUEST

After the collectives, the ranks look at each other's files in the folder of runs.
"""

from __future__ import annotations

import os
import sys

from launcher.doctor.network import ranks
from launcher.doctor.request import Request
from launcher.slurm.job import allocation
from xlpretrain.errors import exit_rank


def main(request: Request) -> int:
    """Join the group that Slurm's variables describe. Returns the exit code."""
    os.environ["MASTER_ADDR"] = allocation.choose_address()
    os.environ["RANK"], os.environ["LOCAL_RANK"] = os.environ["SLURM_PROCID"], os.environ["SLURM_LOCALID"]
    return ranks.main(request)


if __name__ == "__main__":
    exit_rank(main(Request.from_json(sys.argv[1])))
