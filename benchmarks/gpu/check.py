"""All that CI cannot run, on a GPU: correctness first, then speed. Offline, from a source tree that is not installed.

    make gpu-check                                     everything; about 8 minutes on one GPU, 2 on a CPU at toy size
    python -m benchmarks.gpu.check --out DIR           DIR gets results.jsonl, report.md, log.txt as they come
    python -m benchmarks.gpu.check --only step,speed   these parts
    python -m benchmarks.gpu.check --part step         one part in this process

Each part is a process with its own time limit; what a part had written when its limit came counts. Parts come in the
order of their worth, and those that do not fit into --budget seconds are not started. The exit code is 1 if a part that
checks correctness fails or is cut, else 0.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from benchmarks.gpu import record
from benchmarks.gpu.processes import kill_tree
from benchmarks.gpu.record import Record

ROOT = Path(__file__).resolve().parents[2]
ERROR_LINES = 25


@dataclass(frozen=True)
class Part:
    """A function `run(record, toy=...)` of a module, run in a process of its own."""

    name: str
    title: str
    run: str
    """module:function"""
    limit_s: float
    checks: bool = True
    """True if its failure makes the exit code 1; False if it only measures."""
    needs: tuple[str, ...] = ()
    """Packages without which it is skipped."""


PARTS = (
    Part("device", "device, versions and measured peaks", "benchmarks.gpu.device:run", 40, checks=False),
    Part("kernels", "implementations of attention", "benchmarks.gpu.kernels:run", 90),
    Part("equivalence", "every path of the device against the CPU's", "benchmarks.gpu.equivalence:run", 75),
    Part("commands", "the real commands; two runs and a resume", "benchmarks.gpu.commands:run", 100),
    Part("bits", "engine.deterministic: equality, and its cost", "benchmarks.gpu.variants:deterministic", 60),
    Part("step", "one step: launches, waits of the host, memory", "benchmarks.gpu.step:run", 60),
    Part("speed", "whole steps against transformers", "benchmarks.gpu.speed:run", 110, False, ("transformers",)),
    Part("zero", "ZeRO against plain on one process", "benchmarks.gpu.variants:zero", 75, False, ("deepspeed",)),
    Part("compile", "engine.compile on and off", "benchmarks.gpu.variants:compiled", 110, False),
    Part("profile", "shares of a step's time", "benchmarks.gpu.profile:run", 60, checks=False),
)


def main() -> None:
    """Run the selected parts, or one of them here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "gpu")
    parser.add_argument("--only", default="", help="parts, separated by commas")
    parser.add_argument("--budget", type=float, default=480.0, help="seconds for all parts together")
    parser.add_argument("--patience", type=float, default=0.0, help="factor of all limits (1 on a GPU, else 5)")
    parser.add_argument("--toy", action="store_true", help="tiny shapes; always so on a machine without a GPU")
    parser.add_argument("--part", default="", help="run this part in this process")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    parts = {part.name: part for part in PARTS}
    if given.part:
        sys.exit(run_here(parts[given.part], given.out, toy=given.toy))
    only = given.only.split(",") if given.only else list(parts)
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu.check", "--out", given.out]
    on_gpu = _has_gpu()
    command += ["--toy"] if given.toy or not on_gpu else []
    patience = given.patience or (1.0 if on_gpu else 5.0)  # a rehearsal may share its cores
    selected = [replace(parts[name], limit_s=patience * parts[name].limit_s) for name in only]
    budget_s = patience * given.budget
    sys.exit(run_all(selected, given.out, [*map(str, command), "--part"], budget_s=budget_s))


def run_all(parts: Sequence[Part], out: Path, command: Sequence[str], *, budget_s: float) -> int:
    """Run parts one after the other, each by `command` and its name, and keep report.md up to date. Returns 0 or 1."""
    results, titles = out / "results.jsonl", {part.name: part.title for part in parts}
    results.unlink(missing_ok=True)
    failed, deadline = False, time.monotonic() + budget_s
    with (out / "log.txt").open("w") as log:
        for part in parts:
            book = Record(results, part.name)
            left = min(part.limit_s, deadline - time.monotonic())
            missing = [package for package in part.needs if find_spec(package) is None]
            if missing:
                book.state("skipped", error=f"not installed: {', '.join(missing)}")
            elif left < 1:
                book.state("not reached", error=f"the budget of {budget_s:.0f} s was used up")
                failed |= part.checks
            else:
                failed |= not _run_part(part, book, out, [*command, part.name], log, left) and part.checks
            _write_page(out, titles)
    print((out / "report.md").read_text())
    return int(failed)


def _run_part(part: Part, book: Record, out: Path, command: list[str], log: IO[str], limit_s: float) -> bool:
    """Run one part in a process of its own, killed with all its children at the limit. True if it passed."""
    started = time.monotonic()
    start = log.tell()
    scratch = tempfile.mkdtemp(prefix="gpu-check-")
    env = {**environment(), "TMPDIR": scratch}
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
    try:
        code = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        code = None
    finally:
        kill_tree(process.pid)
        process.wait()
        shutil.rmtree(scratch, ignore_errors=True)
    seconds = round(time.monotonic() - started, 1)
    log.seek(0, os.SEEK_END)
    if code == 0:
        book.state("passed", seconds=seconds)
        return True
    with (out / "log.txt").open() as printed:
        printed.seek(start)
        lines = [line for line in printed.read().splitlines() if not line.startswith('{"part"')]
    end = "cut" if code is None else "failed"
    why = f"killed at its limit of {limit_s:.0f} s" if code is None else f"exit code {code}"
    book.state(end, seconds=seconds, error="\n".join([*lines[-ERROR_LINES:], why]))
    return False


def run_here(part: Part, out: Path, *, toy: bool) -> int:
    """Run one part in this process. Returns 1 if it raises or a check of it fails."""
    book = Record(out / "results.jsonl", part.name)
    module, _, function = part.run.partition(":")
    try:
        getattr(import_module(module), function)(book, toy=toy)
    except Exception:
        traceback.print_exc()
        return 1
    return int(book.num_failed > 0)


def environment() -> dict[str, str]:
    """This process's environment, with the source tree first on the path, and without a network."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    offline = {"WANDB_MODE": os.environ.get("WANDB_MODE", "disabled"), "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **offline, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def _write_page(out: Path, titles: dict[str, str]) -> None:
    (out / "report.md").write_text(record.page(record.read(out / "results.jsonl"), titles))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    main()
