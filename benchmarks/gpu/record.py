"""Results of the parts of `make gpu-check`: one JSON object per line, appended as it comes, and a page made of them.

Lines: {"part", "table", "row"}, {"part", "check", "passed", "detail"}, {"part", "note"} and {"part", "state", ...}.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

MOST_PASSED = 15
"""Passed checks that the page still names; the file of results has all."""


class Record:
    """Appends the results of one part to the common file; a process that is killed loses at most the line it writes."""

    def __init__(self, place: Path, part: str):
        self._place, self._part = place, part
        self.num_failed = 0

    def row(self, table: str, **cells: Any) -> None:
        """Add a row to a table. Floats are rounded to four digits on the page."""
        self._write(table=table, row=cells)

    def check(self, what: str, passed: bool, detail: str = "") -> None:
        """Record that something holds or not. A part goes on after a check that failed."""
        self.num_failed += not passed
        self._write(check=what, passed=bool(passed), detail=detail)

    def note(self, text: str) -> None:
        """Add a remark, such as what was skipped and why."""
        self._write(note=text)

    def state(self, state: str, **more: Any) -> None:
        """State how the part ended: passed, failed, cut, skipped, or not reached."""
        self._write(state=state, **more)

    def _write(self, **line: Any) -> None:
        text = json.dumps({"part": self._part, **line}, default=str)
        print(text, flush=True)
        with self._place.open("a") as file:
            file.write(text + "\n")


def read(place: Path) -> list[dict[str, Any]]:
    """Read all complete lines."""
    lines = []
    for line in place.read_text().splitlines() if place.exists() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue  # a process was killed while it wrote this line
    return lines


def page(lines: Iterable[Mapping[str, Any]], parts: Mapping[str, str]) -> str:
    """The results as Markdown: an overview, failures, then the tables of each part.

    parts: the title of each part, in order.
    """
    of: dict[str, list[Mapping[str, Any]]] = {part: [] for part in parts}
    for line in lines:
        of.setdefault(line["part"], []).append(line)
    blocks = ["# GPU check", table([_overview(part, of[part]) for part in parts])]
    for part, title in parts.items():
        if of[part]:
            blocks += [f"## {part}: {title}", *_part(of[part])]
    return "\n\n".join(blocks) + "\n"


def _overview(part: str, lines: list[Mapping[str, Any]]) -> dict[str, Any]:
    ends = [line for line in lines if "state" in line]
    checks = [line for line in lines if "check" in line]
    return {
        "part": part,
        "state": ends[-1]["state"] if ends else "running" if lines else "not started",
        "checks passed": f"{sum(line['passed'] for line in checks)} of {len(checks)}" if checks else "",
        "seconds": round(ends[-1].get("seconds", 0)) if ends else "",
    }


def _part(lines: list[Mapping[str, Any]]) -> Iterator[str]:
    failed = [line for line in lines if line.get("passed") is False]
    if failed:
        yield "\n".join(
            f"- **failed**: {line['check']}: {(line['detail'].splitlines() or [''])[-1]}" for line in failed
        )
    longest = max((line["detail"] for line in failed), key=len, default="")
    if "\n" in longest:
        yield f"```text\n{longest}\n```"
    tables: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        if "table" in line:
            tables.setdefault(line["table"], []).append(line["row"])
    for name, rows in tables.items():
        yield f"{name}\n\n{table(rows)}"
    held = [line for line in lines if line.get("passed")]
    passed = [line["check"] + (f" ({line['detail']})" if line["detail"] else "") for line in held]
    if 0 < len(passed) <= MOST_PASSED:
        yield "Passed: " + "; ".join(passed) + "."
    notes = [f"- {line['note']}" for line in lines if "note" in line]
    if notes:
        yield "\n".join(notes)
    for line in lines:
        if error := line.get("error"):
            yield f"```text\n{error}\n```"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a table in Markdown, without empty columns."""
    columns = list(dict.fromkeys(column for row in rows for column, value in row.items() if value != ""))
    body = [[_cell(row.get(column, "")) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [columns, ["---"] * len(columns), *body])


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value).replace("|", "/").replace("\n", " ")
