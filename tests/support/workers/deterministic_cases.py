"""Record the operations of training steps in every ZeRO stage; writes them for `test_determinism.py`.

Usage: deterministic_cases.py OUT.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tiny_model import training
from torch.utils._python_dispatch import TorchDispatchMode

from xlpretrain import distributed
from xlpretrain.engine.config import DeepSpeedConfig
from xlpretrain.errors import exit_rank
from xlpretrain.optim import AdamWConfig, LambConfig


class Names(TorchDispatchMode):
    """Records the names of operations while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def main(out: str) -> None:
    """Write the names by engine and optimizer."""
    distributed.init()
    found: dict[str, list[str]] = {}
    for stage, precision in ((1, "fp32"), (1, "bf16"), (2, "fp32"), (3, "fp32"), (3, "bf16")):
        for optimizer in (AdamWConfig(grad_clip=0.5), LambConfig(grad_clip=0.5)):
            config = DeepSpeedConfig(zero_stage=stage, precision=precision)
            run = training(config, num_streams=4, num_micro_batches=2, optimizer=optimizer)
            with Names() as names:
                run.steps(0, 2)
            found[f"zero {stage} {precision}, {optimizer.type}"] = sorted(names.found)
    Path(out).write_text(json.dumps(found))
    distributed.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
    exit_rank(0)
