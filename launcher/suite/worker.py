"""The process of one job: fine-tunes a run and evaluates it, or scores minimal pairs.

    python -m launcher.suite.worker REQUEST

REQUEST is `Request.to_json()`. The exit code is that of `xlpretrain finetune`. If the suite's own process ends, however
it ends, this one saves and exits.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xlpretrain
from launcher.local.options import StartOptions
from launcher.local.train import start_training
from launcher.suite.definition import ACCURACY, FinetuneTask, PairsTask, SuiteConfig
from launcher.suite.jobs import Job, Metrics, prepared
from launcher.suite.pairs import accuracies, score_file
from launcher.suite.sources import pair_files
from launcher.suite.subjects import Subject
from xlpretrain import schema
from xlpretrain.checkpoint import files as checkpoint_files
from xlpretrain.errors import FINISHED, LaunchError, XLPretrainError
from xlpretrain.evaluation.loaded_run import LoadedRun
from xlpretrain.run_dir import lease
from xlpretrain.run_dir.layout import RunDir

_LOOK_EVERY_S = 0.5
_WAIT_S = 2 * lease.STALE_S


@dataclass(frozen=True)
class Request:
    """A job, as the arguments of its process. task: as in the suite's file. parent: id of the suite's process."""

    folder: str
    run: str
    step: int
    fingerprint: str
    task: dict[str, Any]
    seed: int | None
    keep_checkpoints: bool
    num_processes: int | None
    max_restarts: int
    parent: int

    @classmethod
    def of(cls, job: Job, *, keep_checkpoints: bool, num_processes: int | None, max_restarts: int) -> Request:
        """The request for a job, by this process."""
        subject = job.subject
        return cls(
            folder=str(job.folder),
            run=str(subject.path),
            step=subject.step,
            fingerprint=subject.fingerprint,
            task=job.task.model_dump(mode="json"),
            seed=job.seed,
            keep_checkpoints=keep_checkpoints,
            num_processes=num_processes,
            max_restarts=max_restarts,
            parent=os.getpid(),
        )

    def to_json(self) -> str:
        """The fields as one line of JSON."""
        return json.dumps(asdict(self))

    @property
    def job(self) -> Job:
        """The job."""
        (task,) = schema.validate(SuiteConfig, {"tasks": [self.task]}, "the request").tasks
        return Job(Path(self.folder), Subject(Path(self.run), self.step, self.fingerprint), task, self.seed)


def work(request: Request) -> int:
    """Do a job to its end, or until a signal. Returns the exit code. Raises `XLPretrainError`."""
    job = request.job
    if isinstance(job.task, PairsTask):
        job.write(_score(job, job.task))
        return FINISHED
    assert isinstance(job.task, FinetuneTask)
    folder = RunDir(job.place)
    _wait_for_earlier(folder)
    code = start_training(job.config(), StartOptions(request.num_processes, request.max_restarts))
    if code == FINISHED:
        job.write(_evaluate(folder, job.task, job.folder))
        if not request.keep_checkpoints:
            for checkpoint in checkpoint_files.list_checkpoints(folder.checkpoints):
                checkpoint_files.remove(checkpoint, owner=0)
    return code


def _evaluate(folder: RunDir, task: FinetuneTask, suite: Path) -> Metrics:
    """The metrics of a finished fine-tune, on its held-out file and on those of the parts."""
    found = {"": _metrics(task, json.loads(folder.figures.read_text(encoding="utf-8")))}
    parts = prepared(task, suite).parts
    if parts:
        run = xlpretrain.load(folder.path)
        found |= {name: _metrics(task, _report(run, path)) for name, path in parts.items()}
    return found


def _report(run: LoadedRun, path: Path) -> dict[str, Any]:
    kind, files = run.task
    examples = files.open_split(path, run.tokenizer)
    return kind.report(examples, run.predictions(examples))


def _metrics(task: FinetuneTask, report: dict[str, Any]) -> dict[str, float | None]:
    return {name: report[name] if name in report else second_f1(report) for name in task.known_metrics}


def second_f1(report: dict[str, Any]) -> float | None:
    """The F1 of the second of two labels, from a classifier's report; None for other numbers of labels."""
    confusion = report["confusion"]
    if len(confusion) != 2:
        return None
    (_, missed_0), (missed_1, right) = confusion
    return float(2 * right / max(2 * right + missed_0 + missed_1, 1))


def _score(job: Job, task: PairsTask) -> Metrics:
    """Score the files that have not been scored yet; the accuracies of all."""
    run = None
    job.place.mkdir(parents=True, exist_ok=True)
    scored = []
    for path in pair_files(task.data):
        target = job.place / f"{path.stem}.jsonl"
        if not target.exists():
            run = run or xlpretrain.load(job.subject.path, step=job.subject.step, precision="fp32")
            score_file(run, path, target, task)
            print(f"{path}: scored", flush=True)
        scored.append(target)
    return {part: {ACCURACY: value} for part, value in accuracies(scored, task).items()}


def _wait_for_earlier(folder: RunDir) -> None:
    """Wait for the process of an earlier suite that was killed; it is saving. Raises `LaunchError`."""
    deadline = time.monotonic() + _WAIT_S
    while True:
        try:
            lease.check_available(folder.lease, launch_id="", take_over=False)
            return
        except LaunchError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_LOOK_EVERY_S)


def _follow(parent: int) -> None:
    """Signal this process when the suite's process has ended: the ranks save and exit."""
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY_S)
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    """Run the job. A user error is printed as one message; its exit code is 2."""
    request = Request(**json.loads(sys.argv[1]))
    threading.Thread(target=_follow, args=(request.parent,), daemon=True, name="parent").start()
    try:
        return work(request)
    except XLPretrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
