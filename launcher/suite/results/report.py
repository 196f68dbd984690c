"""The table of a suite, in the terminal, as Markdown and as CSV. Torch-free."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from launcher.suite.results.curves import curves_of, plot_curves
from launcher.suite.results.scores import MEAN, Cell, Row, Scores
from launcher.suite.subjects import Subject
from xlpretrain.extras import MissingPackageError
from xlpretrain.file_system.atomic_files import atomic_write
from xlpretrain.tracking.printing import AnswerConsole

_UNITS = "In percent: mean ± standard deviation over seeds"
_CSV = ("task", "part", "metric", "model", "run", "step", "mean", "deviation", "num_seeds", "values", "state", "source")


def write_report(folder: Path, scores: Scores, subjects: Mapping[str, Subject]) -> list[Path]:
    """Write table.md, table.csv and, if a run has several checkpoints, scores.png. Returns the files.

    subjects: by the labels of the columns. Raises OSError.
    """
    files = [folder / "table.md", folder / "table.csv"]
    atomic_write(files[0], to_markdown(scores))
    atomic_write(files[1], to_csv(scores, subjects))
    curves = curves_of(scores, subjects)
    if curves:
        picture = folder / "scores.png"
        try:
            plot_curves(curves, picture)
            files.append(picture)
        except MissingPackageError as error:
            print(f"note: {error}", file=sys.stderr)
    return files


def print_table(scores: Scores) -> None:
    """Print the table, and the sources of published figures."""
    table = Table(title=_UNITS, box=None, header_style="bold", pad_edge=False)
    header, *rows = _grid(scores)
    for number, name in enumerate(header):
        table.add_column(Text(name), justify="left" if number < 2 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console = AnswerConsole(markup=False)
    console.print(table)
    for line in _sources(scores):
        console.print(line)


def to_markdown(scores: Scores) -> str:
    """The table in Markdown, with the sources of published figures below."""
    header, *rows = ([cell.replace("|", "\\|") for cell in row] for row in _grid(scores))
    marks = ["---" if number < 2 else "---:" for number in range(len(header))]
    lines = [f"{_UNITS}.", "", *(f"| {' | '.join(row)} |" for row in [header, marks, *rows])]
    sources = [f"- {line}" for line in _sources(scores)]
    return "\n".join([*lines, *(["", *sources] if sources else [])]) + "\n"


def to_csv(scores: Scores, subjects: Mapping[str, Subject]) -> str:
    """One line for each figure, ours and published ones, in full precision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_CSV)
    for row, label, cell in _cells(scores):
        subject = subjects[label]
        numbers = ["" if value is None else repr(value) for value in (cell.mean, cell.deviation)]
        values = " ".join(map(repr, cell.values))
        own = [label, str(subject.path), subject.step, *numbers, len(cell.values), values, cell.state, ""]
        writer.writerow([*row, *own])
    for (row, model), figure in scores.published.items():
        writer.writerow([*row, model, "", "", repr(figure.value), "", "", "", "published", figure.source])
    return out.getvalue()


def _grid(scores: Scores) -> Iterator[list[str]]:
    """The header and the rows of the table, as texts."""
    yield ["task", "metric", *_short(scores.labels), *scores.models]
    for row in scores.rows:
        ours = [scores.cells[row, label].show() for label in scores.labels]
        yield [row.title, row.metric, *ours, *(_published(scores, row, model) for model in scores.models)]
    if len({row.task for row in scores.rows}) > 1:
        yield [MEAN, "", *(scores.means[label].show() for label in scores.labels), *("" for _ in scores.models)]


def _short(labels: Sequence[str]) -> list[str]:
    """Labels without steps, if each run has one."""
    runs = [label.rpartition("@")[0] for label in labels]
    return runs if len(set(runs)) == len(runs) else list(labels)


def _published(scores: Scores, row: Row, model: str) -> str:
    figure = scores.published.get((row, model))
    return "" if figure is None else f"{figure.value:.1f}"


def _cells(scores: Scores) -> Iterator[tuple[Row, str, Cell]]:
    for row in scores.rows:
        yield from ((row, label, scores.cells[row, label]) for label in scores.labels)
    if len({row.task for row in scores.rows}) > 1:
        yield from ((Row(MEAN, "", ""), label, scores.means[label]) for label in scores.labels)


def _sources(scores: Scores) -> list[str]:
    """One line for each model: where its figures are published."""
    found: dict[str, list[str]] = {}
    for (_, model), figure in scores.published.items():
        found.setdefault(model, []).append(figure.source)
    return [f"{model}: {'; '.join(dict.fromkeys(sources))}" for model, sources in found.items()]
