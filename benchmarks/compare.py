"""Compare complete training steps with `transformers`, in turn, at equal shapes, precision and batch size.

    make bench                                           everything (about 15 minutes on two cores)
    .venv/bin/python benchmarks/compare.py --short       one small case of each model, one repeat
    .venv/bin/python benchmarks/compare.py --only bert,base     cases whose name has all of these

Both sides stay alive in separate processes and take turns, so that disturbances affect both. A repeat in which the
matrix-product peak was under 70 % of the best is discarded. Results are stored after each case in
benchmarks/results/steps.json: an interrupted run resumes (--fresh: start over). `report.py` writes docs/benchmarks.md
from them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks import environments, report  # noqa: E402
from benchmarks.cases import MODELS, Case, case  # noqa: E402
from benchmarks.peers_of import variants  # noqa: E402
from benchmarks.turns import Served  # noqa: E402

REPEATS = {"small": 5, "base": 3}


def main() -> None:
    """Run the selected cases, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "steps.json")
    arguments = parser.parse_args()
    if arguments.short:
        cases = [case(model, "tiny", rows=2, precision="bf16", threads=1) for model in MODELS]
        found = {c.key: measure(c, repeats=1) for c in cases}
        print(report.table(found))
        return
    place: Path = arguments.results
    found = {} if arguments.fresh or not place.exists() else json.loads(place.read_text())["cases"]
    for c in all_cases():
        if c.key not in found and all(word in c.key for word in arguments.only.split(",")):
            started = time.time()
            found[c.key] = measure(c, repeats=REPEATS[c.shape])
            place.parent.mkdir(exist_ok=True)
            place.write_text(json.dumps({"machine": machine(), "cases": found}, indent=1))
            print(f"{c.key}: {time.time() - started:.0f} s", flush=True)
    report.write(place)


def all_cases() -> Iterator[Case]:
    """All cases, the most informative first."""
    for model in MODELS:
        base = case(model, "base", rows=2, precision="bf16", threads=2)
        yield from (base, case(model, "small", rows=4, precision="bf16", threads=2), base.without_dropout())
    for model in MODELS:
        yield case(model, "small", rows=4, precision="fp32", threads=2)
        yield case(model, "small", rows=16, precision="bf16", threads=2)
    for model in MODELS:
        yield case(model, "base", rows=1, precision="fp32", threads=2)
    for model in MODELS:
        yield case(model, "base", rows=2, precision="bf16", threads=1)


class Side:
    """A worker process that takes steps; some variants of peers cannot run at all."""

    def __init__(self, name: str, of: Case):
        python = environments.transformers_4() if name != "ours" and of.model == "transformer_xl" else sys.executable
        command = [python, "-W", "ignore", HERE / "worker.py", name, json.dumps(of.as_json())]
        self._worker = Served(command, env={**os.environ, "OMP_NUM_THREADS": str(of.threads)})
        self.repeats: list[dict[str, float]] = []
        self.flops: float = self._worker.answer()["flops"]

    def turn(self, steps: int) -> None:
        """Take steps, and record their time."""
        self.repeats.append(self._worker.ask(str(steps)))

    def close(self) -> None:
        """Stop the worker."""
        self._worker.close()


def measure(of: Case, *, repeats: int) -> dict[str, Any]:
    """Measure all sides of a case, in turn."""
    sides = {"ours": Side("ours", of)}
    failed = []
    for name in variants(of):
        try:
            sides[name] = Side(name, of)
        except EOFError:
            failed.append(name)
    steps = 1 if of.shape == "base" else 3
    for _ in range(repeats):
        for side in sides.values():
            side.turn(steps)
    for side in sides.values():
        side.close()
    return {
        "case": of.as_json(),
        "flops": sides["ours"].flops,
        "sides": {name: side.repeats for name, side in sides.items()},
        "failed": failed,
    }


def machine() -> dict[str, Any]:
    """Description of this machine."""
    import torch
    import transformers

    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    return {
        "cpu": names[0].split(":")[1].strip() if names else platform.processor(),
        "cores": os.cpu_count(),
        "bf16": [flag for flag in ("avx512_bf16", "amx_bf16") if flag in flags.split()],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "transformers_4": environments.TRANSFORMERS_4,
        "when": time.strftime("%Y-%m-%d %H:%M"),
        "load": os.getloadavg()[0],
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip(),
    }


if __name__ == "__main__":
    main()
