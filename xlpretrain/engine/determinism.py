"""Training that is the same in every bit on CUDA, where torch's default algorithms add numbers in varying order."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

from xlpretrain.errors import ConfigError

P = ParamSpec("P")
T = TypeVar("T")

_WORKSPACES = "CUBLAS_WORKSPACE_CONFIG"
_DETERMINISTIC = (":4096:8", ":16:8")
"""Values with which cuBLAS is deterministic, also with several streams; the only ones that torch accepts."""


def set_workspaces() -> None:
    """Give cuBLAS workspaces of fixed sizes, unless the environment does. Call it before CUDA starts.

    Raises `ConfigError` if the environment sets others.
    """
    given = os.environ.setdefault(_WORKSPACES, _DETERMINISTIC[0])
    if given not in _DETERMINISTIC:
        raise ConfigError(
            f"engine.deterministic is true, but {_WORKSPACES} is {given!r}, with which cuBLAS is not deterministic:"
            f" expected {' or '.join(_DETERMINISTIC)}; unset it, or set engine.deterministic: false"
        )


def use_deterministic_algorithms() -> None:
    """Let torch use only deterministic algorithms in this process, and raise where it has none.

    Attention needs nothing more: torch then rules out cuDNN's kernel, and runs the backward passes of its flash and
    memory-efficient kernels in a fixed order.
    """
    set_workspaces()
    torch.use_deterministic_algorithms(True)
    # By default torch then also fills every new tensor, in case that one is read before it is written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def explain_refusals(call: Callable[P, T]) -> Callable[P, T]:
    """Decorator that turns torch's refusal of an operation into a `ConfigError`."""

    @wraps(call)
    def explained(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return call(*args, **kwargs)
        except RuntimeError as error:
            refused = "does not have a deterministic implementation"
            if not torch.are_deterministic_algorithms_enabled() or refused not in str(error):
                raise
            raise ConfigError(
                f"engine.deterministic is true, but {str(error).split(refused)[0]}{refused}; use another operation in"
                " the model, or set engine.deterministic: false"
            ) from error

    return explained
