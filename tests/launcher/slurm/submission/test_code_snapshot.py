"""Contents of a run's copy of the code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launcher.slurm.submission import code_snapshot
from xlpretrain.errors import LaunchError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Make a folder of code with files that must not be copied."""
    package = tmp_path / "source" / "xlpretrain"
    (package / "__pycache__").mkdir(parents=True)
    for name in ("__init__.py", "token.py", "defaults.yaml", "__pycache__/a.pyc", ".env", "id_rsa", "api_key.txt"):
        (package / name).write_text(name)
    (package / "data.bin").write_bytes(b"0" * 10)
    (package / "large.json").write_bytes(b"0" * 2_000_000)
    (package / "link.py").symlink_to("/etc/passwd")
    return package.parent


def copied(target: Path) -> set[str]:
    return {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}


def test_code_is_copied_and_the_rest_named(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "run" / "code"
    target.parent.mkdir()
    left_out = code_snapshot.copy_code(target, source)
    assert copied(target) == {"xlpretrain/__init__.py", "xlpretrain/token.py", "xlpretrain/defaults.yaml"}
    names = {Path(line.partition(" (")[0]).name for line in left_out}
    assert names == {".env", "id_rsa", "api_key.txt", "data.bin", "large.json", "link.py"}


def test_a_secret_of_the_environment_is_never_copied(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    (source / "xlpretrain" / "mine.py").write_text("key = '0123456789abcdef'")
    left_out = code_snapshot.copy_code(tmp_path / "code", source)
    assert "xlpretrain/mine.py (contains a secret of your environment)" in left_out
    assert not (tmp_path / "code" / "xlpretrain" / "mine.py").exists()


def test_a_second_snapshot_replaces_the_first(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "code"
    code_snapshot.copy_code(target, source)
    (source / "xlpretrain" / "token.py").unlink()
    code_snapshot.copy_code(target, source)
    assert copied(target) == {"xlpretrain/__init__.py", "xlpretrain/defaults.yaml"}
    assert {path.name for path in tmp_path.iterdir()} == {"code", "source"}


@pytest.mark.parametrize("change", ["edited", "added", "edited before there was a record"])
def test_an_edited_copy_is_kept(change: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, record = tmp_path / "code", tmp_path / "code.json"
    code_snapshot.copy_code(target, source, record=record)
    (target / "xlpretrain" / "__pycache__").mkdir()
    (target / "xlpretrain" / "__pycache__" / "token.cpython-311.pyc").touch()
    code_snapshot.copy_code(target, source, record=record)
    assert {path.name for path in tmp_path.iterdir()} == {"code", "code.json", "source"}
    changed = target / ("notes.bin" if change == "added" else "xlpretrain/token.py")
    for number in range(2):
        changed.write_text(f"mine {number}")
        if change == "edited before there was a record":
            (target / "xlpretrain" / "mine.patch").touch()
            record.unlink()
        code_snapshot.copy_code(target, source, record=record)
        assert copied(target) == {"xlpretrain/__init__.py", "xlpretrain/token.py", "xlpretrain/defaults.yaml"}
        assert "edited copy of the run's code" in capsys.readouterr().err
    kept = [tmp_path / name / changed.relative_to(target) for name in ("code.changed", "code.changed-2")]
    assert [path.read_text() for path in kept] == ["mine 0", "mine 1"]


def test_a_snapshot_that_cannot_be_written_leaves_nothing(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LaunchError, match="cannot copy the code"):
        code_snapshot.copy_code(tmp_path / "file" / "code", source)


def test_python_runs_the_copy_there(tmp_path: Path) -> None:
    assert code_snapshot.copy_code(tmp_path / "code") == []
    where = [
        sys.executable,
        "-c",
        "import launcher, xlpretrain; print(launcher.__file__, xlpretrain.__file__)",
    ]
    said = subprocess.run(where, cwd=tmp_path / "code", capture_output=True, text=True, check=True).stdout
    assert [Path(path).parent.parent for path in said.split()] == [tmp_path / "code"] * 2
