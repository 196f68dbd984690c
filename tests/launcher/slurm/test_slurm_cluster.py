"""The test cluster behaves like a real one."""

import os
import pwd
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from repository import TESTS
from slurm_cluster import SlurmCluster
from slurm_node import find_processes

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

# Directly to a file shared by all nodes, as ranks do in a run folder: output through srun comes later or never.
WRITE_FOR_EVER = """
srun --kill-on-bad-exit=1 bash -c '
    while echo $SLURMD_NODENAME ${SLURM_RESTART_COUNT:-0} >> '$(dirname $SLURM_CONF)'/../jobs/$SLURM_JOB_ID.written
    do sleep 0.2; done'
"""

BOOT_AND_HANG = """
import sys, time
from slurm_cluster import SlurmCluster
with SlurmCluster(isolation=sys.argv[1]) as cluster:
    job = cluster.sbatch("trap '' TERM; setsid sleep 1000 & srun sleep 1000", "--nodes=2")
    cluster.wait_for(job, "RUNNING")
    time.sleep(1)
    print(cluster.folder, flush=True)
    time.sleep(1000)
"""


def count_written(cluster: SlurmCluster, job: str, line: str) -> int:
    """Number of lines per node and restart, such as "node2 0"."""
    path = cluster.folder / "jobs" / f"{job}.written"
    return path.read_text().splitlines().count(line) if path.exists() else 0


def wait_until_written(cluster: SlurmCluster, job: str, *lines: str) -> None:
    deadline = time.monotonic() + 240
    while not all(count_written(cluster, job, line) for line in lines):
        assert time.monotonic() < deadline, f"{lines} are not all written; {cluster.job(job)}"
        time.sleep(0.1)


def test_nodes_are_machines_with_names_that_resolve(make_slurm_cluster):
    cluster = make_slurm_cluster(gpus=2)
    says = "echo $(hostname) $(getent hosts node3 | wc -l) $(ls -d /proc/[0-9]* | wc -l) $CUDA_VISIBLE_DEVICES"
    printed = cluster.run("srun", "--nodes=3", "--gpus-per-node=2", "bash", "-c", says).splitlines()
    hosts, resolved, processes, devices = zip(*map(str.split, sorted(printed)), strict=True)
    assert hosts == ("node1", "node2", "node3")
    assert set(resolved) == {"1"}
    assert max(map(int, processes)) < 20, "a node sees its own processes only"
    assert set(devices) == {"0,1"}


def test_a_job_continues_without_a_dead_node_and_nothing_runs_there(slurm_cluster: SlurmCluster):
    job = slurm_cluster.sbatch(WRITE_FOR_EVER, "--nodes=2-3", "--ntasks-per-node=1")
    wait_until_written(slurm_cluster, job, "node2 0")
    slurm_cluster.kill_node("node2", only_slurmd=True)
    seen = count_written(slurm_cluster, job, "node2 0")
    time.sleep(1)
    assert count_written(slurm_cluster, job, "node2 0") > seen, "ranks keep running without their slurmd"
    slurm_cluster.kill_node("node2")
    last = count_written(slurm_cluster, job, "node2 0")
    wait_until_written(slurm_cluster, job, "node1 1", "node3 1")
    assert slurm_cluster.job(job)["Restarts"] == "1"
    assert count_written(slurm_cluster, job, "node2 0") == last


def test_a_higher_partition_preempts(slurm_cluster: SlurmCluster):
    low = slurm_cluster.sbatch(WRITE_FOR_EVER, "--partition=low", "--nodes=3", "--exclusive")
    slurm_cluster.wait_for(low, "RUNNING")
    high = slurm_cluster.sbatch("srun true", "--partition=high", "--nodes=3", "--exclusive")
    slurm_cluster.wait_for(high, "COMPLETED")
    wait_until_written(slurm_cluster, low, "node1 1")


def test_a_disconnected_node_is_given_up_and_comes_back(make_slurm_cluster):
    cluster = make_slurm_cluster(isolation="netns")
    job = cluster.sbatch(WRITE_FOR_EVER, "--nodes=2-3", "--ntasks-per-node=1")
    wait_until_written(cluster, job, "node2 0")
    cluster.cut_node("node2")
    wait_until_written(cluster, job, "node1 1")
    seen = count_written(cluster, job, "node2 0")
    time.sleep(1)
    assert count_written(cluster, job, "node2 0") > seen, "its processes keep running"
    assert count_written(cluster, job, "node2 1") == 0
    cluster.reset()
    assert cluster.run_on("node2", "hostname") == "node2\n"
    assert sorted(cluster.run("srun", "--nodes=3", "hostname").split()) == ["node1", "node2", "node3"]


def test_an_ordinary_user_can_run_a_cluster(make_slurm_cluster):
    user = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    cluster = make_slurm_cluster(isolation="none", user=user if os.geteuid() == 0 else "", gpus=2)
    assert cluster.run("srun", "--nodes=3", "--gpus-per-node=1", "id", "-un").split() == [user] * 3
    daemons = [process for process in cluster.processes() if process.name() in ("slurmctld", "slurmd")]
    assert {process.username() for process in daemons} == {user}
    assert len(daemons) == 4
    job = cluster.sbatch(WRITE_FOR_EVER, "--nodes=2-3", "--ntasks-per-node=1")
    wait_until_written(cluster, job, "node2 0")
    cluster.kill_node("node2")
    wait_until_written(cluster, job, "node3 1")


@pytest.mark.parametrize("isolation", ["netns", "none"])
def test_nothing_is_left_behind_by_a_test_run_that_is_killed(make_slurm_cluster, isolation: str):
    make_slurm_cluster(isolation=isolation).close()  # skips if it is not available
    others = set(Path("/sys/class/net").iterdir())
    test_run = subprocess.Popen(
        [sys.executable, "-c", BOOT_AND_HANG, isolation], cwd=TESTS / "support", stdout=subprocess.PIPE, text=True
    )
    assert test_run.stdout is not None
    folder = Path(test_run.stdout.readline().strip())
    begun = find_processes(f"SLURM_CONF={folder}/etc/slurm.conf")
    assert {"slurmctld", "munged", "slurmd", "slurmstepd", "sleep"} <= {process.name() for process in begun}
    links = set(Path("/sys/class/net").iterdir()) - others
    assert len(links) == (4 if isolation == "netns" else 0), "a bridge and three links"
    test_run.kill()
    test_run.communicate()
    deadline = time.monotonic() + 30
    while folder.exists():  # it is removed last
        assert time.monotonic() < deadline, find_processes(f"SLURM_CONF={folder}/etc/slurm.conf")
        time.sleep(0.1)
    # Ignore zombies that this machine's init process does not reap.
    left = [process for process in begun if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert left == []
    assert not links & set(Path("/sys/class/net").iterdir())
