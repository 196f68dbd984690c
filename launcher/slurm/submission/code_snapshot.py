"""Copy the code into the run folder at submission, so that later changes do not affect the run. Torch-free."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from xlpretrain.errors import LaunchError
from xlpretrain.file_system.atomic_dirs import publish_dir, temporary_folder, tidy, unclaimed
from xlpretrain.file_system.atomic_files import atomic_write
from xlpretrain.file_system.credentials import is_secret_file, secret_values

_ROOT = Path(__file__).resolve().parents[3]
_PARTS = ("launcher", "data_pipelines", "xlpretrain", "configs", "pyproject.toml")
_MAX_BYTES = 1_000_000
_CACHES = re.compile(r"__pycache__|\..*_cache|.*\.py[co]|.*\.egg-info")
_CODE = {".py", ".pyi", ".yaml", ".yml", ".toml", ".json", ".md", ".txt", ".sh", ".sbatch", ".cfg", ".ini", ".typed"}
_ASSETS = {".css", ".js", ".jinja"}  # of the page of a report


def copy_code(target: Path, root: Path = _ROOT, *, record: Path | None = None) -> list[str]:
    """Copy the packages into the folder `target`, replacing an earlier copy. Returns what was left out, and why.

    Readers see the complete old or new code. Only code is copied: no secrets, data, large files or links. An earlier
    copy that was edited is kept next to it as `NAME.changed`.

    Args:
        record: file for the checksums of the copy, which detect edits. Without it, only files that are not code count
            as edits.

    Raises:
        LaunchError: the copy cannot be written.
    """
    left_out: list[str] = []
    secrets_here = [value.encode() for value in secret_values(os.environ)]
    try:
        claims = partial(_claims, checksums=_read(record))
        tidy(target, claims=claims)
        with temporary_folder(target) as fresh:
            for path in _files(root):
                reason = _why_not(path, secrets_here)
                if reason is None:
                    copy = fresh / path.relative_to(root)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, copy)
                else:
                    left_out.append(f"{path.relative_to(root)} ({reason})")
            checksums = {str(path): _sha256(fresh / path) for path in unclaimed(fresh, ())}
            _keep_changed(target, claims(target))
            publish_dir(fresh, target, claims=claims)
        if record is not None:
            atomic_write(record, json.dumps(checksums, indent=1) + "\n")
    except OSError as error:
        raise LaunchError(f"{target}: cannot copy the code: {error.strerror} ({error.filename})") from None
    return left_out


def _claims(target: Path, *, checksums: Mapping[str, str] | None) -> list[Path]:
    """The unchanged files of an earlier copy, and Python's caches."""
    found = unclaimed(target, ()) if target.is_dir() else []
    return [path for path in found if _is_cache(path) or _is_copy(target / path, str(path), checksums)]


def _is_copy(path: Path, name: str, checksums: Mapping[str, str] | None) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    if checksums is None:
        return Path(name).parts[0] in _PARTS and path.suffix in _CODE
    return name in checksums and _sha256(path) == checksums[name]


def _is_cache(path: Path) -> bool:
    return any(_CACHES.fullmatch(part) for part in path.parts)


def _keep_changed(target: Path, claimed: Sequence[Path]) -> None:
    if not os.path.lexists(target) or not (target.is_symlink() or unclaimed(target, claimed)):
        return
    names = (f"{target.name}.changed{f'-{n}' if n > 1 else ''}" for n in itertools.count(1))
    kept = next(path for path in map(target.with_name, names) if not os.path.lexists(path))
    target.rename(kept)
    print(
        f"{kept}: edited copy of the run's code, kept here; the run gets a copy of the installed code", file=sys.stderr
    )


def _read(record: Path | None) -> dict[str, str] | None:
    try:
        return None if record is None else dict(json.loads(record.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):
        return None


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _files(root: Path) -> Iterator[Path]:
    """Candidate files, without caches."""
    for part in _PARTS:
        if (root / part).is_file():
            yield root / part
        for folder, folders, files in os.walk(root / part):
            folders[:] = sorted(name for name in folders if not _CACHES.fullmatch(name))
            yield from (Path(folder, name) for name in sorted(files) if not _CACHES.fullmatch(name))


def _why_not(path: Path, secrets_here: Sequence[bytes]) -> str | None:
    """Reason to leave a file out, or None. secrets_here: secret values of this environment."""
    if is_secret_file(path.name):
        return "named like a secret"
    if path.is_symlink() or not path.is_file():
        return "not a plain file"
    if path.suffix not in _CODE | _ASSETS and path.name != "LICENSE":
        return "not code"
    if path.stat().st_size > _MAX_BYTES:
        return f"larger than {_MAX_BYTES:,} bytes"
    content = path.read_bytes()
    return "contains a secret of your environment" if any(secret in content for secret in secrets_here) else None
