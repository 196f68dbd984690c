"""Slurm from a login node, with given answers of its commands.

Modules: on_nodes.py, node.py, rank.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from fake_slurm import FakeSlurm

from launcher.doctor.cluster import login
from launcher.doctor.findings import Finding, Level
from launcher.doctor.request import Request
from launcher.slurm.profile import ClusterConfig

SINFO = "gpu*|up|1-00:00:00|4|64|gpu:h100:8(S:0-1)\ndebug|up|30:00|2|16|(null)\nold|down|infinite|8|16|gpu:2"


@pytest.fixture
def slurm(fake_slurm: FakeSlurm) -> FakeSlurm:
    for command in ("srun", "squeue", "scontrol", "scancel"):
        fake_slurm.has(command)
    fake_slurm.has("sbatch", "slurm-wlm 22.05.8")
    fake_slurm.has("sinfo", SINFO)
    return fake_slurm


def check(tmp_path: Path, **profile: object) -> list[Finding]:
    path = tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump(profile))
    return list(login.check(Request(cluster=str(path))))


def failures(found: list[Finding]) -> list[str]:
    return [finding.text for finding in found if finding.level == Level.FAIL]


def test_a_profile_that_fits_passes(slurm: FakeSlurm, tmp_path: Path):
    found = check(tmp_path, partition="gpu", gpus_per_node=8, cpus_per_task=8, time="24:00:00", nodes=2)
    assert not failures(found), found
    assert any("partition gpu: 4 nodes with 64 cores and 8 GPUs, time limit 1440 minutes" in one.text for one in found)
    assert found[-1].text == "Slurm would accept the job (sbatch --test-only)"
    (tested,) = [line for line in slurm.asked if "--test-only" in line]
    assert "--partition=gpu" in tested and "--gpus-per-node=8" in tested and "--nodes=2" in tested


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ({"partition": "gpux"}, "there is no partition gpux; the cluster has gpu, debug, old"),
        ({"partition": "old"}, "partition old is down"),
        ({"partition": "debug", "gpus_per_node": 1}, "too few GPUs: 1 per node asked for"),
        ({"gpus_per_node": 8, "cpus_per_task": 9}, "too few cores: 8 ranks of 9 cores"),
        ({"partition": "debug", "time": "1:00:00"}, "more than the limit of partition debug, 30 minutes"),
        ({"nodes": 5}, "partition gpu has 4 nodes, 5 asked for"),
    ],
)
def test_each_wrong_key_is_named(slurm: FakeSlurm, tmp_path: Path, profile: dict, message: str):
    assert any(message in text for text in failures(check(tmp_path, **profile))), message


def test_slurms_own_refusal_is_quoted(slurm: FakeSlurm, tmp_path: Path):
    slurm.has("sbatch", error="allocation failure: Invalid qos specification")
    with pytest.raises(Exception, match="Invalid qos"):
        check(tmp_path, partition="gpu")
    profile = ClusterConfig(partition="gpu")
    found = login._test(profile, Request())
    assert found.level == Level.FAIL and "Invalid qos specification" in found.text


def test_missing_commands_and_a_silent_controller_end_the_check(slurm: FakeSlurm, tmp_path: Path):
    slurm.has("sinfo", error="Unable to contact slurm controller (connect failure)")
    assert "Unable to contact slurm controller" in failures(check(tmp_path))[0]
    (slurm._bin / "sbatch").unlink()
    (found,) = check(tmp_path)
    assert "missing here: sbatch" in found.text and "login node" in found.remedy


def test_accounts_and_qos_of_this_user_are_compared(slurm: FakeSlurm, tmp_path: Path):
    assert any("no answer from the accounting" in one.text for one in check(tmp_path, account="mine"))
    slurm.has("sacctmgr", "mine|normal,long\nother|normal")
    assert not failures(check(tmp_path, account="mine", qos="long"))
    assert "you have no account yours; yours: mine, other" in failures(check(tmp_path, account="yours"))[0]
    assert "you may not use QOS long; yours: normal" in failures(check(tmp_path, account="other", qos="long"))[0]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("infinite", None), ("30:00", 1800), ("90", 5400), ("1:00:00", 3600), ("1-00:00:00", 86400), ("2-12", 216000)],
)
def test_time_limits_are_read_in_every_format(text: str, seconds: int | None):
    assert login.seconds(text) == seconds


def test_gpus_are_read_from_generic_resources():
    lines = "\n".join(
        f"p|up|1:00|1|8|{gres}" for gres in ("gpu:2", "gpu:h100:8(S:0-1)", "gpu", "(null)", "shard:4,gpu:1")
    )
    assert [group.gpus for group in login.parse_partitions(lines)] == [2, 8, 1, 0, 1]
