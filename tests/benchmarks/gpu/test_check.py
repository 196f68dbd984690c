"""The runner of `make gpu-check`: limits, failures, and results that are on disk before a part ends.

Modules: record.py, processes.py.
"""

from __future__ import annotations

import os
import select
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu.check import Part, run_all, run_here
from benchmarks.gpu.processes import descendants, kill_tree
from benchmarks.gpu.record import Record, page, read


def part(name: str, **keys: object) -> Part:
    return replace(Part(name, f"the part {name}", run="", limit_s=60.0), **keys)


def run(out: Path, script: str, *parts: Part, budget_s: float = 600) -> int:
    """Run parts whose work is a shell script that gets the name as $1."""
    return run_all(parts, out, ["sh", "-c", script, "sh"], budget_s=budget_s)


def states(out: Path) -> dict[str, str]:
    return {line["part"]: line["state"] for line in read(out / "results.jsonl") if "state" in line}


def test_a_part_is_killed_at_its_limit_and_the_next_one_runs(tmp_path):
    script = '[ "$1" = long ] && exec sleep 600 || true'
    assert run(tmp_path, script, part("long", limit_s=1.1), part("short")) == 1
    assert states(tmp_path) == {"long": "cut", "short": "passed"}
    assert "killed at its limit" in (tmp_path / "report.md").read_text()


def test_what_a_part_wrote_before_it_ends_is_on_the_page_of_the_next(tmp_path):
    """The second part looks at the page, and at the rows that the first one wrote before it failed."""
    row = '{"part": "first", "table": "T", "row": {"ms": 1.5}}'
    first = f"echo {shlex.quote(row)} >> {tmp_path}/results.jsonl; exit 3"
    second = f"grep -q 'first | failed' {tmp_path}/report.md && grep -q '| 1.5 |' {tmp_path}/report.md"
    assert run(tmp_path, f'if [ "$1" = first ]; then {first}; else {second}; fi', part("first"), part("second")) == 1
    assert states(tmp_path) == {"first": "failed", "second": "passed"}


def test_a_failure_is_shown_by_its_last_lines(tmp_path):
    assert run(tmp_path, "seq 100; echo the reason >&2; exit 1", part("one")) == 1
    report = (tmp_path / "report.md").read_text()
    assert "the reason\nexit code 1" in report
    assert "\n60\n" not in report


@pytest.mark.parametrize(("checks", "code"), [(True, 1), (False, 0)])
def test_only_parts_that_check_make_the_exit_code_1(tmp_path, checks, code):
    assert run(tmp_path, "exit 1", part("one", checks=checks)) == code


def test_parts_beyond_the_budget_and_without_their_packages_are_named(tmp_path):
    assert run(tmp_path, "exit 1", part("one", needs=("no_such_package",))) == 0
    assert states(tmp_path) == {"one": "skipped"}
    assert run(tmp_path, "exit 1", part("one"), budget_s=0) == 1
    assert states(tmp_path) == {"one": "not reached"}


def test_a_part_fails_if_it_raises_or_a_check_of_it_does(tmp_path, monkeypatch, capsys):
    (tmp_path / "some_parts.py").write_text(
        "def good(record, *, toy):\n    record.check('one', True)\n    record.note(str(toy))\n"
        "def bad(record, *, toy):\n    record.check('two', False, 'off by 1')\n    record.check('three', True)\n"
        "def broken(record, *, toy):\n    raise ValueError('torn')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    codes = [run_here(part(name, run=f"some_parts:{name}"), tmp_path, toy=True) for name in ("good", "bad", "broken")]
    assert codes == [0, 1, 1]
    text = page(read(tmp_path / "results.jsonl"), {"good": "", "bad": ""})
    assert "**failed**: two: off by 1" in text
    assert "1 of 2" in text
    assert "ValueError: torn" in capsys.readouterr().err


def test_a_line_that_was_torn_by_a_kill_is_ignored(tmp_path):
    Record(tmp_path / "results.jsonl", "one").row("T", ms=1)
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"part": "one", "tab')
    assert [line["row"] for line in read(tmp_path / "results.jsonl")] == [{"ms": 1}]


def test_ranks_in_sessions_of_their_own_are_killed_too(tmp_path):
    """As torchrun starts them."""
    start = (
        "import subprocess, sys; subprocess.Popen(['sleep', '600'], start_new_session=True);"
        "print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", start], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (rank,) = descendants(process.pid)
        descriptor = os.pidfd_open(rank)
        kill_tree(process.pid)
    assert select.select([descriptor], [], [], 60)[0], "the rank is still alive"
    os.close(descriptor)
