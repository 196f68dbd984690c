"""Readers of Parquet files, and of the Arrow files that Hugging Face `datasets` saves. Require pyarrow."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from data_pipelines.sources.base import BadRecord, RecordSource
from data_pipelines.sources.files import open_file, remote_errors
from data_pipelines.sources.find import File, local_file
from xlpretrain.errors import DataError
from xlpretrain.extras import optional

Records = Iterator[tuple[int, dict[str, Any]]]
"""Pairs of row number and record."""

_BATCH_ROWS = 1024


class ParquetSource(RecordSource):
    """Parquet files, with one document per row."""

    type: Literal["parquet"] = "parquet"
    """Type of source."""

    def can_split(self, file: File) -> bool:
        return True

    def read(self, path: str, start: int, stop: int) -> Iterator[str | BadRecord]:
        return _texts_of(self, path, read_parquet(path, start, stop, self.fields()))


class HuggingFaceSource(RecordSource):
    """Folders saved by `save_to_disk` of `datasets`; the Hub is never accessed."""

    type: Literal["huggingface"] = "huggingface"
    """Type of source."""
    part: str | None = None
    """Split to read, if the folder has several."""

    def find_files(self) -> list[File]:
        return saved_files(self)

    def read(self, path: str, start: int, stop: int) -> Iterator[str | BadRecord]:
        return _texts_of(self, path, read_arrow(path, self.fields()))


def _texts_of(source: RecordSource, path: str, records: Records) -> Iterator[str | BadRecord]:
    return (source.text_of(record, partial("{}, row {}".format, path, row)) for row, record in records)


def read_parquet(path: str, start: int, stop: int, wanted: Sequence[str]) -> Records:
    """The rows of the row groups that begin at bytes [start, stop) of a file. stop -1: no limit. Raises `DataError`."""
    with optional("pyarrow", path):
        import pyarrow
        from pyarrow import parquet

    try:
        with open_file(path) as raw, parquet.ParquetFile(raw) as file:
            _check_columns(file.schema_arrow, wanted, path)
            row = 0
            for group in range(file.num_row_groups):
                about = file.metadata.row_group(group)
                first = min(about.column(i).data_page_offset for i in range(about.num_columns))
                if stop < 0 or start <= first < stop:
                    for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=list(wanted)):
                        yield from enumerate(_to_records(batch), start=row)
                        row += batch.num_rows
                else:
                    row += about.num_rows
    except (pyarrow.ArrowException, *remote_errors()) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from None


def read_arrow(path: str, wanted: Sequence[str]) -> Records:
    """The rows of an Arrow stream. Raises `DataError`."""
    with optional("pyarrow", path):
        import pyarrow

    try:
        with open_file(path) as file, pyarrow.ipc.open_stream(file) as stream:
            _check_columns(stream.schema, wanted, path)
            row = 0
            for batch in stream:
                yield from enumerate(_to_records(batch.select(list(wanted))), start=row)
                row += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Arrow: {error}") from None


def saved_files(source: HuggingFaceSource) -> list[File]:
    """The Arrow files in folders of `save_to_disk`. Raises `DataError`."""
    found = []
    for name in [source.path] if isinstance(source.path, str) else source.path:
        folder = Path(name).expanduser()
        if (folder / "dataset_dict.json").is_file():
            parts = _read_list(folder / "dataset_dict.json", "splits", str)
            if source.part not in parts:
                raise DataError(f"{name}: set `part` to one of: {', '.join(parts)} (got {source.part})")
            folder = folder / str(source.part)
        if not (folder / "state.json").is_file():
            raise DataError(f"{name}: not a dataset saved by `save_to_disk` (no state.json)")
        entries = _read_list(folder / "state.json", "_data_files", dict)
        files = [folder / str(entry.get("filename")) for entry in entries]
        if missing := [str(file) for file in files if not file.is_file()]:
            raise DataError(f"{missing[0]}: this file of the dataset is missing")
        found += list(map(local_file, files))
    return found


def _check_columns(schema: Any, wanted: Sequence[str], path: str) -> None:
    """Raise `DataError` if a wanted column is missing, repeated, or not text."""
    from pyarrow import types

    if repeated := [name for name in wanted if schema.names.count(name) > 1]:
        count = schema.names.count(repeated[0])
        raise DataError(f"{path}: {count} columns are named {repeated[0]!r}; rename all but the one to read")
    if missing := [name for name in wanted if name not in schema.names]:
        raise DataError(
            f"{path}: no field {missing[0]!r}; the available fields are: {', '.join(sorted(schema.names))} (set"
            " `field` in the source)"
        )
    for name in wanted:
        kind = schema.field(name).type
        content = kind.value_type if types.is_dictionary(kind) else kind
        is_text = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
        if not any(matches(content) for matches in is_text):
            hint = "; store it as a string column" if "binary" in str(content) else ""
            raise DataError(f"{path}: the field {name!r} has type {kind}, expected text{hint}")


def _to_records(batch: Any) -> list[dict[str, Any]]:
    """The rows of a batch. Strings that are not valid UTF-8, which Arrow accepts, are returned as bytes."""
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError:
        columns = [[_text_or_bytes(value) for value in column] for column in batch.columns]
        return [dict(zip(batch.schema.names, row, strict=True)) for row in zip(*columns, strict=True)]


def _text_or_bytes(value: Any) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return _bytes_of(value)


def _bytes_of(text: Any) -> bytes:
    """The bytes of an Arrow string, which may be invalid UTF-8."""
    text = getattr(text, "value", None) or text  # dictionary-encoded
    return bytes(text.as_buffer())


def _read_list(path: Path, key: str, kind: type) -> list[Any]:
    """The list of values of type `kind` at a key of a JSON file. Raises `DataError`."""
    try:
        found = json.loads(path.read_text())[key]
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    except (KeyError, TypeError):
        found = None
    if not isinstance(found, list) or not all(isinstance(entry, kind) for entry in found):
        raise DataError(f"{path}: expected a list {key!r}, as `save_to_disk` writes it; save the dataset again")
    return found
