"""URL paths and their file systems (fsspec). Torch-free."""

from __future__ import annotations

from typing import Any

from xlpretrain.errors import DataError
from xlpretrain.file_system.credentials import without_credentials


def is_url(path: object) -> bool:
    """True if `path` is a URL, not a local path."""
    return "://" in str(path)


def open_file_system(url: str) -> tuple[Any, str]:
    """Split a URL into its fsspec file system and the path in it. Raises `DataError` for an unsupported scheme."""
    import fsspec

    try:
        file_system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        reason = without_credentials(f"{url}: cannot be opened: {error}")
        raise DataError(
            f"{reason}; `pip install` the package for this scheme, such as s3fs, or 'xlpretrain[corpora]' for http"
        ) from None
    return file_system, str(path)
