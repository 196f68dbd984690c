"""Paths that are URLs, and the file systems behind them (fsspec). Torch-free."""

from __future__ import annotations

from typing import Any

from xlpretrain.errors import DataError
from xlpretrain.extras import require
from xlpretrain.file_system.credentials import without_credentials


def is_url(path: object) -> bool:
    """True if `path` is a URL, not a path on this machine."""
    return "://" in str(path)


def open_file_system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path there. Raises `DataError` if its kind of URL is not known here,
    and `MissingPackageError` for http without aiohttp.
    """
    import fsspec

    if url.startswith(("http://", "https://")):
        require("aiohttp", without_credentials(url))
    try:
        file_system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        reason = without_credentials(f"{url}: cannot be opened: {error}")
        raise DataError(f"{reason}; `pip install` the package of fsspec for this kind of URL, such as s3fs") from None
    return file_system, str(path)
