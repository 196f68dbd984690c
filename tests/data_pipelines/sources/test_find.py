"""Which files sources name: all of them, or none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from read_source import read

from data_pipelines.sources.config import TextSource
from xlpretrain.errors import DataError


@pytest.mark.parametrize("path", ["corpus", "corpus/**/*.txt", "corpus/**", "corpus/*/*.txt", "file://{}/corpus"])
def test_links_to_folders_are_followed(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("corpus/own/1.txt", "elsewhere/2.txt", "elsewhere/.git/3.txt"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "corpus" / "linked").symlink_to(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    source = TextSource(path=path.format(tmp_path))
    assert sorted(read(source)) == ["corpus/own/1.txt", "elsewhere/2.txt"]
    assert all(file.path.startswith(path.format(tmp_path)[:6]) for file in source.find_files())


@pytest.mark.parametrize(
    "path", ["corpus", "corpus/**/*.txt", "corpus/**", "corpus/*.txt", "corpus/a*/1.txt", "file://{}"]
)
@pytest.mark.parametrize("link", ["corpus/gone.txt", "corpus/again", "corpus/all/1.txt"])
def test_links_that_lead_nowhere_or_back_are_refused_if_they_are_named(
    path: str, link: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "corpus" / "all").mkdir(parents=True)
    (tmp_path / "corpus" / "0.txt").write_text("read")
    (tmp_path / link).symlink_to(tmp_path / "corpus" if link == "corpus/again" else "nowhere")
    monkeypatch.chdir(tmp_path)
    source = TextSource(path=path.format(tmp_path))
    alone = {"corpus/*.txt": "corpus/gone.txt", "corpus/a*/1.txt": "corpus/all/1.txt"}
    if path in alone and alone[path] != link:
        if path == "corpus/*.txt":
            assert read(source) == ["read"]
        return
    what = (
        "a link to a folder that contains it" if link == "corpus/again" else "a link to nowhere, which does not exist"
    )
    with pytest.raises(DataError, match=f"{link}: {what}; remove it, or name"):
        source.find_files()


AS_ANOTHER_USER = """
import os, sys
from data_pipelines.sources.config import TextSource
from xlpretrain.errors import DataError
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
try:
    print([file.path for file in TextSource(path=sys.argv[1]).find_files()])
except DataError as error:
    print(f"refused: {error}")
"""


@pytest.mark.parametrize(
    "path", ["corpus", "corpus/**/*.txt", "corpus/*/*.txt", "corpus/*/1.txt", "corpus/locked/1.txt"]
)
def test_a_folder_that_may_not_be_read_is_refused(path: str, tmp_path: Path):
    locked = tmp_path / "corpus" / "locked"
    locked.mkdir(parents=True)
    (tmp_path / "corpus" / "0.txt").write_text("read")
    (locked / "1.txt").write_text("secret")
    tmp_path.chmod(0o755)
    locked.chmod(0)
    try:
        command = [sys.executable, "-c", AS_ANOTHER_USER, path]
        said = subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path.cwd())},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    finally:
        locked.chmod(0o700)
    assert "refused: corpus/locked" in said
    assert "cannot be read: Permission denied" in said


def test_a_glob_that_matches_a_folder_without_what_is_in_it_is_refused(tmp_path: Path, monkeypatch):
    for name in ("corpus/1.txt", "corpus/deep/2.txt", "corpus/deep/3.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"corpus/\*: matches a folder, but not .* such as corpus/deep/2\.txt"):
        TextSource(path="corpus/*").find_files()
    assert len(read(TextSource(path="corpus/**/*"))) == 3
    assert read(TextSource(path="corpus/*.txt")) == ["corpus/1.txt"]


def test_what_is_neither_a_file_nor_a_folder_is_refused(tmp_path: Path):
    (tmp_path / "1.txt").write_text("text")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe: neither a file nor a folder"):
        TextSource(path=str(tmp_path)).find_files()
