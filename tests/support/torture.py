"""Kill a run repeatedly at random moments, and compare its results with an undisturbed run.

    make torture          (100 kills, some 15 minutes on two cores)
    .venv/bin/python tests/support/torture.py --kills 20 --seed 7 --engine deepspeed

One rank, all ranks, the launcher, or all of them at once are killed by SIGKILL or SIGTERM: while a checkpoint is being
written (half of the time), between steps, or while the run starts. After each kill it resumes: by `--max-restarts`
if its launcher is alive, else by rerunning the command. In the end, every step's loss, gradient norm, learning rate and
metrics of callbacks must be bit-identical to the undisturbed run, and no temporary file may be left.

The run has the callback of docs/extend/callback.md twice, with state per run and per stream (--no-callbacks: none), and
every tracker that needs no network, each of which must show every step.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import commands
import plugins
import psutil
import yaml
from corpus import make_documents
from guarded import all_trackers, check_all_trackers
from repository import ROOT
from wandb_file import read_run_history

from xlpretrain.run_dir.goodput import describe

SAVE_EVERY, EVALUATE_EVERY = 6, 40
WHOM = ("one rank", "all ranks", "launcher", "everything")
WITH = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)
WHEN = ("save", "save", "save", "step", "step", "start")
CALLBACKS = [{"type": "stream_loss", "decay": 0.9}, {"type": "stream_loss", "decay": 0.5, "target": 0.0}]
FIGURES = [f"stream_loss/{callback['decay']}/{figure}" for callback in CALLBACKS for figure in ("mean", "spread")]
ENGINES = {
    "plain": {"type": "plain", "precision": "fp32"},
    "deepspeed": {"type": "deepspeed", "zero_stage": 1, "precision": "bf16"},
}


@dataclass
class Torture:
    """A run that is killed repeatedly.

    kills: number by moment, target and signal. starts: number of times the command was run. slowest_end_s: longest time
    from a kill until no rank was left.
    """

    config: Path
    rng: random.Random
    kills: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    starts: int = 0
    slowest_end_s: float = 0.0
    launcher: psutil.Popen | None = None

    @property
    def run(self) -> Path:
        """Folder of the run."""
        return self.config.parent / "runs" / "tortured"

    @property
    def ended(self) -> bool:
        """True if no process is running the run any more."""
        return self.launcher is None or self.launcher.poll() is not None

    def start(self, *overrides: str) -> psutil.Popen:
        """Start or resume the run, as a user would, with output to a file."""
        arguments = ["train", str(self.config), "name=tortured", *overrides, "--nproc", "2", "--max-restarts", "1000"]
        with (self.config.parent / "output.txt").open("a") as output:
            self.launcher = psutil.Popen(
                [str(commands.BIN / "xlpretrain"), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=commands.environment(),
                start_new_session=True,
            )
        self.starts += 1
        return self.launcher

    def kill_once(self) -> None:
        """Kill processes at a random moment; return when the run has ended or its launcher has restarted it."""
        launcher = self.start() if self.launcher is None or self.ended else self.launcher
        when = self._wait_for_a_moment()
        ranks = _ranks(launcher)
        whom, by = self.rng.choice(WHOM), self.rng.choice(WITH)
        everybody = [launcher, *ranks]
        victims = {"one rank": ranks and [self.rng.choice(ranks)], "all ranks": ranks, "launcher": [launcher]}
        for victim in (chosen := victims.get(whom) or everybody):
            _send(victim, signal.SIGSTOP)  # so that no process can react to the death of another
        for victim in chosen:
            _send(victim, by)
            _send(victim, signal.SIGCONT)
        self.kills[when, whom, by.name] += 1
        killed_at = time.monotonic()
        _, alive = psutil.wait_procs(ranks, timeout=120)
        assert not alive, f"120 s after {by.name} to {whom} there is still {alive}"
        self.slowest_end_s = max(self.slowest_end_s, time.monotonic() - killed_at)
        _until(lambda: self.ended or bool(_ranks(launcher)), "the run to end or to restart")
        if self.ended:
            assert launcher.poll() not in (0, 2, 76), f"exit code {launcher.poll()} after {by.name} to {whom}"

    def _wait_for_a_moment(self) -> str:
        when = self.rng.choice(WHEN)
        if when == "start":
            time.sleep(self.rng.uniform(0, 6))
            return when
        _until(lambda: self.ended or _goes_on(self.run), "the start to make a step")
        for _ in range(self.rng.randint(1, 2) if when == "save" else 0):
            _until(lambda: self.ended or not _saves(self.run), "a save to end", poll_s=1e-3)
            _until(lambda: self.ended or _saves(self.run), "a save to begin", poll_s=1e-3)
        time.sleep(self.rng.uniform(0, 0.02 if when == "save" else 1.0))
        assert not self.ended, "the run ended by itself"
        return when

    def finish(self) -> None:
        """Let the run finish undisturbed, a few steps later."""
        if self.launcher is not None and not self.ended:
            self.launcher.send_signal(signal.SIGTERM)
            self.launcher.wait(120)
        logged = [row["train/step"] for row in read_run_history(self.run)]  # by attempts whose steps were lost, too
        last = max([commands.read_metrics(self.run)[-1]["step"], *logged])
        assert self.start(f"max_steps={last + 10}").wait(300) == 0


def torture(config: Path, *, kills: int, seed: int) -> Torture:
    """Kill a run `kills` times, and compare. Raises AssertionError if anything was lost or is left over."""
    tortured = Torture(config, random.Random(seed))
    begun = time.monotonic()
    for number in range(1, kills + 1):
        tortured.kill_once()
        elapsed = time.monotonic() - begun
        left = elapsed / number * (kills - number)
        print(f"kill {number}/{kills}  {elapsed:4.0f} s, {left:4.0f} s left  {_describe(tortured.run)}", flush=True)
    tortured.finish()
    steps = commands.read_metrics(tortured.run)[-1]["step"]
    commands.run("train", config, "name=undisturbed", f"max_steps={steps}", "trackers=[]", "--nproc", 2)
    _compare(_curve(tortured.run), _curve(config.parent / "runs" / "undisturbed"))
    check_all_trackers(tortured.run, config.parent)
    left_over = [str(path) for path in _left_over(tortured.run)]
    assert not left_over, f"left over: {left_over}"
    return tortured


def write_config(folder: Path, dataset: Path, engine: str, *, callbacks: bool = True) -> Path:
    """Config of a tiny model with memory and dropout that saves constantly and never finishes by itself.

    callbacks: use those of the page, whose package is installed in the folder for the processes of `commands`.
    """
    if callbacks:
        plugins.install_page("docs/extend/callback.md", folder)
        commands.EXTRA["PYTHONPATH"] = os.pathsep.join([str(folder), str(ROOT)])
    return commands.write_config(
        folder / "tiny.yaml",
        dataset,
        engine=ENGINES[engine],
        max_steps=1_000_000,
        schedule={"type": "cosine", "warmup_steps": 5, "total_steps": 1_000_000},
        checkpoint={"every_steps": SAVE_EVERY, "keep": 2},
        eval={"every_steps": EVALUATE_EVERY, "max_tokens": 2000},
        trackers=all_trackers(folder),
        callbacks=CALLBACKS if callbacks else [],
    )


def report(tortured: Torture) -> str:
    """Summary of the kills and their results."""
    lines = [f"{sum(tortured.kills.values())} kills"]
    for index, title in enumerate(("when", "whom", "by")):
        counts: Counter[str] = Counter()
        for kind, number in tortured.kills.items():
            counts[kind[index]] += number
        lines.append(f"  {title:<5} " + ", ".join(f"{name} {number}" for name, number in sorted(counts.items())))
    status = json.loads((tortured.run / "status.json").read_text())
    lines += [
        f"{status['goodput']['goodput/restarts']} resumes; {tortured.starts} by hand, the others by --max-restarts",
        f"slowest end of all ranks after a kill: {tortured.slowest_end_s:.1f} s",
        f"{status['step']} steps, {status['goodput']['goodput/steps_redone']} of them done again",
        "0 losses: every step there once, equal in every bit to the undisturbed run; nothing left over",
        describe(status["goodput"]),
    ]
    return "\n".join(lines)


def _curve(run: Path) -> dict[int, tuple]:
    figures = {row["step"]: tuple(row.get(figure) for figure in FIGURES) for row in commands.read_metrics(run)}
    return {step: (*values, *figures[step]) for step, values in commands.curve(run).items()}


def _compare(disturbed: dict[int, tuple], undisturbed: dict[int, tuple]) -> None:
    assert list(disturbed) == list(undisturbed), "steps are missing"
    wrong = [step for step in disturbed if disturbed[step] != undisturbed[step]]
    assert not wrong, f"{len(wrong)} steps differ, first {wrong[0]}: {disturbed[wrong[0]]} {undisturbed[wrong[0]]}"


def _left_over(run: Path) -> list[Path]:
    """Files that must not be in the folder of an ended run."""
    leases = sorted((run / "lease").iterdir())
    wrong = ("damaged", "hang-")
    ours = [path for path in run.rglob("*") if "wandb" not in path.relative_to(run).parts]
    unexpected = [path for path in ours if "tmp" in path.name or path.name.startswith(wrong)]
    return unexpected + leases[:-1] + [path for path in leases if not path.name.isdecimal()]


def _ranks(launcher: psutil.Process) -> list[psutil.Process]:
    try:
        return [child for child in launcher.children() if "xlpretrain" in child.cmdline()]
    except psutil.NoSuchProcess:
        return []


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _goes_on(run: Path) -> bool:
    """True if the last attempt has logged a step."""
    rows, leases = commands.read_metrics(run), sorted((run / "lease").glob("0*"))
    try:
        return bool(rows) and rows[-1]["time/logged_at_s"] > json.loads(leases[-1].read_text())["taken_at"]
    except (OSError, ValueError, IndexError):
        return False  # the owner changes at this instant


def _saves(run: Path) -> bool:
    return any(path.name.startswith(".tmp-") for path in (run / "checkpoints").iterdir())


def _describe(run: Path) -> str:
    try:
        status = json.loads((run / "status.json").read_text())
    except OSError:
        return "not begun"
    goodput = status["goodput"]
    return f"step {status['step']}, {goodput['goodput/restarts']} resumes, {goodput['goodput/steps_redone']} redone"


def _until(holds: Callable[[], bool], what: str, *, poll_s: float = 0.02, timeout_s: float = 600) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s for {what}"
        time.sleep(poll_s)


def _build_dataset(folder: Path) -> Path:
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": document}) + "\n" for document in make_documents(4800)))
    config = {
        "out": str(folder / "data"),
        "sources": [{"type": "jsonl", "path": str(corpus)}],
        "tokenizer": {"vocab_size": 300, "input_sentence_size": 5000},
        "splits": {"valid": 0.05},
    }
    (folder / "data.yaml").write_text(yaml.safe_dump(config))
    commands.run("data", "build", folder / "data.yaml")
    return folder / "data"


def main() -> None:
    """Command-line entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", choices=ENGINES, default="plain")
    parser.add_argument("--no-callbacks", dest="callbacks", action="store_false")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    print(f"in {folder} (kept if anything is lost)", flush=True)
    config = write_config(folder, _build_dataset(folder), options.engine, callbacks=options.callbacks)
    print(report(torture(config, kills=options.kills, seed=options.seed)))
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
