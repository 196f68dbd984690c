"""Worker process of one side of a comparison: reports that it is ready, then takes and times steps on request.

    python benchmarks/worker.py SIDE CASE      SIDE: "ours", or a variant of `peers.py`; CASE: JSON

Each line on stdin is a number of steps; each line on stdout is JSON. The peak is that of a large matrix product in
the case's precision, measured just before and after the steps.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cases import Case

SIZE, PRODUCTS = (8192, 20) if torch.cuda.is_available() else (1024, 6)


def main() -> None:
    """Serve until stdin ends."""
    side, case = sys.argv[1], Case(**json.loads(sys.argv[2]))
    torch.set_num_threads(case.threads)
    if side == "ours":
        from benchmarks.ours import build

        step, flops = build(case)
    else:
        from benchmarks.peers import build as build_peer

        step, flops = build_peer(case, side), 0.0
    step()
    print(json.dumps({"flops": flops}), flush=True)
    for line in sys.stdin:
        before = _peak(case.precision)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            step()
        _wait()
        wall, cpu = (time.perf_counter() - wall) / int(line), (time.process_time() - cpu) / int(line)
        peak = (before + _peak(case.precision)) / 2
        print(
            json.dumps({"step_s": wall, "cpu_s": cpu, "peak_flops": peak, "memory_bytes": resident_bytes()}), flush=True
        )


def _peak(precision: str) -> float:
    """Best FLOP/s of a few matrix products."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a = torch.ones(SIZE, SIZE, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(PRODUCTS):
        started = time.perf_counter()
        torch.mm(a, a)
        _wait()
        best = min(best, time.perf_counter() - started)
    return 2 * SIZE**3 / best


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def resident_bytes() -> int:
    """Peak memory of this process: on the GPU if there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


if __name__ == "__main__":
    main()
