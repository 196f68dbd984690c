"""How much is read and copied: lines, members and windows of any size."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
import zstandard
from read_source import read

from data_pipelines.sources import files
from data_pipelines.sources.config import JsonlSource, Source, TextSource
from data_pipelines.sources.files import ChunkReader, read_lines
from data_pipelines.sources.records import cut_into_units, read_pieces
from xlpretrain.errors import DataError


class CountedBytes(bytes):
    """Counts what is searched in it, or in anything it is added to."""

    searched = 0

    def split(self, *args: object) -> list[bytes]:  # type: ignore[override]
        CountedBytes.searched += len(self)
        return super().split(*args)  # type: ignore[arg-type]

    def __radd__(self, other: bytes) -> "CountedBytes":
        return CountedBytes(other + bytes(self))


def test_a_line_of_any_length_is_searched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    chunk, count = b"x" * 1000, 500

    def read_chunks(path: str, start: int = 0) -> Iterator[bytes]:
        yield from (CountedBytes(chunk) for _ in range(count))
        yield CountedBytes(b"\nend")

    monkeypatch.setattr(files, "read_chunks", read_chunks)
    CountedBytes.searched = 0
    assert list(read_lines("any")) == [(0, chunk * count), (len(chunk) * count + 1, b"end")]
    assert CountedBytes.searched == len(chunk) * count + 4


class CountedFile(io.BytesIO):
    """Counts the bytes that are read."""

    num_read = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        CountedFile.num_read += len(data)
        return data


@pytest.mark.parametrize("split", ["files", "blank_lines"])
@pytest.mark.parametrize("end", ["", "\n"], ids=["one line", "many lines"])
def test_a_document_larger_than_a_task_is_read_once(
    split: str, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def open_file(path: str) -> IO[bytes]:
        return CountedFile(Path(path).read_bytes())

    path, text = tmp_path / "1", f"some words{end}" * 30_000 + "end"
    path.write_text(text if split == "blank_lines" else json.dumps({"text": text}))
    source: Source = JsonlSource(path=str(path))
    if split == "blank_lines":
        source = TextSource(path=str(path), documents="blank_lines")
    monkeypatch.setattr(files, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(files, "open_file", open_file)
    CountedFile.num_read = 0
    units = cut_into_units([source], [source.find_files()], wanted=5000)
    assert len(units) > 50
    assert [document for unit in units for document in read_pieces(source, unit.pieces)] == [text]
    assert CountedFile.num_read <= 2.5 * path.stat().st_size  # once by the first task, once by all others together


def test_a_chunk_of_any_size_is_given_out_without_copies():
    chunk = bytes(range(256)) * 4096
    reader = ChunkReader(iter([chunk, b"end"]))
    buffer, parts = bytearray(1000), []
    while count := reader.readinto(buffer):
        parts.append(bytes(buffer[:count]))
        assert not reader._rest or reader._rest.obj in (chunk, b"end")  # a view, not a copy of the rest
    assert b"".join(parts) == chunk + b"end"


def test_zst_files_with_a_long_window_are_read(tmp_path: Path):
    text = "Some words that come again.\n" * 1000
    parameters = zstandard.ZstdCompressionParameters(window_log=31, compression_level=1)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()  # as `zstd --long=31` has it
    data = compressor.compress(json.dumps({"text": text}).encode()) + compressor.flush()
    assert zstandard.get_frame_parameters(data).window_size == 1 << 31
    (tmp_path / "1.jsonl.zst").write_bytes(data)
    assert read(JsonlSource(path=str(tmp_path))) == [text]
    larger = bytes([*data[:5], (32 - 10) << 3, *data[6:]])
    (tmp_path / "1.jsonl.zst").write_bytes(larger)
    with pytest.raises(DataError, match=r"window of more than 2 GiB.*compress it again with zstd --long=31 or less"):
        read(JsonlSource(path=str(tmp_path)))
    (tmp_path / "1.jsonl.zst").write_bytes(data[:-10])
    with pytest.raises(DataError, match="damaged or truncated"):
        read(JsonlSource(path=str(tmp_path)))


@pytest.mark.parametrize("size", [1, 1000, 65_536, 65_537, 200_000])
def test_zst_files_of_several_frames_are_read_whole(size: int, tmp_path: Path):
    import random

    frame = zstandard.ZstdCompressor().compress(random.Random(1).randbytes(size).hex().encode())
    (tmp_path / "1.zst").write_bytes(frame * 3)
    assert b"".join(files.read_chunks(str(tmp_path / "1.zst"))) == random.Random(1).randbytes(size).hex().encode() * 3
