"""The charts of a report: which metrics have one, their titles and sections. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from xlpretrain.evaluation.report_page.run_data import RunData

LOSS = "Loss and held-out figures"
OPTIMIZATION = "Optimization"
SPEED = "Throughput and goodput"
CORPORA = "Corpora"
OTHER = "Other metrics"
SECTIONS = (LOSS, OPTIMIZATION, SPEED, CORPORA, OTHER)


class Chart(NamedTuple):
    """A metric, drawn for all runs that have it. is_noisy: its curves need smoothing."""

    metric: str
    title: str
    unit: str
    section: str
    is_noisy: bool = False


class Charts(NamedTuple):
    """Charts in their order on the page, and metrics that never change, with their values (run by run, NaN: none)."""

    drawn: list[Chart]
    constant: list[tuple[str, list[float]]]


_KNOWN = [
    ("train/loss", "Training loss", "nats per prediction", LOSS),
    ("valid/loss", "Held-out loss", "nats per prediction", LOSS),
    ("valid/perplexity", "Held-out perplexity", "", LOSS),
    ("valid/bits_per_byte", "Held-out bits per byte", "", LOSS),
    (r"valid/(?P<what>.+)_accuracy", "Held-out accuracy: {what}", "share of predictions", LOSS),
    (r"valid/loss/(?P<what>.+)", "Held-out loss: {what}", "nats per prediction", LOSS),
    (r"valid/(?P<what>.+)", "Held-out: {what}", "", LOSS),
    ("train/lr", "Learning rate", "", OPTIMIZATION),
    ("train/grad_norm", "Gradient norm", "before clipping", OPTIMIZATION),
    (r"train/loss/(?P<what>.+)", "Training loss: {what}", "nats per prediction", OPTIMIZATION),
    ("time/tokens_per_second", "Throughput", "tokens per second", SPEED),
    ("goodput/share", "Goodput", "share of the time spent in steps", SPEED),
    ("time/mfu", "Model FLOPs utilization", "share of the peak", SPEED),
    ("time/step_s", "Time of a step", "seconds", SPEED),
    ("time/data_wait_s", "Wait for data in a step", "seconds", SPEED),
    ("memory/peak_bytes", "Peak memory of rank 0", "bytes", SPEED),
    (r"train/corpus_loss/(?P<what>.+)", "Training loss: {what}", "nats per prediction", CORPORA),
    ("data/epoch", "Passes over the training data", "", CORPORA),
    (r"data/epoch/(?P<what>.+)", "Passes over {what}", "", CORPORA),
]
_NOISE = 5.0
_NOT_DRAWN = re.compile(r"step|tokens|time/logged_at_s|goodput/(?!share$).*")


def charts_of(runs: Sequence[RunData]) -> Charts:
    """The charts of some runs. Metrics that never change in any run have none, unless they are known to be of interest.

    A loss term that is the whole loss is left out.
    """
    found = list(dict.fromkeys(metric for run in runs for metric in run.table if not _NOT_DRAWN.fullmatch(metric)))
    drawn, constant = [], []
    for metric in found:
        rank, chart = _describe(metric)
        if all(_repeats_loss(run, metric) for run in runs):
            continue
        values = [run.column(metric) for run in runs]
        if chart.section == OTHER and all(_never_changes(column) for column in values):
            constant.append((metric, [_first_known(column) for column in values]))
        elif any(np.isfinite(column).any() for column in values):
            chart = chart._replace(is_noisy=any(_is_noisy(column) for column in values))
            drawn.append((SECTIONS.index(chart.section), rank, chart))
    return Charts([chart for _, _, chart in sorted(drawn)], constant)


def _describe(metric: str) -> tuple[int, Chart]:
    """The rank of a chart in its section, and the chart."""
    for rank, (pattern, title, unit, section) in enumerate(_KNOWN):
        if match := re.fullmatch(pattern, metric):
            what = match.groupdict().get("what", "").replace("_", " ")
            return rank, Chart(metric, title.replace("{what}", what), unit, section)
    return len(_KNOWN), Chart(metric, metric, "", OTHER)


def by_section(charts: Sequence[Chart]) -> Iterator[tuple[str, list[Chart]]]:
    """Sections that have charts, with these."""
    for section in SECTIONS:
        if of_section := [chart for chart in charts if chart.section == section]:
            yield section, of_section


def _repeats_loss(run: RunData, metric: str) -> bool:
    match = re.fullmatch(r"(train|valid)/loss/.+", metric)
    if not match or metric not in run.table:
        return bool(match)
    term, loss = run.table[metric], run.column(f"{match[1]}/loss")
    known = np.isfinite(term) & np.isfinite(loss)
    return bool(known.any()) and np.array_equal(term[known], loss[known])


def _is_noisy(values: np.ndarray) -> bool:
    """True if a curve goes up and down over many times its range."""
    known = values[np.isfinite(values)]
    return bool(len(known)) and float(np.abs(np.diff(known)).sum()) > _NOISE * float(np.ptp(known))


def _never_changes(values: np.ndarray) -> bool:
    known = values[np.isfinite(values)]
    return not len(known) or bool((known == known[0]).all())


def _first_known(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known[0]) if len(known) else float("nan")
