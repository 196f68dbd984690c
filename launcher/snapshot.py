"""The code of a run: copied into its folder at submission, which later changes cannot reach. Torch-free."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from launcher.cluster import SECRET_NAME
from xlpretrain.errors import LaunchError

_ROOT = Path(__file__).resolve().parent.parent
_PARTS = ("launcher", "data_pipelines", "xlpretrain", "configs", "pyproject.toml")
_MAX_BYTES = 1_000_000
_CACHES = re.compile(r"__pycache__|\..*_cache|.*\.py[co]|.*\.egg-info")
_SECRET = re.compile(
    r"\.env(\..*)?|\.netrc|\.npmrc|\.pypirc|id_(rsa|dsa|ecdsa|ed25519).*|.*\.(pem|key|p12|pfx|keystore)"
    r"|\.?(credentials?|secrets?|tokens?|api_?keys?)(\.(txt|json|ya?ml|toml|ini))?",
    re.IGNORECASE,
)
_CODE = {".py", ".pyi", ".yaml", ".yml", ".toml", ".json", ".md", ".txt", ".sh", ".cfg", ".ini", ".typed"}


def take(target: Path, root: Path = _ROOT) -> list[str]:
    """Copy the packages into the folder `target`, in place of what was there. Returns what was left out, and why.

    Readers see the old code or the new, whole. Only what code is made of is copied: no secrets, data, large files or
    links. Raises `LaunchError` if it cannot be written.
    """
    fresh = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    old = fresh.with_suffix(".old")
    left_out: list[str] = []
    secrets_here = [
        value.encode() for name, value in os.environ.items() if SECRET_NAME.search(name) and len(value) >= 8
    ]
    try:
        for path in _files(root):
            reason = _why_not(path, secrets_here)
            if reason is None:
                copy = fresh / path.relative_to(root)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
            else:
                left_out.append(f"{path.relative_to(root)} ({reason})")
        if target.exists():
            target.rename(old)
        fresh.rename(target)
    except OSError as error:
        raise LaunchError(f"{target}: the code cannot be copied there: {error.strerror} ({error.filename})") from None
    finally:
        for folder in (fresh, old):
            shutil.rmtree(folder, ignore_errors=True)
    return left_out


def _files(root: Path) -> Iterator[Path]:
    """What may be part of the code; caches are not worth a word."""
    for part in _PARTS:
        if (root / part).is_file():
            yield root / part
        for folder, folders, files in os.walk(root / part):
            folders[:] = sorted(name for name in folders if not _CACHES.fullmatch(name))
            yield from (Path(folder, name) for name in sorted(files) if not _CACHES.fullmatch(name))


def _why_not(path: Path, secrets_here: Sequence[bytes]) -> str | None:
    """Why a file is no part of the code, if it is none. secrets_here: of this environment, to be in no file."""
    if _SECRET.fullmatch(path.name):
        return "its name is that of a secret"
    if path.is_symlink() or not path.is_file():
        return "not a plain file"
    if path.suffix not in _CODE:
        return "not code"
    if path.stat().st_size > _MAX_BYTES:
        return f"larger than {_MAX_BYTES:,} bytes"
    content = path.read_bytes()
    return "holds a secret of your environment" if any(secret in content for secret in secrets_here) else None
