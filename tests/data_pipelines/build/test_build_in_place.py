"""What builds replace and remove: what a build wrote, and nothing else.

Modules: claims.py.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import commands
import pytest
from builds import DOCUMENTS, start_build, tree, wait_for
from built_datasets import write_jsonl
from corpus import make_documents

import data_pipelines.build.pipeline
from data_pipelines.stages.work_dir import WorkDir
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.errors import DataError

BuildSmall = Callable[..., Path]


def test_force_removes_nothing_but_the_dataset(build_small: BuildSmall, tmp_path: Path):
    """The case that lost two datasets, a corpus and notes: `out` names the folder that holds them."""
    build_small(DOCUMENTS, out="data/a")
    build_small(DOCUMENTS[:100], out="data/b")
    (tmp_path / "data" / "raw").mkdir()
    (tmp_path / "data" / "raw" / "corpus.jsonl").write_text("{}")
    (tmp_path / "data" / "notes.txt").write_text("dear")
    before = tree(tmp_path / "data")
    for settings in ({}, {"force": True}, {"force": True, "seed": 2}):
        with pytest.raises(DataError, match=r"holds no dataset that was built there, but a, b, notes\.txt and 1 more"):
            build_small(DOCUMENTS, **settings)
        assert tree(tmp_path / "data") == before
    assert not any(tmp_path.glob(".data.*"))


@pytest.mark.parametrize(
    "name",
    [
        "notes.txt",
        "train/notes.txt",
        "train/shard-00009.tar",
        "tokenizer/other.model",
        "mine/train/index.json",
        "extra/train/index.json",
    ],
)
def test_force_names_what_is_in_the_way_before_it_builds(name: str, build_small: BuildSmall, tmp_path: Path):
    out = build_small(DOCUMENTS)
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_text("mine")
    if name == "extra/train/index.json":  # a whole dataset of ours, that another build has put elsewhere
        shutil.rmtree(out / "extra")
        build_small(DOCUMENTS[:50], out="other").rename(out / "extra")
    before = tree(out)
    with pytest.raises(DataError, match=f"{Path(name).parts[0]}.* is not one; move it away"):
        build_small(DOCUMENTS, seed=2, force=True, sources=[{"type": "text", "path": "none.txt"}])
    assert tree(out) == before
    if name != "mine/train/index.json":  # which is no index
        build_small(DOCUMENTS)  # it is still found to be finished
    assert tree(out) == before


def test_named_corpora_and_a_brought_tokenizer_are_claimed_by_their_indexes(build_small: BuildSmall, tmp_path: Path):
    for name in ("web", "books"):
        write_jsonl(tmp_path / f"{name}.jsonl", make_documents(100, seed=len(name)))
    sources = [{"type": "jsonl", "path": str(tmp_path / f"{n}.jsonl"), "subset": n} for n in ("web", "books")]
    settings = {"sources": sources, "splits": {"valid": 0.2}, "shard_bytes": 5_000}
    out = build_small([], **settings)
    first = tree(out)
    own = out / "web" / "tokenizer" / "spiece.model"
    build_small([], **settings, seed=2, force=True, tokenizer={"path": str(own)})
    assert set(tree(out)) == set(first)
    assert TokenDataset.open(out / "web" / "train").built_from["settings"]["seed"] == 2


def test_what_came_into_the_dataset_while_it_was_built_anew_stays(build_small: BuildSmall, tmp_path: Path, monkeypatch):
    out = build_small(DOCUMENTS)
    write_report = data_pipelines.build.pipeline.write_report

    def meanwhile(*arguments, **options):
        (out / "train" / "notes.txt").write_text("mine")
        write_report(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(data_pipelines.build.pipeline, "write_report", meanwhile)
        with pytest.raises(DataError, match=r"data: .*holds train/notes\.txt.* finished tasks are kept"):
            build_small(DOCUMENTS, seed=2, force=True)
    assert (out / "train" / "notes.txt").read_text() == "mine"
    assert TokenDataset.open(out / "train").built_from["settings"]["seed"] == 1
    (out / "train" / "notes.txt").rename(tmp_path / "notes.txt")
    build_small(DOCUMENTS, seed=2, force=True)
    assert TokenDataset.open(out / "train").built_from["settings"]["seed"] == 2
    assert not any(tmp_path.glob(".data.*"))


def test_a_build_killed_between_its_renames_has_both_datasets(build_small: BuildSmall, tmp_path: Path):
    """What such a kill leaves, see test_folders.py: the old one aside, the new one in the work folder."""
    old = tree(build_small(DOCUMENTS))
    aside = (tmp_path / "data").rename(tmp_path / ".data.0123456789abcdef.replaced")
    with pytest.raises(DataError, match="built with other settings"):
        build_small(DOCUMENTS, seed=2)
    assert not aside.exists()
    assert tree(tmp_path / "data") == old


@pytest.mark.parametrize(
    "name", ["notes.txt", "read/notes.txt", "read/000000/notes.txt", "dataset/notes.txt", "lock/x"]
)
@pytest.mark.parametrize("fails", [False, True])
def test_a_work_folder_that_is_somebody_elses_is_left_alone(
    name: str, fails: bool, build_small: BuildSmall, tmp_path: Path
):
    work = tmp_path / ".data.work"
    (work / name).parent.mkdir(parents=True)
    (work / name).write_text("mine")
    settings = {"sources": [{"type": "text", "path": "none.txt"}]} if fails else {}
    with pytest.raises(DataError, match=rf"\.data\.work: .* no build wrote {name}; move it away"):
        build_small(DOCUMENTS, **settings)
    assert tree(work) == {name: b"mine"}


def test_what_came_into_the_work_folder_is_not_removed_with_it(build_small: BuildSmall, tmp_path: Path):
    process = start_build(tmp_path)
    wait_for((tmp_path / ".data.work" / "read" / "000000").exists)
    commands.kill_all(process)
    work = WorkDir.of(tmp_path / "data")
    (work.folder / "read" / "000000" / "notes.txt").write_text("mine")
    work.remove()
    assert tree(work.folder) == {"read/000000/notes.txt": b"mine"}


def test_out_may_be_a_link_to_where_there_is_room(build_small: BuildSmall, tmp_path: Path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "disk" / "large")
    expected = tree(build_small(DOCUMENTS, out="plain"))
    for settings in ({}, {"force": True}):
        assert tree(build_small(DOCUMENTS, **settings)) == expected
        assert (tmp_path / "data").is_symlink()
        assert [path.name for path in (tmp_path / "disk").iterdir()] == ["large"]


def test_out_that_is_a_mount_point_is_refused_at_the_start(build_small: BuildSmall, small_disk: Path):
    with pytest.raises(DataError, match=r"disk: is a mount point, .*; name a folder in it, such as .*/disk/NAME"):
        build_small(DOCUMENTS, out="disk", sources=[{"type": "text", "path": "none.txt"}])
    assert list(small_disk.iterdir()) == []


def test_a_link_in_the_place_of_the_work_folder_is_refused_at_the_start(build_small: BuildSmall, tmp_path: Path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / ".data.work").symlink_to(tmp_path / "scratch")
    with pytest.raises(DataError, match="is a symbolic link, and a build needs a real folder"):
        build_small(DOCUMENTS)
    assert list((tmp_path / "scratch").iterdir()) == []


def test_out_may_not_be_where_the_sources_lie(build_small: BuildSmall, tmp_path: Path):
    out = build_small(DOCUMENTS)
    before = tree(out)
    sources = [{"type": "webdataset", "path": str(out / "train" / "*.tar")}]
    with pytest.raises(DataError, match=f"{out}: the sources include {out / 'train'}, which is inside it"):
        build_small(DOCUMENTS, sources=sources, force=True)
    assert tree(out) == before
