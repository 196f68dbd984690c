"""`xlpretrain doctor --on-nodes` on a real cluster.

Modules: launcher/doctor/cluster/on_nodes.py, node.py, rank.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from commands import BIN
from slurm_cluster import SlurmCluster

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]


def test_nodes_are_checked_in_a_job_that_leaves_nothing(slurm_cluster: SlurmCluster, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    profile = tmp_path / "site.yaml"
    profile.write_text(yaml.safe_dump({"partition": "main", "nodes": 2, "tasks_per_node": 1, "time": "0:10:00"}))
    arguments = ["doctor", "--cluster", profile, "--runs-dir", tmp_path / "runs", "--json"]
    arguments += ["--only", "slurm", "--only", "nodes", "--on-nodes"]
    said = json.loads(slurm_cluster.run(BIN / "xlpretrain", *arguments))
    texts = [finding["text"] for finding in said["findings"]]
    nodes = {finding["node"] for finding in said["findings"]}
    assert said["ok"] and nodes == {"", "node1", "node2"}, said
    assert any("Slurm would accept the job" in text for text in texts)
    assert any(text.startswith("gloo: all-reduce over 2 ranks of 2 nodes is correct") for text in texts), texts
    assert any("exclusive creation holds between this process and rank 1 on node2" in text for text in texts), texts
    assert any("clocks of 2 nodes agree" in text for text in texts)
    assert [path.name for path in tmp_path.iterdir()] == ["site.yaml"]
    assert slurm_cluster.run("squeue", "-h") == ""


def test_a_profile_that_asks_for_too_much_and_a_busy_cluster_are_told(slurm_cluster: SlurmCluster, tmp_path: Path):
    profile = tmp_path / "site.yaml"
    profile.write_text(yaml.safe_dump({"partition": "main", "nodes": 2, "gpus_per_node": 8, "time": "9-00:00:00"}))
    said = slurm_cluster.run(BIN / "xlpretrain", "doctor", "--cluster", profile, "--only", "slurm", expect=2)
    assert "too few GPUs: 8 per node asked for" in said and "more than the limit of partition main" in said
    assert "Slurm would refuse the job" in said or "Slurm's test of the job" in said
    job = slurm_cluster.sbatch("sleep 1000", "--nodes=3", "--exclusive")
    slurm_cluster.wait_for(job, "RUNNING")
    profile.write_text(yaml.safe_dump({"partition": "main", "nodes": 2}))
    arguments = ["doctor", "--cluster", profile, "--only", "nodes", "--on-nodes", "--wait", 1]
    assert "nodes: none within 1 s" in slurm_cluster.run(BIN / "xlpretrain", *arguments)
