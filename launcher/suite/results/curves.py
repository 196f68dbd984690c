"""Scores over pretraining steps, and their plot. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.suite.results.scores import MEAN, Cell, Scores
from launcher.suite.subjects import Subject
from xlpretrain.extras import optional
from xlpretrain.file_system.atomic_files import atomic_writer

Curves = Mapping[str, Mapping[str, Sequence[tuple[int, Cell]]]]
"""Points (step, cell) by the title of a row and the name of a run."""

_COLUMNS = 3
"""Panels side by side in a plot."""


def curves_of(scores: Scores, subjects: Mapping[str, Subject]) -> Curves:
    """Scores over pretraining steps: for each row and run with at least two steps, its (step, cell) by step.

    Rows are named by task, part and metric, the mean over tasks last; groups of minimal pairs have no curve.
    """
    wholes = [row for row in scores.rows if not row.part]
    columns = {
        f"{row.title} ({row.metric})": {label: scores.cells[row, label] for label in scores.labels} for row in wholes
    }
    if len(wholes) > 1:
        columns[MEAN] = dict(scores.means)
    found: dict[str, dict[str, list[tuple[int, Cell]]]] = {}
    for title, cells in columns.items():
        by_run: dict[str, list[tuple[int, Cell]]] = {}
        for label in sorted(scores.labels, key=lambda label: subjects[label].step):
            if cells[label].values:
                by_run.setdefault(subjects[label].run, []).append((subjects[label].step, cells[label]))
        if any(len(points) > 1 for points in by_run.values()):
            found[title] = by_run
    return found


def plot_curves(curves: Curves, picture: Path) -> None:
    """Plot scores over pretraining steps, a panel for each row and a line for each run.

    Raises OSError, and `MissingPackageError` without matplotlib.
    """
    with optional("matplotlib", "a plot"):
        from matplotlib.figure import Figure

    width = min(len(curves), _COLUMNS)
    height = -(-len(curves) // width)
    figure = Figure(figsize=(4.2 * width, 3.2 * height), layout="constrained")
    panels = figure.subplots(height, width, squeeze=False).flatten()
    runs = list(dict.fromkeys(run for by_run in curves.values() for run in by_run))
    for panel, (title, by_run) in zip(panels, curves.items(), strict=False):
        for run, points in by_run.items():
            steps = [step for step, _ in points]
            means = [cell.mean for _, cell in points]
            deviations = [cell.deviation or 0.0 for _, cell in points]
            color = f"C{runs.index(run) % 10}"
            panel.errorbar(steps, means, yerr=deviations, fmt="o-", capsize=3, color=color, label=run)
        panel.set(title=title, xlabel="pretraining step", ylabel="percent")
        panel.grid(alpha=0.3)
    for panel in panels[len(curves) :]:
        panel.remove()
    if len(runs) > 1:
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    with atomic_writer(picture) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
