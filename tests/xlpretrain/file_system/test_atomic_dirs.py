"""Folders are replaced whole, and only what is claimed of them is removed."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from xlpretrain.file_system.atomic_dirs import final_place, publish_dir, remove, temporary_folder, tidy, unclaimed


def claims(folder: Path) -> list[Path]:
    return [Path(name) for name in ("a", "deep/b", "index")]


def make(folder: Path, content: str) -> Path:
    (folder / "deep").mkdir(parents=True)
    for name in claims(folder):
        (folder / name).write_text(content)
    return folder


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


OLD, NEW = ({"a": name, "deep/b": name, "index": name} for name in ("old", "new"))


def test_a_folder_is_replaced_by_another_and_nothing_else_is_left(tmp_path: Path) -> None:
    target = make(tmp_path / "target", "old")
    publish_dir(make(tmp_path / "new", "new"), target, claims=claims)
    assert content(target) == NEW
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


@pytest.mark.parametrize("name", ["notes.txt", "deep/notes.txt", "deep/er/notes.txt", ".hidden", "empty/"])
def test_what_is_not_claimed_is_in_the_way(name: str, tmp_path: Path) -> None:
    target = make(tmp_path / "target", "old")
    if name.endswith("/"):
        (target / name).mkdir()
    else:
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_text("mine")
    new = make(tmp_path / "new", "new")
    with pytest.raises(FileExistsError, match=rf"contains other files \({name.rstrip('/')}\)"):
        publish_dir(new, target, claims=claims)
    assert (target / name).exists()
    assert content(target).items() >= OLD.items()
    assert content(new) == NEW


def test_without_claims_only_an_empty_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    publish_dir(make(tmp_path / "new", "new"), tmp_path / "empty")
    assert content(tmp_path / "empty") == NEW
    with pytest.raises(FileExistsError, match=r"contains other files \(a, deep/b, index"):
        publish_dir(make(tmp_path / "newer", "newer"), tmp_path / "empty")
    assert content(tmp_path / "empty") == NEW


def test_links_are_neither_followed_nor_removed(tmp_path: Path) -> None:
    elsewhere = make(tmp_path / "elsewhere", "precious")
    target = make(tmp_path / "target", "old")
    (target / "a").unlink()
    (target / "a").symlink_to(elsewhere / "a")
    (target / "link").symlink_to(elsewhere)
    assert unclaimed(target, claims(target)) == [Path("a"), Path("link")]
    assert not remove(target, [*claims(target), Path("link/a"), Path("link")])
    assert sorted(path.name for path in target.iterdir()) == ["a", "link"]
    assert not remove(target / "link", claims(elsewhere))
    assert set(content(elsewhere).values()) == {"precious"}


KILLED = """
import os, sys
from pathlib import Path
from xlpretrain.file_system.atomic_dirs import publish_dir

def claims(folder):
    return [Path(name) for name in ('a', 'deep/b', 'index')]

new, target, survived = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
calls = 0

def count(call):
    def counted(*arguments, **options):
        global calls
        calls += 1
        if calls > survived:
            os._exit(9)
        return call(*arguments, **options)
    return counted

Path.rename, Path.unlink, os.rmdir = count(Path.rename), count(Path.unlink), count(os.rmdir)
publish_dir(new, target, claims=claims)
"""


@pytest.mark.parametrize("survived", range(8))
def test_killed_at_any_moment_the_old_or_the_new_one_is_there_whole(survived: int, tmp_path: Path) -> None:
    """Two renames, three files and two folders to remove: 7 calls that change anything."""
    target, new = make(tmp_path / "target", "old"), make(tmp_path / "new", "new")
    ended = subprocess.run([sys.executable, "-c", KILLED, str(new), str(target), str(survived)]).returncode
    assert ended == (9 if survived < 7 else 0)
    tidy(target, claims=claims)
    assert content(target) == (OLD if survived < 2 else NEW)
    assert sorted(path.name for path in tmp_path.iterdir()) == (["new", "target"] if survived < 2 else ["target"])
    if survived < 2:
        publish_dir(new, target, claims=claims)
        assert content(target) == NEW


def test_a_rename_that_fails_puts_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, new = make(tmp_path / "target", "old"), make(tmp_path / "new", "new")
    rename = Path.rename

    def fail(self: Path, other: Path) -> Path:
        if self == new:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="cross-device"):
        publish_dir(new, target, claims=claims)
    assert content(target) == OLD
    assert content(new) == NEW


def test_tidying_leaves_folders_of_other_names(tmp_path: Path) -> None:
    others = [".target.replaced", ".target.backup.replaced", ".target.0123456789abcdef.tmp", ".other.0123.replaced"]
    for name in others:
        make(tmp_path / name, "mine")
    tidy(tmp_path / "target", claims=claims)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


def test_a_temporary_folder_is_never_one_that_was_there(tmp_path: Path) -> None:
    with temporary_folder(tmp_path / "new" / "target") as folder:
        assert list(folder.iterdir()) == []
        (folder / "a").touch()
    assert list((tmp_path / "new").iterdir()) == []


def test_the_place_of_a_link_is_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "target")
    assert final_place(tmp_path / "link") == tmp_path / "disk" / "target"
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    if sys.version_info < (3, 13):
        with pytest.raises(OSError, match="link to itself"):
            final_place(tmp_path / "loop")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A folder that is mounted from elsewhere on the same disk, so that its device number tells nothing."""
    (tmp_path / "back").mkdir()
    (tmp_path / "on this").mkdir()
    mount = ["mount", "--bind", str(tmp_path / "back"), str(tmp_path / "on this")]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("cannot mount here (needs root and the right to mount)")
    yield tmp_path / "on this"
    subprocess.run(["umount", str(tmp_path / "on this")], check=True)


def test_a_mount_point_is_refused(mounted: Path) -> None:
    with pytest.raises(OSError, match="is a mount point"):
        final_place(mounted)
    assert final_place(mounted / "target") == mounted / "target"
