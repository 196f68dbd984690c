"""Decisions of a job: healthy nodes, the rendezvous address, and restarts."""

from __future__ import annotations

import json
import signal
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm
from webhook_server import receiving

from launcher.slurm import history
from launcher.slurm.job import allocation, attempt, node_check, requeue
from launcher.slurm.job.allocation import Allocation
from launcher.slurm.profile import ClusterConfig
from launcher.slurm.records import AttemptEnd, AttemptStart, SlurmFolder
from launcher.slurm.submission import plain_sbatch
from launcher.slurm.submission.job_entry import resubmit
from xlpretrain import schema
from xlpretrain.errors import LaunchError
from xlpretrain.run_dir.layout import RunDir
from xlpretrain.run_dir.outcome import Verdict

NODES = ("n1", "n2", "n3")
JOB = Allocation(job_id="7_3", number="7", restart=0, cluster="c", nodes=NODES)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """Hide all Slurm commands."""
    return FakeSlurm(tmp_path, monkeypatch)


def said(*lines: tuple[str, str, list[str]]) -> str:
    return "".join(json.dumps({"node": n, "stage": s, "problems": p}) + "\n" for n, s, p in lines) + "noise {\n"


def all_at(stage: str, nodes: Sequence[str] = NODES) -> list[tuple[str, str, list[str]]]:
    return [(node, stage, []) for node in nodes]


@pytest.mark.parametrize(
    ("lines", "broken"),
    [
        ([*all_at("looked"), *all_at("joined"), *all_at("summed")], set()),
        ([*all_at("looked", ["n1", "n3"]), ("n2", "looked", ["found 7 GPUs, expected 8"])], {"n2"}),
        (all_at("looked", ["n1", "n2"]), {"n3"}),
        ([*all_at("looked"), *all_at("joined", ["n1", "n2"])], {"n3"}),
        ([*all_at("looked"), *all_at("joined", ["n1"])], {"n1"}),
    ],
    ids=["sound", "GPU lost", "silent", "cut off", "head unreachable"],
)
def test_a_failed_node_is_named(lines: list[tuple[str, str, list[str]]], broken: set[str]) -> None:
    found = node_check.check_reports(said(*lines), NODES)
    assert set(found.failed_nodes) == broken
    assert found.error == ""


def test_no_node_is_blamed_without_evidence() -> None:
    every = [(node, "looked", ["found 0 GPUs, expected 8"]) for node in NODES]
    assert (
        node_check.check_reports(said(*every), NODES).error
        == "all 3 nodes failed the health check; n1: found 0 GPUs, expected 8"
    )
    assert node_check.check_reports(said(every[0]), NODES[:1]).failed_nodes == {"n1": "found 0 GPUs, expected 8"}
    assert "no node answered" in node_check.check_reports("srun: error: nothing works\n", NODES).error
    found = node_check.check_reports(said(*all_at("looked"), *all_at("joined"), ("n1", "summed", [])), NODES)
    assert (found.failed_nodes, "did not finish an all-reduce" in found.error) == ({}, True)


def starts(*made: tuple[str, int, int | None], outcome: str = "requeued") -> list[AttemptStart | AttemptEnd]:
    """Events of attempts, each given by its job, first step and last step (None: its end was not recorded)."""
    events: list[AttemptStart | AttemptEnd] = []
    for job, began, ended in made:
        events.append(AttemptStart(job, 0, 0.0, NODES, 3, began))
        if ended is not None:
            events.append(AttemptEnd(0.0, outcome, 1, ended))  # type: ignore[arg-type]
    return events


@pytest.mark.parametrize(
    ("events", "attempts_without_progress"),
    [
        (starts(("7", 0, 0)), 1),
        (starts(("7", 0, 0), ("7", 0, 0)), 2),
        (starts(("7", 0, 0), ("7", 0, 5), ("7", 5, 5)), 1),
        (starts(("6", 0, 0), ("7", 0, 0)), 1),
        (starts(("7", 0, 0), ("7", 0, None), ("7", 0, 0)), 2),
        (starts(("7", 0, None), ("7", 0, None)), 0),
        (starts(("7", 0, 0), ("7", 0, 0), outcome="stopped"), 0),
        ([*starts(("6", 0, 0)), AttemptEnd(0.0, "resubmitted", 1, 0), *starts(("7", 0, 0))], 2),
    ],
    ids=["one", "two", "progress", "another job", "taken between", "taken", "Slurm's", "submitted itself anew"],
)
def test_attempts_without_progress_are_consecutive_ones_without_a_new_checkpoint(
    events: list[AttemptStart | AttemptEnd], attempts_without_progress: int
) -> None:
    assert history.attempts_without_progress(history.since_submitted(events)) == attempts_without_progress


def test_requeues_are_capped_by_count_and_by_progress() -> None:
    crash = Verdict("crashed", 1, "crashed: words")
    handed_on = [AttemptEnd(0.0, "resubmitted", 1, 5)]
    given = {"max_requeues": 3, "verdict": crash}
    assert history.stop_reason(starts(("7", 0, 0)), restart=2, **given) is None  # type: ignore[arg-type]
    why = history.stop_reason(starts(("7", 0, 5)), restart=3, **given)  # type: ignore[arg-type]
    assert why is not None and "3 times, the limit set by max_requeues" in why
    chain = [event for job in "789" for event in (*starts((job, 0, 5)), *handed_on)]
    why = history.stop_reason([*chain, *starts(("10", 5, 9))], restart=0, **given)  # type: ignore[arg-type]
    assert why is not None and "3 times, the limit set by max_requeues" in why
    why = history.stop_reason(starts(("7", 0, 0), ("7", 0, 0)), restart=1, **given)  # type: ignore[arg-type]
    assert why is not None and "2 consecutive attempts wrote no new checkpoint" in why
    assert "crashed: words" in why


def test_an_address_that_resolves_is_found_by_way_of_slurm(slurm: FakeSlurm) -> None:
    slurm.has("scontrol", "NodeName=no.such.host.invalid NodeAddr=127.0.0.1 NodeHostName=other.invalid")
    found = allocation.addresses("no.such.host.invalid")
    assert found == ["no.such.host.invalid", "127.0.0.1", "other.invalid"]
    assert allocation.choose_address(found) == "127.0.0.1"


def test_without_scontrol_the_node_itself_is_queried(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm.has("srun", "::1 127.0.0.1")
    found = allocation.addresses("no.such.host.invalid")
    assert allocation.choose_address(found) == "127.0.0.1"
    slurm.has("srun", "")
    with pytest.raises(LaunchError, match=r"none of its addresses \(no\.such\.host\.invalid\) can be resolved"):
        allocation.addresses("no.such.host.invalid")
    monkeypatch.setenv(allocation.MASTERS, "a.invalid b.invalid")
    with pytest.raises(LaunchError, match=r"cannot resolve any rendezvous address \(a\.invalid, b\.invalid\)"):
        allocation.choose_address()


def test_ports_differ_by_job_and_restart() -> None:
    ports = {allocation.free_port(job, restart) for job in (7, 8) for restart in (0, 1)}
    assert len(ports) == 4
    assert all(12000 <= port < 32000 for port in ports)


def test_reaching_a_port_waits_for_late_listeners_up_to_the_timeout() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        assert not allocation.can_reach("127.0.0.1", port, timeout_s=0.5)
        late = threading.Timer(0.5, listener.listen)
        late.start()
        assert allocation.can_reach("127.0.0.1", port, timeout_s=30)
        late.join()


def test_ranks_start_with_the_options_that_slurm_needs() -> None:
    site = ClusterConfig(gpus_per_node=8, cpus_per_task=4, python="/py", srun=("--cpu-bind=cores",))
    command = allocation.rank_command(site, NODES[:2], ["-m", "x"], meet_at="n1:12000", grace_s=600)
    for part in ("--ntasks=16", "--nodelist=n1,n2", "--kill-on-bad-exit=1", "--cpus-per-task=4"):
        assert part in command
    assert not any(part.startswith("--gpu") for part in command)
    assert command[-5:] == ["--cpu-bind=cores", "/py", "-u", "-m", "x"]
    boxed = site.model_copy(update={"launch": "torchrun", "container": ("--container-image=i",)})
    command = allocation.rank_command(boxed, NODES[:2], ["-m", "x"], meet_at="n1:12000", grace_s=600)
    for part in ("--ntasks=2", "--cpus-per-task=32", "--container-image=i", "--rdzv-endpoint=n1:12000", "bash"):
        assert part in command
    assert "/py" not in command
    assert "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600" in command
    assert not any("shutdown-timeout" in part for part in command), "older versions of torch refuse that"


def put_back(run: RunDir, slurm: FakeSlurm) -> str | None:
    records = SlurmFolder.of(run)
    records.path.mkdir(parents=True)
    records.exclude(["n2"])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        return requeue.requeue(
            run, JOB, ClusterConfig(sbatch={"exclude": "n9"}), AttemptEnd(0.0, "requeued", 75, 5), resubmit
        )
    finally:
        signal.signal(signal.SIGTERM, handler)


def test_a_job_is_requeued_without_failed_nodes(slurm: FakeSlurm, tmp_path: Path) -> None:
    slurm.has("scontrol", "JobState=RUNNING EndTime=2026-01-01T00:00:00")
    assert requeue.can_requeue(JOB)
    assert put_back(RunDir(tmp_path / "run"), slurm) is None
    assert slurm.asked[-2:] == ["scontrol requeue 7_3", "scontrol update JobId=7_3 ExcNodeList=n9,n2"]


@pytest.mark.parametrize(("max_requeues", "restarting"), [(3, True), (0, False)])
def test_the_supervisor_of_a_job_sends_the_alert_on_a_crash(
    slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_requeues: int, restarting: bool
) -> None:
    slurm.has("scontrol", "JobState=RUNNING EndTime=2099-01-01T00:00:00 NodeAddr=127.0.0.1")
    slurm.has("srun", "nothing was trained")
    run = RunDir(tmp_path / "run")
    records = SlurmFolder.of(run)
    records.path.mkdir(parents=True)
    run.logs.mkdir()
    site = ClusterConfig.model_validate({"max_requeues": max_requeues, "health_check": {"enabled": False}})
    records.cluster.write_text(schema.dump(site))
    records.config.write_text("alerts: {webhook: $TEAM_WEBHOOK}\n")
    job = Allocation(job_id="7", number="7", restart=0, cluster="c", nodes=("localhost",))
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with receiving() as server:
            monkeypatch.setenv("TEAM_WEBHOOK", server.url)
            attempt._start(run, job, resubmit)
    finally:
        signal.signal(signal.SIGTERM, handler)
    (alert,) = server.alerts
    assert (alert["event"], alert["restarting"]) == ("failure", restarting)
    assert "crashed: exit code 0; no output from rank 0" in alert["message"]
    assert ("max_requeues is 0" in alert["message"]) is not restarting
    assert ("scontrol requeue 7" in slurm.asked) is restarting


@pytest.mark.parametrize("state", ["PENDING", "COMPLETING", "CANCELLED"])
def test_a_job_that_slurm_or_a_user_ended_is_not_requeued(slurm: FakeSlurm, state: str) -> None:
    slurm.has("scontrol", f"JobState={state} EndTime=Unknown")
    assert not requeue.can_requeue(JOB)


def test_without_scontrol_and_sbatch_the_user_is_told(slurm: FakeSlurm, tmp_path: Path) -> None:
    assert requeue.can_requeue(JOB)
    why = put_back(RunDir(tmp_path / "run"), slurm)
    assert why is not None
    assert "neither scontrol nor sbatch works here; `xlpretrain resume" in why


def test_a_plain_job_keeps_a_file_in_the_place_of_its_link(
    slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "a"}.items():
        monkeypatch.setenv(name, value)
    mine = tmp_path / "slurm-7.run"
    mine.write_text("mine")
    assert plain_sbatch.main(["run.yaml"]) == 2
    assert f"{mine}: expected a link to the run folder, got something else; move it away" in capsys.readouterr().err
    assert mine.read_text() == "mine"


def test_a_plain_job_is_a_site_profile() -> None:
    environment = {"SLURM_JOB_PARTITION": "gpu", "SLURM_NTASKS_PER_NODE": "8", "SLURM_JOB_ACCOUNT": "(null)"}
    site = plain_sbatch.profile_from_job(JOB, environment)
    assert (site.partition, site.num_tasks, site.account, site.nodes) == ("gpu", 8, None, "1-3")
