"""Minimal pairs: the likelihoods of acceptable and unacceptable texts, and accuracies by group (arXiv:1912.00582)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean

from launcher.suite.definition import PairsTask
from launcher.suite.sources import FILE, Rows, pair_files, read_pairs
from xlpretrain.errors import DataError
from xlpretrain.evaluation.loaded_run import LoadedRun
from xlpretrain.file_system.atomic_files import atomic_writer

_CHUNK = 1000
"""Pairs that are tokenized and sorted by length at a time."""


def check_pairs(task: PairsTask) -> int:
    """Read all files of a task. Returns the number of pairs. Raises `DataError`."""
    return sum(len(_read(path, task)[1]) for path in pair_files(task.data))


def score_file(run: LoadedRun, path: Path, target: Path, task: PairsTask) -> None:
    """Write a JSON object for each pair of a file: log-likelihoods (good, bad), right, and the columns of the groups.

    Raises `ConfigError` and `DataError`.
    """
    rows, texts = _read(path, task)
    within_word = task.within_word and not run.config.objective.generates  # causal models never see later tokens
    with atomic_writer(target) as temporary, temporary.open("w", encoding="utf-8") as file:
        for first in range(0, len(texts), _CHUNK):
            chunk = [text for pair in texts[first : first + _CHUNK] for text in pair]
            scored = run.log_likelihoods(chunk, batch_size=task.batch_size, within_word=within_word)
            found = [one.nats for one in scored]
            for row, good, bad in zip(rows.rows[first:], found[::2], found[1::2], strict=False):
                groups = {column: row[column] for column in _group_columns(task)}
                print(json.dumps({"good": good, "bad": bad, "right": good > bad, "groups": groups}), file=file)


def accuracies(scored: Iterable[Path], task: PairsTask) -> dict[str, float]:
    """The accuracy of a task (key: empty), and those of its groups by name. scored: files of `score_file`."""
    found = [json.loads(line) for path in scored for line in path.read_text(encoding="utf-8").splitlines()]
    right = [(one["groups"], one["right"]) for one in found]
    over = task.average_over
    whole = mean(_by_value(over, right).values()) if over else _share([is_right for _, is_right in right])
    return {"": whole, **({} if task.group is None else _by_value(task.group, right))}


def _by_value(column: str, right: Sequence[tuple[Mapping[str, str], bool]]) -> dict[str, float]:
    values = sorted({groups[column] for groups, _ in right})
    return {value: _share([is_right for groups, is_right in right if groups[column] == value]) for value in values}


def _share(right: Sequence[bool]) -> float:
    return sum(right) / len(right)


def _read(path: Path, task: PairsTask) -> tuple[Rows, list[tuple[str, ...]]]:
    rows = read_pairs(path)
    for column in _group_columns(task):
        rows.filled([column])
    texts = rows.filled(task.text)
    if empty := next((where for where, pair in zip(rows.where, texts, strict=True) if not all(pair)), None):
        raise DataError(f"{empty}: a text of the pair is empty")
    return rows, texts


def _group_columns(task: PairsTask) -> list[str]:
    return [column for column in dict.fromkeys([task.group, task.average_over, FILE]) if column is not None]
