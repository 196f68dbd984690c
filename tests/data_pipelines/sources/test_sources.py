"""Documents out of files of every type.

Modules: read_units.py.
"""

import gzip
import io
import json
import lzma
import os
import sys
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import zstandard
from read_source import read

from data_pipelines.execution.workers import Workers
from data_pipelines.sources import python_docs
from data_pipelines.sources.config import (
    HuggingFaceSource,
    JsonlSource,
    ParquetSource,
    PythonDocsSource,
    TextSource,
    WebdatasetSource,
)
from data_pipelines.sources.records import cut_into_units, read_pieces
from xlpretrain.errors import ConfigError, DataError
from xlpretrain.schema import validate


def lines(*texts: str) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


def test_a_text_file_is_a_document(tmp_path: Path):
    (tmp_path / "b.txt").write_text("second\n\nstill second", encoding="utf-8")
    (tmp_path / "a.txt").write_text("\ufefffirst", encoding="utf-8")
    (tmp_path / "empty.txt").write_text(" \n")
    assert read(TextSource(path=str(tmp_path))) == ["first", "second\n\nstill second", " \n"]


def test_a_text_file_can_be_split_on_blank_lines(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one\nline\n\n \n\ntwo\r\n\r\nthree\n", newline="")
    assert [d.strip() for d in read(TextSource(path=str(tmp_path), documents="blank_lines"))] == [
        "one\nline",
        "two",
        "three",
    ]


def test_files_come_sorted_and_once_from_folders_globs_and_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ["b/2.txt", "a/1.txt", "a/.hidden", "c.txt"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    assert read(TextSource(path=("b", "**/*.txt", "c.txt"))) == ["a/1.txt", "b/2.txt", "c.txt"]


def test_jsonl_is_read_plain_and_compressed(tmp_path: Path):
    data = lines("one", "zwei\n\nö") + b"\n"
    (tmp_path / "1.jsonl").write_bytes(data)
    (tmp_path / "2.jsonl.gz").write_bytes(gzip.compress(data))
    frame = zstandard.ZstdCompressor().compress
    (tmp_path / "3.jsonl.zst").write_bytes(frame(data) + frame(data))
    (tmp_path / "4.jsonl.xz").write_bytes(lzma.compress(data))
    assert read(JsonlSource(path=str(tmp_path))) == ["one", "zwei\n\nö"] * 5


def test_lines_longer_than_a_chunk_are_whole(tmp_path: Path):
    long = "word " * 500_000
    (tmp_path / "1.jsonl").write_bytes(lines("a", long, "b")[:-1])
    assert read(JsonlSource(path=str(tmp_path))) == ["a", long, "b"]


@pytest.mark.parametrize("stop", [1, 20, 21, 40, 55, 90])
def test_a_file_can_be_read_in_parts(stop: int, tmp_path: Path):
    path = tmp_path / "1.jsonl"
    path.write_bytes(lines("one", "two words", "", "three") + b"\n" + lines("four"))
    size = path.stat().st_size
    parts = [(str(path), 0, stop), (str(path), stop, size)]
    assert list(read_pieces(JsonlSource(path=str(path)), parts)) == ["one", "two words", "", "three", "four"]
    path.write_text("one\nline\n\n \n\u3000\ntwo\n\nthree three three three three\n\n\n\nfour\nfive\n\nsix")
    parts = [(str(path), 0, stop), (str(path), stop, path.stat().st_size)]
    expected = ["one\nline", "two", "three three three three three", "four\nfive", "six"]
    assert list(read_pieces(TextSource(path=str(path), documents="blank_lines"), parts)) == expected


def test_large_files_are_cut_and_small_ones_go_together(tmp_path: Path):
    (tmp_path / "large.jsonl").write_bytes(lines(*(f"{n} " + "x" * 1000 for n in range(40_000))))
    for number in range(20):
        (tmp_path / f"small{number}.jsonl").write_bytes(lines(f"small {number}"))
    source = JsonlSource(path=str(tmp_path))
    units = cut_into_units([source], [source.find_files()])
    assert 4 <= len(units) <= 7
    documents = [document for unit in units for document in read_pieces(source, unit.pieces)]
    assert len(documents) == len(set(documents)) == 40_020
    (tmp_path / "large.jsonl").write_bytes(lines(*("x" * 1000 for n in range(40_000))) + b"{}\n")
    units = cut_into_units([source], [source.find_files()])
    with pytest.raises(DataError, match=r"large\.jsonl, line 40001: no field 'text'"):
        [document for unit in units for document in read_pieces(source, unit.pieces)]


def write_tables(folder: Path, texts: list[str], titles: list[str]) -> None:
    """A Parquet file of three row groups, and a folder as `save_to_disk` leaves it."""
    import pyarrow
    from pyarrow import ipc, parquet

    table = pyarrow.table({"text": texts, "title": titles, "n": list(range(len(texts)))})
    parquet.write_table(table, folder / "1.parquet", row_group_size=-(-len(texts) // 3))
    part = folder / "saved" / "train"
    part.mkdir(parents=True)
    (folder / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    (part / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    with ipc.new_stream(part / "data-00000-of-00001.arrow", table.schema) as stream:
        stream.write_table(table, max_chunksize=2)


def test_parquet_and_saved_hugging_face_datasets_are_read(tmp_path: Path):
    texts, titles = ["one", "zwei\n\nö", " ", "four", "five"], ["A", "B", "C", "D", "E"]
    write_tables(tmp_path, texts, titles)
    path = str(tmp_path / "1.parquet")
    assert read(ParquetSource(path=path)) == texts
    size = (tmp_path / "1.parquet").stat().st_size
    for stop in range(0, size, 50):
        assert list(read_pieces(ParquetSource(path=path), [(path, 0, stop), (path, stop, size)])) == texts
    saved = HuggingFaceSource(path=str(tmp_path / "saved"), part="train")
    assert read(saved) == texts
    template = HuggingFaceSource(path=str(tmp_path / "saved"), part="train", template="{title}: {text}")
    assert read(template)[:2] == ["A: one", "B: zwei\n\nö"]
    with pytest.raises(DataError, match="set `part` to one of: train, test"):
        HuggingFaceSource(path=str(tmp_path / "saved")).find_files()
    with pytest.raises(DataError, match="no field 'body'; the fields there are: n, text, title"):
        read(ParquetSource(path=path, field="body"))
    with pytest.raises(DataError, match="the field 'n' holds int64, expected text"):
        read(ParquetSource(path=path, field="n"))
    (tmp_path / "1.parquet").write_bytes(b"PAR1 this is none")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read(ParquetSource(path=path))


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.zst", ".tar.xz"])
def test_tars_of_raw_text_are_read(suffix: str, tmp_path: Path):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, data in {
            "a/000.txt": "first ö".encode(),
            "a/000.json": b'{"text": "from json", "t": "T"}',
            "a/000.jpg": b"\xff",
            "a/001.txt": b"second",
        }.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    pack = {"": bytes, "gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress, "xz": lzma.compress}
    packed = pack[suffix.removeprefix(".tar").removeprefix(".")](raw.getvalue())
    (tmp_path / f"1{suffix}").write_bytes(packed)
    assert read(WebdatasetSource(path=str(tmp_path))) == ["first ö", "second"]
    as_records = WebdatasetSource(path=str(tmp_path), member="json", template="{t}: {text}")
    assert read(as_records) == ["T: from json"]
    for cut in (packed[: len(packed) // 3], b""):
        (tmp_path / f"1{suffix}").write_bytes(cut)
        with pytest.raises(DataError, match=r"1\.tar"):
            read(WebdatasetSource(path=str(tmp_path)))


@pytest.mark.parametrize("damage", ["cut between members", "a zeroed header", "garbage for a header"])
def test_a_tar_that_python_would_end_early_is_refused(damage: str, tmp_path: Path):
    path = tmp_path / "1.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(5):
            info = tarfile.TarInfo(f"{number}.txt")
            info.size = 700
            tar.addfile(info, io.BytesIO(b"x" * 700))
    data = bytearray(path.read_bytes())
    header = 2 * (512 + 1024)  # of the third member
    match damage:
        case "cut between members":
            del data[header:]
        case "a zeroed header":
            data[header : header + 512] = bytes(512)
        case "garbage for a header":
            data[header : header + 512] = b"garbage!" * 64
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"1\.tar: not a whole tar file \(it ends at byte 3072"):
        read(WebdatasetSource(path=str(path)))


def test_urls_are_read(tmp_path: Path):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/corpus/a/1.jsonl.gz", gzip.compress(lines("one", "two")))
    memory.pipe("/corpus/2.jsonl", lines("three"))
    assert sorted(read(JsonlSource(path="memory://corpus"))) == ["one", "three", "two"]
    assert read(JsonlSource(path="memory://corpus/*.jsonl")) == ["three"]
    with pytest.raises(DataError, match="memory://none"):
        read(JsonlSource(path="memory://none/*.jsonl"))
    with pytest.raises(DataError, match="pip install"):
        read(JsonlSource(path="nosuch://corpus"))
    handler = partial(QuietHandler, directory=str(tmp_path))
    (tmp_path / "3.jsonl.gz").write_bytes(gzip.compress(lines("over http")))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        try:
            assert read(JsonlSource(path=f"{url}/3.jsonl.gz")) == ["over http"]
            with pytest.raises(DataError, match=r"none\.jsonl: cannot be read"):
                read(JsonlSource(path=f"{url}/none.jsonl"))
        finally:
            server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves a folder, and says nothing."""

    def log_message(self, *arguments: object) -> None:
        pass


def test_what_datatrove_writes_is_read_as_it_is(tmp_path: Path):
    record = {"text": "clean text", "id": "<urn:1>", "metadata": {"url": "https://a", "token_count": 2}}
    (tmp_path / "00000.jsonl.gz").write_bytes(gzip.compress(json.dumps(record).encode() + b"\n"))
    assert read(JsonlSource(path=str(tmp_path))) == ["clean text"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template": "no field"}, "expected named fields"),
        ({"template": "{a} {"}, "invalid template"),
        ({"template": "{a.b}"}, "expected named fields"),
        ({"template": "{a}", "field": "a"}, "set field or template, not both"),
        ({"subset": "train"}, "choose another name"),
        ({"subset": "a/b"}, "subset"),
        ({"path": []}, "must not be empty"),
    ],
)
def test_a_source_that_makes_no_sense_is_refused(settings: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        validate(JsonlSource, {"path": "a", **settings}, "test")


def test_another_field_can_hold_the_text(tmp_path: Path):
    (tmp_path / "1.jsonl").write_text('{"body": "here", "text": 3}\n')
    assert read(JsonlSource(path=str(tmp_path), field="body")) == ["here"]


@pytest.mark.parametrize("suffix", ["gz", "zst", "xz"])
def test_an_empty_file_is_no_compressed_one(suffix: str, tmp_path: Path):
    (tmp_path / "1.jsonl").write_bytes(lines("one"))
    (tmp_path / f"2.jsonl.{suffix}").touch()
    with pytest.raises(DataError, match=rf"2\.jsonl\.{suffix}: damaged or truncated"):
        read(JsonlSource(path=str(tmp_path)))
    pack = {"gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress, "xz": lzma.compress}
    (tmp_path / f"2.jsonl.{suffix}").write_bytes(pack[suffix](b""))
    assert read(JsonlSource(path=str(tmp_path))) == ["one"]


def test_a_tar_without_the_wanted_members_or_with_links_for_them_is_refused(tmp_path: Path):
    (tmp_path / "a.txt").write_text("text")
    os.link(tmp_path / "a.txt", tmp_path / "b.txt")
    with tarfile.open(tmp_path / "1.tar", "w") as tar:
        tar.add(tmp_path / "a.txt", "a.txt")
        tar.add(tmp_path / "b.txt", "b.txt")  # which tar keeps as a link to the first
    source = WebdatasetSource(path=str(tmp_path / "1.tar"))
    with pytest.raises(DataError, match=r"1\.tar, b\.txt: a link or the like"):
        read(source)
    with pytest.raises(DataError, match=r"1\.tar: holds no \.json, but b\.txt"):
        read(WebdatasetSource(path=str(tmp_path / "1.tar"), member="json"))


@pytest.mark.parametrize("path", ["none.txt", "none/*.txt", "folder"])
def test_a_path_that_names_nothing_is_refused(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=path.replace("*", r"\*")):
        TextSource(path=path).find_files()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "cut', r"1\.jsonl, line 2: not JSON"),
        (b'["text"]', r"line 2: expected a JSON object with a field 'text', got a list"),
        (b'{"body": "a", "author": "b"}', r"line 2: no field 'text'; the fields there are: author, body"),
        (b'{"text": 3}', r"line 2: the field 'text' holds a int"),
        (b'{"text": "\xff"}', r"line 2: not UTF-8: byte 0xff at offset 10"),
        (b'{"text": "\\ud800"}', r"line 2: not Unicode text"),
        (b"[" * 100_000, r"line 2: not JSON"),
    ],
)
def test_a_bad_line_is_named(line: bytes, message: str, tmp_path: Path):
    (tmp_path / "1.jsonl").write_bytes(lines("good") + line + b"\n")
    with pytest.raises(DataError, match=message):
        read(JsonlSource(path=str(tmp_path)))


def test_text_that_is_not_utf_8_is_named(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"good\nb\xe9d")
    with pytest.raises(DataError, match=r"a\.txt: not UTF-8: byte 0xe9 at offset 6 \(line 2\)"):
        read(TextSource(path=str(tmp_path)))


@pytest.mark.parametrize("suffix", ["gz", "zst", "xz"])
def test_a_file_that_is_cut_short_is_refused(suffix: str, tmp_path: Path):
    data = lines(*(f"document {n} of many" for n in range(5000)))
    pack = {"gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress, "xz": lzma.compress}
    packed = pack[suffix](data)
    path = tmp_path / f"1.jsonl.{suffix}"
    for kept in (len(packed) // 2, len(packed) - 3):
        path.write_bytes(packed[:kept])
        with pytest.raises(DataError, match="damaged or truncated"):
            read(JsonlSource(path=str(path)))
    path.write_bytes(b"neither")
    with pytest.raises(DataError, match="damaged or truncated"):
        read(JsonlSource(path=str(path)))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "documented_package"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        '"""About the package.\n\nShared paragraph here."""\nraise RuntimeError("imported")\n'
        'def f():\n    """What f does."""\n    def g():\n        """What g does."""\n'
    )
    (folder / "native.py").write_text(
        'add_docstr(torch.abs, r"""abs(x) is the absolute\nvalue.""" + "\\nAnd a second long string.".format(a=1))\n'
        'class A:\n    """Shared  paragraph\n    here."""\n'
    )
    (folder / "broken.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder.name


def test_docstrings_are_read_without_importing_anything(package: str):
    documents = read(PythonDocsSource(packages=(package, "no_such_package_1"), stdlib=False))
    assert documents == [
        "About the package.\n\nShared paragraph here.\n\nWhat f does.\n\nWhat g does.",
        "abs(x) is the absolute\nvalue.\n\nAnd a second long string.",
    ]
    assert package not in sys.modules


def test_packages_of_which_none_is_installed_are_refused():
    with pytest.raises(DataError, match="none of these packages is installed: no_such_package_1"):
        PythonDocsSource(packages=("no_such_package_1",), stdlib=False).find_files()


def test_the_standard_library_is_a_corpus():
    files = PythonDocsSource(packages=(), stdlib=True).find_files()
    chosen = [Path(file.path) for file in files if file.path.endswith(("/topics.py", "/json.py", "/textwrap.py"))]
    with Workers(2) as workers:
        documents = list(python_docs.read_modules(chosen, workers))
    assert any("Assertions" in document or "assert" in document for document in documents)
    assert len(documents) > 50
