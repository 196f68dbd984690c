"""Datasets built as jobs on a real Slurm cluster."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from builds import tree
from built_datasets import build_dataset, write_jsonl
from commands import BIN
from corpus import make_documents
from slurm_cluster import SlurmCluster, wait_until

from data_pipelines.stages.work_dir import WorkDir
from launcher.slurm.profile import ClusterConfig
from launcher.slurm.submission.build_jobs import script

slurm = pytest.mark.slurm


def write_settings(folder: Path, **changes: object) -> tuple[Path, dict]:
    """A config that makes many tasks, and a site profile beside it."""
    corpus = folder / "corpus.jsonl"
    if not corpus.exists():
        documents = make_documents(2000, seed=41)
        write_jsonl(corpus, [*documents, *documents[:100]])
    settings = {
        "out": str(folder / "data"),
        "sources": [{"type": "jsonl", "path": str(corpus)}],
        "tokenizer": {"vocab_size": 300, "input_sentence_size": 2000},
        "clean": {"minhash_dedup": True},
        "task_bytes": 1 << 18,
        "shard_bytes": 1 << 19,
        **changes,
    }
    (folder / "site.yaml").write_text(yaml.safe_dump({"cpus_per_task": 1, "time": "0:10:00"}))
    (folder / "data.yaml").write_text(json.dumps(settings))
    return folder / "data.yaml", settings


def start(cluster: SlurmCluster, config: Path, *options: str) -> subprocess.Popen[str]:
    command = [str(BIN / "xlpretrain"), "data", "build", str(config), *options]
    site = ["--cluster", str(config.parent / "site.yaml"), "--jobs", "3"]
    return subprocess.Popen(
        [*command, *site], env=cluster.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=config.parent
    )


@slurm
@pytest.mark.timeout(600)
def test_a_build_by_jobs_gives_the_bytes_of_one_here(slurm_cluster: SlurmCluster, tmp_path: Path):
    config, settings = write_settings(tmp_path)
    watcher = start(slurm_cluster, config)
    jobs = tmp_path / ".data.work" / "slurm" / "jobs.json"
    wait_until(jobs.exists, 200, lambda: "no jobs were submitted")
    watcher.kill()
    watcher.communicate()
    again = start(slurm_cluster, config)  # watches the same jobs
    out, err = again.communicate(timeout=400)
    assert again.returncode == 0, out + err
    assert "near-duplicates" in out
    assert not list(tmp_path.glob(".data.*"))
    here = build_dataset(tmp_path / "here", **{key: value for key, value in settings.items() if key != "out"})
    assert tree(tmp_path / "data") == tree(here)
    finished = start(slurm_cluster, config)
    assert "already built" in " ".join(finished.communicate(timeout=60)[0].split())


@slurm
@pytest.mark.timeout(600)
def test_a_job_that_fails_tells_why_and_what_is_done_is_gone_on_with(slurm_cluster: SlurmCluster, tmp_path: Path):
    config, _ = write_settings(tmp_path, tokenizer={"vocab_size": 100_000})
    _, err = start(slurm_cluster, config).communicate(timeout=400)
    assert "which supports at most" in err
    assert (tmp_path / ".data.work" / "read" / "000000").is_dir()
    assert not (tmp_path / "data").exists()


def test_the_script_of_a_job_can_be_read(tmp_path: Path):
    profile = ClusterConfig(setup=("module load x",), env={"A": "b c"}, python="/opt/python")
    text = script(WorkDir(tmp_path / "w"), ["read", "8"], profile, log="read")
    assert f"/opt/python -u -m data_pipelines.build {tmp_path}/w read 8" in text
    assert text.index("module load x") < text.index("export A='b c'") < text.index("data_pipelines.build")
