"""The config of a suite: its tasks, their files and metrics, and published figures to compare with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from xlpretrain import schema
from xlpretrain.errors import ConfigError
from xlpretrain.objectives import OBJECTIVES, find_task
from xlpretrain.objectives.tasks.base import Task
from xlpretrain.run_dir.layout import NAME, NAME_RULE
from xlpretrain.schema import Matching, Problem, Section, TaggedUnion

ACCURACY = "accuracy"
F1 = "f1"
"""For a classifier with two labels: the F1 of the second one, in the order of their names."""
_BUILTIN = Path(__file__).parent / "builtin"
_TASKS = [name for name, kind in OBJECTIVES.builtin.items() if issubclass(kind, Task)]


class PublishedFigure(Section):
    """A figure that others have published, shown beside ours."""

    model: str
    """Name of the model: the head of its column."""
    value: float
    """The figure, in percent."""
    metric: str | None = None
    """The metric (default: the task's first)."""
    part: str = ""
    """The part of the task (default: the whole)."""
    source: str
    """Where it is published."""


class SuiteTask(Section):
    """A task of a suite."""

    name: Annotated[str, Matching(NAME, NAME_RULE)]
    """Name of the task, and of its folders."""
    type: str
    metrics: tuple[str, ...] = ()
    """The metrics to report (default: the first of the task type)."""
    published: tuple[PublishedFigure, ...] = ()
    """Published figures to show beside ours."""

    @property
    def known_metrics(self) -> tuple[str, ...]:
        """The metrics that can be reported."""
        raise NotImplementedError

    @property
    def reported(self) -> tuple[str, ...]:
        """The metrics to report."""
        return self.metrics or self.known_metrics[:1]

    @property
    def scale(self) -> float:
        """Factor that turns a metric into percent."""
        return 100.0

    def seeds(self, default: int) -> tuple[int | None, ...]:
        """The seeds of its fine-tunes; a single None if it has none. default: number of seeds of the suite."""
        raise NotImplementedError

    def files(self) -> dict[str, Path]:
        """The files and folders by their key."""
        raise NotImplementedError

    def inside(self, folder: Path) -> Self:
        """A copy whose relative paths are resolved in `folder`."""
        raise NotImplementedError

    def problems(self) -> Iterator[Problem]:
        """Yield a problem for unknown metrics."""
        for key, names in {
            "metrics": self.metrics,
            "published": [figure.metric for figure in self.published if figure.metric is not None],
        }.items():
            if strange := [name for name in names if name not in self.known_metrics]:
                known = ", ".join(self.known_metrics)
                yield key, f"a task of type {self.type} has the metrics {known}, got {', '.join(strange)}"


class FinetuneTask(SuiteTask):
    """A task that a run is fine-tuned for, as by `xlpretrain finetune`."""

    type: str = "classify"
    """Task type: as of `finetune --task`, or pairs."""
    train: Path
    """Training file, or folder."""
    valid: Path
    """Held-out file, or folder."""
    parts: Mapping[str, Path] = Field(default_factory=dict)
    """More held-out files by name, each with a row of its own."""
    text: tuple[str, ...] = Field((), max_length=2)
    """Column of the text, or two columns of a pair (default: all but the label's). `{column}` in a longer string is
    replaced by the column's text."""
    label: str = "label"
    """Column of the label."""
    format: Literal["plain_tsv"] | None = None
    """Format of the files (default: told by their names). plain_tsv: fields separated by tabs, in which quotes are
    characters; rows with another number of fields than the first row are left out, and counted."""
    columns: tuple[str, ...] = ()
    """Column names of .csv and .tsv files without a header."""
    num_seeds: int | None = Field(None, gt=0)
    """Number of fine-tunes, with the seeds 1, 2, ... (default: that of the suite)."""
    overrides: tuple[str, ...] = ()
    """`key=value` changes to the config of the fine-tune."""

    @property
    def known_metrics(self) -> tuple[str, ...]:
        """The metrics of the task type, and the F1 of a classifier with two labels."""
        names = find_task(self.type).metric_names
        return tuple(dict.fromkeys([*names, F1])) if self.type == "classify" else names

    @property
    def scale(self) -> float:
        """100, but the metrics of `answer` are in percent already."""
        return 1.0 if self.type == "answer" else 100.0

    @property
    def is_prepared(self) -> bool:
        """True if the files are rewritten before the fine-tune reads them."""
        return bool(self.format or self.columns or any("{" in text for text in self.text))

    def seeds(self, default: int) -> tuple[int | None, ...]:
        """The seeds 1, 2, ..."""
        return tuple(range(1, (self.num_seeds or default) + 1))

    def files(self) -> dict[str, Path]:
        """The training file, the held-out file and those of the parts."""
        return {"train": self.train, "valid": self.valid, **{f"parts.{name}": p for name, p in self.parts.items()}}

    def inside(self, folder: Path) -> Self:
        """A copy whose relative paths are resolved in `folder`."""
        parts = {name: folder / path for name, path in self.parts.items()}
        return self.model_copy(update={"train": folder / self.train, "valid": folder / self.valid, "parts": parts})

    def problems(self) -> Iterator[Problem]:
        """Yield problems of keys that do not fit together."""
        yield from super().problems()
        if self.is_prepared and self.type not in ("classify", "regress"):
            yield "type", f"format, columns and {{column}} are for classify and regress, got {self.type}"
        if self.is_prepared and not self.text:
            yield "text", "must name the columns of the text if format or columns is set"
        for override in self.overrides:
            key = override.partition("=")[0].strip()
            if key in ("seed", "name", "runs_dir"):
                yield "overrides", f"{key} is set by the suite; remove it"
        if strange := [figure.part for figure in self.published if figure.part and figure.part not in self.parts]:
            yield "published", f"no such part: {', '.join(strange)}; expected one of {', '.join(self.parts) or 'none'}"


class PairsTask(SuiteTask):
    """Minimal pairs, scored without fine-tuning: how often is the acceptable text more likely?"""

    type: Literal["pairs"] = "pairs"
    """Task type."""
    data: Path
    """File of pairs, or folder with .jsonl files."""
    text: tuple[str, ...] = Field(("sentence_good", "sentence_bad"), min_length=2, max_length=2)
    """Columns of the acceptable and of the unacceptable text. `{column}` in a longer string is replaced."""
    group: str | None = None
    """Column whose values get a row each; `file` is the name of the file (default: none)."""
    average_over: str | None = None
    """Column, or `file`, over whose values the accuracies are averaged (default: all pairs count equally)."""
    within_word: bool = False
    """For masked and permutation models: hide the later tokens of a token's word too, as `score --within-word`."""
    batch_size: int = Field(32, gt=0)
    """Sequences per batch."""

    @property
    def known_metrics(self) -> tuple[str, ...]:
        """The accuracy."""
        return (ACCURACY,)

    def seeds(self, default: int) -> tuple[int | None, ...]:
        """No seed: the scores have no random choices."""
        return (None,)

    def files(self) -> dict[str, Path]:
        """The file or folder."""
        return {"data": self.data}

    def inside(self, folder: Path) -> Self:
        """A copy whose relative path is resolved in `folder`."""
        return self.model_copy(update={"data": folder / self.data})


AnyTask = Annotated[SuiteTask, TaggedUnion({**dict.fromkeys(_TASKS, FinetuneTask), "pairs": PairsTask})]
"""A task, selected by its key `type`."""


class SuiteConfig(Section):
    """A suite: tasks that several runs are compared by."""

    tasks: Annotated[tuple[AnyTask, ...], Field(min_length=1)]
    """The tasks."""
    num_seeds: int = Field(3, gt=0)
    """Number of fine-tunes for each task, with the seeds 1, 2, ..."""
    overrides: tuple[str, ...] = ()
    """`key=value` changes to the configs of all fine-tunes; those of a task come later."""
    keep_checkpoints: bool = True
    """Keep the checkpoints of fine-tunes that are finished (false: only their metrics and predictions)."""

    def problems(self) -> Iterator[Problem]:
        """Yield a problem for each name that several tasks have."""
        names = [task.name for task in self.tasks]
        for number, name in enumerate(names):
            if name in names[:number]:
                yield f"tasks.{number}.name", f"{name} is there twice; give each task its own name"
            if re.search(r"-seed-\d+$", name):  # the name of a fine-tune
                yield f"tasks.{number}.name", f"must not end like a seed's folder, got {name}"


def builtin_suites() -> dict[str, Path]:
    """The files of the suites that come with xlpretrain, by name."""
    return {path.stem: path for path in sorted(_BUILTIN.glob("*.yaml"))}


def load_suite(
    suite: str, *, data: Path | None = None, only: Sequence[str] = (), overrides: Sequence[str] = ()
) -> SuiteConfig:
    """Load a suite by its file, or a built-in one by its name.

    Args:
        suite: path of a YAML file, or a name.
        data: folder of the files (default: the current one; a built-in suite needs it).
        only: names of the tasks to keep (default: all).
        overrides: `key=value` changes to the configs of all fine-tunes, after those of the suite.

    Raises:
        ConfigError: no such suite or task, or a mistake in the file.
    """
    path = Path(suite)
    if not path.exists() and suite in builtin_suites():
        path = builtin_suites()[suite]
        if data is None:
            raise ConfigError(f"--suite {suite} needs the folder of its files, as they are distributed: --data DIR")
    elif not path.exists():
        raise ConfigError(f"{suite}: no such file, and no built-in suite; those are {', '.join(builtin_suites())}")
    if data is not None and not data.is_dir():
        raise ConfigError(f"--data {data}: no such folder")
    config = schema.load(SuiteConfig, path)
    config = schema.validate(SuiteConfig, _with_overrides(config, overrides), str(path))
    known = [task.name for task in config.tasks]
    if strange := [name for name in only if name not in known]:
        raise ConfigError(f"--only: {path} has no task {', '.join(strange)}; it has {', '.join(known)}")
    folder = Path.cwd() if data is None else data.absolute()
    tasks = tuple(task.inside(folder) for task in config.tasks if not only or task.name in only)
    return config.model_copy(update={"tasks": tasks})


def _with_overrides(config: SuiteConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """The content of a suite, with the overrides of all fine-tunes written into each task."""
    content = config.model_dump(mode="json")
    for task in content["tasks"]:
        if task["type"] != "pairs":
            task["overrides"] = [*config.overrides, *task["overrides"], *overrides]
    return content
