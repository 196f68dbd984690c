"""The HTML page of a report: one file, with style, script, library and data in it. Torch-free.

Everything from runs is escaped by the template engine; a content security policy keeps the page from the network and
allows no script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from xlpretrain.errors import LaunchError
from xlpretrain.evaluation.report_page import figures
from xlpretrain.evaluation.report_page.charts import by_section, charts_of
from xlpretrain.evaluation.report_page.comparison import compare, flatten
from xlpretrain.evaluation.report_page.curves import encode_runs
from xlpretrain.evaluation.report_page.run_data import GOODPUT_PARTS, RunData, find_origin
from xlpretrain.file_system.atomic_files import atomic_write
from xlpretrain.tracking.console import format_duration
from xlpretrain.version import __version__

_ASSETS = Path(__file__).parent / "assets"
_MARK = '<meta name="generator" content="xlpretrain report">'
_PART_NAMES = {
    "step_s": "in steps",
    "data_wait_s": "waiting for data",
    "save_s": "blocked by saves",
    "eval_s": "in evaluations",
    "restart_s": "starting again",
    "lost_s": "lost",
}


@dataclass(frozen=True)
class TextSample:
    """Generated text. label: of the run. prompt: what it was given. problem: why there is none."""

    label: str
    prompt: str = ""
    text: str = ""
    problem: str = ""


@dataclass(frozen=True)
class PageOptions:
    """The content of a page besides its runs. refresh_s: seconds between refreshes, if the page is served."""

    samples: Sequence[TextSample] = field(default=())
    refresh_s: float | None = None


_PLAIN = PageOptions()


def render(runs: Sequence[RunData], options: PageOptions = _PLAIN) -> str:
    """Render the page of some runs."""
    charts = charts_of(runs)
    scripts = [_asset("uplot/uPlot.iife.min.js"), _asset("page.js")]
    data = {
        "charts": [chart._asdict() for chart in charts.drawn],
        "refresh_s": options.refresh_s,
        "runs": encode_runs(runs, charts.drawn),
    }
    return _environment().get_template("page.html.jinja").render(
        mark=Markup(_MARK),
        policy=_policy(scripts, connects=options.refresh_s is not None),
        styles=[Markup(_asset("uplot/uPlot.min.css")), Markup(_asset("page.css"))],
        scripts=[Markup(script) for script in scripts],
        data=data,
        title=_title(runs),
        written_at=time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        version=__version__,
        live=options.refresh_s is not None,
        runs=[_describe(run, runs) for run in runs],
        sections=list(by_section(charts.drawn)),
        constant=charts.constant,
        held_out=_held_out(runs),
        comparison=compare([run.config for run in runs]),
        samples=options.samples,
    )  # fmt: skip


def refuse_to_overwrite(file: Path, *, force: bool) -> None:
    """Raise `LaunchError` if a page cannot be written to `file`, or would replace a file that is not such a page."""
    if file.is_dir():
        raise LaunchError(f"{file}: a folder; name a file, such as {file / 'report.html'}")
    if not file.absolute().parent.is_dir():
        raise LaunchError(f"{file}: its folder does not exist; make it with mkdir -p {file.absolute().parent}")
    if not file.exists() or force:
        return
    with file.open("rb") as opened:
        beginning = opened.read(1000).decode(errors="replace")
    if _MARK not in beginning:
        raise LaunchError(
            f"{file}: already exists and is not a page of `xlpretrain report`; choose another file, or replace it with"
            " --force"
        )


def write(file: Path, page: str) -> None:
    """Write a page; the old one stays whole until the new one is complete. Raises `LaunchError`."""
    try:
        atomic_write(file, page)
    except OSError as error:
        raise LaunchError(f"{file}: cannot be written: {error.strerror}") from None


def _title(runs: Sequence[RunData]) -> str:
    labels = [run.label for run in runs]
    return ", ".join(labels) if len(labels) <= 3 else f"{labels[0]} and {len(labels) - 1} other runs"


def _describe(run: RunData, runs: Sequence[RunData]) -> dict[str, Any]:
    """The values that the template shows of a run."""
    used, origin, branch = run.goodput(), find_origin(run, runs), run.branch
    forked = [] if branch is None else [{"step": branch.step, "changed": branch.changed}]
    shares = {part: getattr(used, part) / used.total_s if used.total_s else 0.0 for part in GOODPUT_PARTS}
    return {
        "label": run.label,
        "path": str(run.folder.path),
        "figures": figures.figures_of(run),
        "has_metrics": bool(len(run.steps)),
        "num_rows": len(run.steps),
        "num_nonfinite": figures.num_nonfinite(run),
        "message": run.status.message if run.status else "",
        "world_size": run.status.world_size if run.status else None,
        "problems": run.problems,
        "origin": None if origin is None else f"{origin[0].label}, step {origin[1]:,}",
        "branch": None if branch is None else branch.place,
        "goodput": [(part, _PART_NAMES[part], getattr(used, part), share) for part, share in shares.items()],
        "interruptions": run.interruptions(),
        "corpora": figures.corpora_of(run),
        "changes": [
            {**change, "rows": [(key, *_two(change["changed"][key])) for key in change["changed"]]}
            for change in [*forked, *run.changes]
        ],
        "provenance": list(flatten(run.provenance)) if run.provenance else [],
        "scores": run.scores,
    }


def _held_out(runs: Sequence[RunData]) -> dict[str, Any]:
    found = [(run.label, what, evaluation) for run in runs for what, evaluation in figures.evaluations_of(run)]
    return {"metrics": list(dict.fromkeys(name for _, _, e in found for name in e.metrics)), "rows": found}


def _two(values: object) -> tuple[str, str]:
    """The old and the new value of a change, formatted."""
    old, new = values if isinstance(values, list) and len(values) == 2 else ("?", values)
    return str(old), str(new)


def _policy(scripts: Sequence[str], *, connects: bool) -> str:
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts
    )
    source = "'self'" if connects else "'none'"
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; base-uri 'none';"
        f" form-action 'none'; connect-src {source}"
    )


@cache
def _asset(name: str) -> str:
    """A file of the page, as text for the inside of <script> or <style>."""
    text = (_ASSETS / name).read_text(encoding="utf-8")
    assert not re.search(r"</(script|style)", text, re.IGNORECASE), name
    return text


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(_ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: Mapping[str, Any] = {
        "count": figures.show_count,
        "number": figures.show,
        "duration": format_duration,
        "share": lambda value: f"{100 * value:.1f} %" if value == value else "-",
    }
    made.filters.update(filters)
    return made
