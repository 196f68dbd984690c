"""Read checkpoints: a rank reads only the ranges that it needs, and verifies every byte first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from safetensors import safe_open
from torch import Tensor

from xlpretrain import distributed
from xlpretrain.checkpoint.environment import layout
from xlpretrain.checkpoint.files import (
    CHUNK,
    DAMAGED,
    MANIFEST,
    CheckpointManifest,
    DamagedError,
    checkpoint_name,
    clear_temporary,
    list_checkpoints,
    memory_key,
    open_manifest,
    quarantine,
    stream_state_key,
    tensor_key,
    verify_chunks,
)
from xlpretrain.checkpoint.train_state import TrainState, best_step
from xlpretrain.engine.base import Engine
from xlpretrain.errors import CheckpointError, ConfigError
from xlpretrain.models.pretraining_model import PretrainingModel
from xlpretrain.optim.base import AVERAGE

Range = tuple[str, str, int, int]
"""(kind, parameter name, start, stop)."""
_HEAD = "head."
_KINDS = {"trained": "weight", "average": AVERAGE}
"""Weights of a checkpoint that can be used: those that were trained, or their moving average (`optimizer.average`)."""
FileRange = tuple[str, str, int, int]
"""(file, key, start, stop): elements of a tensor along the dimension it is split in."""


@dataclass(frozen=True)
class RestoreResult:
    """State of a run at a checkpoint, with the memory of this rank's streams (on the CPU, in the weights' dtype).

    memory: one tensor for each range of streams that was asked for; M may differ between ranges.
    stream_states: state of this rank's streams by callback, on the CPU; the first dimension is the streams.
    differences: changes of the environment, such as "world_size: 2 -> 1"; without any, the resume is bit-identical.
    """

    state: TrainState
    memory: list[Shaped[Tensor, "L S M D"]]
    differences: list[str]
    stream_states: dict[str, Tensor]


class Checkpoint:
    """A checkpoint opened for reading. Raises `DamagedError` if it is damaged."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.manifest = open_manifest(folder)
        self._open = ExitStack()
        self._files: dict[str, Any] = {}
        self._offsets: dict[str, dict[str, tuple[int, int, int]]] = {}

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def verify(self, ranges: Iterable[Range], streams: Sequence[range] = ()) -> None:
        """Verify every chunk that contains these (kind, name, start, stop), or the memory of these streams."""
        wanted: dict[str, set[int]] = {}
        segments = [s for request in ranges for s in self._ranges(*request)]
        for some in streams:
            segments += self._memory_ranges(some)
            segments += [s for name in self.manifest.stream_states for s in self._state_ranges(name, some)]
        for file, key, start, stop in segments:
            if file not in self._offsets:
                self._offsets[file] = self._read_header(file, wanted.setdefault(file, set()))
            begin, end, rows = self._offsets[file][key]
            if not key.startswith("memory|"):  # memory is split along its second dimension: verify all of it
                size = (end - begin) // max(rows, 1)
                begin, end = begin + start * size, begin + stop * size
            wanted.setdefault(file, set()).update(range(begin // CHUNK, -(-end // CHUNK)))
        for file, chunks in wanted.items():
            verify_chunks(self.folder, file, self.manifest, sorted(chunks))

    def read(self, kind: str, name: str, start: int, stop: int) -> Float[Tensor, " N"]:
        """Read elements [start, stop) of a flattened parameter or its optimizer state: fp32, on the CPU."""
        parts = [self._file(file).get_slice(key)[a:b] for file, key, a, b in self._ranges(kind, name, start, stop)]
        return torch.cat(parts) if len(parts) != 1 else parts[0]

    def read_memory(self, streams: range) -> Shaped[Tensor, "L S M D"]:
        """Read the memory of these streams, on the CPU, in the saved dtype. M must be the same for all of them."""
        first, file = self._file_of_stream(streams.start)
        empty = self._file(file).get_slice(memory_key(first))[:, 0:0]
        parts = [self._file(file).get_slice(key)[:, a:b] for file, key, a, b in self._memory_ranges(streams)]
        return torch.cat([empty, *parts], dim=1)

    def read_stream_state(self, name: str, streams: range) -> Shaped[Tensor, "S ..."]:
        """A callback's state of these streams, on the CPU."""
        first, file = self._file_of_stream(streams.start)
        empty = self._file(file).get_slice(stream_state_key(name, first))[0:0]
        parts = [self._file(file).get_slice(key)[a:b] for file, key, a, b in self._state_ranges(name, streams)]
        return torch.cat([empty, *parts])

    def stored_kind(self, kind: str, name: str) -> str:
        """The kind to read for a kind of a parameter: a moving average that was not kept begins with the weights."""
        return "weight" if kind == AVERAGE and AVERAGE not in self.manifest.parameters[name].kinds else kind

    def _ranges(self, kind: str, name: str, start: int, stop: int) -> Iterator[FileRange]:
        kind = self.stored_kind(kind, name)
        for low, high, file in self.manifest.parameters[name].ranges:
            if max(start, low) < min(stop, high):
                yield file, tensor_key(kind, name, low), max(start, low) - low, min(stop, high) - low

    def _file_of_stream(self, stream: int) -> tuple[int, str]:
        """The first stream of the saved range that a stream is in, and its file; the last range for streams past it."""
        return next((low, file) for low, _, file in reversed(self.manifest.memory) if low <= stream)

    def _memory_ranges(self, streams: range) -> Iterator[FileRange]:
        return self._stream_ranges(memory_key, streams)

    def _state_ranges(self, name: str, streams: range) -> Iterator[FileRange]:
        return self._stream_ranges(partial(stream_state_key, name), streams)

    def _stream_ranges(self, key: Callable[[int], str], streams: range) -> Iterator[FileRange]:
        for low, high, file in self.manifest.memory:
            first, last = max(streams.start, low), min(streams.stop, high)
            if first < last:
                yield file, key(low), first - low, last - low

    def _read_header(self, file: str, wanted: set[int]) -> dict[str, tuple[int, int, int]]:
        """Per key: start and end byte in the file, and length of the first dimension. Verifies the header's chunks."""
        with (self.folder / file).open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            chunks = range(min(-(-(8 + length) // CHUNK), len(self.manifest.files[file].chunks)))
            verify_chunks(self.folder, file, self.manifest, chunks)
            opened.seek(8)
            header = json.loads(opened.read(length))
        base = 8 + length
        return {
            key: (base + entry["data_offsets"][0], base + entry["data_offsets"][1], entry["shape"][0])
            for key, entry in header.items()
            if key != "__metadata__"
        }

    def _file(self, name: str) -> Any:
        if name not in self._files:
            self._files[name] = self._open.enter_context(safe_open(self.folder / name, framework="pt"))
        return self._files[name]


def restore(checkpoints: Path, engine: Engine, *, streams: Sequence[range], owner: int = 0) -> RestoreResult | None:
    """Resume from the newest intact checkpoint; None if there has never been one. Every rank must call it.

    Ranks verify what they need, and agree on a checkpoint before any of them changes its engine. Skipped checkpoints
    move to `damaged/`.

    Args:
        streams: streams of this rank, as ranges; the memory of each is read into a tensor of its own.
        owner: number of this attempt; partial checkpoints of it and of earlier attempts are removed first.

    Raises:
        CheckpointError: on every rank; all checkpoints are damaged, or belong to another model.
    """
    if distributed.rank() == 0:
        clear_temporary(checkpoints, owner=owner)
    reads = [(kind, *piece) for piece in engine.ranges_to_load() for kind in engine.kinds[piece[0]]]
    found = _newest_whole(checkpoints, engine.shapes, reads, streams)
    if found is None:
        return None
    checkpoint, passed_over = found
    with checkpoint:
        manifest = checkpoint.manifest
        engine.load_state(checkpoint.read, manifest.updates)
        dtype = engine.model.backbone.empty_memory(0, 0).dtype
        memory = [checkpoint.read_memory(some).to(dtype) for some in streams]
        stream_states = {
            name: torch.cat([checkpoint.read_stream_state(name, some) for some in streams])
            for name in manifest.stream_states
        }
    if distributed.rank() == 0:
        for folder, reason in passed_over:
            quarantine(folder, reason)
    distributed.barrier()
    now = layout(engine)
    before = {"deterministic": False, "matmul_precision": "highest", **manifest.layout}  # formerly not recorded
    differences = [f"{key}: {then} -> {now.get(key)}" for key, then in before.items() if then != now.get(key)]
    return RestoreResult(TrainState.from_json(manifest.state), memory, differences, stream_states)


def load_weights(source: Path, engine: Engine, weights: str = "trained") -> list[str]:
    """Load the weights of a run's newest intact checkpoint. Every rank must call it.

    The backbone must match. The head may differ: parameters of the same name and shape are loaded, others are
    initialized.

    Args:
        source: a run folder, its `checkpoints` folder, or a checkpoint.
        weights: trained, or average for their moving average.

    Returns:
        Names of the newly initialized parameters.

    Raises:
        CheckpointError: on every rank.
    """
    kind = _kind_of(weights)
    reads = [(kind, *piece) for piece in engine.ranges_to_load()]
    with _weights(source, engine.shapes, reads, other_head=True) as checkpoint:
        fresh = engine.shapes.keys() - _loaded(checkpoint, engine.shapes, other_head=True).keys()
        engine.load_weights(lambda _, *piece: checkpoint.read(kind, *piece), fresh=fresh)
    return sorted(fresh)


@torch.no_grad()
def load_weights_into(model: PretrainingModel, source: Path, weights: str = "trained") -> int:
    """Load all weights into a model without an engine; see `load_weights`. Returns the checkpoint's step."""
    parameters = dict(model.named_parameters())
    shapes = {name: parameter.shape for name, parameter in parameters.items()}
    reads = [(_kind_of(weights), name, 0, parameter.numel()) for name, parameter in parameters.items()]
    with _weights(source, shapes, reads) as checkpoint:
        for read, parameter in zip(reads, parameters.values(), strict=True):
            parameter.copy_(checkpoint.read(*read).view_as(parameter))
        return checkpoint.manifest.step


def fingerprint(source: Path) -> str:
    """Digest of the checkpoint that `load_weights` would load: SHA-256 of its manifest, which has all checksums.

    Raises `CheckpointError` if there is none.
    """
    place = _place(source)
    for folder in [place] if (place / MANIFEST).is_file() else list_checkpoints(place):
        with suppress(OSError, DamagedError):
            open_manifest(folder)
            return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    raise _none_there(source)


def check_resumable(
    folder: Path, shapes: Mapping[str, torch.Size], kinds: Mapping[str, Sequence[str]]
) -> CheckpointManifest:
    """The manifest of a checkpoint from which a run with these parameters and kinds of state can resume.

    Raises `CheckpointError` for other parameters or a lacking kind, `DamagedError`, OSError.
    """
    with Checkpoint(folder) as checkpoint:
        _check_model(checkpoint, shapes, other_head=False)
        _check_kinds(checkpoint, [(kind, name, 0, 0) for name, of in kinds.items() for kind in of])
        return checkpoint.manifest


def find_best(checkpoints: Path) -> Path:
    """Checkpoint of the best evaluation, according to the newest one; else the folder of all checkpoints."""
    for folder in list_checkpoints(checkpoints):
        with suppress(OSError, DamagedError):
            best = best_step(open_manifest(folder).state)
            place = checkpoints / checkpoint_name(best or 0)
            return place if best is not None and place.is_dir() else checkpoints
    return checkpoints


def _kind_of(weights: str) -> str:
    if weights not in _KINDS:
        raise ConfigError(f"weights must be {' or '.join(_KINDS)}, got {weights!r}")
    return _KINDS[weights]


def _weights(
    source: Path, shapes: Mapping[str, torch.Size], reads: list[Range], *, other_head: bool = False
) -> Checkpoint:
    found = _newest_whole(_place(source), shapes, reads, other_head=other_head)
    if found is None:
        raise _none_there(source)
    parameters = found[0].manifest.parameters.values()
    if any(kind == AVERAGE for kind, *_ in reads) and all(AVERAGE not in each.kinds for each in parameters):
        raise CheckpointError(
            f"{found[0].folder}: has no moving average of the weights; a run keeps one with optimizer.average.decay"
        )
    return found[0]


def _place(source: Path) -> Path:
    """The checkpoints folder of a run; `source` itself if it is not a run."""
    return source / "checkpoints" if (source / "checkpoints").is_dir() else source


def _none_there(source: Path) -> CheckpointError:
    return CheckpointError(f"{source}: no checkpoint found; expected a run folder or a checkpoint")


def _newest_whole(
    source: Path,
    shapes: Mapping[str, torch.Size],
    reads: list[Range],
    streams: Sequence[range] = (),
    *,
    other_head: bool = False,
) -> tuple[Checkpoint, list[tuple[Path, str]]] | None:
    """Find the newest checkpoint that every rank can read, and the skipped newer ones with the reasons.

    `source` is a folder of checkpoints, or a checkpoint itself. None: there has never been one.
    other_head: the head may differ; parameters that the checkpoint lacks, or has in another shape, are not read.
    """
    own = [source] if (source / MANIFEST).is_file() else list_checkpoints(source)
    passed_over: list[tuple[Path, str]] = []
    for folder in distributed.broadcast_object(own):
        checkpoint, error = _open(folder, reads, streams, shapes, other_head=other_head)
        errors = [error for error in distributed.gather_objects(error) if error is not None]
        if checkpoint is not None and not errors:
            return checkpoint, passed_over
        if isinstance(errors[0], CheckpointError):
            raise errors[0]
        passed_over.append((folder, str(errors[0])))
    if passed_over:
        reasons = "; ".join(f"{folder.name}: {reason}" for folder, reason in passed_over)
        raise CheckpointError(f"{source}: all checkpoints are damaged ({reasons}); nothing was changed")
    if distributed.broadcast_object((source / DAMAGED).is_dir()):
        raise CheckpointError(
            f"{source}: all checkpoints are in {DAMAGED}/; move an intact one back, or delete that folder to start over"
        )
    return None


def _open(
    folder: Path, reads: list[Range], streams: Sequence[range], shapes: Mapping[str, torch.Size], *, other_head: bool
) -> tuple[Checkpoint | None, Exception | None]:
    """Open and verify a checkpoint; else return the error: a `CheckpointError` if the model does not match."""
    try:
        checkpoint = Checkpoint(folder)
        shapes = _loaded(checkpoint, shapes, other_head=other_head)
        reads = [read for read in reads if read[1] in shapes]
        _check_model(checkpoint, shapes, other_head=other_head)
        _check_kinds(checkpoint, reads)
        checkpoint.verify(reads, streams)
    except OSError as error:
        return None, DamagedError(str(error))
    except (DamagedError, CheckpointError) as error:
        return None, error
    return checkpoint, None


def _loaded(checkpoint: Checkpoint, shapes: Mapping[str, torch.Size], *, other_head: bool) -> Mapping[str, torch.Size]:
    """The parameters to load: all, or with another head all but those of the head that the checkpoint does not fit."""
    saved = checkpoint.manifest.parameters
    if not other_head:
        return shapes

    def fits(name: str, shape: torch.Size) -> bool:
        return name in saved and tuple(saved[name].shape) == tuple(shape)

    return {name: shape for name, shape in shapes.items() if not name.startswith(_HEAD) or fits(name, shape)}


def _check_kinds(checkpoint: Checkpoint, reads: list[Range]) -> None:
    """Raise `CheckpointError` if a parameter lacks a kind of state that is to be read."""
    saved = checkpoint.manifest.parameters
    kinds = ((checkpoint.stored_kind(kind, name), name) for kind, name, *_ in reads)
    lacking = next(((kind, name) for kind, name in kinds if kind not in saved[name].kinds), None)
    if lacking is None:
        return
    kind, name = lacking
    if all(parameter.kinds == ["weight"] for parameter in saved.values()):
        raise CheckpointError(
            f"{checkpoint.folder}: has only weights (it was imported, or is an average), so a run cannot resume from"
            " it; start a new run with init_from"
        )
    raise CheckpointError(
        f"{checkpoint.folder}: has no {kind} of {name}, which this optimizer needs, but {', '.join(saved[name].kinds)};"
        " resume with the optimizer that the run has had, or begin a new run with init_from"
    )


def _check_model(checkpoint: Checkpoint, shapes: Mapping[str, torch.Size], *, other_head: bool) -> None:
    saved = {name: tuple(parameter.shape) for name, parameter in checkpoint.manifest.parameters.items()}
    if other_head:
        saved = {name: shape for name, shape in saved.items() if name in shapes or not name.startswith(_HEAD)}
    for name in sorted(saved.keys() | shapes.keys()):
        got, expected = saved.get(name), tuple(shapes[name]) if name in shapes else None
        if got != expected:
            raise CheckpointError(
                f"{checkpoint.folder}: model mismatch: {name} has shape {got} in the checkpoint, {expected} in this"
                " model (None: missing); use the model section of the checkpoint's config"
            )
