from pathlib import Path

import numpy as np
import pytest

from xlpretrain import distributed
from xlpretrain.data.evaluation_samples import NextTokenEvalSamples
from xlpretrain.data.loader import Loader
from xlpretrain.data.samples import Sample, StreamSamples
from xlpretrain.data.storage.dataset import TokenDataset


@pytest.fixture(scope="module")
def train(tiny_dataset: Path) -> TokenDataset:
    return TokenDataset.open(tiny_dataset / "train")


@pytest.fixture(scope="module")
def valid(tiny_dataset: Path) -> TokenDataset:
    return TokenDataset.open(tiny_dataset / "valid")


def rows_of(
    train: TokenDataset, *, seq_len: int = 32, mem_len: int = 48, num_streams: int = 6, seed: int = 0
) -> StreamSamples:
    return StreamSamples.of(
        train,
        window=seq_len + 1,
        stride=seq_len,
        mem_len=mem_len,
        num_streams=num_streams,
        seed=seed,
        shuffle_blocks=4,
    )


def test_the_last_target_of_a_row_is_the_first_input_of_the_next(train: TokenDataset):
    samples = rows_of(train)
    for stream in range(6):
        for step in range(3 * samples.samples_per_block):
            here, after = (samples.sample(step=s, stream=stream) for s in (step, step + 1))
            if after.mem_valid_len:
                assert here.tokens[-1] == after.tokens[0]


def test_a_stream_reads_whole_blocks_and_each_token_of_them_once(train: TokenDataset):
    seq_len = 48  # does not divide a block: the last sample of a block is short
    samples = rows_of(train, seq_len=seq_len, num_streams=1)
    per_block = samples.samples_per_block
    for visit in range(3):
        place = samples.order.position(step=visit * per_block, stream=0)
        read = np.concatenate(
            [samples.sample(step=visit * per_block + r, stream=0).tokens[:seq_len] for r in range(per_block - 1)]
            + [samples.sample(step=visit * per_block + per_block - 1, stream=0).tokens[:-1]]
        )
        assert np.array_equal(read, train.block(place.block).tokens)


def test_remembered_is_zero_in_a_blocks_first_row_and_grows_by_the_stride_to_mem_len(train: TokenDataset):
    samples = rows_of(train, seq_len=32, mem_len=80, num_streams=1)
    remembered = [samples.sample(step=s, stream=0).mem_valid_len for s in range(2 * samples.samples_per_block)]
    assert remembered[: samples.samples_per_block] == [min(80, 32 * r) for r in range(samples.samples_per_block)]
    assert remembered[samples.samples_per_block] == 0


def test_a_stream_that_starts_in_mid_block_remembers_nothing_at_first(train: TokenDataset):
    samples = rows_of(train, num_streams=2)
    assert samples.order.position(step=0, stream=1).sample > 0
    assert [samples.sample(step=s, stream=1).mem_valid_len for s in range(3)] == [0, 32, 48]


def test_document_ends_are_the_end_of_document_symbols(train: TokenDataset):
    samples = rows_of(train)
    seen = 0
    for step in range(40):
        sample = samples.sample(step=step, stream=step % 6)
        assert np.array_equal(sample.document_ends, np.flatnonzero(sample.tokens == train.vocabulary.eod))
        seen += len(sample.document_ends)
    assert seen


@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
@pytest.mark.parametrize("seed", [0, 7])
def test_any_world_size_reads_the_same_rows_in_the_same_order(train: TokenDataset, seed: int, micro_batch_size: int):
    num_streams = 6
    samples = rows_of(train, num_streams=num_streams, seed=seed)

    def read(world_size: int) -> list[list[bytes]]:
        steps: list[list[bytes]] = [[] for _ in range(12)]
        for rank in range(world_size):
            groups = distributed.micro_batches(
                rank, world_size, num_streams=num_streams, micro_batch_size=micro_batch_size
            )
            assert max(map(len, groups)) <= micro_batch_size
            loader = Loader(samples, lambda samples: [sample.tokens.tobytes() for sample in samples], groups)
            for step, batches in enumerate(loader.steps(start=0, stop=12)):
                steps[step] += [sample for batch in batches for sample in batch]
        return steps

    alone = read(1)
    for world_size in range(2, num_streams + 1):
        assert read(world_size) == alone


def test_a_loader_that_starts_later_gives_what_it_would_have_given(train: TokenDataset):
    loader = Loader(
        rows_of(train), lambda samples: [sample.tokens.tolist() for sample in samples], [range(3), range(3, 6)]
    )
    assert list(loader.steps(start=5, stop=9)) == list(loader.steps(start=0, stop=9))[5:]


@pytest.mark.parametrize("num_streams", [1, 3, 4])
@pytest.mark.parametrize("max_tokens", [1000, None])
def test_evaluation_scores_every_token_exactly_once(valid: TokenDataset, num_streams: int, max_tokens: int | None):
    num_tokens = max_tokens or valid.num_tokens
    samples = NextTokenEvalSamples(valid, num_tokens, num_streams, new_tokens=50, mem_len=100)
    targets, tokens = [], []
    for stream in range(num_streams):
        for step in range(samples.num_steps):
            sample = samples.sample(step=step, stream=stream)
            positions = samples.targets(step=step, stream=stream)
            targets += positions
            tokens += sample.tokens[1:].tolist()
            assert len(sample.tokens) == (len(positions) + 1 if positions else 0)
            assert sample.mem_valid_len == min(100, 50 * step)
    assert targets == list(range(num_tokens))
    assert tokens == valid.tokens(0, num_tokens).tolist()


def test_the_first_token_is_predicted_from_an_end_of_document(valid: TokenDataset):
    sample: Sample = NextTokenEvalSamples(valid, 1000, 4, new_tokens=50, mem_len=0).sample(step=0, stream=0)
    assert sample.tokens[0] == valid.vocabulary.eod
    assert sample.tokens[1] == valid.tokens(0, 1)[0]
