"""Former name of `launcher.slurm.submission.plain_sbatch`, for copies of slurm/pretrain.sbatch made before 0.2."""

from __future__ import annotations

import sys

from launcher.slurm.submission.plain_sbatch import main

if __name__ == "__main__":
    print(
        "warning: python -m launcher.by_hand is now launcher.slurm.submission.plain_sbatch; update your copy of"
        " slurm/pretrain.sbatch: the next version removes this name",
        file=sys.stderr,
        flush=True,
    )
    sys.exit(main(sys.argv[1:]))
