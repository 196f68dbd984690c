"""Contexts and events for unit tests of callbacks, outside of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from xlpretrain import schema
from xlpretrain.config.run_config import RunConfig
from xlpretrain.data.samples import SampleSource
from xlpretrain.engine.transfers.host_copy import HostCopy
from xlpretrain.evaluation.held_out import EvaluatedModel
from xlpretrain.models.pretraining_model import Batch
from xlpretrain.train.callbacks.base import CallbackContext, CompletedStep, MicroBatch

CPU = torch.device("cpu")


def make_context(
    *,
    objective: schema.Section | None = None,
    max_steps: int = 100,
    corpora: Sequence[str] = (),
    print: Callable[[str], None] = lambda message: None,
    **sections: Mapping[str, Any],
) -> CallbackContext:
    """The context of rank 0 of one, with two streams, of a run with these sections in its config."""
    model = {"type": "bert" if objective is not None else "transformer_xl", "num_layers": 1, "d_model": 8}
    config = {
        "data": {"train": "train"},
        "model": {**model, "num_heads": 2, "d_ff": 8},
        "objective": {"type": "causal_lm", "seq_len": 16} if objective is None else objective.model_dump(mode="json"),
        "max_steps": max_steps,
        "log": {"every_steps": 1},
        **sections,
    }
    return CallbackContext(
        config=schema.validate(RunConfig, config, "test"),
        rank=0,
        world_size=1,
        streams=range(2),
        max_steps=max_steps,
        device=CPU,
        run_folder=Path("runs/run"),
        corpora=corpora,
        model=EvaluatedModel(lambda batch, memory: None, lambda samples, length: torch.zeros(0), CPU),
        print=print,
    )


class TwoCorpora(SampleSource):
    """Stream 0 reads from corpus 0, stream 1 from corpus 1. Of the tokens nothing is asked."""

    def sample(self, *, step: int, stream: int):
        raise AssertionError("no callback reads samples")

    def corpus(self, *, step: int, stream: int) -> int:
        return stream


def micro_batch_of(batch: Batch, *, step: int = 0, number: int = 0, streams: range = range(2)) -> MicroBatch:
    return MicroBatch(step, number, streams, batch, TwoCorpora())


def completed(step: int, *, loss: float = 1.0, grad_norm: float = 1.0) -> CompletedStep:
    """A step of one rank with one prediction."""
    sums, norm = {"lm": torch.tensor(loss)}, HostCopy(torch.tensor(grad_norm))
    return CompletedStep(step, sums, {"lm": 1}, norm, 1e-3, {term: HostCopy(total) for term, total in sums.items()})
