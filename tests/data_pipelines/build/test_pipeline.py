"""Builds as a whole: the same bytes, whoever works, is killed or resumes.

Modules: up_to_date.py, report.py, write_shards.py, datasets.py.
"""

import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import commands
import numpy as np
import pytest
from builds import DOCUMENTS, start_build, tree, wait_for
from built_datasets import write_jsonl
from corpus import make_documents
from repository import ROOT
from rich.console import Console

from data_pipelines.build.pipeline import build
from data_pipelines.config import DataConfig
from data_pipelines.execution.progress import ProgressReporter
from data_pipelines.execution.workers import Workers
from data_pipelines.stages.plan import make_plan
from data_pipelines.stages.work_dir import WorkDir
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.data.tokenizers.open import load_tokenizer
from xlpretrain.errors import ConfigError, DataError
from xlpretrain.schema import load, validate

BuildSmall = Callable[..., Path]
FORMER_KEYS = {"subset": "corpus", "split": "into", "minhash_dedup": "near_duplicates", "decontaminate": "overlap"}


def documents_of(folder: Path) -> list[str]:
    """The documents of a split, decoded, in its order."""
    manifest = TokenDataset.open(folder)
    tokenizer = load_tokenizer(folder.parent / "tokenizer" / "spiece.model")
    ends = manifest.document_ends(0, manifest.num_tokens)
    starts = [0, *(ends + 1)]
    return [tokenizer.decode(manifest.tokens(s, e)) for s, e in zip(starts, ends, strict=False)]


def test_every_document_is_in_the_dataset_once(build_small: BuildSmall):
    out = build_small(DOCUMENTS, splits={"valid": 0.1, "test": 0.1})
    splits = {name: documents_of(out / name) for name in ("train", "valid", "test")}
    found = [document for documents in splits.values() for document in documents]
    assert sorted(found) == sorted(" ".join(document.split()) for document in DOCUMENTS)
    assert found != sorted(found)


def test_a_documents_split_does_not_depend_on_the_others(build_small: BuildSmall):
    settings = {"splits": {"valid": 0.2}}
    first = set(documents_of(build_small(DOCUMENTS, out="a", **settings) / "valid"))
    more = set(documents_of(build_small(DOCUMENTS[50:] + make_documents(90, seed=12), out="b", **settings) / "valid"))
    kept = {" ".join(document.split()) for document in DOCUMENTS[50:]}
    assert first & kept == more & kept


def test_the_seed_alone_orders_the_documents(build_small: BuildSmall):
    first = documents_of(build_small(DOCUMENTS, out="a", seed=1) / "train")
    other_seed = documents_of(build_small(DOCUMENTS, out="b", seed=2) / "train")
    other_order = documents_of(build_small(DOCUMENTS[::-1], out="c", seed=1) / "train")
    assert first != other_seed
    assert sorted(first) == sorted(other_seed)
    assert first == other_order


def test_the_bytes_do_not_depend_on_the_number_of_workers(build_small: BuildSmall):
    settings = {"tokenizer": {"vocab_size": 200}, "splits": {"valid": 0.1}, "shard_bytes": 20_000}
    documents = make_documents(1500, seed=1)  # several tasks for each worker
    first = build_small(documents, out="a", workers=1, **settings)
    second = build_small(documents, out="b", workers=2, **settings)
    assert len(TokenDataset.open(first / "train").shards) > 2
    assert tree(first) == tree(second)


@pytest.mark.filterwarnings("ignore")  # webdataset leaves files open
def test_plain_webdataset_streams_the_shards(build_small: BuildSmall):
    import webdataset

    folder = build_small(DOCUMENTS, shard_bytes=20_000) / "train"
    manifest = TokenDataset.open(folder)
    urls = [str(shard.path) for shard in manifest.shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [f"{n:08d}" for n in range(manifest.num_blocks + 1)]
    tokens = np.concatenate([sample["tok.npy"] for sample in samples])
    np.testing.assert_array_equal(tokens, manifest.tokens(0, manifest.num_tokens))
    np.testing.assert_array_equal(samples[1]["sent.npy"], manifest.block(1).sentence_ends)


def test_a_finished_build_is_kept_and_other_settings_need_force(build_small: BuildSmall):
    out = build_small(DOCUMENTS)
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    build_small(DOCUMENTS, workers=2)
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == before
    with pytest.raises(DataError, match="built with other settings; choose another `out`, or replace it with --force"):
        build_small(DOCUMENTS, seed=2)
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == before
    build_small(DOCUMENTS, seed=2, force=True)
    assert TokenDataset.open(out / "train").built_from["settings"]["seed"] == 2
    assert [entry.name for entry in out.parent.iterdir() if entry.name.startswith(".")] == []


def test_a_folder_that_holds_something_else_is_never_replaced(build_small: BuildSmall, tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.tex").write_text("dear")
    for force in (False, True):
        with pytest.raises(DataError, match="is not a dataset built here"):
            build_small(DOCUMENTS, force=force)
    assert (tmp_path / "data" / "thesis.tex").read_text() == "dear"


def test_the_index_tells_what_it_was_built_from(build_small: BuildSmall, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_API_KEY", "very-secret-key")
    out = build_small(DOCUMENTS)
    built_from = json.loads((out / "train" / "index.json").read_text())["built_from"]
    assert built_from["settings"]["sources"][0]["type"] == "jsonl"
    assert not any(b"very-secret-key" in data for data in tree(out).values())


@pytest.mark.parametrize(
    ("documents", "settings", "message"),
    [
        ([], {}, "the corpus is empty"),
        ([" ", "\n"], {}, "the corpus is empty"),
        (["One document."], {"splits": {"valid": 0.01}}, "none of the 1 documents falls into valid"),
        (DOCUMENTS, {"tokenizer": {"vocab_size": 100_000}}, "which supports at most"),
        (DOCUMENTS, {"tokenizer": {"path": "none.model"}}, "none.model: no such tokenizer"),
        (DOCUMENTS, {"sources": [{"type": "text", "path": "none.txt"}]}, "none.txt: no such file"),
    ],
)
def test_a_build_that_fails_leaves_nothing(
    documents: list[str], settings: dict, message: str, build_small: BuildSmall, tmp_path: Path
):
    with pytest.raises(DataError, match=message):
        build_small(documents, **settings)
    assert [entry.name for entry in tmp_path.iterdir()] == ["corpus.jsonl"]


def test_a_killed_build_leaves_nothing_and_the_next_one_goes_on(tmp_path: Path):
    process = start_build(tmp_path)
    tokenizer = tmp_path / ".data.work" / "tokenizer" / "000000" / "spiece.model"
    wait_for(tokenizer.exists)
    commands.kill_all(process)
    assert not (tmp_path / "data").exists()
    out, _ = commands.finish(start_build(tmp_path), expect=0)
    assert "resuming the build" in out
    assert "Reading: 0.0 MB" in out
    assert not any(tmp_path.glob(".data.*"))
    commands.finish(start_build(tmp_path, out=str(tmp_path / "other")), expect=0)
    assert tree(tmp_path / "data") == tree(tmp_path / "other")


CLEANING = {"exact_duplicates": True, "duplicate_paragraphs": True, "minhash_dedup": True}


@pytest.fixture(scope="module")
def large_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 MB in three files, with documents and paragraphs that are there more than once."""
    folder = tmp_path_factory.mktemp("large")
    documents = make_documents(2_000, seed=3)
    documents += documents[:200] + [f"{document}\n\nOne more line." for document in documents[200:400]]
    for number in range(3):
        write_jsonl(folder / f"{number}.jsonl", documents[number::3])
    return folder


def build_large(corpus: Path, out: Path, **settings: object) -> subprocess.Popen[str]:
    """`xlpretrain data build` of the large corpus, with all that looks for duplicates, in many tasks."""
    config = out.parent / f"{out.name}.yaml"
    source = {"path": str(corpus), "type": "jsonl"}
    tokenizer = {"vocab_size": 300, "input_sentence_size": 2000}
    data = {"out": str(out), "sources": [source], "tokenizer": tokenizer, "clean": CLEANING, "shard_bytes": 1 << 18}
    config.write_text(json.dumps({**data, "workers": 2, "task_bytes": 1 << 17, **settings}))
    return commands.start("data", "build", config)


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_the_bytes_are_the_same_after_20_kills_and_with_any_number_of_workers(large_corpus: Path, tmp_path: Path):
    for workers in (1, 5, 2):
        begin = time.monotonic()
        commands.finish(build_large(large_corpus, tmp_path / str(workers), workers=workers), expect=0, timeout_s=400)
        duration = time.monotonic() - begin
    commands.finish(build_large(large_corpus, tmp_path / "other", task_bytes=None), expect=0)
    expected = tree(tmp_path / "1")
    assert expected == tree(tmp_path / "2") == tree(tmp_path / "5") == tree(tmp_path / "other")
    assert sum(name.endswith(".tar") for name in expected) > 3
    rng, kills, began = random.Random(5), 0, set()
    out = tmp_path / "killed"
    while kills < 20:
        process = build_large(large_corpus, out)
        with suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0.2, 0.9) * duration)
        if process.poll() is None:
            commands.kill_all(process)
            kills += 1
            began.update(folder.name for folder in (tmp_path / ".killed.work").glob("*") if folder.is_dir())
        else:
            commands.finish(process, expect=0)
        if kills == 20 or out.exists():
            commands.finish(build_large(large_corpus, out), expect=0, timeout_s=400)
            assert tree(out) == expected
            shutil.rmtree(out)
    assert {"read", "near", "paragraphs", "tokenizer", "encode"} <= began


def test_a_build_that_an_earlier_version_began_resumes(build_small: BuildSmall, tmp_path: Path):
    """Its plan has the former keys; it is found to be of the same dataset as a config with either."""
    write_jsonl(tmp_path / "corpus.jsonl", DOCUMENTS)
    source = {"type": "jsonl", "path": str(tmp_path / "corpus.jsonl"), "subset": "web", "split": "train"}
    notes = {"type": "python_docs", "packages": ["yaml"], "stdlib": False, "subset": "web", "split": "valid"}
    data = {"out": str(tmp_path / "data"), "sources": [source, notes], "clean": {"minhash_dedup": True}, "workers": 1}
    config = validate(DataConfig, data, "data.yaml")
    work = WorkDir.of(config.out)
    stages = ProgressReporter(Console(quiet=True))
    with work.lock(), Workers(1) as workers:
        plan = make_plan(config, work.spool, stages, workers)
        former = plan.to_json()
        for now, then in FORMER_KEYS.items():
            former = former.replace(f'"{now}"', f'"{then}"')
        assert former != plan.to_json()
        work.plan_file.write_text(former)
        assert work.plan.to_json() == plan.to_json()
        assert work.begin(make_plan(config, work.spool, stages, workers))
        assert not work.begin(make_plan(config.model_copy(update={"seed": 2}), work.spool, stages, workers))
    described = '{"corpus":"web","into":"valid","weight":null,"type":"python_docs","packages":["yaml"],"stdlib":false}'
    files = [f"{file.path}\0{file.num_bytes}\0{file.stamp}" for file in config.sources[1].find_files()]
    key = hashlib.blake2b("\n".join([described, *files]).encode(), digest_size=16).hexdigest()
    assert [path.name for path in work.spool.glob("*.jsonl")] == [f"1-{key}.jsonl"]  # as the earlier version named it


def test_a_build_that_ctrl_c_stops_says_how_to_resume(tmp_path: Path):
    process = start_build(tmp_path, task_bytes=1 << 16)
    wait_for(lambda: (tmp_path / ".data.work" / "read" / "000000").exists())
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the command and its workers
    out, err = commands.finish(process, expect=130)
    assert f"stopped by Ctrl-C; what is done is kept in {tmp_path}/.data.work: run the same command again" in err
    assert "Traceback" not in out + err
    out, _ = commands.finish(start_build(tmp_path, task_bytes=1 << 16), expect=0)
    assert f"resuming the build in {tmp_path}/.data.work" in " ".join(out.split())


def test_a_killed_build_of_something_else_is_not_gone_on_with(build_small: BuildSmall, tmp_path: Path):
    process = start_build(tmp_path)
    wait_for(lambda: (tmp_path / ".data.work" / "read" / "000000").exists())
    commands.kill_all(process)
    found = documents_of(build_small(DOCUMENTS) / "train")
    assert sorted(found) == sorted(" ".join(document.split()) for document in DOCUMENTS)
    assert not any(tmp_path.glob(".data.*"))


def test_a_corpus_can_be_piped_in(tmp_path: Path, tiny_tokenizer: Path):
    config = tmp_path / "data.yaml"
    source = {"type": "jsonl", "path": "-"}
    tokenizer = {"path": str(tiny_tokenizer)}
    config.write_text(json.dumps({"out": str(tmp_path / "data"), "sources": [source], "tokenizer": tokenizer}))
    piped = "".join(json.dumps({"text": document}) + "\n" for document in DOCUMENTS)
    command = [commands.BIN / "xlpretrain", "data", "build", config, "workers=1"]
    subprocess.run(command, input=piped, text=True, check=True, capture_output=True)
    found = documents_of(tmp_path / "data" / "train") + documents_of(tmp_path / "data" / "valid")
    assert sorted(found) == sorted(" ".join(document.split()) for document in DOCUMENTS)


def test_two_builds_of_one_dataset_do_not_meet(build_small: BuildSmall, tmp_path: Path):
    with (
        WorkDir.of(tmp_path / "data").lock(),
        pytest.raises(DataError, match="another process is building this dataset"),
    ):
        build_small(DOCUMENTS)
    build_small(DOCUMENTS)


def test_a_full_disk_is_one_clear_error_and_the_next_build_goes_on(build_small: BuildSmall, small_disk: Path):
    settings = {"out": str(small_disk / "data"), "tokenizer": {"vocab_size": 200}}
    with pytest.raises(DataError, match=r"cannot be written: .*; what is done is kept in .*/\.data\.work"):
        build_small(make_documents(1500), **settings)
    assert [entry.name for entry in small_disk.iterdir()] == [".data.work"]
    subprocess.run(["mount", "-o", "remount,size=9m", str(small_disk)], check=True)
    build_small(make_documents(1500), **settings)
    assert [entry.name for entry in small_disk.iterdir()] == ["data"]


def test_the_build_tells_what_it_does(tmp_path: Path, tiny_tokenizer: Path):
    (tmp_path / "text.txt").write_text("\n\n".join(DOCUMENTS), encoding="utf-8")
    source = {"type": "text", "path": str(tmp_path / "text.txt"), "documents": "blank_lines"}
    data = {"out": str(tmp_path / "data"), "sources": [source], "tokenizer": {"path": str(tiny_tokenizer)}}
    config = validate(DataConfig, data, "test")
    for terminal in (False, True):
        said = io.StringIO()
        report = build(config, force=True, console=Console(file=said, force_terminal=terminal, width=100))
        assert all(stage in said.getvalue() for stage in ("Reading", "Encoding", "Writing", "bytes per token"))
    assert set(report.seconds) == {"Reading", "Making the tokenizer", "Encoding", "Writing"}


def test_building_needs_no_torch(tmp_path: Path):
    script = (
        "import sys, data_pipelines.build.pipeline, data_pipelines.sharding.verify, data_pipelines.sharding.stats;"
        "assert not {'torch', 'webdataset', 'deepspeed'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_quickstart_configuration_is_valid():
    assert load(DataConfig, ROOT / "configs" / "quickstart_data.yaml").splits.valid == 0.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_tokens": 300}, "power of two"),
        ({"splits": {"valid": 0.5, "test": 0.5}}, "leave nothing to train on"),
        ({"tokenizer": {"path": "a.model", "vocab_size": 5000}}, "remove vocab_size"),
        ({"sources": []}, "sources"),
        ({"sources": [{"type": "txt", "path": "a"}]}, "must be one of"),
        ({"sourcse": []}, "did you mean sources"),
    ],
)
def test_mistakes_in_the_configuration_are_told(changes: dict, message: str):
    data = {"out": "data", "sources": [{"type": "text", "path": "a.txt"}]}
    with pytest.raises(ConfigError, match=message):
        validate(DataConfig, {**data, **changes}, "data.yaml")
