"""Builds that one version began and another one finds."""

import io
from pathlib import Path

import pytest
from builds import DOCUMENTS, tree
from built_datasets import build_dataset, write_jsonl
from languages import LANGUAGES
from rich.console import Console

from data_pipelines.build import __main__ as job
from data_pipelines.build.pipeline import build, build_lock, run_stage, stages_of, start_build
from data_pipelines.config import DataConfig
from data_pipelines.execution.progress import ProgressReporter
from data_pipelines.execution.workers import Workers
from data_pipelines.stages import plan, read
from data_pipelines.stages.work_dir import WorkDir
from xlpretrain.schema import validate


def test_an_unfinished_build_of_another_version_is_never_gone_on_with(
    tmp_path: Path, tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [*DOCUMENTS[:50], *LANGUAGES["chinese"].documents(50)])
    settings = {
        "sources": [{"type": "jsonl", "path": str(corpus)}],
        "tokenizer": {"path": str(tiny_tokenizer)},
        "clean": {"minhash_dedup": True},
        "workers": 1,
    }
    config = validate(DataConfig, {**settings, "out": str(tmp_path / "data")}, "test")
    work, output = WorkDir.of(config.out), io.StringIO()
    stages = ProgressReporter(Console(file=output))
    with monkeypatch.context() as older, build_lock(work), Workers(1) as workers:
        older.setattr(plan, "FORMAT", 2)
        start_build(config, work, stages, workers)
        run_stage(work, read.STAGE, stages, workers)
    next_stage = stages_of(config)[1].name
    with pytest.raises(SystemExit, match="2"):  # a job that was in the queue meanwhile
        job.main([str(work.folder), next_stage, "1"])
    assert "started with other versions of xlpretrain or its libraries" in capsys.readouterr().err
    assert not (work.folder / next_stage).exists()
    build(config, console=Console(file=output))
    assert "resuming the build" not in output.getvalue()
    assert tree(config.out) == tree(build_dataset(tmp_path / "fresh", **settings))
