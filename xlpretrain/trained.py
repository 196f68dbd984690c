"""A trained run, read back: its config, its newest weights, and its data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from xlpretrain import checkpoint
from xlpretrain import config as configuration
from xlpretrain.build import Datasets, open_data
from xlpretrain.config import RunConfig
from xlpretrain.data.manifest import Manifest
from xlpretrain.engine import DTYPES
from xlpretrain.errors import DataError
from xlpretrain.evaluate import EvalConfig, Evaluation, evaluate
from xlpretrain.objectives.objective import Batch, Loss, PretrainingModel
from xlpretrain.run_folder import RunFolder


@dataclass(frozen=True)
class TrainedRun:
    """A run's model in evaluation mode, in the precision it was trained in."""

    config: RunConfig
    data: Datasets
    model: PretrainingModel
    step: int
    device: torch.device

    @classmethod
    def load(cls, folder: RunFolder, *, device: torch.device) -> TrainedRun:
        """The newest whole checkpoint of a run. Raises `CheckpointError` if it has none."""
        config = configuration.load(folder.config)
        data = open_data(config)
        model = config.build_model(data.train.vocabulary.size)
        step = checkpoint.load_weights_into(model, folder.checkpoints)
        return cls(config, data, model.to(device, DTYPES[config.engine.precision]).eval(), step, device)

    def score(self, split: Path | None = None, *, config: EvalConfig) -> Evaluation:
        """Evaluate on the split in a folder (default: the run's held-out one). Every rank calls it."""
        valid = self.data.valid
        if split is not None:
            valid = Manifest.open(split, tokenizer_sha256=self.data.train.tokenizer_sha256)
        if valid is None:
            raise DataError("the run has no held-out split (data.valid); name one with --data")
        return evaluate(
            self._forward,
            self.model.backbone.empty_memory,
            manifest=valid,
            tokenizer=self.data.tokenizer,
            objective=self.config.evaluated_objective(config),
            mem_len=self.config.evaluated_mem_len(config),
            config=config,
            device=self.device,
        )

    @torch.no_grad()
    def _forward(self, batch: Batch, mems: torch.Tensor) -> tuple[Loss, torch.Tensor]:
        loss, mems = self.model(batch, mems)
        return loss, mems
