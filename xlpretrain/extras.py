"""Optional packages, and the extra of xlpretrain that installs each. Torch-free.

Import one where it is used, never at the top of a module:

    with optional("matplotlib", "data stats --plot"):
        import matplotlib
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from xlpretrain.errors import XLPretrainError


class Package(NamedTuple):
    """A distribution as PyPI names it, and the extra that installs it."""

    distribution: str
    extra: str


PACKAGES = {
    "aiohttp": Package("aiohttp", "corpora"),
    "datasketch": Package("datasketch", "corpora"),
    "ftfy": Package("ftfy", "corpora"),
    "matplotlib": Package("matplotlib", "plots"),
    "mlflow": Package("mlflow", "mlflow"),
    "pyarrow": Package("pyarrow", "corpora"),
    "scipy": Package("scipy", "classify"),
    "sklearn": Package("scikit-learn", "classify"),
    "submitit": Package("submitit", "slurm"),
    "tensorboard": Package("tensorboard", "tensorboard"),
    "tokenizers": Package("tokenizers", "wordpiece"),
    "triton": Package("triton", "triton"),
    "wandb": Package("wandb", "wandb"),
}
"""Optional packages by the name under which they are imported."""


class MissingPackageError(XLPretrainError):
    """An optional package that is not installed, or cannot be imported."""


@contextmanager
def optional(module: str, needed_by: str) -> Iterator[None]:
    """Turn the ImportError of an optional package, raised inside the block, into a `MissingPackageError`.

    Args:
        module: a key of `PACKAGES`.
        needed_by: the command, option, key or file that needs it: the subject of the message.
    """
    try:
        yield
    except ImportError as error:
        reason = "" if is_missing(module) else f" (it is installed but cannot be imported: {error})"
        raise MissingPackageError(f"{_message(module, needed_by)}{reason}") from None


def require(module: str, needed_by: str) -> None:
    """Raise `MissingPackageError` if an optional package is not installed; does not import it.

    Call this before any work that would be lost without the package. Arguments: see `optional`.
    """
    if is_missing(module):
        raise MissingPackageError(_message(module, needed_by))


def is_missing(module: str) -> bool:
    """True if a top-level module is not installed; does not import it."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return True
    return spec is None or spec.origin is None  # only a folder of that name, such as a run's wandb/


def how_to_install(module: str) -> str:
    """The command that installs a package: by its extra, or by its own name if xlpretrain has no extra for it."""
    return f'pip install "xlpretrain[{PACKAGES[module].extra}]"' if module in PACKAGES else f"pip install {module}"


def _message(module: str, needed_by: str) -> str:
    return f"{needed_by} needs {PACKAGES[module].distribution}: {how_to_install(module)}"
