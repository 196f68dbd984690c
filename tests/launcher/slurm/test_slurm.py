"""Runs on a real cluster: to the end, through time limits, preemption, crashes and failed nodes.

Modules: rank.py.
"""

import os
from pathlib import Path

import commands
import pytest
from commands import BIN, curve, read_metrics
from repository import ROOT
from slurm_cluster import SlurmCluster, wait_until
from slurm_runs import LONG, Site, each_step_once, ends, finish, log, sick_python, starts, status, wait_for_step

from launcher.slurm.records import SlurmFolder
from xlpretrain.run_dir.layout import RunDir

# Nodes and their timeouts are real, and slow on a busy machine.
pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]


@pytest.fixture
def submit(slurm_cluster: SlurmCluster, tmp_path: Path, tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Submit a small run from `tmp_path`; by default one node with two ranks, without a health check."""
    monkeypatch.chdir(tmp_path)
    return Site(slurm_cluster, tmp_path, tiny_dataset)


def test_two_nodes_train_to_the_curve_of_one_machine(slurm_cluster, submit, tmp_path):
    (job,) = submit(None, "--nodes", 2, health_check={"timeout_s": 120})
    events = finish(slurm_cluster, job, run := tmp_path / "runs" / "r")
    assert [(start.nodes, start.world_size, start.step) for start in starts(events)] == [(("node1", "node2"), 4, 0)]
    assert [(end.outcome, end.exit_code, end.step) for end in ends(events)] == [("finished", 0, 60)]
    assert status(run).world_size == 4
    assert len(list((run / "logs").glob("rank-*.log"))) == 4
    commands.run("train", tmp_path / "config.yaml", "name=here", "--nproc", 4)
    there, here = curve(run), curve(tmp_path / "runs" / "here")
    assert len(there) == 60
    assert there == here


def test_a_warning_saves_and_the_same_job_resumes(slurm_cluster, submit, tmp_path):
    slurm_cluster.env["WANDB_MODE"] = "offline"
    (job,) = submit(LONG, "--nodes", 2, tasks_per_node=1)
    run = tmp_path / "runs" / "r"
    wait_for_step(run, 5)
    # Like Slurm before the time limit: the signal goes to the ranks, not to the job script.
    slurm_cluster.run("scancel", "--signal=USR2", job)
    events = submit.goes_on(job)
    assert [end.outcome for end in ends(events)] == ["requeued", "stopped"]
    first, second = starts(events)
    assert [(start.job_id, start.restart) for start in (first, second)] == [(job, 0), (job, 1)]
    assert second.step >= 5
    assert each_step_once(run) == 0
    ids = {path.name.rpartition("-")[2] for path in (run / "wandb").glob("offline-run-*")}
    assert ids == {RunDir(run).read_provenance()["id"]}


@pytest.mark.full
def test_a_run_continues_through_the_time_limits_of_its_jobs(slurm_cluster, submit, tmp_path):
    slurm_cluster.env["WANDB_MODE"] = "offline"
    (job,) = submit(LONG, "--nodes", 2, tasks_per_node=1, time="0:02:00", signal_before_end_s=60)
    wait_for_step(submit.run, 5)
    events = submit.goes_on(job, start=3)
    assert [end.outcome for end in ends(events)] == ["requeued", "requeued", "stopped"]
    assert [start.step for start in starts(events)[1:]] == [end.step for end in ends(events)[:-1]]
    last = ends(events)[-1].step
    submit.xlpretrain("resume", submit.run, f"max_steps={last + 10}")
    wait_until(lambda: status(submit.run).state == "finished", 120, lambda: log(submit.run))
    assert each_step_once(submit.run) == 0
    assert read_metrics(submit.run)[-1]["step"] == last + 10
    print([(start.restart, start.step) for start in starts(events)], last + 10)
    ids = {path.name.rpartition("-")[2] for path in (submit.run / "wandb").glob("offline-run-*")}
    assert ids == {RunDir(submit.run).read_provenance()["id"]}


def test_a_run_that_crashes_at_once_fails_after_two_attempts(slurm_cluster, submit, tmp_path):
    python = sick_python(tmp_path / "python", when='[[ "$*" == *launcher.slurm.job.rank* ]]')
    (job,) = submit(python=str(python))
    events = finish(slurm_cluster, job, run := tmp_path / "runs" / "r", "FAILED")
    assert [end.outcome for end in ends(events)] == ["requeued", "failed"]
    assert (status(run).state, status(run).reason) == ("failed", "crash")
    assert "2 consecutive attempts wrote no new checkpoint" in status(run).message


def test_a_user_error_is_not_retried(slurm_cluster, submit, tmp_path, tiny_dataset):
    (tmp_path / "data").symlink_to(tiny_dataset)
    # It passes all checks before the submission.
    (job,) = submit({"data.train": str(tmp_path / "data" / "train")}, setup=[f"rm {tmp_path}/data"])
    events = finish(slurm_cluster, job, tmp_path / "runs" / "r", "FAILED")
    (end,) = ends(events)
    assert (end.outcome, end.exit_code) == ("failed", 2)
    assert f"{tmp_path}/data/train: not a dataset" in end.message


NODE1_IS_SICK = '[[ "$*" == *launcher.slurm.job.node_check* && $SLURMD_NODENAME == node1 ]]'
CHECKED = {"tasks_per_node": 1, "health_check": {"timeout_s": 40}}


def test_a_failed_node_is_excluded(slurm_cluster, submit, tmp_path):
    python = sick_python(tmp_path / "python", when=NODE1_IS_SICK)
    (job,) = submit({"max_steps": 8}, "--nodes", 2, python=str(python), **CHECKED)
    events = finish(slurm_cluster, job, submit.run)
    assert [start.nodes for start in starts(events)] == [("node1", "node2"), ("node2", "node3")]
    assert SlurmFolder.of(RunDir(submit.run)).read_excluded() == ["node1"]


@pytest.mark.full
def test_a_spare_node_replaces_a_failed_one(slurm_cluster, submit, tmp_path):
    python = sick_python(tmp_path / "python", when=NODE1_IS_SICK)
    (job,) = submit({"max_steps": 8}, "--nodes", 2, python=str(python), spare_nodes=1, **CHECKED)
    events = finish(slurm_cluster, job, submit.run)
    assert [start.nodes for start in starts(events)] == [("node1", "node2", "node3")]
    assert "2 ranks on node2, node3" in log(submit.run)


def test_odd_paths_and_values_are_never_interpreted(slurm_cluster, submit, tmp_path, monkeypatch):
    slurm_cluster.env["WANDB_API_KEY"] = key = "0123456789secret0123456789secret01234567"
    odd = tmp_path / "a \"b' $(touch x)\n`touch x`; touch x 100% \\z"
    odd.mkdir()
    monkeypatch.chdir(odd)
    env = {"ODD": "'\"$(touch x)\n"}
    (job,) = submit({"runs_dir": str(odd / "my runs"), "max_steps": 8}, env=env, setup=["pwd > where"])
    finish(slurm_cluster, job, run := odd / "my runs" / "r")
    del slurm_cluster.env["WANDB_API_KEY"]
    assert (odd / "where").read_text() == f"{odd}\n"
    assert "finished at step 8" in log(run)
    assert not [path for path in tmp_path.rglob("*") if path.name == "x"]
    assert not [path for path in run.rglob("*") if path.is_file() and key.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ({"partition": "nosuch"}, "invalid partition specified: nosuch"),
        ({"mem": "9T"}, "Memory specification can not be satisfied"),
        ({"sbatch": {"no-such-option": True}}, "unrecognized option"),
    ],
    ids=["partition", "limit", "option"],
)
def test_errors_of_slurm_are_printed(slurm_cluster, submit, tmp_path, profile, message):
    (said,) = submit(expect=2, **profile)
    assert message in said
    assert not (tmp_path / "runs" / "r").exists()


def test_the_plain_script_does_the_same(slurm_cluster, submit, tmp_path):
    script = ROOT / "slurm" / "pretrain.sbatch"
    slurm_cluster.env["PATH"] = f"{BIN}{os.pathsep}{slurm_cluster.env['PATH']}"
    submit({"name": "r2"}, "--dry-run")  # for its config
    options = ["--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=0", "--cpus-per-task=1", "--time=10", "--parsable"]
    job = slurm_cluster.run(
        "sbatch", *options, script, "config.yaml", "max_steps=100000", "checkpoint.every_steps=100000"
    ).strip()
    run = tmp_path / "runs" / "r"
    wait_for_step(run, 5)
    (tmp_path / "config.yaml").write_text("name: another\n")  # may change: the job has its copy
    slurm_cluster.run("scancel", "--signal=USR2", job)
    events = submit.goes_on(job)
    assert [end.outcome for end in ends(events)] == ["requeued", "stopped"]
    assert each_step_once(run) == 0
    assert (tmp_path / f"slurm-{job}.run").resolve() == run


def test_a_sweep_is_an_array_two_at_a_time(slurm_cluster, submit, tmp_path):
    sweep = ["--sweep", "optimizer.lr=1e-4,3e-4", "--sweep", "seed=1,2"]
    jobs = submit({"max_steps": 8}, *sweep, array_parallelism=2)
    names = ["r-lr1e-4-seed1", "r-lr1e-4-seed2", "r-lr3e-4-seed1", "r-lr3e-4-seed2"]
    for job, name in zip(jobs, names, strict=True):
        finish(slurm_cluster, job, tmp_path / "runs" / name)
        assert (status(tmp_path / "runs" / name).state, status(tmp_path / "runs" / name).step) == ("finished", 8)
    events = [SlurmFolder.of(RunDir(tmp_path / "runs" / name)).read_events() for name in names]
    over = sorted(end.at for each in events for end in ends(each))
    begun = sorted(start.at for each in events for start in starts(each))
    assert begun[2] > over[0]
    assert begun[3] > over[1]


@pytest.mark.full
def test_one_torchrun_per_node_survives_the_warning(slurm_cluster, submit, tmp_path):
    (job,) = submit(LONG, "--nodes", 2, launch="torchrun")
    run = tmp_path / "runs" / "r"
    wait_for_step(run, 5)
    slurm_cluster.run("scancel", "--signal=USR2", job)
    events = submit.goes_on(job)
    assert [end.outcome for end in ends(events)] == ["requeued", "stopped"]
    assert each_step_once(run) == 0
