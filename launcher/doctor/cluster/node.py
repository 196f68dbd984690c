"""The checks of one node, in a job step: python -m launcher.doctor.cluster.node REQUEST

Prints findings with the node's name as JSON lines. Torch-free at import.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

from launcher.doctor.checks import CHECKS
from launcher.doctor.examine import examine
from launcher.doctor.request import Request
from launcher.slurm.profile import load_cluster


def main(request: Request) -> None:
    """Make the checks of a node."""
    node = os.environ.get("SLURMD_NODENAME", os.uname().nodename)
    profile = load_cluster(Path(request.cluster)) if request.cluster else None
    if profile is not None:
        request = replace(request, num_processes=profile.num_tasks, num_gpus=profile.num_gpus or None)
    for finding in examine(request, [name for name, check in CHECKS.items() if check.on_nodes]):
        print(replace(finding, node=node).to_json(), flush=True)


if __name__ == "__main__":
    main(Request.from_json(sys.argv[1]))
