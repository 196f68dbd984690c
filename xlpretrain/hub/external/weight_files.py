"""Weights as they lie in a folder or a file of others: safetensors, or torch pickles that run no code."""

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
    """The weights in a transformers folder, in one file or in several with an index. Raises `CheckpointError`."""
    for name in _NAMES:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return read_file(folder / name)
        if index.is_file():
            try:
                files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise CheckpointError(f"{index}: cannot be used as an index of weights: {error!r}") from None
            return {k: v for file in files for k, v in read_file(folder / Path(file).name).items()}
    raise CheckpointError(f"{folder}: no weights there; expected {' or '.join(_NAMES)}")


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, in fp32 and on the CPU. Raises `CheckpointError`."""
    try:
        found: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused: it is a damaged file, or a pickle that holds more than tensors, which could run any code"
            f" ({str(error).splitlines()[0]}); save the tensors alone: torch.save(model.state_dict(), FILE)"
        ) from None
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(found, Mapping) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise CheckpointError(f"{path}: expected tensors by name (a state dict), got {_kind(found)}")
    return {str(name): tensor.float() if tensor.is_floating_point() else tensor for name, tensor in found.items()}


def check_weights(
    found: Mapping[str, torch.Size], expected: Mapping[str, torch.Size], source: Path, *, known: Iterable[str] = ()
) -> None:
    """Raise `CheckpointError` that names what is missing, what is left over (but for `known`), and other shapes."""
    missing = sorted(expected.keys() - found.keys())
    extra = sorted(found.keys() - expected.keys() - set(known))
    shapes = [
        f"{name} is {tuple(found[name])}, not {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    parts = [("missing", missing), ("without a place here", extra), ("of another shape", shapes)]
    told = "; ".join(f"{what}: {_some(names)}" for what, names in parts if names)
    if told:
        raise CheckpointError(f"{source}: its weights are not those of the model that its config describes: {told}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _kind(found: Any) -> str:
    if isinstance(found, Mapping):
        name, value = next((k, v) for k, v in found.items() if not isinstance(v, Tensor))
        return f"a {type(value).__name__} under {str(name)!r}"
    return type(found).__name__
