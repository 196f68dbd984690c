"""Run the real command line, as a user would."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import yaml

BIN = Path(sys.executable).parent
EXTRA: dict[str, str] = {}
"""Environment variables added by a test."""


def environment() -> dict[str, str]:
    """This process's environment, without variables that affect a run."""
    unwanted = ("WANDB_", "OMP_NUM_THREADS", "RANK", "LOCAL_", "WORLD_SIZE", "MASTER_", "TORCHELASTIC_", "XLPRETRAIN_")
    return {name: value for name, value in os.environ.items() if not name.startswith(unwanted)} | EXTRA


def start(*arguments: object, program: str = "xlpretrain") -> subprocess.Popen[str]:
    """Start a command in its own session."""
    return subprocess.Popen(
        [str(BIN / program), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], *, expect: int, timeout_s: float = 200) -> tuple[str, str]:
    """Wait for a process, check its exit code, and return its stdout and stderr."""
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        kill_all(process)
        raise
    assert process.returncode == expect, f"exit code {process.returncode}, expected {expect}\n{out}\n{err}"
    return out, err


def read_until(process: subprocess.Popen[str], *expected: str) -> str:
    """Read standard output until it contains all expected texts, and return it."""
    assert process.stdout is not None
    printed = ""
    while not all(text in printed for text in expected):
        line = process.stdout.readline()
        assert line, f"it ended before it printed {expected}:\n{printed}\n{process.communicate()}"
        printed += line
    return printed


def run(*arguments: object, expect: int = 0, program: str = "xlpretrain") -> tuple[str, str]:
    """Run a command to its end, and return its stdout and stderr."""
    return finish(start(*arguments, program=program), expect=expect)


def refused(*arguments: object) -> str:
    """Run a command that must fail with a user error: exit code 2, one message, no traceback. Returns stderr."""
    out, err = run(*arguments, expect=2)
    assert "Traceback" not in out + err, err
    assert sum(line.startswith("error: ") for line in err.splitlines()) == 1, err
    return err


def kill_all(process: subprocess.Popen[str]) -> None:
    """Send SIGKILL to the launcher and its ranks at once (ranks have their own sessions)."""
    _kill([psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)])
    process.communicate()


def kill_ranks(process: subprocess.Popen[str]) -> None:
    """Send SIGKILL to the ranks of a launcher and all their child processes at once."""
    _kill(psutil.Process(process.pid).children(recursive=True))


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        process.suspend()  # so that no process can react to the death of another
    for process in processes:
        process.kill()


def kill_wandb(process: subprocess.Popen[str]) -> int:
    """Send SIGKILL to the W&B services of a run. Returns their number."""
    services = [p for p in psutil.Process(process.pid).children(recursive=True) if "wandb-core" in p.name()]
    for service in services:
        service.kill()
    return len(services)


def wait_for_step(run_folder: Path, step: int, process: subprocess.Popen[str], timeout_s: float = 120) -> None:
    """Wait until the run has logged `step`."""
    deadline = time.monotonic() + timeout_s
    while not any(row["step"] >= step for row in read_metrics(run_folder)):
        assert process.poll() is None, f"the run ended before step {step}: {process.communicate()}"
        assert time.monotonic() < deadline, f"step {step} was not reached"
        time.sleep(0.01)


def read_metrics(run_folder: Path) -> list[dict]:
    """Read the complete lines of metrics.jsonl."""
    path = run_folder / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def curve(run_folder: Path) -> dict[int, tuple]:
    """Values per step that must be bit-identical."""
    keys = ("train/loss", "train/grad_norm", "train/lr", "valid/loss", "tokens")
    rows = read_metrics(run_folder)
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps)), "metrics.jsonl must have each step once, in order"
    return {row["step"]: tuple(row.get(key) for key in keys) for row in rows}


def write_config(path: Path, dataset: Path, **changes) -> Path:
    """Write the config of a run of 60 steps that takes seconds: two layers, memory, dropout, accumulation, ties."""
    config = {
        "runs_dir": str(path.parent / "runs"),
        "data": {"train": str(dataset / "train"), "valid": str(dataset / "valid")},
        "model": {"type": "transformer_xl", "num_layers": 2, "d_model": 32, "num_heads": 2, "d_ff": 64, "mem_len": 24},
        "objective": {"type": "causal_lm", "seq_len": 16},
        "optimizer": {"lr": 3e-3, "grad_clip": 0.5},
        "schedule": {"type": "cosine", "warmup_steps": 5},
        "global_batch_size": 8,
        "micro_batch_size": 2,
        "max_steps": 60,
        "checkpoint": {"every_steps": 20, "keep": 2},
        "eval": {"every_steps": 30, "max_tokens": 2000},
        "log": {"every_steps": 1},
        **changes,
    }
    path.write_text(yaml.safe_dump(config))
    return path


_ONE_PROCESS = """
import json, sys
from launcher.cli.main import main

sys.stderr = sys.stdout
for command, code in json.loads(sys.argv[1]):
    sys.argv = ["xlpretrain", *command.split()[1:]]
    try:
        main()
    except SystemExit as left:
        assert (left.code or 0) == code, (command, left.code)
"""


def run_in_one_process(commands: Sequence[tuple[str, int]], *, cwd: Path, environment: Mapping[str, str]) -> str:
    """Run command lines, each with its expected exit code, importing torch once. Returns their output."""
    done = subprocess.run(
        [sys.executable, "-c", _ONE_PROCESS, json.dumps(commands)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
