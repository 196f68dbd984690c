"""Findings: the lines of a report, each with a remedy if it is not a pass. Torch-free."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Level(StrEnum):
    """Result of a check. Only FAIL changes the exit code."""

    PASS = "pass"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        level: the result.
        text: the measurement or the problem; of a skipped check, the reason.
        remedy: the way to fix a warning or a failure.
        check: name of the check; set by the worker.
        node: the node that the line is about; empty for this machine.
    """

    level: Level
    text: str
    remedy: str = ""
    check: str = ""
    node: str = ""

    def to_json(self) -> str:
        """The fields as one line of JSON."""
        return json.dumps(self.to_dict())

    def to_dict(self) -> dict[str, str]:
        """The fields as text, for JSON."""
        return {key: str(value) for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Finding:
        """Parse `to_dict`. Raises KeyError, TypeError or ValueError."""
        return cls(**{**content, "level": Level(content["level"])})


def passed(text: str) -> Finding:
    """A check that found nothing wrong, with its measurement."""
    return Finding(Level.PASS, text)


def warning(text: str, remedy: str) -> Finding:
    """A problem that a run survives, but that slows it or may end it later."""
    return Finding(Level.WARN, text, remedy)


def failure(text: str, remedy: str) -> Finding:
    """A problem that would end a run or keep it from starting."""
    return Finding(Level.FAIL, text, remedy)


def from_error(error: Exception) -> Finding:
    """A failure from a user error, whose message has the fix after its first semicolon."""
    text, _, fix = str(error).partition("; ")
    return failure(text, fix or "see the message")


def skipped(reason: str) -> Finding:
    """A check that was not made."""
    return Finding(Level.SKIPPED, reason)


def parse_findings(text: str) -> tuple[list[Finding], list[str]]:
    """Separate the findings in the output of other processes, a line of JSON each, from their other lines."""
    findings, others = [], []
    for line in text.splitlines():
        try:
            findings.append(Finding.from_dict(json.loads(line)))
        except (ValueError, KeyError, TypeError):
            others += [line] if line.strip() else []
    return findings, others
