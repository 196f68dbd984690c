"""What a build reads stays as it was found, or the build ends."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from builds import DOCUMENTS
from built_datasets import build_dataset, write_jsonl

import data_pipelines.build.pipeline
from data_pipelines.stages.work_dir import WorkDir
from xlpretrain.errors import DataError

BuildSmall = Callable[..., Path]


@pytest.mark.parametrize("when", ["Reading", "Encoding"])
@pytest.mark.parametrize("change", ["replaced", "appended to", "gone"])
def test_a_source_that_changes_before_the_end_is_an_error(when: str, change: str, tmp_path: Path, monkeypatch):
    """Replaced by one of the same size, too: old documents and new ones were found in one dataset."""
    sizes = []
    for name, word in (("corpus", "old"), ("new", "new")):
        write_jsonl(tmp_path / f"{name}.jsonl", [f"The {word} document has number {n:05d}." for n in range(5000)])
        sizes.append((tmp_path / f"{name}.jsonl").stat().st_size)
    assert sizes[0] == sizes[1]
    corpus = tmp_path / "corpus.jsonl"
    run_task = data_pipelines.build.pipeline.run_task

    def meanwhile(work: WorkDir, stage, task: int) -> int:
        if stage.title == when and task == 1:
            if change == "replaced":
                (tmp_path / "new.jsonl").rename(corpus)
            elif change == "appended to":
                corpus.write_bytes(corpus.read_bytes() + b'{"text": "One more."}\n')
            else:
                corpus.unlink()
        return run_task(work, stage, task)

    monkeypatch.setattr(data_pipelines.build.pipeline, "run_task", meanwhile)
    settings = {"tokenizer": {"vocab_size": 50}, "task_bytes": 1 << 16}
    with pytest.raises(DataError, match=r"corpus\.jsonl: (changed since the build began|cannot be read: No such file)"):
        build_dataset(tmp_path / "data", sources=[{"type": "jsonl", "path": str(corpus)}], **settings)
    assert {path.name for path in tmp_path.iterdir()} <= {"corpus.jsonl", "new.jsonl"}


@pytest.mark.parametrize("what", ["tokenizer", "held-out texts"])
def test_what_else_a_build_reads_may_not_change_either(what: str, build_small: BuildSmall, tmp_path: Path, monkeypatch):
    tokenizer = Path(shutil.copy(tokenizer_of_tests(tmp_path, build_small), tmp_path / "own.model"))
    held_out = write_jsonl(tmp_path / "held_out.jsonl", ["Some text."])
    run_task = data_pipelines.build.pipeline.run_task

    def meanwhile(work: WorkDir, stage, task: int) -> int:
        if what == "tokenizer":
            tokenizer.write_bytes((tmp_path / "other.model").read_bytes())
        else:
            write_jsonl(held_out, ["Another text."])
        return run_task(work, stage, task)

    monkeypatch.setattr(data_pipelines.build.pipeline, "run_task", meanwhile)
    clean = {"decontaminate": {"against": [{"type": "jsonl", "path": str(held_out)}]}}
    message = "own.model: changed" if what == "tokenizer" else "decontaminate.against: these files changed"
    with pytest.raises(DataError, match=message):
        build_small(DOCUMENTS, tokenizer={"path": str(tokenizer)}, clean=clean)


def tokenizer_of_tests(folder: Path, build_small: BuildSmall) -> Path:
    """The tiny tokenizer; one that differs lies beside it as other.model."""
    other = build_small(DOCUMENTS, out="for_its_tokenizer", tokenizer={"vocab_size": 150})
    shutil.copy(other / "tokenizer" / "spiece.model", folder / "other.model")
    return build_small(DOCUMENTS, out="tiny") / "tokenizer" / "spiece.model"
