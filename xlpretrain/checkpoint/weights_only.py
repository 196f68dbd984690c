"""Checkpoints with weights only, written by a single process: imported models, and means of checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from threading import Event

import torch
from safetensors.torch import save
from torch import Tensor

from xlpretrain.checkpoint.files import tensor_key
from xlpretrain.checkpoint.train_state import TrainState
from xlpretrain.checkpoint.writer import SaveTarget, StateSnapshot, write_checkpoint


def save_weights(checkpoints: Path, weights: Mapping[str, Tensor], state: TrainState, *, made: str) -> None:
    """Write weights by parameter name as the checkpoint of the state's step, in fp32. Raises OSError.

    made: how they were made, for the list of checkpoints.
    """
    flat = {tensor_key("weight", name, 0): w.detach().float().flatten().contiguous() for name, w in weights.items()}
    place = SaveTarget(
        checkpoints=checkpoints,
        rank=0,
        world_size=1,
        owner=0,
        fence=lambda: None,
        before_commit=lambda: None,
        keep=1,
        keep_every=None,
        keep_best=False,
        verified=None,
    )
    copied = StateSnapshot(
        step=state.step,
        attempt=0,
        content=memoryview(save(flat)),
        ranges=[("weight", name, 0, weight.numel()) for name, weight in weights.items()],
        streams=(),
        state=vars(state),
        layout={"world_size": 1, "engine": made, "precision": "fp32", "torch": torch.__version__},
        updates=0,
        shapes={name: tuple(weight.shape) for name, weight in weights.items()},
        kinds=dict.fromkeys(weights, ("weight",)),
    )
    write_checkpoint(place, copied, Event())
