import gzip
import json
import sys
from pathlib import Path

import pytest
import zstandard

from data_pipelines.config import JsonlSource, PythonDocsSource, Source, TextSource
from data_pipelines.sources import read_documents, source_files
from xlpretrain.errors import DataError


def read(source: Source) -> list[str]:
    return list(read_documents(source, source_files(source), workers=1))


def lines(*texts: str) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


def test_a_text_file_is_a_document(tmp_path: Path):
    (tmp_path / "b.txt").write_text("second\n\nstill second", encoding="utf-8")
    (tmp_path / "a.txt").write_text("\ufefffirst", encoding="utf-8")
    (tmp_path / "empty.txt").write_text(" \n")
    assert read(TextSource(path=str(tmp_path))) == ["first", "second\n\nstill second"]


def test_a_text_file_can_be_split_on_blank_lines(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one\nline\n\n \n\ntwo\r\n\r\nthree\n", newline="")
    assert [d.strip() for d in read(TextSource(path=str(tmp_path), split="blank_lines"))] == [
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


def test_jsonl_is_read_plain_gzipped_and_zstandard(tmp_path: Path):
    data = lines("one", "zwei\n\nö") + b"\n"
    (tmp_path / "1.jsonl").write_bytes(data)
    (tmp_path / "2.jsonl.gz").write_bytes(gzip.compress(data))
    frame = zstandard.ZstdCompressor().compress
    (tmp_path / "3.jsonl.zst").write_bytes(frame(data) + frame(data))
    assert read(JsonlSource(path=str(tmp_path))) == ["one", "zwei\n\nö"] * 4


def test_lines_longer_than_a_chunk_are_whole(tmp_path: Path):
    long = "word " * 500_000
    (tmp_path / "1.jsonl").write_bytes(lines("a", long, "b")[:-1])
    assert read(JsonlSource(path=str(tmp_path))) == ["a", long, "b"]


def test_another_field_can_hold_the_text(tmp_path: Path):
    (tmp_path / "1.jsonl").write_text('{"body": "here", "text": 3}\n')
    assert read(JsonlSource(path=str(tmp_path), field="body")) == ["here"]


@pytest.mark.parametrize("path", ["none.txt", "none/*.txt", "folder"])
def test_a_path_that_names_nothing_is_refused(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=path.replace("*", r"\*")):
        source_files(TextSource(path=path))


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


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_file_that_is_cut_short_is_refused(suffix: str, tmp_path: Path):
    data = lines(*(f"document {n} of many" for n in range(5000)))
    packed = gzip.compress(data) if suffix == "gz" else zstandard.ZstdCompressor().compress(data)
    path = tmp_path / f"1.jsonl.{suffix}"
    for kept in (len(packed) // 2, len(packed) - 3):
        path.write_bytes(packed[:kept])
        with pytest.raises(DataError, match="damaged or cut short"):
            read(JsonlSource(path=str(path)))
    path.write_bytes(b"neither")
    with pytest.raises(DataError, match="damaged or cut short"):
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
        source_files(PythonDocsSource(packages=("no_such_package_1",), stdlib=False))


def test_the_standard_library_is_a_corpus():
    files = source_files(PythonDocsSource(packages=(), stdlib=True))
    chosen = [file for file in files if file.name in ("topics.py", "json.py", "textwrap.py")]
    documents = list(read_documents(PythonDocsSource(), chosen, workers=2))
    assert any("Assertions" in document or "assert" in document for document in documents)
    assert len(documents) > 50
