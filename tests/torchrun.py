"""Starts worker scripts under torchrun: each holds many cases, since importing torch and DeepSpeed takes seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

WORKERS = Path(__file__).parent / "workers"


def torchrun(script: str, *args: object, nproc: int, timeout_s: float = 240, env: dict[str, str] | None = None) -> str:
    """Run `tests/workers/<script>` on `nproc` ranks and return what they print; a failure fails the test with it."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={nproc}"]
    done = subprocess.run(
        [*launch, str(WORKERS / script), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, "PYTHONPATH": str(WORKERS.parents[1]), **(env or {})},
    )
    assert done.returncode == 0, (
        f"{script} failed with {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-6000:]}"
    )
    return done.stdout
