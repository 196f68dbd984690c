"""A console that fails costs what it would have shown, and nothing else."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import commands
import pytest

from xlpretrain.checkpoint.files import list_checkpoints, verify_whole
from xlpretrain.tracking.console import format_duration

SPEAK = """
import os, sys
from rich.console import Console
from xlpretrain.tracking.console import outlive_console
outlive_console()
say = Console(file=sys.stdout).print
for line in range(3000):  # more than a pipe holds
    print(f"line {line}"), print("words", file=sys.stderr), say("rich words")
open(sys.argv[1], "w").write("the end")
if sys.argv[2:]:
    sys.stdin.readline()
    print("once more")
"""


def speak(tmp_path: Path, **streams) -> None:
    """Say a lot, then leave a file; the exit code must be 0."""
    done = subprocess.run([sys.executable, "-c", SPEAK, tmp_path / "done"], check=True, timeout=60, **streams)
    assert done.returncode == 0
    assert (tmp_path / "done").read_text() == "the end"


def test_a_pipe_that_nobody_reads_any_more_is_survived(tmp_path: Path):
    reader, writer = os.pipe()
    os.close(reader)
    speak(tmp_path, stdout=writer, stderr=writer)
    os.close(writer)


def test_a_full_disk_is_survived(tmp_path: Path):
    with Path("/dev/full").open("w") as full:
        speak(tmp_path, stdout=full, stderr=full)


def test_a_terminal_that_was_closed_is_survived(tmp_path: Path):
    master, slave = os.openpty()
    os.close(master)
    speak(tmp_path, stdout=slave, stderr=slave)
    os.close(slave)


def test_without_any_console_no_file_takes_its_place(tmp_path: Path):
    speak(tmp_path, preexec_fn=lambda: [os.close(descriptor) for descriptor in (0, 1, 2)])


def test_what_a_console_cannot_spell_is_written_another_way(tmp_path: Path):
    code = "from xlpretrain.tracking.console import outlive_console; outlive_console(); print('Grüße')"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "Gr\\xfc\\xdfe\n"


def test_a_console_that_takes_nothing_holds_nobody_up_and_says_that_lines_are_missing(tmp_path: Path):
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", SPEAK, tmp_path / "done", "more"], stdin=subprocess.PIPE, stdout=writer, stderr=writer
    )
    os.close(writer)
    while not (tmp_path / "done").exists():
        assert process.poll() is None
        time.sleep(0.05)
    assert process.stdin is not None
    first = os.read(reader, 1 << 20)  # what the pipe held; now there is room
    process.stdin.write(b"\n")
    process.stdin.close()
    assert process.wait(60) == 0
    assert first.startswith(b"line 0\n")
    assert b"lines are missing here" in (rest := os.read(reader, 1 << 20))
    assert rest.endswith(b"once more\n")
    os.close(reader)


@pytest.mark.parametrize("reader", ["dies", pytest.param("never reads", marks=pytest.mark.full)])
def test_a_run_whose_console_and_plots_fail_trains_on_and_saves_at_a_stop(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str
):
    """`xlpretrain train CONFIG | tee log`, and Ctrl-C, which ends `tee` as well; and matplotlib is broken."""
    (tmp_path / "broken" / "matplotlib").mkdir(parents=True)
    (tmp_path / "broken" / "matplotlib" / "__init__.py").write_text("raise RuntimeError('a broken installation')")
    monkeypatch.setattr(commands, "EXTRA", {"PYTHONPATH": str(tmp_path / "broken")})
    config = commands.write_config(
        tmp_path / "tiny.yaml",
        tiny_dataset,
        engine={"type": "plain", "precision": "fp32"},
        wandb={"mode": "disabled"},
        checkpoint={"every_steps": 100_000},
        eval={"every_steps": 100_000, "max_tokens": 2000},
        max_steps=100_000,
    )
    run = tmp_path / "runs" / "run"
    process = commands.start("train", config, "--nproc", 2)
    commands.wait_for_step(run, 3, process)
    assert process.stdout is not None and process.stderr is not None
    if reader == "dies":
        process.stdout.close()
        process.stderr.close()
    else:
        commands.wait_for_step(run, 1000, process)  # 90 characters each: the pipe is full by then
    seen = max(row["step"] for row in commands.read_metrics(run))
    commands.wait_for_step(run, seen + 10, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 75
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["reason"]) == ("stopped", "signal")
    assert verify_whole(list_checkpoints(run / "checkpoints")[0]).step == status["step"] >= seen + 10
    rows = commands.read_metrics(run)
    assert [row["step"] for row in rows] == list(range(1, status["step"] + 1))
    assert "loss.png: cannot be written: RuntimeError: a broken" in (run / "logs" / "rank-00000.log").read_text()
    for stream in (process.stdout, process.stderr):
        stream.close()


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (187, "3 min 7 s"), (18_750, "5 h 12 min"), (97_300, "1 d 3 h")],
)
def test_a_time_span_is_said_in_its_two_largest_units(seconds: float, said: str):
    assert format_duration(seconds) == said
