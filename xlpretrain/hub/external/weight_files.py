"""Reads third-party weight files: safetensors, or torch pickles without executing code."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from xlpretrain.errors import CheckpointError

_NAMES = ("model.safetensors", "pytorch_model.bin")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read the weights of a transformers folder, in one file or sharded. Raises `CheckpointError`."""
    for name in _NAMES:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return read_file(folder / name)
        if index.is_file():
            try:
                files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise CheckpointError(f"{index}: not a valid index of weights: {error!r}") from None
            return {k: v for file in files for k, v in read_file(folder / Path(file).name).items()}
    raise CheckpointError(f"{folder}: no weights; expected {' or '.join(_NAMES)}")


def read_file(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file by name, in fp32 on the CPU. Raises `CheckpointError`."""
    try:
        found: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused: a damaged file, or a pickle with more than tensors, which could execute code"
            f" ({str(error).splitlines()[0]}); save only the tensors: torch.save(model.state_dict(), FILE)"
        ) from None
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(found, Mapping) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise CheckpointError(f"{path}: expected tensors by name (a state dict), got {_kind(found)}")
    return {str(name): tensor.float() if tensor.is_floating_point() else tensor for name, tensor in found.items()}


def check_weights(
    found: Mapping[str, torch.Size], expected: Mapping[str, torch.Size], source: Path, *, known: Iterable[str] = ()
) -> None:
    """Raise `CheckpointError` for missing tensors, unexpected ones (except `known`) and different shapes."""
    missing = sorted(expected.keys() - found.keys())
    extra = sorted(found.keys() - expected.keys() - set(known))
    shapes = [
        f"{name} is {tuple(found[name])}, expected {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    parts = [("missing", missing), ("unexpected", extra), ("wrong shape", shapes)]
    differences = "; ".join(f"{what}: {_some(names)}" for what, names in parts if names)
    if differences:
        raise CheckpointError(f"{source}: the weights do not match the config: {differences}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _kind(found: Any) -> str:
    if isinstance(found, Mapping):
        name, value = next((k, v) for k, v in found.items() if not isinstance(v, Tensor))
        return f"a {type(value).__name__} under {str(name)!r}"
    return type(found).__name__
