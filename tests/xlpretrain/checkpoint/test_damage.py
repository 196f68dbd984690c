"""What happens to a dataset on a disk, and who notices."""

import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import commands
import pytest
from built_datasets import BuildSmall
from corpus import make_documents
from mixtures import mixture_of
from rich.console import Console

from data_pipelines.sharding.verify import verify
from xlpretrain import distributed
from xlpretrain.data.loader import Loader
from xlpretrain.data.samples import TrainSamples
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.data.storage.shard_reader import TAR_BLOCK
from xlpretrain.errors import DamagedDataError, DataError
from xlpretrain.objectives.causal_lm import CausalLM
from xlpretrain.objectives.masked_lm import MaskedLM
from xlpretrain.objectives.permutation_lm import PermutationLM

GARBAGE = random.Random(0).randbytes(1 << 16)
Damage = Callable[[bytes, int], bytes]
DAMAGES: dict[str, Damage] = {
    "cut inside member data": lambda data, header: data[: header + TAR_BLOCK + 100],
    "cut inside a header": lambda data, header: data[: header + 100],
    "cut at a member's boundary": lambda data, header: data[:header],
    "a header of zeros": lambda data, header: data[:header] + bytes(TAR_BLOCK) + data[header + TAR_BLOCK :],
    "a header of garbage": lambda data, header: data[:header] + GARBAGE[:TAR_BLOCK] + data[header + TAR_BLOCK :],
    "4 KiB of garbage": lambda data, header: data[:header] + GARBAGE[:4096] + data[header + 4096 :],
    "a flipped bit": lambda data, header: data[: header - 700] + bytes([data[header - 700] ^ 1]) + data[header - 699 :],
    "an empty file": lambda data, header: b"",
    "all garbage": lambda data, header: (GARBAGE * (len(data) // len(GARBAGE) + 1))[: len(data)],
}


def damage(folder: Path, kind: str, *, block: int = 3) -> None:
    """Damage a split's only shard about the beginning of a block."""
    path, header = folder / "shard-00000.tar", int(TokenDataset.open(folder).offsets[block])
    path.write_bytes(DAMAGES[kind](path.read_bytes(), header))


def read_all(folder: Path) -> None:
    manifest = TokenDataset.open(folder)
    for number in range(len(manifest.offsets)):
        manifest.block(number)


@pytest.fixture
def dataset(build_small: BuildSmall) -> Path:
    return build_small(make_documents(60, seed=8))


@pytest.mark.parametrize("kind", DAMAGES)
def test_any_damage_is_noticed_at_run_time_and_by_verify(kind: str, dataset: Path):
    read_all(dataset / "train")
    damage(dataset / "train", kind)
    with pytest.raises(DataError, match=r"shard-00000\.tar.*(copy|build) the dataset again"):
        read_all(dataset / "train")
    assert any("shard-00000.tar" in problem for problem in verify(dataset, console=Console(file=io.StringIO())))


def test_another_tokenizer_is_noticed_at_run_time_and_by_verify(dataset: Path, build_small: BuildSmall):
    other = build_small(make_documents(300, seed=3), out="other", tokenizer={"vocab_size": 120})
    shutil.copy(other / "tokenizer" / "spiece.model", dataset / "tokenizer" / "spiece.model")
    with pytest.raises(DataError, match="not the tokenizer of"):
        mixture_of(dataset / "train").open_tokenizer()
    assert any("not the tokenizer" in problem for problem in verify(dataset, console=Console(file=io.StringIO())))


@pytest.mark.parametrize("key", ["crc32", "offset", "documents"])
def test_an_index_that_was_changed_is_noticed(key: str, dataset: Path):
    path = dataset / "train" / "index.json"
    index = json.loads(path.read_text())
    index["shards"][0][key][1] += 1
    path.write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"index\.json: damaged \(its checksum does not match\)"):
        TokenDataset.open(dataset / "train")
    del index["checksum"]
    index["shards"][0][key][1] -= 1
    path.write_text(json.dumps(index))
    read_all(dataset / "train")  # an older one has none


OBJECTIVES = {
    "causal": (CausalLM(seq_len=32), 32),
    "permutation": (PermutationLM(seq_len=64, reuse_len=32, perm_size=16, num_predict=8), 32),
    "masked": (MaskedLM(seq_len=32), 0),
}


def _rows(folder: Path, objective: str) -> TrainSamples:
    made, mem_len = OBJECTIVES[objective]
    return made.training_samples(TokenDataset.open(folder), mem_len=mem_len, num_streams=6, seed=1, shuffle_blocks=4)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_rows_of_a_damaged_block_are_left_out_alike_by_any_number_of_ranks(objective: str, dataset: Path):
    whole = _rows(dataset / "train", objective)
    whole_rows = [[whole.sample(step=step, stream=s) for s in range(6)] for step in range(40)]
    damage(dataset / "train", "a flipped bit")
    rows = _rows(dataset / "train", objective)

    def read(world_size: int, start: int, stop: int) -> tuple[list, int]:
        steps: list[list[bytes]] = [[] for _ in range(start, stop)]
        damaged = 0
        for rank in range(world_size):
            groups = distributed.micro_batches(rank, world_size, num_streams=6, micro_batch_size=2)
            loader = Loader(rows, lambda rows: [row.tokens.tobytes() for row in rows], groups, skip_damage=True)
            for step, batches in enumerate(loader.steps(start=start, stop=stop)):
                steps[step] += [row for batch in batches for row in batch]
            damaged += sum(map(len, loader.damage.values()))
        return steps, damaged

    alone, damaged = read(1, 0, 40)
    assert read(3, 0, 40) == (alone, damaged)
    (before, first), (after, second) = read(2, 0, 17), read(1, 17, 40)
    assert (before + after, first + second) == (alone, damaged)
    found = [
        (a, b.tokens.tobytes())
        for step, there in zip(alone, whole_rows, strict=True)
        for a, b in zip(step, there, strict=True)
    ]
    assert 0 < damaged <= sum(a != b for a, b in found)
    if objective != "masked":  # there the estimate of the samples of a block has changed
        assert all(a in (b, b"") for a, b in found)
        assert damaged == sum(a != b for a, b in found)
    with pytest.raises(DamagedDataError, match="block 2 is damaged"):
        [rows.sample(step=step, stream=s) for step in range(40) for s in range(6)]


@pytest.mark.full
def test_a_run_ends_at_a_damaged_block_or_goes_on_without(tmp_path: Path, dataset: Path):
    damage(dataset / "train", "a flipped bit")
    settings = {"engine": {"type": "plain"}, "max_steps": 40, "data": {"train": str(dataset / "train")}}
    config = commands.write_config(tmp_path / "damaged.yaml", dataset, **settings)
    error = commands.refused("train", config)
    assert "shard-00000.tar: block 2 is damaged" in error and "data.on_damage=skip" in error
    out, _ = commands.run("resume", tmp_path / "runs" / "run", "data.on_damage=skip", "--nproc", 2)
    assert out.count("skipping samples of a damaged block") == 1
    rows = commands.read_metrics(tmp_path / "runs" / "run")
    assert rows[-1]["step"] == 40 and rows[-1]["events/damaged_rows"] > 0
