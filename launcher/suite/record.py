"""The record of a suite's folder: the tasks and checkpoints that its results are of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.suite.definition import SuiteTask
from launcher.suite.jobs import Job
from launcher.suite.subjects import Subject
from xlpretrain import schema
from xlpretrain.errors import LaunchError
from xlpretrain.file_system.atomic_files import atomic_write
from xlpretrain.schema import Problem

_SHOWN_ONLY = {"name", "metrics", "published", "num_seeds"}
"""Keys of a task that do not change its results."""


@dataclass(frozen=True)
class Record:
    """Tasks by name, each with its `definition` and the digests of its files (`contents`), and checkpoints by label."""

    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    subjects: Mapping[str, Subject] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Record:
        """Read the record of a folder, empty if it has none. Raises `LaunchError`."""
        path = folder / "suite.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            subjects = {
                label: Subject(Path(of["path"]), of["step"], of["fingerprint"])
                for label, of in content["subjects"].items()
            }
            return cls(content["tasks"], subjects)
        except FileNotFoundError:
            if folder.is_dir() and any(path.name != "lease" for path in folder.iterdir()):
                raise LaunchError(f"{folder}: has files, but no suite.json; choose another folder (--to)") from None
            return cls()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise LaunchError(f"{path}: cannot be read ({error}); choose another folder (--to)") from None

    def write(self, folder: Path) -> None:
        """Write the record. Raises OSError."""
        subjects = {
            label: {"path": str(subject.path), "step": subject.step, "fingerprint": subject.fingerprint}
            for label, subject in self.subjects.items()
        }
        content = {"tasks": self.tasks, "subjects": subjects}
        atomic_write(folder / "suite.json", json.dumps(content, indent=2) + "\n")

    def extended(self, tasks: Sequence[SuiteTask], subjects: Sequence[Subject]) -> Record:
        """A copy with the current tasks and checkpoints. Raises OSError if a file cannot be read."""
        return Record(
            {**self.tasks, **{task.name: _describe(task) for task in tasks}},
            {**self.subjects, **{subject.label: subject for subject in subjects}},
        )

    def problems(self, new: Record, jobs: Sequence[Job]) -> Iterator[Problem]:
        """Changes that would mix results: of tasks, their files, or checkpoints that have begun. new: see `extended`.

        jobs: all jobs of the folder's tasks and checkpoints.
        """
        begun = [job for job in jobs if job.is_begun]
        advice = "give the task another name, or the suite another folder (--to)"
        for name in dict.fromkeys(job.task.name for job in begun):
            before, now = self.tasks.get(name), new.tasks[name]
            if before is None:
                continue
            for key in sorted(before["definition"].keys() & now["definition"].keys()):
                was, is_now = before["definition"][key], now["definition"][key]
                if was != is_now:
                    shown = f"was {schema.format_value(was)}, now {schema.format_value(is_now)}"
                    yield f"{name}.{key}", f"changed since the suite began: {shown}; {advice}"
            for key in sorted(before["contents"].keys() & now["contents"].keys()):
                if before["contents"][key] != now["contents"][key]:
                    yield f"{name}.{key}", f"the content of the file has changed since the suite began; {advice}"
        for label in dict.fromkeys(job.subject.label for job in begun):
            before_subject, now_subject = self.subjects.get(label), new.subjects[label]
            if before_subject is not None and before_subject.fingerprint != now_subject.fingerprint:
                yield (
                    label,
                    f"{now_subject.checkpoint} is not the checkpoint that the results are of; choose another folder"
                    " (--to)",
                )


def _describe(task: SuiteTask) -> dict[str, Any]:
    """The keys of a task that its results depend on; files by their content, since they may move."""
    files = task.files()
    content = task.model_dump(mode="json", exclude=_SHOWN_ONLY)
    definition = {key: value for key, value in content.items() if key not in files}
    definition["parts"] = sorted(content.get("parts", {}))
    return {"definition": definition, "contents": {key: _digest(path) for key, path in files.items()}}


def _digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files in a folder."""
    digest = hashlib.sha256()
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    for file in files:
        digest.update(str(file.relative_to(path)).encode())
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
