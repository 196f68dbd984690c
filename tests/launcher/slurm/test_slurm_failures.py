"""Failures of a run on a real cluster: preemption, lost nodes, hangs, and missing commands."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import commands
import psutil
import pytest
from commands import curve
from repository import ROOT
from slurm_cluster import SlurmCluster, wait_until
from slurm_runs import LONG, Site, each_step_once, ends, finish, log, ranks, sick_python, starts, status, wait_for_step
from webhook_server import receiving

# Nodes and their timeouts are real, and slow on a busy machine.
pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]


@pytest.fixture
def site(tmp_path: Path, tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[SlurmCluster], Site]:
    """A user's folder, on a cluster."""
    monkeypatch.chdir(tmp_path)
    return lambda cluster: Site(cluster, tmp_path, tiny_dataset)


def preempt(cluster: SlurmCluster) -> None:
    other = cluster.sbatch("sleep 1", "--partition=high", "--nodes=3", "--exclusive")
    cluster.wait_for(other, "COMPLETED")


def test_preempted_with_grace_time_it_loses_nothing(make_slurm_cluster, site):
    cluster = make_slurm_cluster(grace_s=8)
    submit = site(cluster)
    (job,) = submit(LONG, "--nodes", 3, partition="low", tasks_per_node=1)
    wait_for_step(submit.run, 20)
    preempt(cluster)
    _, second = starts(submit.goes_on(job))
    assert second.step >= 20, "it saved on the signal, and at no other time"
    assert each_step_once(submit.run) == 0


@pytest.mark.full
def test_preempted_without_grace_time_it_loses_the_steps_since_the_last_checkpoint(slurm_cluster, site, tmp_path):
    submit = site(slurm_cluster)
    deaf = sick_python(
        tmp_path / "python",
        when='[[ "$*" == *launcher.slurm.job.rank* ]]',
        then=f'exec env --block-signal=TERM {sys.executable} "$@"',
    )
    overrides = {**LONG, "checkpoint.every_steps": 50}
    (job,) = submit(overrides, "--nodes", 3, partition="low", tasks_per_node=1, python=str(deaf))
    wait_for_step(submit.run, 60)
    preempt(slurm_cluster)
    events = submit.goes_on(job)
    _, second = starts(events)
    assert second.step >= 50 and second.step % 50 == 0
    assert [end.outcome for end in ends(events)] == ["stopped"], "the first attempt was killed"
    assert 0 < each_step_once(submit.run) <= 50


@pytest.mark.full
def test_a_node_dies_and_the_run_continues_with_the_others(slurm_cluster, site, tmp_path):
    submit = site(slurm_cluster)
    recipe = {**LONG, "engine.precision": "fp32", "model.dropout": 0.0, "schedule.total_steps": 5000}
    overrides = {**recipe, "checkpoint.every_steps": 20}
    (job,) = submit(overrides, "--nodes", "1-3", tasks_per_node=1, health_check={"timeout_s": 60})
    wait_for_step(submit.run, 30)
    slurm_cluster.kill_node("node2")
    wait_until(lambda: slurm_cluster.job(job)["NodeList"] == "node[1,3]", 90, lambda: log(submit.run))
    events = submit.goes_on(job)
    first, *others = starts(events)
    assert (first.nodes, first.world_size) == (("node1", "node2", "node3"), 3)
    assert (others[-1].nodes, others[-1].world_size) == (("node1", "node3"), 2)
    assert each_step_once(submit.run) <= 20 * len(others)
    there = curve(submit.run)
    alone = {**recipe, "max_steps": max(there), "name": "here"}
    commands.run("train", tmp_path / "config.yaml", *(f"{k}={v}" for k, v in alone.items()), "--nproc", 1)
    here = curve(tmp_path / "runs" / "here")
    apart = max(abs(there[step][0] - here[step][0]) for step in there)
    print(f"{len(there)} steps, {len(others)} restarts, largest difference of a loss: {apart:.2g}")
    assert apart < 1e-4


@pytest.mark.full
@pytest.mark.parametrize(("cut", "left"), [("node1", "node2"), ("node2", "node1")], ids=["rank 0", "rank 1"])
def test_a_disconnected_node_writes_nothing_more(make_slurm_cluster, site, cut: str, left: str):
    cluster = make_slurm_cluster(isolation="netns")
    submit = site(cluster)
    (job,) = submit({**LONG, "checkpoint.every_steps": 20}, "--nodes", 2, tasks_per_node=1)
    wait_for_step(submit.run, 25)
    [old] = [process for (node, _), process in ranks(cluster).items() if node == cut]
    cluster.cut_node(cut)
    begun = time.monotonic()
    # The run folder stays reachable: all nodes share this machine's disk.
    wait_until((submit.run / "lease" / "00000002").exists, 240, lambda: f"{cluster.job(job)}\n{log(submit.run)}")
    taken = time.monotonic()
    print(f"another attempt owned the run {taken - begun:.1f} s after the cut")
    if cut == "node1":  # rank 0, the only one that writes
        wait_until(lambda: has_ended(old), 15, lambda: "it lives")
        print(f"the cut-off writer ended {time.monotonic() - taken:.1f} s after that")
    events = submit.goes_on(job)
    assert [start.nodes for start in starts(events)] == [("node1", "node2"), (left, "node3")]
    assert [end.outcome for end in ends(events)] == ["stopped"]
    assert each_step_once(submit.run) <= 20
    before = snapshot(submit.run)
    cluster.reset()
    time.sleep(5)
    wait_until(lambda: has_ended(old), 120, lambda: "it lives")
    assert snapshot(submit.run) == before


def has_ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def snapshot(run: Path) -> dict[Path, tuple[int, bytes]]:
    """All files of a run except its logs."""
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in run.rglob("*")
        if path.is_file() and path.parent.name != "logs"
    }


def test_a_hung_rank_is_restarted_with_the_others_and_alerts_are_sent(slurm_cluster, site):
    submit = site(slurm_cluster)
    overrides = {**LONG, "checkpoint.every_steps": 20, "watchdog.timeout_s": 20, "alerts.webhook": "$TEAM_WEBHOOK"}
    with receiving() as server:
        slurm_cluster.env["TEAM_WEBHOOK"] = server.url
        (job,) = submit(overrides, "--nodes", 2, tasks_per_node=1)
        wait_for_step(submit.run, 25)
        ranks(slurm_cluster)["node2", 1].suspend()
        events = submit.goes_on(job)
    assert [(alert["event"], alert["restarting"]) for alert in server.alerts] == [
        ("start", False),
        ("stall", True),
        ("start", False),
        ("stop", False),
    ]
    assert [ends(events)[0].outcome, ends(events)[-1].outcome] == ["requeued", "stopped"]
    assert "no progress for 20 s; see its stacks in" in ends(events)[0].message
    assert starts(events)[1].step >= 20
    assert each_step_once(submit.run) <= 20


def test_an_ordinary_user_trains_on_nodes_whose_names_do_not_resolve(make_slurm_cluster, tiny_dataset, monkeypatch):
    root = os.geteuid() == 0
    cluster = make_slurm_cluster(isolation="none", user="nobody" if root else "")
    home = cluster.folder / "home"
    shutil.copytree(tiny_dataset, home / "data")
    if root:
        for path in [home, *home.rglob("*")]:
            shutil.chown(path, "nobody")
    cluster.env["HOME"] = str(home)
    monkeypatch.chdir(home)
    site = Site(cluster, home, home / "data", python=[python_of(cluster)])
    (job,) = site(LONG, "--nodes", 2, tasks_per_node=1, health_check={"timeout_s": 60})
    wait_for_step(site.run, 5)
    cluster.run("scancel", "--signal=USR2", job)
    events = site.goes_on(job)
    assert [end.outcome for end in ends(events)] == ["requeued", "stopped"]
    assert "2 ranks on node1, node2, rendezvous at 127.0.0.1:" in log(site.run)
    assert each_step_once(site.run) == 0
    assert site.run.stat().st_uid == cluster.folder.stat().st_uid


def python_of(cluster: SlurmCluster) -> str:
    """Make an interpreter of this version, with the same packages, that the cluster's user can run."""
    cluster.env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), *sys.path[1:]]))
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        try:
            cluster.run("bash", "-c", f"{python} -c 'import torch, launcher.cli.main'")
        except (AssertionError, subprocess.SubprocessError) as error:
            print(error)
        else:
            return python
    pytest.skip("this Python is only accessible to root, and there is no other of its version")


def without(folder: Path, *missing: str) -> str:
    """A job script line that hides Slurm commands."""
    folder.mkdir()
    for name in {"srun", "sbatch", "squeue", "scontrol", "sacct", "scancel"} - set(missing):
        (folder / name).symlink_to(str(shutil.which(name)))
    for place in ("/bin", "/usr/bin"):
        for program in Path(place).iterdir():
            link = folder / program.name
            if program.name not in missing and not link.is_symlink():
                link.symlink_to(program)
    return f"export PATH={folder}"


def test_without_scontrol_the_run_resubmits_itself(slurm_cluster, site, tmp_path, monkeypatch):
    submit = site(slurm_cluster)
    setup = [without(tmp_path / "bin", "scontrol", "sacct")]
    (job,) = submit(LONG, "--nodes", 2, tasks_per_node=1, setup=setup)
    wait_for_step(submit.run, 5)
    slurm_cluster.run("scancel", "--signal=USR2", job)
    slurm_cluster.wait_for(job, "FAILED")
    events = submit.goes_on(another := str(int(job) + 1))
    assert [end.outcome for end in ends(events)] == ["requeued", "resubmitted", "stopped"]
    assert [(start.job_id, start.restart) for start in starts(events)] == [(job, 0), (another, 0)]
    assert each_step_once(submit.run) == 0
    setup = [without(tmp_path / "bin2", "scontrol", "sbatch", "sacct", "squeue")]
    (job,) = submit({**LONG, "name": "two"}, "--nodes", 1, tasks_per_node=1, setup=setup)
    wait_for_step(tmp_path / "runs" / "two", 5)
    slurm_cluster.run("scancel", "--signal=USR2", job)
    slurm_cluster.wait_for(job, "FAILED")
    path = without(tmp_path / "bin3", "sacct", "squeue").removeprefix("export PATH=")
    monkeypatch.setitem(slurm_cluster.env, "PATH", path)
    told = submit.xlpretrain("status", tmp_path / "runs" / "two")
    assert "neither scontrol nor sbatch works here; `xlpretrain resume" in told
    assert "FAILED: stopped by a signal" in told


@pytest.mark.full
def test_a_run_that_crashes_at_once_fails_without_scontrol_too(slurm_cluster, site, tmp_path):
    submit = site(slurm_cluster)
    python = sick_python(tmp_path / "python", when='[[ "$*" == *launcher.slurm.job.rank* ]]')
    (job,) = submit(None, python=str(python), setup=[without(tmp_path / "bin", "scontrol")])
    slurm_cluster.wait_for(job, "FAILED")
    events = finish(slurm_cluster, str(int(job) + 1), submit.run, "FAILED")
    assert [end.outcome for end in ends(events)] == ["requeued", "resubmitted", "failed"]
    assert "2 consecutive attempts wrote no new checkpoint" in status(submit.run).message
    assert slurm_cluster.run("squeue", "-h") == ""


def test_every_rank_sees_all_gpus_and_a_node_without_gpus_starts_no_ranks(make_slurm_cluster, site, tmp_path):
    cluster = make_slurm_cluster(gpus=2)
    submit = site(cluster)
    python = sick_python(
        tmp_path / "python",
        when='[[ "$*" == *launcher.slurm.job.rank* ]]',
        then=f'echo "$SLURMD_NODENAME $SLURM_LOCALID $CUDA_VISIBLE_DEVICES" >> {tmp_path}/seen',
    )
    gpus = {"gpus_per_node": 2, "tasks_per_node": None, "python": str(python)}
    (job,) = submit({"max_steps": 8}, "--nodes", 2, **gpus)
    finish(cluster, job, submit.run)
    seen = sorted((tmp_path / "seen").read_text().splitlines())
    assert seen == ["node1 0 0,1", "node1 1 0,1", "node2 0 0,1", "node2 1 0,1"]
    (job,) = submit(
        {"name": "two"},
        "--nodes",
        2,
        **gpus,
        health_check={"timeout_s": 60},
    )
    run = tmp_path / "runs" / "two"
    events = finish(cluster, job, run, "FAILED")
    assert [end.outcome for end in ends(events)] == ["requeued", "failed"]
    expected = "all 2 nodes failed the health check; node1: found 0 GPUs, expected 2"
    assert expected in status(run).message and expected in submit.xlpretrain("status", run)
    assert not list((run / "logs").glob("rank-*"))


def test_a_job_that_can_never_start_is_warned_of(slurm_cluster, site):
    submit = site(slurm_cluster)
    for name, nodes, profile in (("nodes", 4, {}), ("time", 2, {"time": "2:00:00"})):
        said = submit.submit({"name": name}, "--nodes", nodes, expect=None, **profile)
        assert "warning: job " in said and "is pending with reason Partition" in said, said
        assert "PENDING (Partition" in submit.xlpretrain("status")
        submit.xlpretrain("cancel", submit.folder / "runs" / name)
    slurm_cluster.sbatch("sleep 1000", "--nodes=3", "--exclusive")
    assert "warning" not in submit.submit({"name": "waits"}, expect=None)
