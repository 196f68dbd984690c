"""Config of a fine-tuning run: turns a pretrained model of any size into a classifier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xlpretrain.config.run_config import RunConfig
from xlpretrain.data.labelled import LabelledDataset, check_labels, distinct_labels
from xlpretrain.data.tables.text_tables import read_table
from xlpretrain.data.tokenizers.base import Tokenizer
from xlpretrain.errors import ConfigError
from xlpretrain.models.backbone import BackboneConfig

BATCH, EPOCHS, DROPOUT = 32, 6, 0.1
EVALUATIONS_PER_EPOCH = 2
LONGEST = 512


def classifier_config(
    theirs: RunConfig,
    *,
    tokenizer: Tokenizer,
    kept_at: Path,
    train: Path,
    valid: Path,
    text: Sequence[str] = (),
    label: str = "label",
) -> dict[str, Any]:
    """Config keys of a run that trains a classifier with the backbone of `theirs`, without name and init_from.

    Args:
        tokenizer: tokenizer of the texts.
        kept_at: path of its file.
        train, valid: .csv or .tsv with a header, or .jsonl.
        text: column of the text, or two columns of a pair (default: all columns but the label's, one or two).
        label: column of the label.

    Raises:
        ConfigError, DataError: the files are unusable, or the objective of `theirs` declares no token layout.
    """
    text = text or _text_columns(train, label)
    examples, held_out = (LabelledDataset(path, tokenizer, text=text, label=label) for path in (train, valid))
    check_labels(examples, held_out)
    layout = theirs.objective.declared(theirs.objective.token_layout, "token_layout")
    longest = max(8, examples.max_length + layout.num_symbols(2))
    per_epoch = math.ceil(len(examples.labels) / BATCH)
    every = math.ceil(per_epoch / EVALUATIONS_PER_EPOCH)
    total = EPOCHS * per_epoch
    model = theirs.model.model_dump(mode="json") | {"mem_len": 0, "dropout": DROPOUT, "attention_dropout": DROPOUT}
    return {
        "data": {
            "type": "labelled",
            "train": str(train.absolute()),
            "valid": str(valid.absolute()),
            "tokenizer": str(kept_at.absolute()),
            "text": list(text),
            "label": label,
        },
        "model": model | ({"same_length": False} if "same_length" in model else {}),
        "objective": {
            "type": "classify",
            "labels": distinct_labels(examples),
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
        "eval": {"every_steps": every, "num_streams": BATCH, "best": "accuracy"},
        "checkpoint": {"every_steps": every, "keep": 1, "keep_best": True},
        "stop": {"patience": 3 * EVALUATIONS_PER_EPOCH},
    }


def _text_columns(train: Path, label: str) -> tuple[str, ...]:
    others = tuple(column for column in read_table(train).columns if column != label)
    if not 1 <= len(others) <= 2:
        raise ConfigError(
            f"{train}: unknown text column; besides {label!r} it has {', '.join(others) or 'none'};"
            " name it with --text COLUMN (twice for pairs)"
        )
    return others


def _rate(model: BackboneConfig) -> float:
    """Peak learning rate: 3e-5 at the width of base models (768), inversely proportional to the width."""
    return 3e-5 * 768 / int(model.model_dump()["d_model"])
