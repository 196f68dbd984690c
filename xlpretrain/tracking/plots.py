"""Plots of loss curves of one run and of several, memory curves, confusion matrices and profiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from xlpretrain.extras import optional
from xlpretrain.file_system.atomic_files import atomic_writer
from xlpretrain.tracking.metrics_file import read_metrics


def plot_losses(metrics: Path, picture: Path, *, title: str, fence: Callable[[], None] = lambda: None) -> None:
    """Plot a run's training loss (as logged and smoothed), held-out loss, accuracies and learning rate.

    Raises OSError, `MissingPackageError` without matplotlib, and whatever `fence` raises when called just before the
    old plot is replaced.
    """
    with optional("matplotlib", "a plot"):
        from matplotlib.figure import Figure  # half a second to import, and only rank 0 plots

    rows = list(read_metrics(metrics))
    trained = np.array([(r["step"], r["train/loss"], r["train/lr"]) for r in rows if r.get("train/loss") is not None])
    held_out = np.array([(r["step"], r["valid/loss"]) for r in rows if r.get("valid/loss") is not None])
    if not len(trained):
        return
    accuracies = sorted({name for row in rows for name in row if name.endswith("_accuracy")})
    figure = Figure(figsize=(8, 7.5 if accuracies else 5.5), layout="constrained")
    above, *middle, below = figure.subplots(
        2 + bool(accuracies), 1, sharex=True, height_ratios=[4, 2, 1] if accuracies else [4, 1]
    )
    above.plot(trained[:, 0], trained[:, 1], color="tab:blue", alpha=0.35, linewidth=1, label="training, as logged")
    above.plot(trained[:, 0], _smooth(trained[:, 1]), color="tab:blue", linewidth=2, label="training, smoothed")
    if len(held_out):
        above.plot(held_out[:, 0], held_out[:, 1], "o-", color="tab:orange", label="held out")
    above.set(ylabel="loss (nats per prediction)", title=title)
    above.grid(alpha=0.3)
    above.legend()
    for axis in middle:
        for name in accuracies:
            known = np.array([(r["step"], r[name]) for r in rows if r.get(name) is not None])
            axis.plot(known[:, 0], known[:, 1], "o-", label=name.removeprefix("valid/").removesuffix("_accuracy"))
        axis.set(ylabel="held-out accuracy")
        axis.grid(alpha=0.3)
        axis.legend()
    below.plot(trained[:, 0], trained[:, 2], color="tab:gray")
    below.set(xlabel="step", ylabel="learning rate")
    below.grid(alpha=0.3)
    with atomic_writer(picture, fence=fence) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


class Line(NamedTuple):
    """A curve over memory lengths in positions, ascending. trained: the length in training; 0: no memory."""

    name: str
    mem_lens: Sequence[int]
    losses: Sequence[float]
    trained: int


def plot_memory_curves(lines: Sequence[Line], picture: Path) -> None:
    """Plot held-out losses over the memory length at evaluation; a dotted line marks each memory length of training.

    The axis is logarithmic beyond the shortest memory. Raises OSError, and `MissingPackageError` without matplotlib.
    """
    with optional("matplotlib", "--plot"):
        from matplotlib.figure import Figure

    lengths = sorted({length for line in lines for length in line.mem_lens})
    figure = Figure(figsize=(8, 5), layout="constrained")
    axis = figure.subplots()
    for line in lines:
        axis.plot(line.mem_lens, line.losses, "o-", label=line.name)
    for number, trained in enumerate(sorted({line.trained for line in lines} - {0})):
        axis.axvline(trained, color="gray", linestyle=":", label="" if number else "memory in training", zorder=0)
    shortest = min((length for length in lengths if length), default=1)
    axis.set_xscale("symlog", base=2, linthresh=shortest)
    axis.set_xlim(0.85 * lengths[0] if lengths[0] else -0.15 * shortest, 1.15 * max(lengths[-1], shortest))
    axis.set_xticks(lengths, [str(length) for length in lengths])
    axis.minorticks_off()
    axis.set(xlabel="memory length at evaluation (positions)", ylabel="held-out loss (nats per prediction)")
    axis.grid(alpha=0.3)
    axis.legend()
    with atomic_writer(picture) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


class RunCurves(NamedTuple):
    """Metrics of a run for `plot_runs`.

    label: of the curves; empty for none. color: runs of the same number have the same color. steps, tokens: of each
    value. metrics: values by name, NaN where a metric is missing.
    """

    label: str
    color: int
    steps: np.ndarray
    tokens: np.ndarray
    metrics: Mapping[str, np.ndarray]


def plot_runs(runs: Sequence[RunCurves], picture: Path) -> None:
    """Plot training loss (smoothed), held-out loss and learning rate of runs in common axes.

    They are plotted over steps, with tokens on a second axis; over tokens alone if the tokens of a step differ. Raises
    OSError, and `MissingPackageError` without matplotlib.
    """
    with optional("matplotlib", "a plot"):
        from matplotlib import colormaps
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter

    per_step = np.concatenate([run.tokens / np.maximum(run.steps, 1) for run in runs])
    per_step = per_step[np.isfinite(per_step) & (per_step > 0)]
    are_known = all(np.isfinite(run.tokens).any() for run in runs if len(run.steps))  # not in early versions
    over_tokens = are_known and bool(len(per_step)) and np.ptp(per_step) > 1e-6 * per_step[0]
    figure = Figure(figsize=(9, 8), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 1])
    tops: list[float] = []
    labels = ("training loss, smoothed (nats)", "held-out loss (nats)", "learning rate")
    for run in runs:
        color = colormaps["tab10"](run.color % 10)
        for axis, metric in zip(axes, ("train/loss", "valid/loss", "train/lr"), strict=True):
            known = np.isfinite(run.metrics[metric])
            places, values = (run.tokens if over_tokens else run.steps)[known], run.metrics[metric][known]
            if metric == "train/loss":
                values = _smooth(values)
                tops += values[len(values) // 10 :].max(initial=0, keepdims=True).tolist()
            style = "o-" if metric == "valid/loss" else "-"
            axis.plot(places, values, style, color=color, label=run.label or None, ms=4)
    for axis, label in zip(axes, labels, strict=True):
        axis.set(ylabel=label)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    axes[0].set_ylim(top=1.02 * max(tops, default=0) or None)  # the first steps would hide all others
    axes[-1].set(xlabel="tokens trained on" if over_tokens else "step")
    if over_tokens:
        axes[-1].xaxis.set_major_formatter(EngFormatter())
    elif len(per_step):
        second = axes[0].secondary_xaxis("top", functions=(lambda x: x * per_step[0], lambda x: x / per_step[0]))
        second.set_xlabel("tokens trained on")
        second.xaxis.set_major_formatter(EngFormatter())
    with atomic_writer(picture) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def plot_confusion(counts: Sequence[Sequence[int]], labels: Sequence[str], picture: Path, *, title: str) -> None:
    """Plot a confusion matrix: true labels in rows, predicted labels in columns, shaded by the share of the row.

    Raises OSError, and `MissingPackageError` without matplotlib.
    """
    with optional("matplotlib", "a plot"):
        from matplotlib.figure import Figure

    table = np.array(counts)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    side = 2.5 + 0.7 * len(labels)
    figure = Figure(figsize=(side + 0.5, side), layout="constrained")
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(table):
        color = "white" if shares[row, column] > 0.6 else "black"
        axis.text(column, row, f"{count:,}\n{shares[row, column]:.0%}", ha="center", va="center", color=color)
    axis.set(title=title, xlabel="predicted", ylabel="label")
    axis.set_xticks(range(len(labels)), labels, rotation=45 if max(map(len, labels)) > 8 else 0)
    axis.set_yticks(range(len(labels)), labels)
    with atomic_writer(picture) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def plot_shares(seconds: Mapping[str, Mapping[str, float]], picture: Path, *, title: str) -> None:
    """Plot the time of a step as a stacked bar per key of `seconds`, which has the same groups for each.

    Raises OSError, and `MissingPackageError` without matplotlib.
    """
    with optional("matplotlib", "a plot"):
        from matplotlib import colormaps
        from matplotlib.figure import Figure

    groups = [group for group in next(iter(seconds.values())) if any(of[group] for of in seconds.values())]
    figure = Figure(figsize=(9, 2 + 0.4 * len(seconds)), layout="constrained")
    axis = figure.subplots()
    left = np.zeros(len(seconds))
    for number, group in enumerate(groups):
        widths = np.array([1000 * of[group] for of in seconds.values()])
        axis.barh(list(seconds), widths, left=left, color=colormaps["tab10"](number), label=group)
        left += widths
    axis.invert_yaxis()
    axis.set(title=title, xlabel="milliseconds of a step")
    axis.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=5, frameon=False)
    with atomic_writer(picture) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def _smooth(values: np.ndarray) -> np.ndarray:
    """Bias-corrected exponential moving average over about a twentieth of the values."""
    weight = 1 - 1 / max(2.0, len(values) / 20)
    averages, average = np.empty(len(values)), 0.0
    for i, value in enumerate(values):
        average = weight * average + (1 - weight) * value
        averages[i] = average / (1 - weight ** (i + 1))
    return averages
