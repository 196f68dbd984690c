import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from built_datasets import BuildSmall
from corpus import make_documents
from flaky_server import serving
from torch.utils.data import ChainDataset, DataLoader

import xlpretrain
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.errors import DamagedDataError, DataError


@pytest.fixture
def small(build_small: BuildSmall, tmp_path: Path) -> Path:
    """A split of blocks of 256 tokens in several shards, in a folder with spaces in its name."""
    return build_small(make_documents(60, seed=8), out="my data", shard_bytes=20_000) / "train"


def read(samples: Any, **settings: Any) -> list[dict[str, Any]]:
    return list(DataLoader(samples, batch_size=None, **settings))


def keys(samples: Any, **settings: Any) -> list[str]:
    return [sample["__key__"] for sample in read(samples, **settings)]


def joined(samples: list[dict[str, Any]], name: str) -> torch.Tensor:
    """One array of all blocks, in the order of the dataset."""
    return torch.cat([sample[name] for sample in sorted(samples, key=lambda sample: sample["__key__"])])


def assert_whole(samples: list[dict[str, Any]], dataset: TokenDataset) -> None:
    """Each block is there once, with its tokens and its ends."""
    everything = 0, dataset.num_tokens
    assert sorted(s["__key__"] for s in samples) == [f"{n:08d}.0" for n in range(len(dataset.offsets))]
    np.testing.assert_array_equal(joined(samples, "tokens"), dataset.tokens(*everything))
    for name in ("document_ends", "sentence_ends"):
        np.testing.assert_array_equal(joined(samples, name).nonzero()[:, 0], getattr(dataset, name)(*everything))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_workers_read_every_block_once(tiny_dataset: Path, workers: int):
    dataset = TokenDataset.open(tiny_dataset / "train")
    assert 1 < len(dataset.shards) < 3
    samples = read(xlpretrain.stream(tiny_dataset / "train"), num_workers=workers)
    assert_whole(samples, dataset)
    assert samples[0]["tokens"].dtype == torch.int64
    assert samples[0]["document_ends"].dtype == torch.bool


def test_ranks_read_every_block_once(tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    samples = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        samples.append(read(xlpretrain.stream(str(tiny_dataset / "train"), seed=4), num_workers=2 * (rank == 1)))
    assert max(map(len, samples)) - min(map(len, samples)) <= 1
    assert_whole([sample for share in samples for sample in share], TokenDataset.open(tiny_dataset / "train"))


def test_the_order_is_a_permutation_by_seed_and_epoch(tiny_dataset: Path):
    split = tiny_dataset / "train"
    in_order = keys(xlpretrain.stream(split, shuffle=False, seq_len=512))
    assert in_order == sorted(in_order, key=lambda key: [*map(int, key.split("."))])
    stream = xlpretrain.stream(split, seq_len=512, seed=1)
    torch.manual_seed(0)
    shuffled = keys(stream)
    torch.manual_seed(1)
    assert shuffled == keys(stream) == keys(xlpretrain.stream(split, seq_len=512, seed=1))
    others = [keys(xlpretrain.stream(split, seq_len=512, **other)) for other in ({"seed": 2}, {"seed": 1, "epoch": 1})]
    for order in (shuffled, *others):
        assert sorted(order) == sorted(in_order)
    assert len({tuple(order) for order in (in_order, shuffled, *others)}) == 4
    assert keys(ChainDataset([stream, xlpretrain.stream(split, seq_len=512, seed=1, epoch=1)])) == shuffled + others[1]
    blocks = [key.partition(".")[0] for key in shuffled]
    assert len(set(blocks[:16])) > 8, "neighbors come from many blocks"


def test_samples_become_batches_of_tensors(tiny_dataset: Path):
    dataset = TokenDataset.open(tiny_dataset / "train")
    loader = DataLoader(xlpretrain.stream(tiny_dataset / "train", seq_len=500), batch_size=8, num_workers=2)
    num_samples = 0
    for batch in loader:
        assert batch["tokens"].shape[1:] == batch["document_ends"].shape[1:] == (500,)
        for key, tokens, ends in zip(batch["__key__"], batch["tokens"], batch["sentence_ends"], strict=True):
            block, position = map(int, key.split("."))
            start = block * dataset.block_tokens + position
            np.testing.assert_array_equal(tokens, dataset.tokens(start, start + 500))
            np.testing.assert_array_equal(ends.nonzero()[:, 0], dataset.sentence_ends(start, start + 500) - start)
            num_samples += 1
    assert num_samples == dataset.num_blocks * (dataset.block_tokens // 500) + dataset.tail_tokens // 500


def test_methods_of_webdataset_follow(small: Path):
    samples = list(xlpretrain.stream(small, seq_len=128, shuffle=False))
    (batch,) = next(iter(xlpretrain.stream(small, seq_len=128, shuffle=False).to_tuple("tokens").batched(4)))
    np.testing.assert_array_equal(batch, [sample["tokens"] for sample in samples[:4]])


def test_a_dataset_behind_a_url_is_fetched_once_by_workers_and_their_parent(small: Path, tmp_path: Path):
    pytest.importorskip("aiohttp")
    with serving(small.parent, bad=0.1) as server:
        stream = xlpretrain.stream(f"{server.url}/train", seed=3, cache_dir=tmp_path / "cache", retry_s=20)
        first = next(iter(stream))["__key__"]  # starts the parent's threads, which workers do not have
        samples = read(stream, num_workers=2)
        assert_whole(samples, TokenDataset.open(small))
        assert samples[0]["__key__"] == first
        server.bad, before = 0.0, server.requests.total()
        assert_whole(read(stream), TokenDataset.open(small))
        assert server.requests.total() == before


def test_what_is_wrong_is_named_at_once(small: Path, tmp_path: Path):
    with pytest.raises(DataError, match="not a dataset"):
        xlpretrain.stream(tmp_path)
    with pytest.raises(DataError, match="name one of its parts: train"):
        xlpretrain.stream(small.parent)
    for seq_len in (0, -1, 257):
        with pytest.raises(DataError, match=f"seq_len must be from 1 to 256.*got {seq_len}; build it with"):
            xlpretrain.stream(small, seq_len=seq_len)
    for name in ("seed", "epoch"):
        with pytest.raises(DataError, match=f"{name} must be 0 or more, got -1"):
            xlpretrain.stream(small, **{name: -1})
    (small / "shard-00000.tar").unlink()
    with pytest.raises(DataError, match="this shard is missing"):
        xlpretrain.stream(small)


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_is_found_in_every_process(small: Path, workers: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)  # else 5 s to end each worker
    dataset = TokenDataset.open(small)
    data = bytearray(dataset.shards[0].path.read_bytes())
    data[int(dataset.offsets[2]) - 700] ^= 1  # in the tokens of block 1, which webdataset's reader would yield
    dataset.shards[0].path.write_bytes(data)
    with pytest.raises(DamagedDataError, match="block 1 is damaged: its checksum"):
        read(xlpretrain.stream(small), num_workers=workers)
    gc.collect()  # ends the workers here


def test_credentials_in_a_url_are_not_printed(small: Path, tmp_path: Path):
    pytest.importorskip("aiohttp")
    with serving(small.parent) as server:
        url = server.url.replace("://", "://me:hunter2@")
        with pytest.raises(DataError, match=r"://\*\*\*@.*/nowhere/index.json: cannot be fetched") as found:
            xlpretrain.stream(f"{url}/nowhere", cache_dir=tmp_path / "cache", retry_s=0.5)
        assert "hunter2" not in str(found.value)
        assert len(read(xlpretrain.stream(f"{url}/train", cache_dir=tmp_path / "cache"))) > 3
