import json
import os
import time
from pathlib import Path

import pytest
from fake_slurm import UNKNOWN, FakeSlurm

from launcher.cli.monitor import run_status, status
from launcher.slurm.records import AttemptEnd, AttemptStart, Job, SlurmFolder
from xlpretrain.errors import LaunchError
from xlpretrain.run_dir import lease
from xlpretrain.run_dir.layout import RunDir, Status


def make_run(path: Path, *, state: str = "running", step: int = 200, rows: int = 200, **more) -> RunDir:
    """Make a run that has logged `rows` steps of half a second."""
    run = RunDir(path)
    run.create(config="max_steps: 1000\n", provenance={})
    run.write_status(Status(state, step=step, max_steps=1000, world_size=4, **more))
    with run.metrics.open("w") as file:
        for n in range(1, rows + 1):
            row = {"step": n, "train/loss": 5 + 1 / n, "time/tokens_per_second": 12345.6, "goodput/step_s": n * 0.4}
            file.write(json.dumps({**row, "goodput/eval_s": n * 0.1, "goodput/restart_s": n * 7.0}) + "\n")
    return run


def submit(run: RunDir, job_id: str = "12", *events: AttemptStart | AttemptEnd) -> None:
    slurm = SlurmFolder.of(run)
    slurm.path.mkdir(parents=True, exist_ok=True)
    slurm.write_job(Job(job_id, "big", time.time(), "2-4", str(run.path / "logs" / "job.log")))
    for event in events:
        slurm.append(event)


def table(capsys: pytest.CaptureFixture[str], runs_dir: Path) -> dict[str, str]:
    """Output of `status` for each run."""
    status.show_all(runs_dir)
    lines = capsys.readouterr().out.splitlines()
    return {line.split("  ")[0]: line for line in lines[1:]}


def test_the_state_is_slurms_where_slurm_has_the_run(tmp_path: Path, fake_slurm: FakeSlurm, capsys):
    runs = tmp_path / "runs"
    for name, job in [
        ("waits", "1"),
        ("runs", "2"),
        ("failed", "3"),
        ("stopped", "4"),
        ("forgotten", "5"),
        ("new", "6"),
    ]:
        state = {"runs": "running", "stopped": "stopped"}.get(name, "failed")
        run = make_run(runs / name, state=state, reason={"stopped": "user", "failed": "error"}.get(state, ""))
        if name == "runs":
            lease.acquire(run.lease, launch_id="x", take_over=False)
        submit(run, job)
    make_run(runs / "local", state="finished", step=1000)
    fake_slurm.has(
        "squeue",
        "1|PENDING||N/A|Resources\n2|RUNNING|node[1-2]|N/A|None\n3|FAILED|node1|N/A|NonZeroExitCode\n4|COMPLETED|node1|N/A|None\n"
        "6|RUNNING|node1|N/A|None",
    )
    lines = table(capsys, runs)
    assert "PENDING (Resources)" in lines["waits"]
    assert "RUNNING  " in lines["runs"]
    assert "FAILED: failed" in lines["failed"]
    assert "COMPLETED: stopped by the user" in lines["stopped"]
    assert "ended: failed" in lines["forgotten"]
    assert "RUNNING (starting or ending)" in lines["new"]
    assert "local: finished" in lines["local"]
    assert len([asked for asked in fake_slurm.asked if asked.startswith("squeue")]) == 1


def test_progress_speed_and_what_is_left(tmp_path: Path, fake_slurm: FakeSlurm, capsys):
    run = make_run(tmp_path / "runs" / "one")
    lease.acquire(run.lease, launch_id="x", take_over=False)
    line = table(capsys, tmp_path / "runs")["one"]
    assert "local: running" in line
    assert "200/1,000  20%   5.005  12,346" in line
    assert "7 min" in line, "800 steps of 0.5 s; restarts do not count"
    assert os.uname().nodename in line
    [view] = run_status.collect([run])
    assert view.heartbeat_s is not None and view.heartbeat_s < 5


def test_a_local_run_without_a_heartbeat_has_crashed(tmp_path: Path, fake_slurm: FakeSlurm):
    run = make_run(tmp_path / "one")
    assert run_status.collect([run])[0].state == "local: crashed"
    lease.acquire(run.lease, launch_id="x", take_over=False)
    assert run_status.collect([run])[0].state == "local: running"
    os.utime(run.lease / "00000001", (time.time() - 100,) * 2)
    assert run_status.collect([run])[0].state == "local: crashed"


def test_a_crash_is_reported_with_the_last_words_of_the_log(tmp_path: Path, fake_slurm: FakeSlurm, capsys):
    run = make_run(tmp_path / "one")
    run.logs.mkdir()
    run.rank_log(0).write_text("--- now\nTraceback\nKeyError: 'x'\n")
    assert run_status.collect([run])[0].message == "KeyError: 'x'"
    run.job_log.write_text("--- now\nerror: the run crashed after step 5: rank 1 was killed by SIGKILL\n")
    status.show_one(run.path)
    assert "the run crashed after step 5: rank 1 was killed by SIGKILL" in capsys.readouterr().out


def test_without_slurm_the_state_comes_from_the_run_folder(tmp_path: Path, fake_slurm: FakeSlurm):
    run = make_run(tmp_path / "one", state="stopped", reason="signal")
    submit(run)
    assert run_status.collect([run])[0].state == "stopped by a signal (no answer from Slurm)"


def test_incomplete_folders_are_accepted(tmp_path: Path, fake_slurm: FakeSlurm, capsys):
    runs = tmp_path / "runs"
    submit(RunDir(runs / "only submitted"))
    (runs / "only submitted" / "slurm" / "config.yaml").write_text("max_steps: 50\n")
    for name, files in {
        "broken": {"config.yaml": "{", "status.json": "", "metrics.jsonl": '{"step": 1', "slurm/job.json": "[]"},
        "odd": {"config.yaml": "- x", "status.json": "{}", "metrics.jsonl": 'null\n{"step": "x"}\n\xff\n'},
        "newer": {"config.yaml": "", "status.json": '{"state": "running", "new": 1}', "slurm/starts.jsonl": "{}\nx"},
        "sweep/lr=1": {"config.yaml": "max_steps: null"},
    }.items():
        for file, text in files.items():
            path = runs / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="latin-1")
    (runs / "empty").mkdir()
    (runs / "[red]\tname").mkdir()
    (runs / "[red]\tname" / "config.yaml").touch()
    fake_slurm.has("squeue", "12|PENDING||N/A|Priority")
    lines = table(capsys, runs)
    assert set(lines) == {"only submitted", "broken", "odd", "newer", "sweep/lr=1", "[red]\\tname"}
    assert "PENDING (Priority)" in lines["only submitted"]
    assert "0/50" in lines["only submitted"]
    for name in (*lines, "[red]\tname"):
        if (runs / name).exists():
            status.show_one(runs / name)


def test_the_tail_of_a_big_file_is_enough(tmp_path: Path, fake_slurm: FakeSlurm):
    run = make_run(tmp_path / "one", step=50_000, rows=50_000)
    with run.metrics.open("r+b") as file:
        file.write(b"\xff")  # reading the beginning would fail
    [view] = run_status.collect([run])
    assert view.loss == 5 + 1 / 50_000


def test_one_run_with_its_history(tmp_path: Path, fake_slurm: FakeSlurm, capsys):
    run = make_run(tmp_path / "a run", state="failed", reason="crash", message="rank 3 died")
    now = time.time()
    submit(
        run,
        "12",
        AttemptStart("11", 0, now - 900, ("node1", "node2"), 4, 0),
        AttemptEnd(now - 700, "requeued", 75, 100),
        AttemptStart("11", 1, now - 600, ("node1", "node3"), 4, 100),  # its node died, so the end was not recorded
        AttemptStart("12", 0, now - 300, ("node3",), 2, 150),
        AttemptEnd(now - 1, "failed", 1, 150, "two starts without a new step"),
    )
    SlurmFolder.of(run).exclude(["node2"])
    run.stop_file.touch()
    run.logs.mkdir()
    (run.logs / "job.log").touch()
    fake_slurm.has("squeue", error=UNKNOWN)
    status.show_one(run.path)
    printed = capsys.readouterr().out
    for expected in (
        "ended: failed",
        "12 on big",
        "message   two starts without a new step",
        "restarts  2",
        "excluded  node2",
        f"xlpretrain resume '{run.path}'",
        f"{run.path}/logs: job.log",
        "failed: two starts without a new step",
        "11, restart 1",
        "node1,node3",
    ):
        assert expected in printed, printed
    assert printed.splitlines()[-3].split()[-1] == "requeued"


def test_missing_runs_are_named(tmp_path: Path, capsys):
    with pytest.raises(LaunchError, match="not a run folder"):
        status.show_one(tmp_path)
    with pytest.raises(LaunchError, match=r"no such folder.*--runs-dir"):
        status.show_all(tmp_path / "none")
    status.show_all(tmp_path)
    assert "no runs" in capsys.readouterr().out
