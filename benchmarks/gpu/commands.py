"""Part `commands`: a user's commands on a small dataset, and the promise of bits: two runs, and one killed and resumed.

Also with ZeRO where DeepSpeed is installed. Commands that do not need each other run side by side.
"""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.processes import kill_tree
from benchmarks.gpu.record import Record
from xlpretrain.engine.config import EngineConfig

XLPRETRAIN = [sys.executable, "-W", "ignore", "-c", "from launcher.cli.main import main; main()"]
STEPS, EVERY = 60, 10


def run(record: Record, *, toy: bool) -> None:
    """Build a dataset, train on it, and use what was trained."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="commands-") as folder:
        place = Path(folder)
        _write_files(place, toy=toy)
        shop = Commands(record, place)
        shop.expect(0, {"build": ["data", "build", "data.yaml"]})
        deterministic = "deterministic" in EngineConfig.model_fields
        engines: dict[str, list[str]] = {"plain": ["engine.type=plain"]}
        if toy:
            record.note("a rehearsal leaves ZeRO's runs out")
        elif find_spec("deepspeed"):
            engines["zero-1"] = ["engine.type=deepspeed", "engine.zero_stage=1"]
        else:
            record.note("deepspeed is not installed: ZeRO's runs are left out")
        if deterministic:
            engines = {name: [*keys, "engine.deterministic=true"] for name, keys in engines.items()}
        else:
            record.note("this version has no engine.deterministic: equality is shown, not required, on a GPU")
        required = deterministic or not torch.cuda.is_available()
        for name, keys in engines.items():
            _train(shop, name, keys)
            for other in ("again", "resumed"):
                _compare(record, place, name, f"{name}-{other}", required=required)
            if name == "plain":
                _use(shop)
            record.note(f"{name}: done {time.monotonic() - started:.0f} s after the start")


class Commands:
    """Runs commands in a folder, several side by side, and records how each ended."""

    def __init__(self, record: Record, place: Path):
        self.record, self.place, self._started = record, place, 0

    def start(self, name: str, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a command; its output goes to a file of this name.

        Without a GPU it gets one core, so that threads of commands side by side do not wait for each other.
        """
        self._started += 1
        cores = sorted(os.sched_getaffinity(0))
        own = cores if torch.cuda.is_available() else [cores[self._started % len(cores)]]
        with (self.place / f"{name}.txt").open("ab") as log:
            return subprocess.Popen(
                [*XLPRETRAIN, *arguments],
                cwd=self.place,
                stdout=log,
                stderr=log,
                preexec_fn=partial(os.sched_setaffinity, 0, own),
            )

    def expect(self, code: int, commands: Mapping[str, Sequence[str]]) -> None:
        """Run commands side by side, and check the exit code of each."""
        started = time.monotonic()
        processes = {name: self.start(name, arguments) for name, arguments in commands.items()}
        for name, process in processes.items():
            found = process.wait()
            self.record.row(
                "Commands (those of the same second ran side by side)",
                command=f"xlpretrain {' '.join(commands[name][:2])} ({name})",
                exit=found,
                seconds=round(time.monotonic() - started, 1),
                began=round(started % 10000),
            )
            self.record.check(f"{name} ends with {code}", found == code, "" if found == code else self.end_of(name))

    def end_of(self, name: str) -> str:
        """The last lines that a command printed."""
        return "\n".join((self.place / f"{name}.txt").read_text(errors="replace").splitlines()[-12:])


def _train(shop: Commands, name: str, keys: list[str]) -> None:
    """Train a run twice, and once with a kill behind the first checkpoint and a resume."""
    names = name, f"{name}-again", (interrupted := f"{name}-resumed")
    runs = {each: ["train", "train.yaml", "--nproc", "1", f"name={each}", *keys] for each in names}
    victim = shop.start(interrupted, runs[interrupted])
    checkpoints = shop.place / "runs" / interrupted / "checkpoints"
    while victim.poll() is None and not list(checkpoints.glob("step-*[0-9]")):
        time.sleep(0.02)
    kill_tree(victim.pid)
    killed = victim.wait() == -signal.SIGKILL
    shop.record.check(f"{interrupted}: killed behind a checkpoint", killed, "" if killed else shop.end_of(interrupted))
    shop.expect(0, runs)


def _use(shop: Commands) -> None:
    """Evaluate, generate from, and fine-tune the run `plain`, side by side."""
    tune = ["--train", "labelled.csv", "--valid", "labelled.csv", "max_steps=10", "wandb.mode=disabled"]
    commands = {
        "eval": ["eval", "runs/plain", "--max-tokens", "5000"],
        "generate": ["generate", "runs/plain", "--tokens", "20", "--prompt", "A text"],
    }
    if find_spec("sklearn"):
        commands["finetune"] = ["finetune", "runs/plain", *tune, "engine.type=plain"]
    else:
        shop.record.note("scikit-learn is not installed: finetune is left out")
    shop.expect(0, commands)


def _compare(record: Record, place: Path, one: str, other: str, *, required: bool) -> None:
    """Compare the metrics of two runs, and the bytes of their last checkpoints."""
    losses = [_metrics(place / "runs" / name / "metrics.jsonl") for name in (one, other)]
    differing = [step for step in losses[0] if losses[0][step] != losses[1].get(step)]
    states = [_checksums(place / "runs" / name) for name in (one, other)]
    equal = not differing and states[0] == states[1] and len(losses[0]) > 0
    first = f"metrics differ from step {differing[0]}" if differing else "checkpoints differ" if not equal else "equal"
    record.row("Bits", run=one, other=other, steps=len(losses[0]), result=first)
    if required:
        record.check(f"{one} and {other} are equal in every bit", equal, first)


def _metrics(place: Path) -> dict[int, dict[str, Any]]:
    """The losses and norms of each step, in training and evaluation."""
    found: dict[int, dict[str, Any]] = {}
    for line in place.read_text().splitlines() if place.exists() else []:
        row = json.loads(line)
        found.setdefault(row["step"], {}).update(
            {key: value for key, value in row.items() if key.startswith(("train/", "eval/"))}
        )
    return found


def _checksums(run: Path) -> Mapping[str, Any]:
    """The checksums of the tensors of the last checkpoint."""
    last = max((run / "checkpoints").glob("step-*[0-9]"), default=None)
    manifest = json.loads((last / "manifest.json").read_text()) if last else {"files": {}}
    return {name: file["chunks"] for name, file in manifest["files"].items() if name.endswith(".safetensors")}


def _write_files(place: Path, *, toy: bool) -> None:
    """Write the configs of a dataset and of a small model, and labelled texts."""
    data = {
        "out": "data",
        "sources": [{"type": "python_docs", "packages": [], "stdlib": True}],
        "tokenizer": {"vocab_size": 500},
    }
    model = {"type": "transformer_xl", "num_layers": 2, "d_model": 64, "num_heads": 1, "d_ff": 128, "mem_len": 32}
    if not toy:
        model |= {"num_layers": 4, "d_model": 256, "num_heads": 4, "d_ff": 1024, "mem_len": 128}
    training = {
        "name": "plain",
        "data": {"train": "data/train", "valid": "data/valid"},
        "model": model,
        "objective": {"type": "causal_lm", "seq_len": model["mem_len"]},
        "optimizer": {"type": "adamw", "lr": 1e-3},
        "schedule": {"type": "cosine", "warmup_steps": 5},
        "engine": {"precision": "bf16"},
        "global_batch_size": 8,
        "micro_batch_size": 4,
        "max_steps": STEPS,
        "checkpoint": {"every_steps": EVERY, "keep": 2},
        "eval": {"every_steps": STEPS, "max_tokens": 2000, "num_streams": 2},
        "log": {"every_steps": 1},
        "wandb": {"mode": "disabled"},
    }
    (place / "data.yaml").write_text(json.dumps(data))  # JSON is YAML
    (place / "train.yaml").write_text(json.dumps(training))
    draw = random.Random(0)
    words = {"good": ["fine", "great", "lovely"], "bad": ["poor", "awful", "dull"]}
    rows = [(f"It was {draw.choice(words[label])}.", label) for label in draw.choices(["good", "bad"], k=64)]
    with (place / "labelled.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
