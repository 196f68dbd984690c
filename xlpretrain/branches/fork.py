"""Forks: a new run that begins from a checkpoint of another run, with changes to its config.

It goes on with the weights, optimizer state, step, position in the data, memories and random numbers of its parent, so
a fork without changes equals the parent's continuation in every bit. The parent is only read.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from xlpretrain import schema
from xlpretrain.branches.new_run import beside, find_checkpoints, inherited, moved_to, refuse_existing, written_whole
from xlpretrain.checkpoint.files import (
    MANIFEST,
    CheckpointManifest,
    DamagedError,
    checkpoint_name,
    list_checkpoints,
    open_manifest,
    parse_step,
    verify_whole,
)
from xlpretrain.checkpoint.reader import check_resumable, fingerprint
from xlpretrain.checkpoint.train_state import best_step
from xlpretrain.config import data_rules, origin, run_config
from xlpretrain.config.resume_rules import changes_stage
from xlpretrain.config.run_config import RunConfig
from xlpretrain.config.run_stages import RunStages
from xlpretrain.config.stages import STAGE_KEYS, StageConfig, dotted_objective, merged, stage_objective
from xlpretrain.data.splits import DataSplits
from xlpretrain.errors import CheckpointError, ConfigError
from xlpretrain.run_dir.layout import Branch, RunDir

_LENGTHS = ("max_steps", "max_tokens", "max_epochs")


def fork(
    parent: RunDir, *, step: int | None = None, name: str, runs_dir: Path | None = None, overrides: Sequence[str] = ()
) -> tuple[RunDir, list[str]]:
    """Fork a run to the new folder runs_dir/name, which is written atomically.

    Args:
        step: of the checkpoint to begin from (default: the newest).
        runs_dir: default: the parent's.
        overrides: `key=value` changes: what a resume may change, schedule, optimizer but for its type, and what a
            stage may change, which then begins a new stage. If the parent's schedule ends with the run, a new length
            moves its end unless `schedule.total_steps` is given.

    Returns:
        The folder, and notes for the user.

    Raises:
        XLPretrainError: the changes are not allowed, or the checkpoint is missing or damaged. Nothing is written.
    """
    runs_dir = runs_dir or beside(parent)
    folder = RunDir(runs_dir / name)
    refuse_existing(folder)
    begun = run_config.load(parent.config)
    newest = [parse_step(path) or 0 for path in list_checkpoints(parent.checkpoints)][:1]
    [source] = find_checkpoints(parent, newest if step is None and newest else [step or 0])
    config, data, changed = _changed(parent, begun, overrides, step=parse_step(source) or 0)
    child = moved_to(config, name=name, runs_dir=runs_dir)
    manifest = _check(source, child, vocab_size=data.tokenizer.vocabulary.size)
    assert child.max_steps is not None, "resolved"
    if manifest.step >= child.max_steps:
        raise ConfigError(
            f"{parent.path}: a fork at step {manifest.step:,} has nothing left to train, since max_steps is"
            f" {child.max_steps:,}; set max_steps=..., or choose an earlier checkpoint (--step)"
        )
    provenance = origin.record(config, data)
    try:
        branch = Branch(
            str(parent.path.absolute()), str(provenance.get("id", "")), manifest.step, fingerprint(source), changed
        )
        with written_whole(folder) as temporary:
            for each in (source, *_best(parent, manifest, child)):
                _share(each, temporary.checkpoints / each.name)
            temporary.keep_tokenizer(data.tokenizer.file_name, data.tokenizer.model)
            temporary.create(config=schema.dump(child), provenance={**inherited(provenance), **branch.to_provenance()})
    except DamagedError as error:
        raise _damaged(source, error) from None
    return folder, _notes(folder, branch, begun, child)


def _changed(
    parent: RunDir, begun: RunConfig, overrides: Sequence[str], *, step: int
) -> tuple[RunConfig, DataSplits, Mapping[str, Any]]:
    """The resolved config of a fork at its parent's place, its data, and the changed keys. Raises `XLPretrainError`."""
    keys = [override.partition("=")[0].strip() for override in overrides]
    if wrong := [key for key in keys if key in ("name", "runs_dir")]:
        raise ConfigError(f"{', '.join(wrong)}: set the name of a fork with --name, its folder with --runs-dir")
    if begun.schedule.total_steps == begun.max_steps and set(keys) & set(_LENGTHS):
        overrides = ["schedule.total_steps=null", *overrides]
    place = {"runs_dir": parent.path.absolute().parent, "name": parent.path.absolute().name}
    config = run_config.load(parent.config, overrides)
    if keys := changes_stage(begun, config):
        config = schema.validate(RunConfig, _with_past(begun, config, keys, step=step), str(parent.path))
    data = origin.open_data(config, parent)
    config.objective.check_data(data.train.manifests, data.valid)
    endless = begun.schedule.model_copy(update={"total_steps": None})
    config = data_rules.resolve(config, data.train, begun=begun.model_copy(update={"schedule": endless}))
    config = config.model_copy(update=place)
    changes = origin.check_resume(begun, config, data, allow_recipe_change=True, forking=True)
    data_rules.validate_data(config, data.train, 1)
    return config, data, dict(changes)


def _with_past(begun: RunConfig, config: RunConfig, keys: Sequence[str], *, step: int) -> dict[str, Any]:
    """The config of a fork as data, with what its parent has trained until `step` as the first stages.

    Raises `ConfigError` if the parent has a stage after `step`, or is in a ramp there.
    """
    changed = ", ".join(keys)
    if any(key.split(".")[0] == "stages" for key in keys):
        raise ConfigError(f"stages: a fork keeps its parent's; set {', '.join(STAGE_KEYS)} for what follows them")
    begins = [0, *(stage.until.step or 0 for stage in begun.stages[:-1] if stage.until is not None)]
    if step < begins[-1]:
        raise ConfigError(
            f"{changed}: a fork can change what its parent's last stage trains on, which begins at step {begins[-1]:,};"
            f" fork from a checkpoint of that step or later (--step), got step {step:,}"
        )
    before, past = begun.model_dump(mode="json"), []
    train = before["data"]["train"]
    weights = [corpus["weight"] for corpus in train] if isinstance(train, list) else [1.0]
    for stage in begun.stages or (StageConfig(),):
        of_stage = stage.model_dump(mode="json")
        end = (stage.until.step if stage.until is not None else None) or step
        of_stage["until"] = {"step": end}
        of_parent = merged(before, dotted_objective(stage.objective))["objective"]
        of_stage["objective"] = stage_objective(of_parent, without=stage.ramp)
        of_stage["global_batch_size"] = stage.global_batch_size or (
            None if "global_batch_size" in stage.ramp else begun.global_batch_size
        )
        of_stage["data"] = {"weights": of_stage["data"]["weights"] or weights}
        past.append(of_stage)
    if step == begins[-1] and step:
        past.pop()
    return config.model_dump(mode="json") | {"stages": [*past, {}]}


def _check(source: Path, config: RunConfig, *, vocab_size: int) -> CheckpointManifest:
    """The manifest of a checkpoint that a run with this config can resume from. Raises `CheckpointError`."""
    with torch.device("meta"):
        named = dict(config.build_model(vocab_size).named_parameters())
    kinds = config.optimizer.kinds({name: each.shape for name, each in named.items()})
    try:
        return check_resumable(source, {name: each.shape for name, each in named.items()}, kinds)
    except (DamagedError, OSError) as error:
        raise _damaged(source, error) from None


def _damaged(source: Path, error: Exception) -> CheckpointError:
    others = [str(parse_step(path)) for path in list_checkpoints(source.parent) if path != source]
    advice = f"choose another one with --step: {', '.join(others)}" if others else "the run has no other one"
    return CheckpointError(f"{source}: is damaged ({error}); nothing was written; {advice}")


def _best(parent: RunDir, manifest: CheckpointManifest, config: RunConfig) -> list[Path]:
    """The checkpoint of the best evaluation so far, if the run keeps it and it is an intact other one."""
    best = best_step(manifest.state) if config.checkpoint.keep_best else None
    folder = parent.checkpoints / checkpoint_name(best or 0)
    if best in (None, manifest.step) or not folder.is_dir():
        return []
    try:
        verify_whole(folder)
    except (DamagedError, CheckpointError):
        return []
    return [folder]


def _share(source: Path, target: Path) -> None:
    """Put the files of a checkpoint into a new folder, by hard links where possible, and verify every byte of them.

    Hard links are safe because a checkpoint's files are never written again: they are replaced by a rename or unlinked.
    Raises `DamagedError`, OSError.
    """
    target.mkdir(parents=True)
    for name in (*open_manifest(source).files, MANIFEST):
        try:
            os.link(source / name, target / name)
        except OSError:  # another file system, another owner, or one without links
            shutil.copyfile(source / name, target / name)
    verify_whole(target)


def _notes(folder: RunDir, branch: Branch, begun: RunConfig, config: RunConfig) -> list[str]:
    notes = [f"{folder.path}: forked from {branch.run}, step {branch.step:,} of {config.max_steps:,}"]
    changed = {key: values for key, values in branch.changed.items() if key.split(".")[0] != "stages"}
    notes += [f"changed: {key}: {before!r} -> {now!r}" for key, (before, now) in changed.items()]
    if changed != branch.changed:
        notes.append(f"what the parent trained on until step {branch.step:,} is in `stages` of the fork's config")
    stages = (RunStages.of(each).at(branch.step) for each in (begun, config))
    before, now = (each.optimizer.lr * each.schedule.factor(branch.step) for each in stages)
    if now != before:
        notes.append(f"the learning rate of the next step is {now:.4g}; the parent's was {before:.4g}")
    return notes
