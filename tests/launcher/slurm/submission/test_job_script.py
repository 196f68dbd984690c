"""Parts of job scripts shared by runs and builds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from repository import ROOT

from data_pipelines.stages.work_dir import WorkDir
from launcher.slurm.profile import ClusterConfig
from launcher.slurm.submission import build_jobs, executor
from launcher.slurm.submission.job_script import as_arguments, sbatch_options, site_lines
from xlpretrain.run_dir.layout import RunDir
from xlpretrain.schema import validate


def profile(**data: object) -> ClusterConfig:
    return validate(ClusterConfig, data, "site.yaml")


def test_spare_nodes_are_requested_in_addition() -> None:
    assert sbatch_options(profile(nodes=2, spare_nodes=1))["nodes"] == "2-3"
    assert sbatch_options(profile(nodes="1-3"))["nodes"] == "1-3"
    assert sbatch_options(profile(nodes=2))["nodes"] == "2"


def test_other_options_are_passed_on_and_failed_nodes_are_added() -> None:
    asked = sbatch_options(profile(sbatch={"exclusive": True, "mail-user": "me", "exclude": "n1"}), exclude=["n7"])
    assert (asked["exclusive"], asked["mail-user"], asked["exclude"]) == (True, "me", "n1,n7")
    arguments = as_arguments(asked)
    assert "--exclusive" in arguments and "--exclude=n1,n7" in arguments


def test_scripts_of_runs_and_builds_set_up_the_site_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    (here := tmp_path / "a folder").mkdir()
    monkeypatch.chdir(here)
    site = profile(setup=["module load x"], env={"A": "b c"}, python="/opt/python")
    expected = [f"cd -- '{here}'", "module load x", "export A='b c'"]
    assert site_lines(site) == expected
    run = executor.script([RunDir(tmp_path / "runs" / "r")], site, name="r").splitlines()
    build = build_jobs.script(WorkDir(tmp_path / "w"), ["read", "8"], site, log="read").splitlines()
    for script in (run, build):
        first = script.index(expected[0])
        assert script[first : first + len(expected)] == expected


def test_the_plain_script_requests_the_same() -> None:
    text = (ROOT / "slurm" / "pretrain.sbatch").read_text()
    by_hand = set(re.findall(r"^#SBATCH (--\S+)", text, re.MULTILINE))
    site = profile(nodes=1, gpus_per_node=8, cpus_per_task=8, time="24:00:00")
    assert set(as_arguments(sbatch_options(site))) <= by_hand
