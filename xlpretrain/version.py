"""Version numbers; our own is kept here because an uninstalled source tree has no metadata."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

__version__ = "0.1.0"


def version_of(package: str) -> str:
    """The version of an importable package, from its metadata or, where it came without, from its `__version__`."""
    try:
        return version(package)
    except PackageNotFoundError:
        return str(getattr(import_module(package), "__version__", "unknown"))
