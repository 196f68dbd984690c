import io
import json
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from corpus import make_documents
from hypothesis import given
from hypothesis import strategies as st

from xlpretrain.data.storage.dataset import TokenDataset, add_checksum
from xlpretrain.errors import DataError

BuildSmall = Callable[..., Path]

VOCABULARY = {"size": 100, "pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4, "eod": 5}


@pytest.fixture(scope="module")
def whole(tiny_dataset: Path) -> tuple[TokenDataset, np.ndarray]:
    """A dataset, and its tokens as the tar files tell them."""
    manifest = TokenDataset.open(tiny_dataset / "train")
    parts = []
    for shard in manifest.shards:
        with tarfile.open(shard.path) as tar:
            members = [member for member in tar if member.name.endswith(".tok.npy")]
            parts += [np.load(io.BytesIO(tar.extractfile(member).read()), allow_pickle=False) for member in members]
    return manifest, np.concatenate(parts)


def edit_index(folder: Path, edit: Callable[[dict], None]) -> None:
    path = folder / "index.json"
    index = json.loads(path.read_text())
    edit(index)
    path.write_text(add_checksum(index))


def test_a_dataset_has_whole_blocks_and_one_tail(whole: tuple[TokenDataset, np.ndarray]):
    manifest, tokens = whole
    assert manifest.num_blocks >= 40
    assert manifest.block_tokens == 16_384
    assert manifest.num_tokens == len(tokens) == manifest.num_blocks * manifest.block_tokens + manifest.tail_tokens
    assert len(manifest.block(0).tokens) == manifest.block_tokens
    assert len(manifest.block(manifest.num_blocks).tokens) == manifest.tail_tokens
    assert len(manifest.shards) > 1
    with pytest.raises(IndexError):
        manifest.block(manifest.num_blocks + 1)


def test_any_range_of_tokens_is_the_corpus_there(whole: tuple[TokenDataset, np.ndarray]):
    manifest, tokens = whole

    @given(st.integers(0, len(tokens)), st.one_of(st.integers(0, 600), st.integers(0, 100_000)))
    def check(start: int, length: int) -> None:
        stop = min(start + length, len(tokens))
        found = manifest.tokens(start, stop)
        assert found.dtype == tokens.dtype
        np.testing.assert_array_equal(found, tokens[start:stop])
        ends = np.flatnonzero(tokens[start:stop] == manifest.vocabulary.eod) + start
        np.testing.assert_array_equal(manifest.document_ends(start, stop), ends)

    check()
    with pytest.raises(IndexError):
        manifest.tokens(0, len(tokens) + 1)


def test_sentences_end_before_the_end_of_document_symbol(whole: tuple[TokenDataset, np.ndarray]):
    manifest, tokens = whole
    sentence_ends = manifest.sentence_ends(0, len(tokens))
    document_ends = manifest.document_ends(0, len(tokens))
    assert len(sentence_ends) == manifest.num_sentences > manifest.num_documents == len(document_ends)
    assert set(document_ends - 1) <= set(sentence_ends)
    assert not set(document_ends) & set(sentence_ends)


def test_tokens_of_a_block_are_a_read_only_view(whole: tuple[TokenDataset, np.ndarray]):
    manifest, _ = whole
    tokens = manifest.tokens(10, 20)
    assert tokens.base is not None
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 1


def test_bytes_are_those_of_the_documents(build_small: BuildSmall):
    documents = make_documents(60, seed=8)
    manifest = TokenDataset.open(build_small(documents) / "train")
    assert manifest.num_bytes == sum(len(document.encode()) for document in documents)
    assert manifest.num_bytes == sum(manifest.block_bytes(n) for n in range(manifest.num_blocks + 1))
    assert manifest.num_documents == 60


def test_a_manifest_can_go_to_another_process(whole: tuple[TokenDataset, np.ndarray]):
    manifest, tokens = whole
    assert np.array_equal(pickle.loads(pickle.dumps(manifest)).tokens(5, 50), tokens[5:50])


def test_a_million_blocks_open_fast_and_lean(tmp_path: Path):
    shards = []
    for number in range(100):
        path = tmp_path / f"shard-{number:05d}.tar"
        path.touch()
        column = list(range(10_000))
        columns = dict.fromkeys(("offset", "crc32", "documents", "sentences", "source_bytes"), column)
        shards.append({"name": path.name, "num_bytes": 0, "sha256": "", "num_members": 30_000, **columns})
    index = {"schema_version": 1, "block_tokens": 1 << 20, "tail_tokens": 0, "num_tokens": 10**6 << 20}
    index |= {"dtype": "uint16", "vocabulary": VOCABULARY, "tokenizer_sha256": "", "num_unknown": 0}
    (tmp_path / "index.json").write_text(json.dumps({**index, "built_from": {}, "shards": shards}))
    script = (
        "import sys, time; from xlpretrain.data.storage.dataset import TokenDataset; begin = time.perf_counter();"
        f"m = TokenDataset.open({str(tmp_path)!r}); assert m.num_blocks == 10**6;"
        "took = time.perf_counter() - begin; status = open('/proc/self/status').read();"
        "print(took, int(status.split('VmHWM:')[1].split()[0]) / 1024,"  # ru_maxrss would begin at the parent's
        "'torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert float(out[0]) < 10  # seconds; about 0.6 on a quiet machine
    assert float(out[1]) < 1000  # MiB
    assert out[2] == "False"


def test_damage_is_found_at_the_first_touch_and_only_there(build_small: BuildSmall):
    folder = build_small(make_documents(60, seed=8)) / "train"
    manifest = TokenDataset.open(folder)
    path = manifest.shards[0].path
    data = bytearray(path.read_bytes())
    data[int(manifest.offsets[2]) - 700] ^= 1  # in the tokens of block 1
    path.write_bytes(data)
    damaged = TokenDataset.open(folder)
    assert len(damaged.tokens(0, 256)) == 256
    with pytest.raises(DataError, match=r"shard-00000\.tar: block 1 is damaged: its checksum.*xlpretrain data verify"):
        damaged.tokens(200, 300)


def test_a_truncated_or_missing_shard_is_refused_on_opening(build_small: BuildSmall):
    folder = build_small(make_documents(60, seed=8)) / "train"
    path = folder / "shard-00000.tar"
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(DataError, match=r"shard-00000\.tar: \d+ bytes, expected \d+"):
        TokenDataset.open(folder)
    path.unlink()
    with pytest.raises(DataError, match="missing"):
        TokenDataset.open(folder)


def test_another_tokenizer_is_refused(tiny_dataset: Path):
    sha256 = TokenDataset.open(tiny_dataset / "train").tokenizer_sha256
    TokenDataset.open(tiny_dataset / "valid", tokenizer_sha256=sha256)
    with pytest.raises(DataError, match="encoded with another tokenizer"):
        TokenDataset.open(tiny_dataset / "valid", tokenizer_sha256="0" * 64)


@pytest.mark.parametrize("name", ["../shard-00000.tar", "/etc/passwd", "..", ""])
def test_shards_outside_the_folder_are_refused(name: str, build_small: BuildSmall):
    folder = build_small(make_documents(60, seed=8)) / "train"
    edit_index(folder, lambda index: index["shards"][0].update(name=name))
    with pytest.raises(DataError, match="expected a shard beside the index"):
        TokenDataset.open(folder)


@pytest.mark.parametrize(
    "damage",
    [
        lambda index: index.pop("vocabulary"),
        lambda index: index.update(dtype="object"),
        lambda index: index.update(num_tokens=3),
        lambda index: index.update(shards=None),
        lambda index: index["shards"][0]["offset"].pop(),
        lambda index: index["shards"][0].update(crc32=["x"]),
    ],
)
def test_a_damaged_index_is_refused(damage: Callable[[dict], None], build_small: BuildSmall):
    folder = build_small(make_documents(60, seed=8)) / "train"
    edit_index(folder, damage)
    with pytest.raises(DataError, match=r"index\.json: damaged"):
        TokenDataset.open(folder)


def test_what_is_no_dataset_is_refused(tmp_path: Path, tiny_dataset: Path):
    with pytest.raises(DataError, match="not a dataset"):
        TokenDataset.open(tmp_path)
    with pytest.raises(DataError, match="name one of its parts: train, valid"):
        TokenDataset.open(tiny_dataset)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        TokenDataset.open(tmp_path)
    (tmp_path / "index.json").write_text('{"schema_version": 99}')
    with pytest.raises(DataError, match="schema version 99, expected 1"):
        TokenDataset.open(tmp_path)
