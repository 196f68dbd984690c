"""The curves of a page as compact JSON: thinned, numbers as base64 of little-endian arrays. Torch-free."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from xlpretrain.evaluation.report_page.charts import Chart
from xlpretrain.evaluation.report_page.run_data import RunData, find_origin
from xlpretrain.evaluation.report_page.thinning import MAX_POINTS, thin

_MOST_POINTS = 500_000
"""Points of all curves of a page: at 12 bytes each, with the means, and a third more for base64, 8 MB."""
_FEWEST_POINTS = 200
_AXIS_ROWS = 2000


def encode_runs(runs: Sequence[RunData], charts: Sequence[Chart]) -> list[dict[str, Any]]:
    """Encode the curves of each run, its x axes and its marks. Many curves get fewer points than `MAX_POINTS` each."""
    points = sum(min(int(np.isfinite(run.column(c.metric)).sum()), MAX_POINTS) for run in runs for c in charts)
    max_points = max(_FEWEST_POINTS, min(MAX_POINTS, int(MAX_POINTS * _MOST_POINTS / max(points, 1))))
    return [
        {
            "label": run.label,
            "curves": {
                chart.metric: _encode_curve(run, chart.metric, max_points)
                for chart in charts
                if np.isfinite(run.column(chart.metric)).any()
            },
            "axes": _encode_axes(run),
            "marks": [[cut.step, cut.kind] for cut in run.interruptions()],
            "origin": _origin(run, runs),
        }
        for run in runs
    ]


def _encode_curve(run: RunData, metric: str, max_points: int) -> dict[str, str]:
    curve = thin(run.steps, run.column(metric), max_points)
    found = {"x": _base64(curve.steps, "<u4"), "y": _base64(curve.values, "<f4")}
    if len(curve.means):
        found |= {"mx": _base64(curve.mean_steps, "<f4"), "my": _base64(curve.means, "<f4")}
    return found


def _encode_axes(run: RunData) -> dict[str, str]:
    """Tokens, hours by the clock and hours of running at some of the steps; between these they are interpolated.

    The rows next to the longest pauses are included.
    """
    steps = run.steps
    if not len(steps):
        return {}
    axes = {"tokens": run.column("tokens"), "clock": run.clock_s() / 3600, "running": run.running_s() / 3600}
    rows = set(np.linspace(0, len(steps) - 1, min(len(steps), _AXIS_ROWS)).astype(int).tolist())
    gaps = np.diff(np.nan_to_num(axes["clock"]))
    longest = np.argsort(gaps)[-_AXIS_ROWS // 4 :]
    picked = np.array(sorted(rows | {*longest.tolist()} | {*(longest + 1).tolist()}))
    ascending = {name: np.maximum.accumulate(values[picked]) for name, values in axes.items()}
    return {"steps": _base64(steps[picked], "<u4")} | {
        name: _base64(values, "<f8") for name, values in ascending.items()
    }


def _origin(run: RunData, runs: Sequence[RunData]) -> dict[str, Any] | None:
    found = find_origin(run, runs)
    return None if found is None else {"run": [id(other) for other in runs].index(id(found[0])), "step": found[1]}


def _base64(values: np.ndarray, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype=kind).tobytes()).decode()
