"""`xlpretrain doctor` as a user sees it: on a terminal, in a file, as JSON, with wrong arguments."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
from pathlib import Path

import commands
import pytest
from click.testing import CliRunner
from typer.main import get_command

from launcher.cli import main
from launcher.cli.actions import doctor
from launcher.doctor.findings import failure, passed, skipped, warning
from xlpretrain.errors import ConfigError


def on_terminal(*arguments: object, **environment: str) -> str:
    """Output of a command on a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [commands.BIN / "xlpretrain", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env={**commands.environment(), "TERM": "xterm-256color", "COLUMNS": "80", **environment},
    )
    os.close(theirs)
    said = b""
    try:
        while data := os.read(ours, 4096):
            said += data
    except OSError:  # the end, on Linux
        pass
    os.close(ours)
    process.wait()
    return said.decode().replace("\r\n", "\n")


def test_lines_on_a_terminal_are_wrapped_below_their_text_and_colored(tmp_path: Path):
    arguments = ("doctor", "--only", "limits", "--only", "space", "--runs-dir", tmp_path)
    colored, plain = on_terminal(*arguments), on_terminal(*arguments, NO_COLOR="1")
    assert "\x1b[32mpass" in colored and "\x1b[3" not in plain
    lines = re.sub(r"\x1b\[\d*m", "", plain).splitlines()  # bold and dim are no colors
    assert len(lines) > 6 and all(len(line) <= 80 for line in lines if "/" not in line), plain
    assert all(re.match(r"(pass|warn|fail|skipped) +(limits|space) +\S| {19}\S|\d+ passed", line) for line in lines)


def test_lines_in_a_file_are_not_wrapped_and_count_at_the_end(tmp_path: Path):
    out, err = commands.run("doctor", "--only", "limits", "--runs-dir", tmp_path)
    assert err == "" and "\x1b" not in out
    assert re.fullmatch(r"\d passed, \d warnings?, 0 failed, \d skipped in \d+ s", out.splitlines()[-1])


def test_json_is_one_object_with_every_finding(tmp_path: Path):
    out, _ = commands.run("doctor", "--only", "limits", "--only", "names", "--runs-dir", tmp_path, "--json")
    said = json.loads(out)
    assert said["ok"] is True and said["interrupted"] is False
    assert sum(said["counts"].values()) == len(said["findings"]) > 6
    assert {finding["check"] for finding in said["findings"]} == {"limits", "names"}
    assert set(said["findings"][0]) == {"check", "level", "text", "remedy", "node"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.yaml"], "no.yaml: no such file"),
        (["--only", "disk"], "there is no check disk; expected any of versions, cores"),
        (["--only", "data"], "--only data: needs CONFIG"),
        (["--only", "slurm"], "--only slurm: needs --cluster FILE"),
        (["--on-nodes"], "--on-nodes needs a site profile"),
        (["--cluster", "no.yaml"], "no.yaml: no such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments_are_one_message(arguments: list[str], message: str):
    found = CliRunner().invoke(get_command(main.app), ["doctor", *arguments])
    assert isinstance(found.exception, ConfigError) and message in str(found.exception)


def test_findings_are_counted_by_level():
    found = [passed("a"), passed("b"), warning("c", "d"), failure("e", "f"), skipped("g")]
    assert doctor.describe(found) == "2 passed, 1 warning, 1 failed, 1 skipped"
    assert doctor.describe([]) == "0 passed, 0 warnings, 0 failed, 0 skipped"


@pytest.mark.full
def test_a_config_is_checked_before_and_after_its_data_exist(tiny_dataset: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = commands.write_config(tmp_path / "config.yaml", Path("data"), wandb={"mode": "disabled"})
    before, _ = commands.run("doctor", config, expect=2)
    assert "fail     data      data/train: not a dataset" in before and "needs" not in before
    assert "space for checkpoints: the vocabulary" in before
    Path("data").symlink_to(tiny_dataset)
    after, _ = commands.run("doctor", config)
    assert "`train` would start" in after and " for checkpoints" in after
    assert "not checked: a Slurm cluster" in after
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "data"]
