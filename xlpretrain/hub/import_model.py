"""A model of others as a run folder, to evaluate, to export, or to begin a run with (`init_from`)."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from xlpretrain import schema
from xlpretrain.checkpoint.writer import save_weights_only
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
    """Make the run folder runs_dir/name of a model; it is there whole or not at all.

    Args:
        source: a folder of transformers (XLNet, ALBERT, BERT, Transformer-XL of version 4, or an export of ours), or
            a file with the state dict of the authors' PyTorch Transformer-XL.
        data: a split that it is evaluated on, and whose tokenizer it has unless it brings its own.
        tokenizer: a file that is taken as it is, instead of the tokenizer of `source`.
        overrides: `model.key=value`, for what the source does not say.

    Returns:
        The folder, and what is worth telling.

    Raises:
        XLPretrainError: naming what does not fit.
    """
    folder = RunDir(runs_dir / name)
    if os.path.lexists(folder.path):
        raise LaunchError(f"{folder.path}: exists already; choose another name (--name)")
    foreign = read_external_model(source)
    vocabulary, notes = _tokenizer(foreign, tokenizer, data)
    config = _run_config(foreign, name=name, runs_dir=runs_dir, data=data, overrides=overrides)
    torch.manual_seed(config.seed)  # a head may start anew
    model = config.build_model(foreign.vocab_size)
    notes += [*foreign.notes, *_assumptions(foreign, config, overrides), *load_weights(foreign, model, config)]
    provenance = {
        "data_sha256": TokenDataset.open(data).fingerprint if data is not None else "",
        "tokenizer_sha256": vocabulary.sha256 if vocabulary is not None else "",
        "vocab_size": foreign.vocab_size,
        "imported_from": str(source.absolute()),
        "began_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": {"torch": torch.__version__},
    }
    try:
        with temporary_folder(folder.path) as path:
            temporary = RunDir(path)
            temporary.create(config=schema.dump(config), provenance=provenance)
            if vocabulary is not None:
                temporary.keep_tokenizer(vocabulary.file_name, vocabulary.model)
            save_weights_only(temporary.checkpoints, model)
            temporary.write_status(Status("finished", "finished", max_steps=1, message=f"imported from {source}"))
            publish_dir(path, folder.path)
    except OSError as error:
        raise LaunchError(f"{folder.path}: cannot be written: {error.strerror or error}") from None
    return folder, notes


def _tokenizer(foreign: ExternalModel, given: Path | None, data: Path | None) -> tuple[Tokenizer | None, list[str]]:
    """The tokenizer of the model: given, its own, or that of the data; and what is worth telling of it.

    Raises `DataError` if it is another one.
    """
    own = None if given is not None or foreign.folder is None else read_folder(foreign.folder, foreign.kind)
    tokenizer, notes = own or (None, [])
    if given is not None:
        tokenizer = load_tokenizer(given)
    elif tokenizer is None and data is not None:
        tokenizer = TokenDataset.open(data).open_tokenizer()
    elif tokenizer is None and foreign.kind == "transfo-xl":
        return None, notes  # its word list is of no use here; what it computes is
    elif tokenizer is None:
        raise DataError(
            f"{foreign.source}: no spiece.model, tokenizer.json or vocab.txt there; name the tokenizer that it was"
            " trained with (--tokenizer)"
        )
    if tokenizer.vocabulary.size != foreign.vocab_size:
        raise DataError(
            f"{foreign.source}: has vectors for {foreign.vocab_size} tokens, and the tokenizer"
            f" {given or (data if own is None else foreign.folder)} has {tokenizer.vocabulary.size} pieces; it is not"
            " the one it was trained with"
        )
    if data is not None:
        TokenDataset.open(data, tokenizer_sha256=tokenizer.sha256)
    return tokenizer, notes


def _assumptions(foreign: ExternalModel, config: RunConfig, overrides: Sequence[str]) -> list[str]:
    """The keys that neither the source nor the user has told, as they were taken.

    Raises `ConfigError` if one is among them that makes another model.
    """
    given = {override.partition("=")[0] for override in overrides}
    untold = [key for key in foreign.untold if f"model.{key}" not in given]
    needed = [key for key in untold if key in foreign.needed]
    if needed:
        raise ConfigError(
            f"{foreign.source}: its weights do not tell {', '.join(f'model.{key}' for key in needed)}, without which it"
            f" is another model; give {' '.join(f'model.{key}=...' for key in needed)} as it was trained"
        )
    if not untold:
        return []
    values = config.model.model_dump(mode="json")
    taken = ", ".join(f"model.{key}={json.dumps(values[key])}" for key in untold)
    return [f"assumed, since {foreign.source} does not tell: {taken}"]


def _run_config(
    foreign: ExternalModel, *, name: str, runs_dir: Path, data: Path | None, overrides: Sequence[str]
) -> RunConfig:
    wrong = [override for override in overrides if not override.startswith(("model.", "objective."))]
    if wrong:
        raise ConfigError(f"only keys of model and objective may be given, got {', '.join(wrong)}")
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
