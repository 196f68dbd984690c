import hashlib
import io
import json
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from corpus import make_documents
from rich.console import Console

from data_pipelines.sharding.stats import measure, stats
from data_pipelines.sharding.verify import verify
from data_pipelines.tokenizing.config import SentenceConfig
from data_pipelines.tokenizing.sentences import split_sentences
from xlpretrain.data.storage.dataset import TokenDataset, add_checksum
from xlpretrain.data.tokenizers.open import load_tokenizer
from xlpretrain.errors import DataError

BuildSmall = Callable[..., Path]


def find_problems(folder: Path) -> list[str]:
    return verify(folder, console=Console(file=io.StringIO()))


@pytest.fixture
def dataset(build_small: BuildSmall) -> Path:
    return build_small(make_documents(60, seed=8))


def replace_members(folder: Path, change: Callable[[str, bytes], tuple[str, bytes]]) -> None:
    """Rewrite the first shard with other members, the index agreeing in size and checksums."""
    path, index_path = folder / "shard-00000.tar", folder / "index.json"
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    changed = [change(name, data) for name, data in members]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        offsets = []
        for name, data in changed:
            offsets.append(tar.offset)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    index = json.loads(index_path.read_text())
    datas = [data for _, data in changed]
    columns = {
        "offset": offsets[::3],
        "crc32": [zlib.crc32(b"".join(datas[i : i + 3])) for i in range(0, len(datas), 3)],
    }
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    index["shards"][0].update(columns, num_bytes=path.stat().st_size, sha256=sha256)
    index_path.write_text(add_checksum(index))


def test_a_whole_dataset_has_no_problems(tiny_dataset: Path):
    assert find_problems(tiny_dataset) == []
    assert find_problems(tiny_dataset / "valid") == []


@pytest.mark.parametrize("part", ["token", "tar header", "padding", "end"])
def test_any_flipped_bit_is_found(part: str, dataset: Path):
    manifest = TokenDataset.open(dataset / "train")
    path, second = manifest.shards[0].path, int(manifest.offsets[1])
    position = {"token": second - 700, "tar header": second + 3, "padding": second - 1, "end": -1}[part]
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)
    problems = find_problems(dataset)
    assert any("shard-00000.tar: other bytes than were written" in problem for problem in problems)
    assert any("block 0 is damaged" in problem for problem in problems) == (part == "token")
    assert any("block 1 is damaged" in problem for problem in problems) == (part == "tar header")


def test_missing_and_truncated_shards_are_found(build_small: BuildSmall):
    folder = build_small(make_documents(60, seed=8), shard_bytes=5000) / "train"
    shards = TokenDataset.open(folder).shards
    shards[0].path.unlink()
    shards[1].path.write_bytes(shards[1].path.read_bytes()[:1000])
    problems = find_problems(folder)
    assert len(problems) == 2
    assert "missing" in problems[0]
    assert "1000 bytes, expected" in problems[1]


@pytest.mark.parametrize("name", ["../../00000000.tok.npy", "/tmp/00000000.tok.npy"])
def test_a_member_that_points_elsewhere_is_refused(name: str, dataset: Path):
    replace_members(dataset / "train", lambda old, data: (name if old == "00000000.tok.npy" else old, data))
    problems = find_problems(dataset)
    assert any("unsafe member name" in problem for problem in problems)
    with pytest.raises(DataError, match=r"expected the member 00000000\.tok\.npy, got"):
        TokenDataset.open(dataset / "train").tokens(0, 10)


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


def test_a_pickle_is_refused_and_never_loaded(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    pickled = io.BytesIO()
    np.save(pickled, np.asarray([Bomb()] * 256, dtype=object), allow_pickle=True)
    replace_members(
        dataset / "train", lambda old, data: (old, pickled.getvalue() if old == "00000000.tok.npy" else data)
    )
    assert any("its tok array should be uint16[256], got object[256]" in problem for problem in find_problems(dataset))
    with pytest.raises(DataError, match="got object"):
        TokenDataset.open(dataset / "train").tokens(0, 10)
    assert not Path("exploded").exists()


@pytest.mark.parametrize(
    ("member", "position", "value", "message"),
    [
        ("tok", 7, 60_000, "outside the vocabulary"),
        ("sent", 0, 9_999, "sentence ends are not increasing"),
        ("tok", 7, None, "do not match the end-of-document tokens"),
    ],
)
def test_tokens_that_make_no_sense_are_found(
    member: str, position: int, value: int | None, message: str, dataset: Path
):
    eod = TokenDataset.open(dataset / "train").vocabulary.eod

    def change(name: str, data: bytes) -> tuple[str, bytes]:
        if name == f"00000000.{member}.npy":
            array = np.load(io.BytesIO(data)).copy()
            array[position] = eod if value is None else value
            stream = io.BytesIO()
            np.lib.format.write_array(stream, array, version=(1, 0))
            data = stream.getvalue()
        return name, data

    replace_members(dataset / "train", change)
    assert any(message in problem for problem in find_problems(dataset))


def test_another_tokenizer_beside_the_dataset_is_found(dataset: Path):
    (dataset / "tokenizer" / "spiece.model").unlink()
    assert any("no such tokenizer" in problem for problem in find_problems(dataset))


def test_where_there_is_no_dataset_it_says_so(tmp_path: Path):
    with pytest.raises(DataError, match="not a dataset"):
        find_problems(tmp_path)


def test_stats_tell_what_a_dataset_holds(tiny_dataset: Path, tmp_path: Path):
    said = io.StringIO()
    stats(tiny_dataset, console=Console(file=said, width=120), plot=tmp_path / "stats.png")
    manifest = TokenDataset.open(tiny_dataset / "train")
    for number in (manifest.num_tokens, manifest.num_documents, manifest.num_sentences, manifest.num_bytes):
        assert f"{number:,}" in said.getvalue()
    assert "median" in said.getvalue()
    assert (tmp_path / "stats.png").read_bytes().startswith(b"\x89PNG")


def test_lengths_are_those_of_documents_and_sentences(build_small: Callable[..., Path], tiny_tokenizer: Path):
    documents, tokenizer = make_documents(60, seed=5), load_tokenizer(tiny_tokenizer)
    folder = build_small(documents) / "train"
    measured = measure(TokenDataset.open(folder))
    sentences = [[len(tokenizer.encode(s)) for s in split_sentences(d, SentenceConfig())] for d in documents]
    assert sorted(measured.documents.tolist()) == sorted(sum(own) + 1 for own in sentences)
    assert sorted(measured.sentences.tolist()) == sorted(length for own in sentences for length in own)
    assert measured.share == 1
    assert measured.pieces_per_word is not None and 1 < measured.pieces_per_word < 4


def test_of_a_large_dataset_samples_are_measured(build_small: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    manifest = TokenDataset.open(build_small(make_documents(400, seed=5)) / "train")
    whole = measure(manifest)
    monkeypatch.setattr("data_pipelines.sharding.stats.MOST_BLOCKS", 10)
    monkeypatch.setattr("data_pipelines.sharding.stats.SAMPLES", 4)
    sampled = measure(manifest)
    assert 0 < sampled.share < 0.5
    assert set(sampled.documents.tolist()) <= set(whole.documents.tolist())
    assert set(sampled.sentences.tolist()) <= set(whole.sentences.tolist())
    assert abs(np.median(sampled.sentences) - np.median(whole.sentences)) < 5


def test_any_number_of_workers_finds_the_same(tiny_dataset: Path, tmp_path: Path):
    folder = tmp_path / "data"
    shutil.copytree(tiny_dataset, folder)
    shard = sorted((folder / "train").glob("*.tar"))[0]
    data = bytearray(shard.read_bytes())
    for place in (5000, 100_000, len(data) // 2):
        data[place] ^= 1
    shard.write_bytes(data)
    found = [verify(folder, console=Console(file=io.StringIO()), workers=workers) for workers in (1, 2)]
    assert found[0] == found[1]
    assert len(found[0]) == 4
