"""Train complete runs in this process on every rank, one after another.

Usage: elastic_cases.py save|load FOLDER DATASET RECIPE [NAME...]

save: a run of 24 steps under each engine, with a checkpoint of step 4. load: resume each run NAME, saved
under any engine and number of ranks, from step 4 under each engine with this number of ranks. Each run's metrics are in
its folder; rank 0 adds `digests.json`, digests of what each stream read at each step.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xlpretrain import distributed, schema
from xlpretrain.config.run_config import RunConfig
from xlpretrain.data.loader import Loader
from xlpretrain.errors import exit_rank
from xlpretrain.models.pretraining_model import Batch
from xlpretrain.train import setup
from xlpretrain.train.loop import train

STEPS, AT, STREAMS = 24, 4, 5  # uneven over any number of ranks above one
ENGINES = {
    "plain": {"type": "plain", "precision": "fp32"},
    **{f"zero-{stage}": {"type": "deepspeed", "zero_stage": stage, "precision": "fp32"} for stage in (1, 2, 3)},
}
SIZES = {"num_layers": 2, "d_model": 32, "num_heads": 2, "d_ff": 64, "dropout": 0.0}
RECIPES: dict[str, dict[str, Any]] = {
    "transformer_xl": {
        "model": {"type": "transformer_xl", **SIZES, "mem_len": 24},
        "objective": {"type": "causal_lm", "seq_len": 16},
        "optimizer": {
            "type": "adamw",
            "lr": 3e-3,
            "grad_clip": 0.5,
            "layer_decay": 0.8,
            "groups": [
                {"match": "backbone.embedding.*", "lr_factor": 2.0, "weight_decay": 0.1},
                {"match": "*.bias", "lr_factor": 0.5},
            ],
        },
    },
    "albert": {
        "model": {"type": "albert", **SIZES, "attention_dropout": 0.0, "d_embed": 16},
        "objective": {"type": "masked_lm", "seq_len": 32},
        "optimizer": {"type": "lamb", "lr": 0.01, "grad_clip": 0.5},
    },
}
RECIPES["muon"] = {
    **RECIPES["transformer_xl"],
    "optimizer": {
        "type": "muon",
        "lr": 0.02,
        "others": {"lr": 3e-3},
        "orthogonalize_in": "fp32",
        "layer_decay": 0.8,
        "frozen": ["*.layers.0.attention.*", "head.output.bias"],
    },
}
RECIPES["stages"] = {
    **RECIPES["transformer_xl"],
    "stages": [
        {"until": {"step": 2}, "global_batch_size": 4, "objective": {"seq_len": 8}},
        {"until": {"step": 10}, "global_batch_size": 3, "objective": {"seq_len": 24}},
        {"until": {"step": 18}, "ramp": {"global_batch_size": {"start": 3, "stop": STREAMS, "multiple_of": 1}}},
        {},
    ],
}
RECIPES["mixed"] = {
    "model": {"type": "xlnet", **SIZES, "attention_dropout": 0.0, "mem_len": 24},
    "objective": {
        "type": "mixed",
        "seq_len": 32,
        "parts": [
            {"share": 0.4, "objective": {"type": "permutation_lm", "reuse_len": 16, "perm_size": 16, "num_predict": 7}},
            {"share": 0.6, "objective": {"type": "causal_lm"}},
        ],
    },
    "optimizer": {"type": "adamw", "lr": 3e-3, "grad_clip": 0.5},
    "stages": [
        {
            "until": {"step": 10},
            "objective": {
                "seq_len": 16,
                "parts": {"permutation_lm": {"reuse_len": 8, "perm_size": 8, "num_predict": 3}},
            },
            "micro_batch_size": 1,
        },
        {},
    ],
}
RECIPES["dropout"] = {
    **RECIPES["transformer_xl"],
    "model": {**RECIPES["transformer_xl"]["model"], "dropout": 0.1, "attention_dropout": 0.1},
}
setup.peak_flops = lambda *_: 1.0  # type: ignore[assignment]  # a second for each run, for a figure that nobody reads


@dataclass(frozen=True)
class Noting(Loader[Batch]):
    """A loader that records a digest of each stream's sample at each step."""

    digests: dict[str, str] = field(default_factory=dict)

    def steps(self, *, start: int, stop: int | None = None) -> Generator[list[Batch]]:
        for step, batches in enumerate(super().steps(start=start, stop=stop), start):
            for streams, batch in zip(self.micro_batches, batches, strict=True):
                for row, stream in enumerate(streams):
                    self.digests[f"{step} {stream}"] = _digest(batch, row)
            yield batches


def _digest(batch: Batch, row: int) -> str:
    """Digest of a sample's tokens, targets and memory, independent of padding."""
    tokens = batch.inputs.tokens[row]
    parts: list[Tensor] = [tokens if batch.inputs.attention_mask is None else tokens[batch.inputs.attention_mask[row]]]
    parts.append(batch.inputs.mem_valid_len[row])
    for term, targets in sorted(batch.targets.items()):
        if term in ("sop", "nsp"):
            parts.append(targets[batch.targets[f"{term}_positions"] == row])
        elif f"{term}_positions" in batch.targets:
            parts.append(targets[batch.samples_of(term) == row])
        elif not term.endswith("_positions"):
            parts.append(targets[row])
    return hashlib.sha256(b"|".join(part.contiguous().numpy().tobytes() for part in parts)).hexdigest()


def _train(folder: Path, dataset: Path, recipe: str, *, name: str, engine: str, device: torch.device) -> None:
    config = {
        "name": name,
        "runs_dir": str(folder),
        "data": {"train": str(dataset / "train")},
        **RECIPES[recipe],
        "schedule": {"type": "cosine", "warmup_steps": 5},
        "engine": ENGINES[engine],
        "global_batch_size": STREAMS,
        "micro_batch_size": 2,
        "max_steps": STEPS,
        "checkpoint": {"every_steps": AT, "keep": 1, "keep_every": AT},
        "log": {"every_steps": 1},
        "wandb": {"mode": "disabled"},
    }
    run = setup.set_up_run(schema.validate(RunConfig, config, name), device=device)
    run.loader = noting = Noting(**vars(run.loader))
    with run.recorder:
        train(run)
    digests = distributed.gather_objects(noting.digests)
    run.lease.close()
    if distributed.rank() == 0:
        (run.folder.path / "digests.json").write_text(json.dumps({k: v for d in digests for k, v in d.items()}))
    distributed.barrier()


def _copy(source: Path, target: Path) -> None:
    """Copy of a run folder as it was at step `AT`."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("checkpoints", "lease", "digests.json"))
    name = f"checkpoints/step-{AT:08d}"
    shutil.copytree(source / name, target / name)


def main(phase: str, folder: str, dataset: str, recipe: str, *names: str) -> None:
    device = distributed.init()
    torch.set_num_threads(1)  # more threads slow down such small matrix products
    world_size = distributed.world_size()
    for engine in ENGINES:
        if phase == "save":
            name = f"{recipe}-{world_size}-{engine}"
            _train(Path(folder), Path(dataset), recipe, name=name, engine=engine, device=device)
        for source in names:
            name = f"{source}-to-{world_size}-{engine}"
            if distributed.rank() == 0:
                _copy(Path(folder, source), Path(folder, name))
            distributed.barrier()
            _train(Path(folder), Path(dataset), recipe, name=name, engine=engine, device=device)
    distributed.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
    exit_rank(0)
