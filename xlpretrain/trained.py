"""A trained run, read back: its config, its weights, its tokenizer, and its data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from xlpretrain import checkpoint
from xlpretrain import config as configuration
from xlpretrain.build import Datasets, open_data
from xlpretrain.config import RunConfig
from xlpretrain.data.manifest import Manifest
from xlpretrain.data.tokenizer import Tokenizer
from xlpretrain.engine import DTYPES
from xlpretrain.errors import DataError
from xlpretrain.evaluate import EvalConfig, Evaluation, evaluate
from xlpretrain.objectives.objective import Batch, Loss, PretrainingModel
from xlpretrain.run_folder import RunFolder


@dataclass(frozen=True)
class TrainedRun:
    """A run's model in evaluation mode, in the precision it was trained in."""

    folder: RunFolder
    config: RunConfig
    model: PretrainingModel
    step: int
    device: torch.device

    @classmethod
    def load(
        cls, folder: RunFolder, *, device: torch.device, step: int | None = None, dtype: torch.dtype | None = None
    ) -> TrainedRun:
        """The newest whole checkpoint of a run, or that of `step`. Raises `CheckpointError` if there is none.

        dtype: of the weights (default: as the model was trained with).
        """
        config = configuration.load(folder.config)
        size = folder.read_provenance().get("vocab_size") or _open_tokenizer(folder, config).vocabulary.size
        model = config.build_model(size)
        source = folder.checkpoints if step is None else folder.checkpoints / checkpoint.checkpoint_name(step)
        found = checkpoint.load_weights_into(model, source)
        return cls(folder, config, model.to(device, dtype or DTYPES[config.engine.precision]).eval(), found, device)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """What its texts were encoded by. Raises `DataError` if it is not there any more, or never was."""
        return _open_tokenizer(self.folder, self.config)

    @cached_property
    def data(self) -> Datasets:
        """Its datasets. Raises `DataError` if they are not there any more."""
        return open_data(self.config)

    def score(self, split: Path | None = None, *, config: EvalConfig) -> Evaluation:
        """Evaluate on the split in a folder (default: the run's held-out one). Every rank calls it."""
        if split is not None:
            valid: Manifest | None = Manifest.open(split, tokenizer_sha256=self.tokenizer.sha256)
        else:
            valid = self.data.valid
        if valid is None:
            raise DataError("the run has no held-out split (data.valid); name one with --data")
        return evaluate(
            self._forward,
            self.model.backbone.empty_memory,
            manifest=valid,
            tokenizer=self.tokenizer,
            objective=self.config.evaluated_objective(config),
            mem_len=self.config.evaluated_mem_len(config),
            config=config,
            device=self.device,
        )

    @torch.no_grad()
    def _forward(self, batch: Batch, mems: torch.Tensor) -> tuple[Loss, torch.Tensor]:
        loss, mems = self.model(batch, mems)
        return loss, mems


def _open_tokenizer(folder: RunFolder, config: RunConfig) -> Tokenizer:
    """An imported run has its own, another the one beside its data. Raises `DataError`."""
    if folder.tokenizer.is_dir():
        return Tokenizer.load(Tokenizer.find(folder.tokenizer))
    if folder.read_provenance().get("vocab_size"):
        raise DataError(f"{folder.path}: was imported without a tokenizer; import it again with --tokenizer FILE")
    return Manifest.open(config.data.train[0].path, cache=config.data.cache).open_tokenizer()
