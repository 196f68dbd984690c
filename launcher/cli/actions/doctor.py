"""Check machine, disks, network, config and cluster: `xlpretrain doctor`. Torch-free."""

from __future__ import annotations

import json
import secrets
import signal
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from launcher.doctor.checks import CHECKS
from launcher.doctor.examine import examine
from launcher.doctor.findings import Finding, Level
from launcher.doctor.request import Request
from launcher.slurm.profile import load_cluster
from xlpretrain import schema
from xlpretrain.errors import FINISHED, USER_ERROR, ConfigError, LaunchError
from xlpretrain.tracking.printing import AnswerConsole

_STYLES = {Level.PASS: "green", Level.WARN: "yellow", Level.FAIL: "bold red", Level.SKIPPED: "dim"}
_LEVEL_WIDTH = max(map(len, Level)) + 2
_NAME_WIDTH = max(map(len, CHECKS)) + 2
_OF_CONFIG, _OF_CLUSTER, _OF_NODES = ("config", "data", "trackers"), ("slurm",), ("nodes",)


def doctor(request: Request, *, only: Sequence[str], on_nodes: bool, as_json: bool) -> int:
    """Make the checks and print a line for each finding. Returns the exit code: 2 if any failed.

    only: names of checks; none: all that the request has a subject for. on_nodes: also check nodes of the cluster.
    Raises `ConfigError` for files that are missing or no YAML and for unknown checks, `LaunchError` except on Linux.
    """
    if sys.platform != "linux":
        raise LaunchError(f"doctor: needs Linux, got {sys.platform}; run it on the machine or cluster that will train")
    names = _chosen(request, only, on_nodes=on_nodes)
    if request.config is not None:
        schema.read_yaml(Path(request.config))  # mistakes inside are findings
    if request.cluster is not None:
        load_cluster(Path(request.cluster), nodes=request.nodes)
    request = replace(request, token=secrets.token_hex(4))
    console, started = AnswerConsole(), time.monotonic()
    findings: list[Finding] = []
    interrupted = 0
    try:
        with _signals_as_exit(), closing(examine(request, names)) as found:
            for finding in found:
                findings.append(finding)
                if not as_json:
                    print_finding(finding, console)
    except (KeyboardInterrupt, SystemExit) as left:
        interrupted = left.code if isinstance(left, SystemExit) and isinstance(left.code, int) else 128 + signal.SIGINT
    if as_json:
        print(json.dumps(_summary(findings, time.monotonic() - started, bool(interrupted)), indent=1))
    else:
        ends = "; interrupted, the other checks were not made" if interrupted else ""
        console.print(f"{describe(findings)} in {time.monotonic() - started:.0f} s{ends}{_not_checked(request, only)}")
    return interrupted or (USER_ERROR if any(one.level == Level.FAIL for one in findings) else FINISHED)


def print_finding(finding: Finding, console: Console) -> None:
    """Print a finding: level, check, text; below it the remedy. Wrapped with an indent on a terminal."""
    indent = " " * (_LEVEL_WIDTH + _NAME_WIDTH)
    node = f"{finding.node}: " if finding.node else ""
    lines = list(_wrap(f"{node}{finding.text}", indent, console))
    if finding.remedy and finding.level in (Level.WARN, Level.FAIL):
        lines += _wrap(f"fix: {finding.remedy}", indent, console)
    level = Text(f"{finding.level:<{_LEVEL_WIDTH}}", style=_STYLES[finding.level])
    rest = f"{finding.check:<{_NAME_WIDTH}}" + "\n".join(lines)[len(indent) :]
    console.print(Text.assemble(level, rest), soft_wrap=True)


def describe(findings: Iterable[Finding]) -> str:
    """Count findings by level, such as "9 passed, 1 warning, 0 failed, 2 skipped"."""
    count = Counter(finding.level for finding in findings)
    warnings = f"{count[Level.WARN]} warning{'' if count[Level.WARN] == 1 else 's'}"
    return f"{count[Level.PASS]} passed, {warnings}, {count[Level.FAIL]} failed, {count[Level.SKIPPED]} skipped"


def _wrap(text: str, indent: str, console: Console) -> Iterator[str]:
    for line in text.splitlines():
        if console.is_terminal:
            yield from textwrap.wrap(
                line,
                max(console.width, 60),
                initial_indent=indent,
                subsequent_indent=indent,
                break_long_words=False,
                break_on_hyphens=False,
            )
        else:
            yield f"{indent}{line}"


def _chosen(request: Request, only: Sequence[str], *, on_nodes: bool) -> list[str]:
    """Names of the checks to make, in order. Raises `ConfigError` for unknown names and missing subjects."""
    if unknown := [name for name in only if name not in CHECKS]:
        raise ConfigError(f"--only: there is no check {', '.join(unknown)}; expected any of {', '.join(CHECKS)}")
    if on_nodes and request.cluster is None:
        raise ConfigError("--on-nodes needs a site profile: --cluster FILE")
    without = {*(() if request.config else _OF_CONFIG), *(() if request.cluster else _OF_CLUSTER)}
    if only:
        if lacking := [name for name in only if name in without]:
            needs = "CONFIG" if lacking[0] in _OF_CONFIG else "--cluster FILE"
            raise ConfigError(f"--only {lacking[0]}: needs {needs}")
        without |= CHECKS.keys() - set(only)
    if not on_nodes:
        without |= set(_OF_NODES)
    return [name for name in CHECKS if name not in without]


def _not_checked(request: Request, only: Sequence[str]) -> str:
    if only:
        return ""
    more = [] if request.config else ["a config's data and trackers (give CONFIG)"]
    more += [] if request.cluster else ["a Slurm cluster (--cluster FILE)"]
    return f"; not checked: {', '.join(more)}" if more else ""


def _summary(findings: Sequence[Finding], seconds: float, interrupted: bool) -> dict[str, object]:
    count = Counter(finding.level for finding in findings)
    return {
        "ok": count[Level.FAIL] == 0 and not interrupted,
        "interrupted": interrupted,
        "counts": {str(level): count[level] for level in Level},
        "seconds": round(seconds, 1),
        "findings": [finding.to_dict() for finding in findings],
    }


@contextmanager
def _signals_as_exit() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit, so that checks clean up."""

    def leave(number: int, frame: object) -> None:
        sys.exit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
