"""Copies ahead of the step. torch's calls to CUDA are replaced; the meta device is the GPU."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor

from xlpretrain.data.loader import Loader
from xlpretrain.data.samples import Sample, SampleSource
from xlpretrain.engine.transfers.batch_copies import copied_ahead
from xlpretrain.errors import DataError
from xlpretrain.models.backbone import BackboneInput
from xlpretrain.models.pretraining_model import Batch

CPU, GPU = torch.device("cpu"), torch.device("meta")


class Samples(SampleSource):
    """Sample (step, stream) has the tokens step and stream; a shard ends in damage at `damaged`."""

    def __init__(self, damaged: int | None = None):
        self.damaged = damaged

    def sample(self, *, step: int, stream: int) -> Sample:
        if step == self.damaged:
            raise DataError("shard 0 is damaged")
        ends = np.array([], dtype=np.int64)
        return Sample(np.array([step, stream]), ends, ends, stream=stream, epoch=0, sample_index=step)


def collate(samples: Sequence[Sample]) -> Batch:
    tokens = torch.tensor(np.array([sample.tokens for sample in samples]))
    return Batch(
        BackboneInput(tokens, torch.zeros(len(samples), dtype=torch.int64)), {"lm": tokens[:, 1]}, {"lm": len(samples)}
    )


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls that would reach CUDA, in order."""
    found: list[str] = []

    class Stream:
        def __init__(self, device: torch.device):
            self.name = "copying"

        def record_event(self) -> str:
            found.append("recorded")
            return "event"

        def wait_event(self, event: str) -> None:
            found.append(f"compute waits for {event}")

    def stream(on: Stream) -> AbstractContextManager[None]:
        found.append("on the copying stream")
        return nullcontext()

    def pinned(tensor: Tensor) -> Tensor:
        found.append("pinned")
        return tensor.clone()

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(Tensor, "pin_memory", pinned)
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, on: found.append("kept"))
    return found


def test_on_the_cpu_nothing_changes():
    assert copied_ahead(collate, CPU) is collate


def test_a_copy_is_pinned_first_and_waited_for_on_the_device_alone(calls: list[str]):
    batch = copied_ahead(collate, GPU)([Samples().sample(step=3, stream=1)])
    assert calls == ["on the copying stream", *["pinned"] * 3, "recorded"]
    calls.clear()
    on_gpu = batch.to(GPU)
    assert calls == ["compute waits for event", *["kept"] * 3]
    assert {on_gpu.inputs.tokens.device, on_gpu.inputs.mem_valid_len.device, on_gpu.targets["lm"].device} == {GPU}
    assert on_gpu.counts == {"lm": 1} and on_gpu.inputs.tokens.shape == (1, 2)


def test_the_batch_itself_stays_on_the_host_for_callbacks(calls: list[str]):
    batch = copied_ahead(collate, GPU)([Samples().sample(step=3, stream=1)])
    assert batch.inputs.tokens.tolist() == [[3, 1]] and batch.targets["lm"].tolist() == [1]
    assert batch.to(CPU).inputs.tokens.tolist() == [[3, 1]]
    assert "compute waits for event" not in calls


@pytest.mark.usefixtures("calls")
def test_the_loader_gives_the_same_batches_in_the_same_order_to_the_end():
    plain, ahead = (
        list(Loader(Samples(), collated, [range(2), range(2, 3)]).steps(start=4, stop=9))
        for collated in (collate, copied_ahead(collate, GPU))
    )
    assert [[batch.inputs.tokens.tolist() for batch in step] for step in ahead] == [
        [batch.inputs.tokens.tolist() for batch in step] for step in plain
    ]
    assert len(ahead) == 5


@pytest.mark.usefixtures("calls")
def test_an_error_of_the_loader_comes_at_its_step():
    steps = Loader(Samples(damaged=2), copied_ahead(collate, GPU), [range(1)]).steps(start=0)
    assert [next(steps)[0].inputs.tokens.tolist() for _ in range(2)] == [[[0, 0]], [[1, 0]]]
    with pytest.raises(DataError, match="shard 0 is damaged"):
        next(steps)
