"""Config of a fine-tuning run: turns a pretrained model of any size into one for a task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xlpretrain import schema
from xlpretrain.config.run_config import RunConfig
from xlpretrain.data.config import EXAMPLES
from xlpretrain.data.tokenizers.base import Tokenizer
from xlpretrain.models.backbone import BackboneConfig
from xlpretrain.objectives import find_task
from xlpretrain.objectives.base import Objective

BATCH, EPOCHS, DROPOUT = 32, 6, 0.1
EVALUATIONS_PER_EPOCH = 2
LONGEST = 512


def task_config(
    theirs: RunConfig,
    *,
    task: str = "classify",
    tokenizer: Tokenizer,
    kept_at: Path,
    train: Path,
    valid: Path,
    text: Sequence[str] = (),
    label: str | Sequence[str] = "label",
    data_overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Config keys of a run that fine-tunes the backbone of `theirs` for a task, without name and init_from.

    Args:
        task: type of an objective that is a task.
        tokenizer: tokenizer of the texts.
        kept_at: path of its file.
        train, valid: files of examples, in a format of the task.
        text: column of the text, or two columns of a pair (default: all columns but the label's, one or two).
        label: column of the target, or several columns for a task that reads them.
        data_overrides: `data.key=value` changes that apply before the files are read.

    Raises:
        ConfigError, DataError: the files are unusable, or the objective of `theirs` declares no token layout.
    """
    kind = find_task(task)
    files = EXAMPLES[kind.data_type]
    layout = theirs.objective.declared(theirs.objective.token_layout, "token_layout")
    data = {
        "type": kind.data_type,
        "train": str(train.absolute()),
        "valid": str(valid.absolute()),
        "tokenizer": str(kept_at.absolute()),
        **files.columns_in(train, text=text, label=(label,) if isinstance(label, str) else label),
    }
    data = schema.apply_overrides({"data": data}, data_overrides, RunConfig)["data"]
    opened = schema.validate(files, data, f"{task} with {train}")
    examples, held_out = opened.open_split(train, tokenizer), opened.open_split(valid, tokenizer)
    own = _numbered_as_before(kind.keys_for(examples, held_out), task, theirs.objective)
    longest = max(8, kind.longest_sample(examples, layout))
    per_epoch = math.ceil(len(examples.examples) / BATCH)
    every = math.ceil(per_epoch / EVALUATIONS_PER_EPOCH)
    total = EPOCHS * per_epoch
    model = theirs.model.model_dump(mode="json") | {"mem_len": 0, "dropout": DROPOUT, "attention_dropout": DROPOUT}
    return {
        "data": data,
        "model": model | ({"same_length": False} if "same_length" in model else {}),
        "objective": {
            "type": task,
            **own,
            "layout": str(layout),
            "seq_len": min(longest, LONGEST, model.get("max_positions", LONGEST)),
        },
        "optimizer": {"type": "adamw", "lr": _rate(theirs.model), "betas": [0.9, 0.999], "weight_decay": 0.01},
        "schedule": {"type": "linear", "warmup_steps": total // 10},
        "engine": theirs.engine.model_dump(mode="json"),
        "trackers": theirs.model_dump(mode="json")["trackers"],
        "global_batch_size": BATCH,
        "micro_batch_size": BATCH,
        "max_steps": total,
        "eval": {"every_steps": every, "num_streams": BATCH, "best": kind.criterion(own)},
        "checkpoint": {"every_steps": every, "keep": 1, "keep_best": True},
        "stop": {"patience": 3 * EVALUATIONS_PER_EPOCH},
    }


def _numbered_as_before(own: dict[str, Any], task: str, before: Objective) -> dict[str, Any]:
    """The task's keys, with labels or tags in the order of a model fine-tuned for the same ones, so that its classifier
    can be trained on."""
    was = before.model_dump(mode="json") if before.type == task else {}
    names = [key for key in ("labels", "tags") if key in own and key in was]
    return own | {key: was[key] for key in names if sorted(was[key]) == sorted(own[key])}


def _rate(model: BackboneConfig) -> float:
    """Peak learning rate: 3e-5 at the width of base models (768), inversely proportional to the width."""
    return 3e-5 * 768 / int(model.model_dump()["d_model"])
