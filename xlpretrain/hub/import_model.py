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
from xlpretrain.data.config import EXAMPLES
from xlpretrain.data.examples.config import ExampleDataConfig
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.data.tokenizers.base import Tokenizer
from xlpretrain.data.tokenizers.open import load_tokenizer
from xlpretrain.errors import ConfigError, DataError, LaunchError
from xlpretrain.file_system.atomic_dirs import publish_dir, temporary_folder
from xlpretrain.hub.external.model import ExternalModel, load_weights, read_external_model
from xlpretrain.hub.tokenizers.folder_tokenizer import read_folder
from xlpretrain.models.pretraining_model import PretrainingModel
from xlpretrain.objectives import OBJECTIVES
from xlpretrain.objectives.tasks.base import Task, examples_of
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
        data: a split to evaluate on; its tokenizer is used if the model has none. For a fine-tuned model, a file of
            examples.
        tokenizer: a file to use unchanged instead of the tokenizer of `source`.
        overrides: `model.key=value` or `objective.key=value`, for keys that the source does not record, and for a
            fine-tuned model the columns of its files, such as `data.text=[premise,hypothesis]`.

    Returns:
        The folder, and notes for the user.

    Raises:
        XLPretrainError: the model, tokenizer and data do not match, or cannot be read.
    """
    folder = RunDir(runs_dir / name)
    if os.path.lexists(folder.path):
        raise LaunchError(f"{folder.path}: already exists; choose another name (--name)")
    foreign = read_external_model(source)
    task = _task_of(foreign)
    vocabulary, notes = _tokenizer(foreign, tokenizer, data if task is None else None)
    unrecorded = _unrecorded(foreign, overrides)
    if task is None:
        config = _run_config(foreign, folder, _corpus(folder, data), overrides)
        digest = TokenDataset.open(data).fingerprint if data is not None else ""
    else:
        assert vocabulary is not None, "only a Transformer-XL of version 4, never fine-tuned, has none"
        unrecorded += [] if data is not None else _unrecorded_columns(foreign, task, overrides)
        section = _examples(foreign, task, folder.tokenizer / vocabulary.file_name, data, overrides)
        config = _run_config(foreign, folder, section, overrides, columns=_columns_of(task))
        digest = _check_examples(config, data, vocabulary)
    torch.manual_seed(config.seed)  # for a newly initialized head
    model = config.build_model(foreign.vocab_size)
    notes += [*foreign.notes, *_assumptions(foreign, config, unrecorded), *load_weights(foreign, model, config)]
    provenance = {
        "data_sha256": digest,
        "tokenizer_sha256": vocabulary.sha256 if vocabulary is not None else "",
        "vocab_size": foreign.vocab_size,
        "imported_from": str(source.absolute()),
        "began_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": {"torch": torch.__version__},
        "plugins": schema.plugins_of(config),
    }
    _write(folder, schema.dump(config), provenance, model, vocabulary)
    return folder, notes


def _write(
    folder: RunDir, config: str, provenance: _Json, model: PretrainingModel, tokenizer: Tokenizer | None
) -> None:
    """Write the run folder. config: as YAML. Raises `LaunchError`."""
    message = f"imported from {provenance['imported_from']}"
    try:
        with temporary_folder(folder.path) as path:
            temporary = RunDir(path)
            temporary.create(config=config, provenance=provenance)
            if tokenizer is not None:
                temporary.keep_tokenizer(tokenizer.file_name, tokenizer.model)
            save_weights(temporary.checkpoints, dict(model.named_parameters()), TrainState(), made="imported")
            temporary.write_status(Status("finished", "finished", max_steps=1, message=message))
            publish_dir(path, folder.path)
    except OSError as error:
        raise LaunchError(f"{folder.path}: cannot be written: {error.strerror or error}") from None


def _task_of(foreign: ExternalModel) -> type[Task] | None:
    """The task of a fine-tuned model; None for a pretrained one."""
    kind = OBJECTIVES.get(str(foreign.objective.get("type")))
    return kind if kind is not None and issubclass(kind, Task) else None


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


def _unrecorded(foreign: ExternalModel, overrides: Sequence[str]) -> list[str]:
    """The keys that neither the source nor the user has set. Raises `ConfigError` if one of them cannot be assumed."""
    given = {override.partition("=")[0] for override in overrides}
    unrecorded = [key for key in foreign.unrecorded if key not in given]
    needed = [key for key in unrecorded if key in foreign.needed]
    if needed:
        raise ConfigError(
            f"{foreign.source}: the file does not record {', '.join(needed)}, which changes the model; pass"
            f" {' '.join(f'{key}=...' for key in needed)} as in its training"
        )
    return unrecorded


def _assumptions(foreign: ExternalModel, config: RunConfig, unrecorded: Sequence[str]) -> list[str]:
    """A note on keys that are not known, with the values assumed."""
    if not unrecorded:
        return []
    values = config.model_dump(mode="json")
    parts = ((key, *key.split(".")) for key in unrecorded)
    taken = ", ".join(f"{key}={json.dumps(values[section][name])}" for key, section, name in parts)
    return [f"assumed, because {foreign.source} does not record it: {taken}"]


def _run_config(
    foreign: ExternalModel, folder: RunDir, data: _Json, overrides: Sequence[str], *, columns: Sequence[str] = ()
) -> RunConfig:
    """The config of the run. data: its section. columns: keys of that section that may be overridden."""
    wrong = [o for o in overrides if not o.startswith(("model.", "objective.")) and o.partition("=")[0] not in columns]
    if wrong:
        allowed = ", ".join(("keys of model and objective", *columns))
        raise ConfigError(f"expected only {allowed}, got {', '.join(wrong)}")
    content = {"data": data, "model": foreign.model, "objective": foreign.objective}
    content = schema.apply_overrides(content, overrides, RunConfig) | {
        "name": folder.path.name,
        "runs_dir": str(folder.path.parent),
        "engine": {"precision": "fp32"},
        "schedule": {"total_steps": 1},
        "max_steps": 1,
    }
    return schema.validate(RunConfig, content, str(foreign.source))


def _corpus(folder: RunDir, data: Path | None) -> _Json:
    """The section `data` of a pretrained model."""
    split = str((folder.path / "data" if data is None else data).absolute())
    return {"train": split, "valid": split}


def _examples(
    foreign: ExternalModel, task: type[Task], tokenizer: Path, data: Path | None, overrides: Sequence[str]
) -> _Json:
    """The section `data` of a fine-tuned model. tokenizer: its place in the run folder. Raises `XLPretrainError`."""
    columns = foreign.data
    if not columns and data is not None and not any(override.startswith("data.") for override in overrides):
        columns = EXAMPLES[task.data_type].columns_in(data, text=(), label=("label",))
    return {
        "type": task.data_type,
        "train": str((tokenizer.parents[1] / "data" if data is None else data).absolute()),
        "valid": None if data is None else str(data.absolute()),
        "tokenizer": str(tokenizer.absolute()),
        **columns,
    }


def _columns_of(task: type[Task]) -> list[str]:
    """The keys that name columns of a task's files."""
    fields = EXAMPLES[task.data_type].model_fields.keys() - ExampleDataConfig.model_fields.keys() - {"type"}
    return [f"data.{name}" for name in sorted(fields)]


def _unrecorded_columns(foreign: ExternalModel, task: type[Task], overrides: Sequence[str]) -> list[str]:
    """The columns that neither the source nor the user names."""
    given = {override.partition("=")[0] for override in overrides}
    return [] if foreign.data else [key for key in _columns_of(task) if key not in given]


def _check_examples(config: RunConfig, path: Path | None, tokenizer: Tokenizer) -> str:
    """Check that a file of examples fits the task, and return its digest. Raises `DataError`."""
    if path is None:
        return ""
    data, task = config.data.open_split(path, tokenizer), config.objective
    assert isinstance(task, Task)
    task.check(examples_of(data))
    return data.fingerprint
