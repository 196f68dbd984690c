"""Memories on the host: the same steps in every bit, and what a step and a save allocate for memories."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_model import MEMORY, VOCAB, TinyHead, Training, training

from xlpretrain.checkpoint.saver import CheckpointConfig, Saver
from xlpretrain.checkpoint.train_state import TrainState
from xlpretrain.engine.config import PlainConfig
from xlpretrain.engine.transfers.host_copy import HostCopy
from xlpretrain.engine.transfers.host_memories import HostMemories
from xlpretrain.models.pretraining_model import PretrainingModel
from xlpretrain.models.xlnet import XLNetConfig
from xlpretrain.planning.counting.live_storages import LiveStorages

CPU = torch.device("cpu")
PLAIN = PlainConfig(precision="fp32")
STREAMS, MICRO_BATCHES, MEM_LEN = 40, 40, 256


def test_steps_are_the_same_in_every_bit_even_if_one_is_not_finite(group: None) -> None:
    ours, theirs = (training(PLAIN, num_streams=7, num_micro_batches=3) for _ in range(2))
    ours.memory = HostMemories(ours.memory, CPU)
    for start, poisoned in ((0, None), (3, 4), (6, None)):
        assert str(ours.steps(start, start + 3, poisoned=poisoned)) == str(
            theirs.steps(start, start + 3, poisoned=poisoned)
        )
        assert [part.shape[2] for part in ours.memory] == [MEMORY] * 3
        assert all(torch.equal(here, there) for here, there in zip(ours.memory, theirs.memory, strict=True))


def test_a_step_that_is_not_kept_is_undone() -> None:
    before, after = torch.rand(2, 1, 3, 4), torch.rand(2, 1, 3, 4)
    memories = HostMemories([before], CPU)
    memories.keep(0, after)
    assert torch.equal(memories.fetch(0), before)
    memories.advance_if_finite(HostCopy(torch.tensor(torch.inf)))
    assert torch.equal(memories[0], before)
    memories.advance_if_finite(HostCopy(torch.tensor(1.0)))
    assert torch.equal(memories[0], after)
    memories.refill([before])
    assert torch.equal(memories[0], before)


@pytest.fixture
def run(group: None) -> Training:
    """An XLNet whose memories are far larger than all else."""
    backbone = XLNetConfig(num_layers=1, d_model=64, num_heads=1, d_ff=64, mem_len=MEM_LEN).build(VOCAB)
    model = PretrainingModel(backbone, TinyHead(backbone))
    run = training(PLAIN, num_streams=STREAMS, num_micro_batches=MICRO_BATCHES, model=model)
    run.memory = [torch.rand_like(backbone.empty_memory(len(streams), MEM_LEN)) for streams in run.micro_batches]
    return run


@pytest.mark.parametrize("on_host", [False, True])
def test_a_step_allocates_the_next_memories_and_on_the_host_none(run: Training, on_host: bool) -> None:
    of_all = sum(part.nbytes for part in run.memory)
    if on_host:
        run.memory = HostMemories(run.memory, CPU)
    run.steps(0, 1)  # the first one makes the optimizer's tensors
    with LiveStorages() as live:
        run.steps(1, 2)
    others = live.peak_bytes - of_all * (not on_host)
    assert 0 < others < of_all / 3


def test_a_save_allocates_nothing(run: Training, tmp_path: Path) -> None:
    saver = Saver(tmp_path, CheckpointConfig())
    saver.reserve(run.engine, memory={range(STREAMS): run.memory})
    with LiveStorages() as live:
        saver.start(TrainState(step=1), run.engine, memory={range(STREAMS): run.memory})
    assert saver.wait() is None
    assert live.peak_bytes == 0
