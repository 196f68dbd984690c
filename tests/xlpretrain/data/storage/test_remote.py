import threading
import time
from pathlib import Path

import commands
import numpy as np
import pytest
from built_datasets import BuildSmall
from corpus import make_documents
from flaky_server import serving

from xlpretrain.data.loader import Loader
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.data.storage.remote import BlockCache
from xlpretrain.data.tokenizers.open import TOKENIZER_FILES
from xlpretrain.errors import DamagedDataError, DataError
from xlpretrain.objectives.causal_lm import CausalLM

pytest.importorskip("aiohttp")


@pytest.fixture
def dataset(build_small: BuildSmall) -> Path:
    return build_small(make_documents(60, seed=8), shard_bytes=20_000)


def cache_of(tmp_path: Path, **settings: float) -> BlockCache:
    return BlockCache(tmp_path / "cache", **{"retry_s": 20.0, **settings})


def read_all(manifest: TokenDataset) -> np.ndarray:
    return np.concatenate([manifest.block(number).tokens for number in range(len(manifest.offsets))])


def test_a_bad_server_gives_the_same_bytes_and_each_block_is_fetched_once(dataset: Path, tmp_path: Path):
    local = TokenDataset.open(dataset / "train")
    with serving(dataset, bad=0.3) as server:
        remote = TokenDataset.open(f"{server.url}/train", cache=cache_of(tmp_path))
        assert remote.fingerprint == local.fingerprint
        assert remote.open_tokenizer().sha256 == local.tokenizer_sha256
        assert np.array_equal(read_all(remote), read_all(local))
        server.bad, before = 0.0, server.requests.total()
        again = TokenDataset.open(f"{server.url}/train", cache=cache_of(tmp_path))
        assert np.array_equal(read_all(again), read_all(local))
        assert server.requests.total() - before <= 2 + len(TOKENIZER_FILES)  # index, and whichever tokenizer there is


def test_a_dataset_of_bytes_brings_its_vocabulary(build_small: BuildSmall, tmp_path: Path):
    dataset = build_small(make_documents(20, seed=8), tokenizer={"model_type": "bytes"})
    with serving(dataset) as server:
        remote = TokenDataset.open(f"{server.url}/train", cache=cache_of(tmp_path))
        assert remote.open_tokenizer().sha256 == TokenDataset.open(dataset / "train").tokenizer_sha256


@pytest.mark.full
def test_several_readers_share_a_cache_of_bounded_size(dataset: Path, tmp_path: Path):
    local, limit = TokenDataset.open(dataset / "train"), 20_000
    wrong = []
    with serving(dataset, bad=0.1) as server:

        def read() -> None:
            manifest = TokenDataset.open(f"{server.url}/train", cache=cache_of(tmp_path, max_bytes=limit))
            for _ in range(2):
                wrong.extend([1] if not np.array_equal(read_all(manifest), read_all(local)) else [])

        readers = [threading.Thread(target=read) for _ in range(4)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
    kept = [path for path in (tmp_path / "cache").rglob("0*") if path.name.isdigit()]
    assert not wrong and kept
    assert sum(path.stat().st_size for path in kept) <= limit


def test_what_is_damaged_in_the_cache_is_fetched_anew_and_at_its_source_named(dataset: Path, tmp_path: Path):
    with serving(dataset) as server:
        read_all(TokenDataset.open(f"{server.url}/train", cache=cache_of(tmp_path)))
        (cached,) = (tmp_path / "cache").rglob("00000003")
        cached.write_bytes(bytes(cached.stat().st_size))
        assert len(TokenDataset.open(f"{server.url}/train", cache=cache_of(tmp_path)).block(3).tokens) == 256
        cached.unlink()
        manifest = TokenDataset.open(f"{server.url}/train", cache=cache_of(tmp_path))
        shard = dataset / "train" / manifest.shards[manifest.shard_numbers[3]].path.name
        data = bytearray(shard.read_bytes())
        data[int(manifest.offsets[3]) + 600] ^= 1
        shard.write_bytes(data)
        with pytest.raises(DamagedDataError, match="block 3 is damaged"):
            manifest.block(3)


def test_a_server_that_is_gone_is_named_with_what_to_do(dataset: Path, tmp_path: Path):
    with serving(dataset) as server:
        manifest = TokenDataset.open(f"{server.url}/train", cache=cache_of(tmp_path, retry_s=0.5))
        with pytest.raises(DataError, match=r"nowhere/index.json: cannot be fetched.*check the URL"):
            TokenDataset.open(f"{server.url}/nowhere", cache=cache_of(tmp_path, retry_s=0.5))
    with pytest.raises(DataError, match=r"block 0: cannot be fetched.*network"):
        manifest.block(0)


def test_blocks_are_there_before_they_are_needed(dataset: Path, tmp_path: Path):
    with serving(dataset) as server:
        manifest = TokenDataset.open(f"{server.url}/train", cache=cache_of(tmp_path))
        rows = CausalLM(seq_len=32).training_samples(manifest, mem_len=32, num_streams=4, seed=1, shuffle_blocks=4)
        waits = []
        for _ in Loader(rows, lambda rows: len(rows), [range(4)]).steps(start=0, stop=40):
            started = time.perf_counter()
            needed = [rows.sample(step=len(waits) + 4, stream=s) for s in range(4)]
            waits.append(time.perf_counter() - started)
            assert needed
            time.sleep(0.02)
        fetched = sum(count for (path, _), count in server.requests.items() if path.endswith(".tar"))
    assert fetched == len({key for key in server.requests if key[0].endswith(".tar")}), "none was fetched twice"
    assert fetched > 8


@pytest.mark.full
def test_a_run_from_a_bad_server_has_the_losses_of_one_from_the_disk(dataset: Path, tmp_path: Path):
    settings = {"engine": {"type": "plain"}, "max_steps": 30}
    with serving(dataset, bad=0.3) as server:
        for name, place in {"disk": str(dataset), "network": server.url}.items():
            data = {"train": f"{place}/train", "cache_dir": str(tmp_path / "cache")}
            config = commands.write_config(tmp_path / f"{name}.yaml", dataset, **settings, name=name, data=data)
            commands.run("train", config, "--nproc", 2)
    assert commands.curve(tmp_path / "runs" / "disk") == commands.curve(tmp_path / "runs" / "network")
