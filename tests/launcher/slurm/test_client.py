from datetime import datetime

import pytest
from fake_slurm import UNKNOWN, FakeSlurm

from launcher.slurm import client as slurm
from launcher.slurm.client import JobState
from xlpretrain.errors import LaunchError

OFF = "Slurm accounting storage is disabled"


def test_one_squeue_for_all_jobs(fake_slurm: FakeSlurm):
    fake_slurm.has(
        "squeue",
        "12|PENDING||N/A|Resources\n13|RUNNING|node[1-2]|2026-01-01T00:00:00|None\n14_0|PENDING||N/A|JobArrayTaskLimit\n"
        "15|PENDING||N/A|ReqNodeNotAvail, UnavailableNodes:node1|2",
    )
    assert slurm.states_of(["12", "13", "14_0", "15"]) == {
        "12": JobState("PENDING", "Resources"),
        "13": JobState("RUNNING", "", "node[1-2]", datetime(2026, 1, 1).timestamp()),
        "14_0": JobState("PENDING", "JobArrayTaskLimit"),
        "15": JobState("PENDING", "ReqNodeNotAvail, UnavailableNodes:node1|2"),
    }
    [asked] = fake_slurm.asked
    assert asked.endswith("--jobs=12,13,14_0,15")
    assert "json" not in asked


def test_without_jobs_slurm_is_not_called(fake_slurm: FakeSlurm):
    assert slurm.states_of([]) == {}


def test_without_slurm_nothing_is_known(fake_slurm: FakeSlurm):
    assert slurm.states_of(["12"]) is None
    assert slurm.state_of("12") is None


def test_a_controller_that_is_down_does_not_mean_that_jobs_ended(fake_slurm: FakeSlurm):
    down = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
    for command in ("squeue", "scontrol", "sacct"):
        fake_slurm.has(command, error=down)
    assert slurm.states_of(["12"]) is None


@pytest.mark.parametrize("sacct", ["", OFF])
def test_jobs_that_slurm_no_longer_lists_are_not_in_the_answer(fake_slurm: FakeSlurm, sacct: str):
    fake_slurm.has("squeue", error=UNKNOWN)
    if sacct:
        fake_slurm.has("sacct", error=sacct)
    assert slurm.states_of(["12"]) == {}


def test_sacct_knows_jobs_that_squeue_no_longer_lists(fake_slurm: FakeSlurm):
    fake_slurm.has("squeue", "13|RUNNING|node1|N/A|None")
    fake_slurm.has("sacct", "12|CANCELLED by 1000|node1")
    states = slurm.states_of(["12", "13"])
    assert states == {"12": JobState("CANCELLED", "", "node1"), "13": JobState("RUNNING", "", "node1")}
    assert fake_slurm.asked[1].endswith("--jobs=12")


def test_scontrol_answers_where_squeue_is_missing(fake_slurm: FakeSlurm):
    fake_slurm.has(
        "scontrol",
        "JobId=12 JobName=a b JobState=PENDING Reason=Priority Dependency=(null) ReqNodeList=(null) NodeList=(null)",
    )
    assert slurm.states_of(["12"]) == {"12": JobState("PENDING", "Priority")}


def test_scontrol_distinguishes_the_tasks_of_an_array(fake_slurm: FakeSlurm):
    fake_slurm.has(
        "scontrol",
        "JobId=12 ArrayJobId=12 ArrayTaskId=2-3%2 JobState=PENDING Reason=JobArrayTaskLimit NodeList=\n"
        "JobId=13 ArrayJobId=12 ArrayTaskId=1 JobState=RUNNING Reason=None NodeList=node1",
    )
    assert slurm.states_of(["12_1"]) == {"12_1": JobState("RUNNING", "", "node1")}
    assert slurm.states_of(["12_3"]) == {"12_3": JobState("PENDING", "JobArrayTaskLimit")}


def test_states_of_a_job():
    assert JobState("PENDING").is_waiting
    assert JobState("COMPLETING").is_running
    assert all(JobState(word).is_over for word in ("COMPLETED", "FAILED", "TIMEOUT", "NODE_FAIL", "CANCELLED"))


def test_a_failed_scancel_prints_its_reason(fake_slurm: FakeSlurm):
    with pytest.raises(LaunchError, match="scancel: command not found"):
        slurm.ask("scancel", "12")
    fake_slurm.has("scancel", error="scancel: error: Kill job error on job id 12: Access/permission denied")
    with pytest.raises(LaunchError, match="permission denied"):
        slurm.ask("scancel", "12")
