"""The outputs of a task's model for examples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from xlpretrain.data.examples.base import make_sample
from xlpretrain.data.samples import Example
from xlpretrain.data.tokenizers.base import Tokenizer
from xlpretrain.models.pretraining_model import PretrainingModel
from xlpretrain.objectives.tasks.base import Task, TaskHead

_BATCH = 32


@torch.no_grad()
def task_outputs(
    model: PretrainingModel, task: Task, tokenizer: Tokenizer, examples: Sequence[Example], *, mem_len: int = 0
) -> list[np.ndarray]:
    """The head's outputs for each example, as `Task.numbered` gives them.

    mem_len: memory length in positions, for texts that are read in parts.
    """
    assert isinstance(model.head, TaskHead), "the head of a task"
    device = next(model.parameters()).device
    samples = [make_sample(example) for example in examples]
    collate = task.collator(tokenizer, seed=0)
    found: list[np.ndarray] = [np.empty(0)] * len(samples)
    # Batches of similar length need little padding.
    order = np.argsort([len(sample.tokens) for sample in samples], kind="stable")
    for start in range(0, len(order), _BATCH):
        chosen = order[start : start + _BATCH]
        batch = collate([samples[i] for i in chosen]).to(device)
        if batch.part_len is not None:
            hidden = model.read_parts(batch, mem_len)
        else:
            hidden, _ = model.backbone(batch.inputs, model.backbone.empty_memory(len(batch.inputs.tokens), 0))
        for number, output in zip(chosen, model.head.outputs(hidden, batch).cpu().numpy(), strict=True):
            found[number] = output
    return found
