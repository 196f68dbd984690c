import signal
import subprocess
import time
from pathlib import Path

import commands
import pytest

from launcher.cli.monitor import logs
from xlpretrain.errors import LaunchError
from xlpretrain.run_dir import job_log
from xlpretrain.run_dir.layout import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "a run")
    run.logs.mkdir(parents=True)
    run.config.touch()
    return run


def show(run: RunDir, rank: int | None = None, num_lines: int = 200) -> None:
    logs.show(run, rank=rank, num_lines=num_lines, follow=False)


def test_the_job_and_rank_0_unless_another_rank_is_named(run: RunDir, capfdbinary):
    (run.logs / "job.log").write_text("submitted\nstarted\n")
    (run.logs / "rank-00000.log").write_bytes(b"step 1\nstep 2 \xff\n")
    (run.logs / "rank-00003.log").write_text("from 3\n")
    show(run)
    names = [f"==> {run.logs / name} <==".encode() for name in ("job.log", "rank-00000.log")]
    expected = [names[0], b"submitted", b"started", b"", names[1], b"step 1", b"step 2 \xff", b""]
    assert capfdbinary.readouterr().out.split(b"\n") == expected
    show(run, rank=3)
    assert capfdbinary.readouterr().out == b"from 3\n"
    show(run, num_lines=1)
    assert b"step 1" not in capfdbinary.readouterr().out


def test_long_logs_are_cut_unless_all_lines_are_requested(run: RunDir, capfd):
    lines = [f"line {n}" for n in range(200_000)]
    (run.logs / "rank-00001.log").write_text("\n".join(lines))
    show(run, rank=1)
    assert capfd.readouterr().out.splitlines() == lines[-200:]
    show(run, rank=1, num_lines=0)
    assert capfd.readouterr().out.splitlines() == lines


def test_missing_logs_are_named(run: RunDir):
    with pytest.raises(LaunchError, match=r"no job.log or rank-00000.log yet.*-f waits"):
        show(run)
    (run.logs / "rank-00001.log").touch()
    with pytest.raises(LaunchError, match=r"no rank-00009.log; found rank-00001.log"):
        show(run, rank=9)


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("--- now\nstep 1\n", "step 1"),
        ("--- then\nRuntimeError: old\n--- now\n", ""),
        (
            "--- now\nTraceback (most recent call last):\n  File x\nKeyError: 'a'\n[W1 c10d] a warning\n",
            "KeyError: 'a'",
        ),
        ("--- now\n[rank1]: torch.OutOfMemoryError: 3 GiB\n", "[rank1]: torch.OutOfMemoryError: 3 GiB"),
        ("--- now\nFatal Python error: Aborted\n\nThread 1:\n  File x\n", "Fatal Python error: Aborted"),
        ("--- now\nstep 1\nerror: rank 1 exits: no progress\n", "rank 1 exits: no progress"),
    ],
    ids=["no reason", "another start's", "traceback", "of torch", "of C++", "ours"],
)
def test_the_last_words_of_an_attempt_are_its_reason(tmp_path: Path, log: str, words: str):
    path = tmp_path / "rank-00000.log"
    path.write_text(log)
    assert job_log.last_words(path) == words
    assert job_log.last_words(tmp_path / "none") == ""


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_following_survives_late_and_replaced_files_and_ends_quietly(run: RunDir):
    process = commands.start("logs", run.path, "--follow", "--rank", 0)
    log = run.logs / "rank-00000.log"
    try:
        time.sleep(1)
        log.write_text("first\n")
        assert read_line(process) == "first\n"
        with log.open("a") as file:
            file.write("second\n")
        assert read_line(process) == "second\n"
        (run.logs / "new").write_text("replaced\n")
        (run.logs / "new").rename(log)
        assert read_line(process) == "replaced\n"
        process.send_signal(signal.SIGINT)
        assert commands.finish(process, expect=0, timeout_s=20) == ("", "")
    finally:
        process.kill()
