"""Answers of stop, cancel and resume with a fake Slurm; test_slurm_commands.py has a real one."""

import time
from pathlib import Path

import commands
import pytest
from fake_slurm import UNKNOWN, FakeSlurm

from launcher.cli.actions import training
from launcher.cli.monitor import lifecycle
from launcher.local.options import StartOptions
from launcher.slurm.records import AttemptStart, Job, SlurmFolder
from launcher.slurm.submission import submit
from xlpretrain.errors import ConfigError, LaunchError
from xlpretrain.run_dir import lease
from xlpretrain.run_dir.layout import RunDir, Status


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run submitted as job 12 of cluster big."""
    run = RunDir(tmp_path / "a run")
    run.create(config="", provenance={})
    slurm = SlurmFolder.of(run)
    slurm.path.mkdir()
    slurm.cluster.touch()
    slurm.write_job(Job("12", "big", time.time(), "2", str(run.logs / "job.log")))
    return run


def test_stop_reports_the_state_of_the_job(run: RunDir, fake_slurm: FakeSlurm):
    fake_slurm.has("squeue", "12|PENDING||N/A|Resources")
    assert "is still queued (PENDING (Resources)) and will exit as soon as it starts" in lifecycle.stop(run)
    assert f"`xlpretrain cancel '{run.path}'` removes it" in lifecycle.stop(run)
    fake_slurm.has("squeue", "12|RUNNING|node1|N/A|None")
    assert "will save and exit after its current step" in lifecycle.stop(run)
    fake_slurm.has("squeue", error=UNKNOWN)
    assert "not running; it stays stopped until resumed" in lifecycle.stop(run)
    assert run.stop_file.exists()


def test_cancel_refuses_runs_without_a_job(run: RunDir, fake_slurm: FakeSlurm, tmp_path: Path):
    with pytest.raises(LaunchError, match="no answer from Slurm on this machine"):
        lifecycle.cancel(run)
    fake_slurm.has("squeue", "12|FAILED|node1|N/A|NonZeroExitCode")
    with pytest.raises(LaunchError, match=r"job 12 has already ended \(FAILED \(NonZeroExitCode\)\)"):
        lifecycle.cancel(run)
    fake_slurm.has("squeue", error=UNKNOWN)
    with pytest.raises(LaunchError, match="job 12 has already ended, nothing to cancel"):
        lifecycle.cancel(run)
    fake_slurm.has("squeue", "12|RUNNING|node1|N/A|None")
    fake_slurm.has("scontrol", "ClusterName             = other")
    with pytest.raises(LaunchError, match="belongs to cluster big, but this machine is part of other"):
        lifecycle.cancel(run)
    local = RunDir(tmp_path / "local")
    local.create(config="", provenance={})
    with pytest.raises(LaunchError, match=r"never submitted to Slurm.*`xlpretrain stop"):
        lifecycle.cancel(local)
    assert not run.stop_file.exists(), "nothing was done"
    assert not any(asked.startswith("scancel") for asked in fake_slurm.asked)


def test_cancel_waits_for_a_job_that_saves_but_not_forever(run: RunDir, fake_slurm: FakeSlurm):
    fake_slurm.has("squeue", "12|COMPLETING|node1|N/A|None")
    fake_slurm.has("scancel")
    assert "is still COMPLETING" in lifecycle.cancel(run, wait_s=1)
    assert "scancel 12" in fake_slurm.asked
    assert run.stop_file.exists(), "so that it does not requeue itself"


def test_resume_is_refused_while_the_job_waits_or_runs(run: RunDir, fake_slurm: FakeSlurm):
    fake_slurm.has("squeue", "12|PENDING||N/A|Priority")
    with pytest.raises(LaunchError, match=r"job 12 is queued \(PENDING \(Priority\)\), nothing to resume"):
        lifecycle.refuse_if_queued(run)
    fake_slurm.has("squeue", "12|RUNNING|node1|N/A|None")
    with pytest.raises(LaunchError, match="is running"):
        lifecycle.refuse_if_queued(run)
    fake_slurm.has("squeue", "12|COMPLETED|node1|N/A|None")
    lifecycle.refuse_if_queued(run)


def test_resume_on_slurm_is_refused_while_a_machine_has_the_run(run: RunDir, fake_slurm: FakeSlurm):
    fake_slurm.has("squeue", error=UNKNOWN)
    held = lease.acquire(run.lease, launch_id="x", take_over=False)
    with pytest.raises(LaunchError, match="is in use on"):
        training.resume_on_slurm(run, [], StartOptions(), nodes=None)
    # A lease left behind by its own last job does not matter: the job has ended.
    SlurmFolder.of(run).append(AttemptStart("12", 0, time.time(), (lease.os.uname().nodename,), 1, 0))
    with pytest.raises(ConfigError, match="model"):
        training.resume_on_slurm(run, [], StartOptions(), nodes=None)
    held.close()


def test_a_run_resumes_with_its_newest_config(run: RunDir):
    slurm = SlurmFolder.of(run)
    assert lifecycle.newest_config(run) == run.config
    time.sleep(0.02)
    slurm.config.touch()
    assert lifecycle.newest_config(run) == slurm.config
    run.config.unlink()
    assert lifecycle.newest_config(run) == slurm.config
    slurm.config.unlink()
    with pytest.raises(LaunchError, match=r"config\.yaml is missing"):
        lifecycle.newest_config(run)


def test_nodes_are_for_slurm_only(tmp_path: Path):
    run = RunDir(tmp_path / "local")
    run.create(config="", provenance={})
    run.write_status(Status("stopped"))
    assert "--nodes" in commands.refused("resume", run.path, "--nodes", "2")


def test_a_job_id_of_another_cluster_is_another_job(run: RunDir, fake_slurm: FakeSlurm):
    fake_slurm.has("squeue", "12|RUNNING|node1|N/A|None")
    with pytest.raises(LaunchError, match="job 12 is running"):
        lifecycle.refuse_if_queued(run)
    fake_slurm.has("scontrol", "ClusterName             = big")
    assert submit.active_job(run) == "12"
    fake_slurm.has("scontrol", "ClusterName             = other")
    assert submit.active_job(run) is None
    lifecycle.refuse_if_queued(run)
    assert "not running; it stays stopped until resumed" in lifecycle.stop(run)
