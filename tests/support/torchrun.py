"""Run worker scripts under torchrun. Each has many cases, since importing torch and DeepSpeed takes seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

WORKERS = Path(__file__).parent / "workers"


def torchrun(
    script: str,
    *args: object,
    nproc: int | None,
    timeout_s: float = 280,
    env: dict[str, str] | None = None,
    may_fail: bool = False,
) -> str:
    """Run `workers/<script>` on `nproc` ranks (None: without torchrun) and return its output.

    Unless it may fail, a failure fails the test and shows the output.
    """
    launch = [sys.executable]
    if nproc is not None:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={nproc}"]
    done = subprocess.run(
        [*launch, str(WORKERS / script), *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        # OMP_NUM_THREADS: torchrun sets it anyway, with a banner.
        env={
            **os.environ,
            "PYTHONPATH": f"{WORKERS.parents[2]}:{WORKERS.parent}",
            "OMP_NUM_THREADS": "1",
            **(env or {}),
        },
    )
    assert may_fail or done.returncode == 0, f"{script} failed with {done.returncode}:\n{done.stdout[-8000:]}"
    return done.stdout
