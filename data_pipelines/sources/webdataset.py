"""Tar archives of raw text, as webdataset writes them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

from data_pipelines.sources.base import BadRecord, RecordSource, decode_text
from data_pipelines.sources.files import ChunkReader, TailWatcher, read_chunks
from xlpretrain.errors import DataError


class WebdatasetSource(RecordSource):
    """Webdataset tars of raw text: NAME.txt is a document, NAME.json a record."""

    type: Literal["webdataset"] = "webdataset"
    """Type of source."""
    member: Literal["txt", "json"] = "txt"
    """Extension of the members to read."""

    def read(self, path: str, start: int, stop: int) -> Iterator[str | BadRecord]:
        return _read_members(self, path)


def _read_members(source: WebdatasetSource, path: str) -> Iterator[str | BadRecord]:
    chunks = TailWatcher(read_chunks(path))
    num_found, others = 0, ""
    try:
        with tarfile.open(fileobj=io.BufferedReader(ChunkReader(chunks)), mode="r|") as tar:
            for member in tar:
                name = Path(member.name).name
                if member.isdir() or name.startswith(".") or not name.endswith(f".{source.member}"):
                    others = others if member.isdir() else member.name
                    continue
                num_found += 1
                if not member.isfile():
                    raise DataError(f"{path}, {member.name}: not a regular file (maybe a link); pack the file itself")
                file = tar.extractfile(member)
                assert file is not None
                place = partial("{}, {}".format, path, member.name)
                yield (
                    decode_text(file.read(), place) if source.member == "txt" else source.parse_json(file.read(), place)
                )
            if not chunks.ends_in_zeros(tar.offset):  # tarfile accepts a truncated file
                raise tarfile.ReadError(f"it ends at byte {tar.offset} without an end marker")
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{path}: incomplete tar file ({error}); download it again") from None
    if others and not num_found:
        raise DataError(f"{path}: contains no .{source.member}, but {others}; set `member`, or do not list this file")
