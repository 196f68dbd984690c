"""Run every collective on every rank. Usage: distributed_cases.py OUT"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from xlpretrain import distributed
from xlpretrain.errors import exit_rank


def main(out: str) -> None:
    distributed.init()
    rank = distributed.rank()
    seen = {
        "world_size": distributed.world_size(),
        "local_rank": distributed.local_rank(),
        "sum": distributed.all_reduce_sum([2.0**53 - 1 if rank == 0 else 1.0, 0.1 * rank]),
        "gathered": distributed.gather_objects({"rank": rank}),
        "broadcast": distributed.broadcast_object(f"from {rank}"),
        "threads": torch.get_num_threads(),
    }
    distributed.barrier()
    Path(out, f"{rank}.json").write_text(json.dumps(seen))
    distributed.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
    exit_rank(0)
