"""A checkpoint of weights that come from elsewhere: no optimizer, no memories."""

from __future__ import annotations

from pathlib import Path
from threading import Event

import torch
from safetensors.torch import save

from xlpretrain.checkpoint.format import tensor_key
from xlpretrain.checkpoint.write import Copied, Place, write
from xlpretrain.objectives.objective import PretrainingModel
from xlpretrain.state import TrainState


def write_weights(checkpoints: Path, model: PretrainingModel) -> None:
    """Commit the weights of a model as the checkpoint of step 0. One process; raises OSError."""
    parameters = dict(model.named_parameters())
    flat = {tensor_key("weight", name, 0): p.detach().float().flatten().contiguous() for name, p in parameters.items()}
    place = Place(
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
    copied = Copied(
        step=0,
        attempt=0,
        content=memoryview(save(flat)),
        ranges=[("weight", name, 0, parameter.numel()) for name, parameter in parameters.items()],
        streams=(0, 0),
        state=vars(TrainState()),
        layout={"world_size": 1, "engine": "imported", "precision": "fp32", "torch": torch.__version__},
        updates=0,
        shapes={name: tuple(parameter.shape) for name, parameter in parameters.items()},
    )
    write(place, copied, Event())
