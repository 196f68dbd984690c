"""Data, tokenizer and initial weights of a run: found by path, identified by content, so that they may move.

A run folder stores its tokenizer and, in `provenance.json`, `contents`, a digest for each config key that names data or
weights, and `corpora`, the names of its corpora in metrics. Runs of earlier versions only have `data_sha256` and
`tokenizer_sha256`; the rest is added when they resume.
"""

from __future__ import annotations

import getpass
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from xlpretrain import schema
from xlpretrain.checkpoint.reader import fingerprint
from xlpretrain.config import resume_rules, run_config
from xlpretrain.config.resume_rules import Changes
from xlpretrain.config.run_config import RunConfig
from xlpretrain.data.config import CorpusDataConfig
from xlpretrain.data.mixture import Mixture, names_of
from xlpretrain.data.splits import DataSplits
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.data.tokenizers.base import Tokenizer
from xlpretrain.data.tokenizers.open import find_tokenizer_file, load_tokenizer
from xlpretrain.errors import ConfigError, DataError
from xlpretrain.file_system.urls import is_url
from xlpretrain.run_dir.layout import RunDir


def load_config(folder: RunDir, moved: Sequence[str] = ()) -> RunConfig:
    """Load the config of a started run. moved: `data.key=path` overrides; `ConfigError` for any others."""
    wrong = [override for override in moved if not override.startswith("data.")]
    if wrong:
        raise ConfigError(f"only paths of data can be overridden here, such as data.train=DIR; got {', '.join(wrong)}")
    return run_config.load(folder.config, moved)


def open_run_tokenizer(folder: RunDir, config: RunConfig) -> Path:
    """File of a run's tokenizer: in the run folder or, for runs of earlier versions, next to its data.

    Raises `DataError`.
    """
    kept = find_tokenizer_file(folder.tokenizer)
    if kept.is_file():
        return kept
    if folder.read_provenance().get("vocab_size"):
        raise DataError(f"{folder.path}: was imported without a tokenizer; import it again with --tokenizer FILE")
    try:
        return config.data.tokenizer_path()
    except DataError as error:
        raise DataError(
            f"{error}\n  {folder.path} has no copy of its tokenizer, since an earlier version started it: copy the"
            f" tokenizer/ folder of its data to {folder.tokenizer}"
        ) from None


def open_tokenizer(folder: RunDir, config: RunConfig) -> Tokenizer:
    """Load a run's tokenizer. Raises `DataError` if it is missing or differs from the one it was trained with."""
    path = open_run_tokenizer(folder, config)
    tokenizer, expected = load_tokenizer(path), folder.read_provenance().get("tokenizer_sha256")
    if expected and tokenizer.sha256 != expected:
        raise DataError(
            f"{path}: not the tokenizer of {folder.path} (sha256 {tokenizer.sha256[:12]}, expected {expected[:12]});"
            f" copy the right one to {folder.tokenizer}"
        )
    return tokenizer


def open_data(config: RunConfig, folder: RunDir) -> DataSplits:
    """Open the data of a new or started run; `check_resume` compares it. Raises `DataError`."""
    if not folder.exists():
        return config.data.open()
    kept = find_tokenizer_file(folder.tokenizer).is_file()
    try:
        data = config.data.open(kept=open_tokenizer(folder, config) if kept else None)
    except DataError as error:
        raise DataError(f"{error}{_if_moved(config)}") from None
    return DataSplits(_called_as_before(data.train, folder), data.valid, data.tokenizer)


def open_train(config: RunConfig, folder: RunDir, tokenizer: Tokenizer) -> Mixture:
    """Open the training data of a run. Raises `DataError` if it is missing or has changed."""
    try:
        train = config.data.open_train(tokenizer)
    except DataError as error:
        raise DataError(f"{error}{_if_moved(config)}") from None
    _check_train(folder, train)
    return _called_as_before(train, folder)


def open_valid(config: RunConfig, folder: RunDir, tokenizer: Tokenizer) -> TokenDataset | None:
    """Open the held-out data of a run; None if it has none. Raises `DataError` like `open_train`."""
    place = config.data.places().get("valid")
    if place is None:
        return None
    try:
        valid = config.data.open_split(place, tokenizer)
    except DataError as error:
        raise DataError(f"{error}{_if_moved(config)}") from None
    _check(folder, place, valid.fingerprint, folder.read_provenance().get("contents", {}).get("data.valid"))
    return valid


def check_init(config: RunConfig, data: DataSplits) -> None:
    """Check the weights that a run starts from.

    Raises `CheckpointError` if there are none, `ConfigError` if they are known to be trained with another tokenizer.
    """
    source = config.init_from
    if source is None:
        return
    fingerprint(source)
    places = (RunDir(place) for place in (source, *list(source.absolute().parents)[:2]))
    folder = next((place for place in places if place.exists()), None)
    theirs, ours = folder and folder.read_provenance().get("tokenizer_sha256"), data.train.tokenizer_sha256
    if theirs and theirs != ours:
        raise ConfigError(
            f"init_from: {source} was trained with another tokenizer (sha256 {theirs[:12]}) than"
            f" {data.train.manifests[0].folder} ({ours[:12]}); build the data with its tokenizer (tokenizer.path)"
        )


def check_resume(
    begun: RunConfig, config: RunConfig, data: DataSplits, *, allow_recipe_change: bool, forking: bool = False
) -> Changes:
    """The changes with which a run resumes or is forked. Raises `ConfigError` and `DataError` for forbidden ones."""
    folder = config.folder
    was, now = folder.read_provenance().get("contents", {}), _contents_of_data(config, data)
    if config.init_from is not None and config.init_from != begun.init_from and "init_from" in was:
        now["init_from"] = fingerprint(config.init_from)
    changes = resume_rules.check_resume(
        begun,
        config,
        folder=folder.path,
        allow_recipe_change=allow_recipe_change,
        forking=forking,
        was=was,
        now=now,
    )
    _check_train(folder, data.train)
    before, after = folder.read_provenance().get("plugins", {}), schema.plugins_of(config)
    versions = {key: (before[key], after[key]) for key in after if before.get(key, after[key]) != after[key]}
    return {**changes, **versions}


def begun_here() -> dict[str, Any]:
    """The part of the provenance that says when, where and by whom a run was begun."""
    return {
        "began_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": platform.node(),
        "user": getpass.getuser() if os.environ.get("USER") else str(os.getuid()),
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
    }


def record(config: RunConfig, data: DataSplits) -> dict[str, Any]:
    """The part of the provenance that later attempts compare, for a new or a checked run."""
    folder = config.folder
    was = folder.read_provenance() if folder.exists() else {}
    contents = {**was.get("contents", {}), **_contents_of_data(config, data)}
    if not was and config.init_from is not None:
        contents["init_from"] = fingerprint(config.init_from)
    return {
        "data_sha256": data.train.fingerprint,
        "tokenizer_sha256": data.train.tokenizer_sha256,
        **was,
        "contents": contents,
        "plugins": schema.plugins_of(config),
        "corpora": [corpus.name for corpus in data.train.corpora],
    }


def _contents_of_data(config: RunConfig, data: DataSplits) -> dict[str, str]:
    return {f"data.{key}": digest for key, digest in config.data.fingerprints(data).items()}


def _check_train(folder: RunDir, train: Mixture) -> None:
    names = " and ".join(str(manifest.folder) for manifest in train.manifests)
    _check(folder, names, train.fingerprint, folder.read_provenance()["data_sha256"])


def _check(folder: RunDir, place: str, found: str, expected: str | None) -> None:
    if expected and found != expected:
        raise DataError(
            f"{folder.path}: the data has changed: the digest of {place} was {expected[:12]}, now {found[:12]}; set the"
            " path of the original data, or start a new run"
        )


def _called_as_before(train: Mixture, folder: RunDir) -> Mixture:
    """Name the corpora as when the run started, so that their metrics keep their names."""
    names = folder.read_provenance().get("corpora")
    if names is None:
        begun = run_config.load(folder.config).data
        names = names_of(begun.train) if isinstance(begun, CorpusDataConfig) else ()
    return train.called(names) if len(names) == len(train.corpora) else train


def _if_moved(config: RunConfig) -> str:
    places = config.data.places().items()
    gone = [f"data.{key}=PATH" for key, place in places if not is_url(place) and not Path(place).exists()]
    if not gone:
        return ""
    return f"\n  if the data was moved, add its current path to the command; its content is checked: {' '.join(gone)}"
