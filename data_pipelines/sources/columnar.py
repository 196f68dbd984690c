"""Records out of columns: Parquet files, and the Arrow files that Hugging Face `datasets` saves. Needs pyarrow."""

from __future__ import annotations

import json
import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.sources.config import HuggingFaceSource, RecordSource
from data_pipelines.sources.files import open_file
from data_pipelines.sources.find import File, local_file
from xlpretrain.errors import DataError

Records = Iterator[tuple[int, dict[str, Any]]]
"""With the numbers of their rows."""

_BATCH_ROWS = 1024


def columns(source: RecordSource) -> list[str]:
    """The fields that make a document."""
    if source.template is None:
        return [source.field]
    names = (name for _, name, _, _ in string.Formatter().parse(source.template) if name)
    return list(dict.fromkeys(names))


def read_parquet(path: str, start: int, stop: int, wanted: Sequence[str]) -> Records:
    """The rows of the row groups that begin at bytes [start, stop) of a file; stop -1: all. Raises `DataError`."""
    pyarrow = need_pyarrow(path)
    from pyarrow import parquet

    try:
        with open_file(path) as raw, parquet.ParquetFile(raw) as file:
            _check_columns(file.schema_arrow.names, wanted, path)
            row = 0
            for group in range(file.num_row_groups):
                about = file.metadata.row_group(group)
                first = min(about.column(i).data_page_offset for i in range(about.num_columns))
                if stop < 0 or start <= first < stop:
                    for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=list(wanted)):
                        yield from enumerate(batch.to_pylist(), start=row)
                        row += batch.num_rows
                else:
                    row += about.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from None


def read_arrow(path: str, wanted: Sequence[str]) -> Records:
    """The rows of an Arrow stream. Raises `DataError`."""
    pyarrow = need_pyarrow(path)
    try:
        with open_file(path) as file, pyarrow.ipc.open_stream(file) as stream:
            _check_columns(stream.schema.names, wanted, path)
            row = 0
            for batch in stream:
                yield from enumerate(batch.select(list(wanted)).to_pylist(), start=row)
                row += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Arrow: {error}") from None


def saved_files(source: HuggingFaceSource) -> list[File]:
    """The Arrow files in folders of `save_to_disk`. Raises `DataError`."""
    found = []
    for name in [source.path] if isinstance(source.path, str) else source.path:
        folder = Path(name).expanduser()
        if (folder / "dataset_dict.json").is_file():
            parts = _read_json(folder / "dataset_dict.json")["splits"]
            if source.part not in parts:
                raise DataError(f"{name}: name its `part`, one of: {', '.join(parts)} (got {source.part})")
            folder = folder / str(source.part)
        if not (folder / "state.json").is_file():
            raise DataError(f"{name}: no dataset saved by `save_to_disk` here (no state.json)")
        files = [folder / entry["filename"] for entry in _read_json(folder / "state.json")["_data_files"]]
        if missing := [str(file) for file in files if not file.is_file()]:
            raise DataError(f"{missing[0]}: this file of the dataset is missing")
        found += list(map(local_file, files))
    return found


def need_pyarrow(path: str) -> Any:
    """The package. Raises `DataError` if it is not installed."""
    try:
        import pyarrow
    except ImportError:
        raise DataError(f"{path}: needs the package pyarrow: pip install 'xlpretrain[corpora]'") from None
    return pyarrow


def _check_columns(names: Sequence[str], wanted: Sequence[str], path: str) -> None:
    if repeated := [name for name in wanted if names.count(name) > 1]:
        raise DataError(
            f"{path}: {names.count(repeated[0])} columns are called {repeated[0]!r}; rename all but the one to read"
        )
    if missing := [name for name in wanted if name not in names]:
        raise DataError(
            f"{path}: no field {missing[0]!r}; the fields there are: {', '.join(sorted(names))} (set `field` in the "
            "source)"
        )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
