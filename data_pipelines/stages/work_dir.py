"""The work folder of a build: numbered tasks with one output folder each, committed by a rename.

    .NAME.work/            beside `out`
        plan.json          settings and sources; a different plan starts over
        lock               held by the process that builds here
        read/00000/ ...    one folder per finished task, by stage

A task writes under a temporary name and then renames. Resuming a killed build, several workers and cluster jobs thus
all work the same way: do the tasks that have no output yet.
"""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data_pipelines.config import DataConfig
from data_pipelines.stages.plan import BuildPlan
from xlpretrain.errors import DataError
from xlpretrain.file_system.atomic_dirs import final_place, named, remove, temporary_folder, unclaimed
from xlpretrain.file_system.atomic_files import atomic_write, fsync, is_temporary

_TASK = r"(\d{6}|\.\d{6}\.[0-9a-f]+(\.tmp)?)"
_TOKENIZER = r"(spiece\.model|tokenizer\.json|vocabulary\.json)"
_OURS = re.compile(
    r"plan\.json|lock|spool/(standard_input|\d+-[0-9a-f]+\.jsonl)|slurm/(jobs\.json|[a-z]+\.sh|[a-z]+-\d+\.log)"
    rf"|[a-z]+/{_TASK}/([\w.-]+/)*(\w+\.json|\w[\w.]*\.npy|\d+\.documents\.text|{_TOKENIZER})"
    rf"|dataset/([\w.-]+/)*(report\.json|index\.json|shard-\d+\.tar|{_TOKENIZER})"
)
"""The files of a work folder, as relative paths."""


class WorkDir:
    """A work folder. Pickles to its path: workers read the plan once each."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.spool = folder / "spool"
        """Copies of sources that can be read only once."""
        self.dataset = folder / "dataset"
        """The unfinished dataset, renamed to `out` at the end."""
        self.plan_file = folder / "plan.json"

    @classmethod
    def of(cls, out: Path) -> WorkDir:
        """The work folder for the dataset `out`. Raises `DataError` if `out` cannot be written."""
        try:
            out = final_place(out)
        except OSError as error:
            raise DataError(f"{out}: {error.strerror}") from None
        return cls(out.parent / f".{out.name}.work")

    def __reduce__(self) -> tuple[Any, ...]:
        return WorkDir, (self.folder,)

    @cached_property
    def plan(self) -> BuildPlan:
        """The plan of the build."""
        return BuildPlan.from_json(self.plan_file.read_text())

    @property
    def config(self) -> DataConfig:
        """The config of the plan."""
        return self.plan.config

    def begin(self, plan: BuildPlan) -> bool:
        """Prepare the folder for `plan`; True if a build with the same plan is resumed. Raises OSError."""
        path = self.plan_file
        with suppress(OSError, ValueError, TypeError, LookupError):  # no plan, or one that cannot be resumed
            if BuildPlan.from_json(path.read_text()).to_json() == plan.to_json():
                return True
        remove(self.folder, [p for p in self._files() if len(p.parts) > 1 and p.parts[0] != self.spool.name])
        atomic_write(path, plan.to_json())
        self.__dict__.pop("plan", None)
        return False

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the build lock. Raises `DataError` if another process has it, or if others wrote to the folder."""
        self._refuse_others()
        self.spool.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise DataError(f"{self.folder}: another process is building this dataset; wait or stop it") from None
            yield

    def output(self, stage: str, task: int) -> Path:
        """The output folder of a task."""
        return self.folder / stage / f"{task:06d}"

    def is_done(self, stage: str, task: int) -> bool:
        """True if the task has its output."""
        return self.output(stage, task).is_dir()

    @contextmanager
    def task_output(self, stage: str, task: int) -> Iterator[Path]:
        """Yield a temporary folder, then sync it and rename it to the task's output unless that exists by now."""
        out = self.output(stage, task)
        with temporary_folder(out) as folder:
            yield folder
            for file in folder.rglob("*"):
                fsync(file)
            fsync(folder)
            try:
                folder.rename(out)
            except OSError:
                if not out.is_dir():
                    raise
            fsync(out.parent)

    def counts(self, stage: str) -> dict[str, int]:
        """The summed counts of a stage's tasks."""
        total: dict[str, int] = {}
        for path in sorted((self.folder / stage).glob("[0-9]*/counts.json")):
            for name, count in json.loads(path.read_text()).items():
                total[name] = total.get(name, 0) + count
        return total

    def forget(self, stage: str) -> None:
        """Remove the outputs of a stage's tasks. Raises OSError."""
        remove(self.folder, [path for path in self._files() if path.parts[0] == stage])

    def remove(self) -> None:
        """Remove what builds wrote. The plan goes first, so that the remains of an interrupted removal are not
        resumed."""
        with suppress(OSError):
            self.plan_file.unlink(missing_ok=True)
            remove(self.folder, self._files())

    def remove_unless_in_use(self) -> None:
        """Remove the remains of a build that was killed right after its dataset was published."""
        if self.folder.is_dir():
            with suppress(DataError), self.lock():
                self.remove()

    def _refuse_others(self) -> None:
        if self.folder.is_symlink():
            raise DataError(f"{self.folder}: is a symbolic link, and a build needs a real folder; remove the link")
        if self.folder.is_dir() and (others := [p for p in unclaimed(self.folder, ()) if not self._is_ours(p)]):
            raise DataError(
                f"{self.folder}: a build needs this folder, and no build wrote {named(others)}; move it away"
            )

    def _files(self) -> list[Path]:
        return [path for path in unclaimed(self.folder, ()) if self._is_ours(path)] if self.folder.is_dir() else []

    def _is_ours(self, path: Path) -> bool:
        """True if builds write such a file, or if it is a folder without files."""
        if _OURS.fullmatch(str(path)) or is_temporary(path):
            return True
        return (self.folder / path).is_dir() and not (self.folder / path).is_symlink()


def write_counts(folder: Path, counts: dict[str, int]) -> None:
    """Write the counts of a task to its output folder."""
    (folder / "counts.json").write_text(json.dumps(counts, sort_keys=True))


@dataclass(frozen=True)
class Stage:
    """A stage of a build: a list of independent tasks.

    sizes: gives the size of each task, for the progress display; may read outputs of earlier stages. run: runs one.
    """

    name: str
    title: str
    sizes: Callable[[WorkDir], list[int]]
    run: Callable[[WorkDir, int], None]


def run_task(work: WorkDir, stage: Stage, task: int) -> int:
    """Run a task and return its number. Top-level, so that worker processes can import it."""
    stage.run(work, task)
    return task
