"""Means of a run's checkpoints: a run with the mean of their weights, to evaluate, export or fine-tune.

Averaging the last checkpoints of a run whose learning rate is high stands in for a decay of the rate (Izmailov et al.,
"Averaging weights leads to wider optima and better generalization", 2018; Sanyal et al., "Early weight averaging meets
high learning rates for LLM pre-training", 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from xlpretrain import schema
from xlpretrain.branches.new_run import beside, find_checkpoints, inherited, moved_to, refuse_existing, written_whole
from xlpretrain.checkpoint.files import DamagedError, list_checkpoints, parse_step, verify_whole
from xlpretrain.checkpoint.reader import Checkpoint, fingerprint
from xlpretrain.checkpoint.train_state import TrainState
from xlpretrain.checkpoint.weights_only import save_weights
from xlpretrain.config import origin, run_config
from xlpretrain.errors import CheckpointError
from xlpretrain.run_dir.layout import RunDir, Status


def average(
    parent: RunDir, *, steps: Sequence[int] = (), last: int = 0, name: str, runs_dir: Path | None = None
) -> tuple[RunDir, list[int]]:
    """Write the mean of the weights of some checkpoints to the new run folder runs_dir/name, atomically.

    Sums are in float64 and rounded to fp32 once. The new run has the parent's config, tokenizer and data, but
    only weights: it can be evaluated, exported, fine-tuned, and be another run's init_from, but not resumed.

    Args:
        steps: of the checkpoints, two or more.
        last: if there are no `steps`: number of newest checkpoints, two or more.
        runs_dir: default: the parent's.

    Returns:
        The folder, and the steps of the checkpoints.

    Raises:
        XLPretrainError: a checkpoint is missing or damaged, or their parameters differ. Nothing is written.
    """
    runs_dir = runs_dir or beside(parent)
    folder = RunDir(runs_dir / name)
    refuse_existing(folder)
    config = run_config.load(parent.config)
    child = moved_to(config, name=name, runs_dir=runs_dir)
    sources = find_checkpoints(parent, sorted(set(steps)) if steps else _newest(parent, last))
    if len(sources) < 2:
        raise CheckpointError(f"{parent.path}: a mean needs at least two checkpoints, got {len(sources)}")
    with ExitStack() as opened:
        checkpoints = [_open(source, opened) for source in sources]
        weights = _mean(checkpoints)
    manifest = checkpoints[-1].manifest
    state = TrainState(step=manifest.step, tokens=int(manifest.state["tokens"]))
    found = [checkpoint.manifest.step for checkpoint in checkpoints]
    message = f"mean of the weights of {parent.path}, steps {', '.join(map(str, found))}"
    averaged = {
        "run": str(parent.path.absolute()),
        "id": str(parent.read_provenance().get("id", "")),
        "checkpoints": {str(step): fingerprint(source) for step, source in zip(found, sources, strict=True)},
    }
    tokenizer = origin.open_tokenizer(parent, config)
    with written_whole(folder) as temporary:
        temporary.keep_tokenizer(tokenizer.file_name, tokenizer.model)
        save_weights(temporary.checkpoints, weights, state, made="averaged")
        temporary.write_status(Status("finished", "finished", state.step, state.step, message=message))
        provenance = {**inherited(parent.read_provenance()), "averaged_from": averaged}
        temporary.create(config=schema.dump(child), provenance=provenance)
    return folder, found


def _newest(parent: RunDir, count: int) -> list[int]:
    there = [parse_step(path) or 0 for path in list_checkpoints(parent.checkpoints)]
    if there and len(there) < count:
        known = ", ".join(map(str, sorted(there)))
        raise CheckpointError(
            f"{parent.path}: has only {len(there)} checkpoints ({known}), not {count}; a run keeps more with"
            " checkpoint.keep or checkpoint.keep_every"
        )
    return sorted(there[:count])


def _open(source: Path, opened: ExitStack) -> Checkpoint:
    """Open a checkpoint whose every byte was verified. Raises `CheckpointError`."""
    try:
        verify_whole(source)
        return opened.enter_context(Checkpoint(source))
    except (DamagedError, OSError) as error:
        raise CheckpointError(f"{source}: is damaged ({error}); nothing was written; leave it out (--steps)") from None


def _mean(checkpoints: Sequence[Checkpoint]) -> dict[str, Tensor]:
    """The mean of each parameter, in fp32. Raises `CheckpointError` if the checkpoints have other parameters."""
    shapes = [{name: tuple(p.shape) for name, p in each.manifest.parameters.items()} for each in checkpoints]
    for checkpoint, found in zip(checkpoints, shapes, strict=True):
        if found != shapes[0]:
            name = next(name for name in {**found, **shapes[0]} if found.get(name) != shapes[0].get(name))
            raise CheckpointError(
                f"{checkpoint.folder}: is of another model than {checkpoints[0].folder}: {name} has shape"
                f" {found.get(name)} and {shapes[0].get(name)}; average checkpoints of one model"
            )
    means = {}
    for name, shape in shapes[0].items():
        size = torch.Size(shape).numel()
        total = torch.zeros(size, dtype=torch.float64)
        for checkpoint in checkpoints:
            total += checkpoint.read("weight", name, 0, size)
        means[name] = (total / len(checkpoints)).float().view(shape)
    return means
