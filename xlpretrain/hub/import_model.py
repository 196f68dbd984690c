"""Imports a third-party model as a run folder, to evaluate or export it, or to start a run from it (`init_from`)."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from xlpretrain import schema
from xlpretrain.checkpoint.train_state import TrainState
from xlpretrain.checkpoint.weights_only import save_weights
from xlpretrain.config.run_config import RunConfig
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.data.tokenizers.base import Tokenizer
from xlpretrain.data.tokenizers.open import load_tokenizer
from xlpretrain.errors import ConfigError, DataError, LaunchError
from xlpretrain.file_system.atomic_dirs import publish_dir, temporary_folder
from xlpretrain.hub.external.model import ExternalModel, load_weights, read_external_model
from xlpretrain.hub.tokenizers.folder_tokenizer import read_folder
from xlpretrain.run_dir.layout import RunDir, Status

_Json = dict[str, Any]


def import_model(
    source: Path,
    *,
    name: str,
    runs_dir: Path,
    data: Path | None = None,
    tokenizer: Path | None = None,
    overrides: Sequence[str] = (),
) -> tuple[RunDir, list[str]]:
    """Import a model to the run folder runs_dir/name, which is written atomically.

    Args:
        source: a transformers folder (XLNet, ALBERT, BERT, Transformer-XL of version 4, or one of our exports), or a
            file with the state dict of the authors' PyTorch Transformer-XL.
        data: a split to evaluate on; its tokenizer is used if the model has none.
        tokenizer: a file to use unchanged instead of the tokenizer of `source`.
        overrides: `model.key=value`, for keys that the source does not record.

    Returns:
        The folder, and notes for the user.

    Raises:
        XLPretrainError: the model, tokenizer and data do not match, or cannot be read.
    """
    folder = RunDir(runs_dir / name)
    if os.path.lexists(folder.path):
        raise LaunchError(f"{folder.path}: already exists; choose another name (--name)")
    foreign = read_external_model(source)
    vocabulary, notes = _tokenizer(foreign, tokenizer, data)
    config = _run_config(foreign, name=name, runs_dir=runs_dir, data=data, overrides=overrides)
    torch.manual_seed(config.seed)  # for a newly initialized head
    model = config.build_model(foreign.vocab_size)
    notes += [*foreign.notes, *_assumptions(foreign, config, overrides), *load_weights(foreign, model, config)]
    provenance = {
        "data_sha256": TokenDataset.open(data).fingerprint if data is not None else "",
        "tokenizer_sha256": vocabulary.sha256 if vocabulary is not None else "",
        "vocab_size": foreign.vocab_size,
        "imported_from": str(source.absolute()),
        "began_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": {"torch": torch.__version__},
        "plugins": schema.plugins_of(config),
    }
    try:
        with temporary_folder(folder.path) as path:
            temporary = RunDir(path)
            temporary.create(config=schema.dump(config), provenance=provenance)
            if vocabulary is not None:
                temporary.keep_tokenizer(vocabulary.file_name, vocabulary.model)
            save_weights(temporary.checkpoints, dict(model.named_parameters()), TrainState(), made="imported")
            temporary.write_status(Status("finished", "finished", max_steps=1, message=f"imported from {source}"))
            publish_dir(path, folder.path)
    except OSError as error:
        raise LaunchError(f"{folder.path}: cannot be written: {error.strerror or error}") from None
    return folder, notes


def _tokenizer(foreign: ExternalModel, given: Path | None, data: Path | None) -> tuple[Tokenizer | None, list[str]]:
    """The tokenizer of the model: the given one, its own, or that of the data; and notes for the user.

    Raises `DataError` if the tokenizer does not match the model or the data.
    """
    own = None if given is not None or foreign.folder is None else read_folder(foreign.folder, foreign.kind)
    tokenizer, notes = own or (None, [])
    if given is not None:
        tokenizer = load_tokenizer(given)
    elif tokenizer is None and data is not None:
        tokenizer = TokenDataset.open(data).open_tokenizer()
    elif tokenizer is None and foreign.kind == "transfo-xl":
        return None, notes  # its word list is not supported; the model is still usable
    elif tokenizer is None:
        raise DataError(
            f"{foreign.source}: no spiece.model, tokenizer.json or vocab.txt; pass the tokenizer that the model was"
            " trained with (--tokenizer)"
        )
    if tokenizer.vocabulary.size != foreign.vocab_size:
        raise DataError(
            f"{foreign.source}: vocabulary mismatch: the model has {foreign.vocab_size} tokens, the tokenizer"
            f" {given or (data if own is None else foreign.folder)} has {tokenizer.vocabulary.size}; use the tokenizer"
            " that the model was trained with"
        )
    if data is not None:
        TokenDataset.open(data, tokenizer_sha256=tokenizer.sha256)
    return tokenizer, notes


def _assumptions(foreign: ExternalModel, config: RunConfig, overrides: Sequence[str]) -> list[str]:
    """A note on the keys that neither the source nor the user has set, with the values assumed.

    Raises `ConfigError` if one of them cannot be assumed because it changes the model.
    """
    given = {override.partition("=")[0] for override in overrides}
    untold = [key for key in foreign.untold if f"model.{key}" not in given]
    needed = [key for key in untold if key in foreign.needed]
    if needed:
        raise ConfigError(
            f"{foreign.source}: the file does not record {', '.join(f'model.{key}' for key in needed)}, which changes"
            f" the model; pass {' '.join(f'model.{key}=...' for key in needed)} as in its training"
        )
    if not untold:
        return []
    values = config.model.model_dump(mode="json")
    taken = ", ".join(f"model.{key}={json.dumps(values[key])}" for key in untold)
    return [f"assumed, because {foreign.source} does not record it: {taken}"]


def _run_config(
    foreign: ExternalModel, *, name: str, runs_dir: Path, data: Path | None, overrides: Sequence[str]
) -> RunConfig:
    wrong = [override for override in overrides if not override.startswith(("model.", "objective."))]
    if wrong:
        raise ConfigError(f"expected only keys of model and objective, got {', '.join(wrong)}")
    split = data.absolute() if data is not None else (runs_dir / name / "data").absolute()
    content = schema.apply_overrides({"model": foreign.model, "objective": foreign.objective}, overrides, RunConfig)
    content |= {
        "name": name,
        "runs_dir": str(runs_dir),
        "data": {"train": str(split), "valid": str(split)},
        "engine": {"precision": "fp32"},
        "schedule": {"total_steps": 1},
        "max_steps": 1,
    }
    return schema.validate(RunConfig, content, str(foreign.source))
