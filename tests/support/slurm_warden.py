"""Wait for the end of the test run that started a cluster, also by SIGKILL, and clean up after it.

python slurm_warden.py FOLDER [BRIDGE]; its standard input ends with the test run.
"""

import shutil
import sys
from pathlib import Path

from slurm_node import find_processes, kill_all, remove_network


def main(folder: Path, bridge: str) -> None:
    """Wait, and clean up."""
    sys.stdin.read()
    # Daemons end by themselves; processes that they are just starting must be found as well.
    while left := find_processes(f"SLURM_CONF={folder}/etc/slurm.conf"):
        kill_all(left)
    if bridge:
        remove_network(bridge)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), "".join(sys.argv[2:]))
