"""Minimal run folders with random weights, for tests that use a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from xlpretrain import schema
from xlpretrain.checkpoint.train_state import TrainState
from xlpretrain.checkpoint.weights_only import save_weights
from xlpretrain.config.run_config import RunConfig
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.finetune.results import finetune_config
from xlpretrain.run_dir.layout import RunDir

SIZES = {"num_layers": 2, "d_model": 16, "num_heads": 2, "d_ff": 24}
PERMUTATION = {"type": "permutation_lm", "seq_len": 32, "reuse_len": 12, "perm_size": 4, "num_predict": 5}
OBJECTIVES = {
    "transformer_xl": {"type": "causal_lm", "seq_len": 16},
    "xlnet": PERMUTATION,
    "albert": {"type": "masked_lm", "seq_len": 32, "sentence_task": "sop"},
    "bert": {"type": "masked_lm", "seq_len": 32, "sentence_task": "nsp"},
}


def make_run(
    runs_dir: Path, dataset: Path, model: dict[str, Any], *, objective: dict[str, Any] | None = None, name: str = "run"
) -> RunDir:
    """Make a run of `model` (minimal sizes unless given) on a dataset, with a checkpoint of large random weights."""
    keys = {**SIZES, **model}
    if keys["type"] in ("transformer_xl", "xlnet"):
        keys.setdefault("mem_len", 12)
    else:
        keys.setdefault("max_positions", 40)
    data = {"train": str(dataset / "train"), "valid": str(dataset / "valid")}
    config = schema.validate(
        RunConfig,
        {
            "name": name,
            "runs_dir": str(runs_dir),
            "data": data,
            "model": keys,
            "objective": objective or OBJECTIVES[keys["type"]],
            "engine": {"type": "plain", "precision": "fp32"},
            "eval": {"max_tokens": 2000, "num_streams": 2},
            "max_steps": 1,
        },
        name,
    )
    return _with_random_weights(config, TokenDataset.open(dataset / "train"))


def make_task_run(source: RunDir, task: str, files: dict[str, Path], *overrides: str, name: str = "tuned") -> RunDir:
    """Make a run that fine-tunes `source` for a task, with a checkpoint of large random weights."""
    runs_dir = source.path.parent
    config = finetune_config(source, task=task, **files, name=name, runs_dir=runs_dir, overrides=overrides)
    return _with_random_weights(config, config.data.open().train.manifests[0])


def _with_random_weights(config: RunConfig, data: TokenDataset) -> RunDir:
    torch.manual_seed(0)
    built = config.build_model(data.vocabulary.size)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    folder = config.folder
    provenance = {"tokenizer_sha256": data.tokenizer_sha256, "data_sha256": data.fingerprint}
    folder.create(config=schema.dump(config), provenance=provenance)
    save_weights(folder.checkpoints, dict(built.named_parameters()), TrainState(), made="imported")
    return folder
