"""Blocks of datasets behind a URL: fetched by range through a cache on the disk, ahead of time, verified. Torch-free.

The cache is a folder of one file a block, which any number of processes may share: files appear by a rename, whole and
verified, and one that is removed stays readable to whoever has it mapped.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from xlpretrain.data.storage.shard_reader import BlockLocation, DamagedBlockError, TokenBlock, read_block
from xlpretrain.errors import DataError

_AT_ONCE = 8
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.2, 30.0
_CLAIM_S = 10.0  # after so long another process's claim on a block is not believed any more


class _DamagedAtSourceError(DamagedBlockError):
    """Trying again is of no use."""


def is_url(path: object) -> bool:
    """True for the URL of a remote dataset."""
    return "://" in str(path)


def default_folder() -> Path:
    """The default folder of caches."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "xlpretrain"


@dataclass(frozen=True)
class BlockCache:
    """The cache of a remote dataset: its folder, its size limit, and how long a failing fetch is retried."""

    folder: Path = field(default_factory=default_folder)
    max_bytes: int = 32 << 30
    patience_s: float = 300.0


def fetch(url: str, cache: BlockCache, *, start: int | None = None, end: int | None = None) -> bytes:
    """The bytes of a URL, or [start, end) of them, tried again for as long as the cache says. Raises `DataError`."""
    return _try_again(lambda: _fetch_once(url, start, end), cache, what=url)


def download(url: str, cache: BlockCache, names: Mapping[str, bool]) -> Path:
    """The folder of a split with the files `names` (whether each must be there), paths relative to it, fetched anew.

    Raises `DataError`.
    """
    parent, _, split = url.rstrip("/").rpartition("/")
    folder = cache.folder / hashlib.sha256(parent.encode()).hexdigest()[:16] / split
    for name, needed in names.items():
        target = Path(os.path.normpath(folder / name))
        source = f"{parent}/{name.removeprefix('../')}" if name.startswith("../") else f"{parent}/{split}/{name}"
        try:
            data = fetch(source, cache)
        except DataError:
            if needed:
                raise
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(target, data)
    return folder


class RemoteBlocks:
    """The blocks of one dataset. `place` says of a block its shard's name, its first and last byte there, and what the
    index says of it."""

    def __init__(
        self, url: str, folder: Path, cache: BlockCache, place: Callable[[int], tuple[str, int, int, BlockLocation]]
    ):
        self._url, self._folder, self._cache, self._place = url.rstrip("/"), folder, cache, place
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="prefetch")
        self._coming: dict[int, Future[None]] = {}
        self._lock = Lock()
        folder.mkdir(parents=True, exist_ok=True)

    def prefetch(self, number: int) -> None:
        """Begin to fetch a block, unless it is there or on its way."""
        with self._lock:
            if number not in self._coming and not self._path(number).exists():
                self._coming[number] = self._pool.submit(self._bring, number)

    def block(self, number: int) -> TokenBlock:
        """A block, verified. Raises `DataError` if it cannot be had, `DamagedBlockError` if it is damaged there too."""
        *_, place = self._place(number)
        for _ in range(10):
            with self._lock:
                coming = self._coming.pop(number, None)
            if coming is not None:
                coming.result()
            elif not self._path(number).exists():
                self._bring(number)
            with suppress(FileNotFoundError):  # another process needed the room
                with self._path(number).open("rb") as file:
                    data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
                try:
                    block = read_block(data, place, check=True)
                except DamagedBlockError:  # on our own disk
                    self._path(number).unlink(missing_ok=True)
                    continue
                with suppress(OSError):
                    os.utime(self._path(number))
                return block
        raise DataError(
            f"{self._folder}: what is fetched is removed at once; raise data.cache_bytes or name another data.cache_dir"
        )

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:08d}"

    def _bring(self, number: int) -> None:
        """See a block in the cache: fetch it, unless another process is at it."""
        claim = self._folder / f"{number:08d}.claim"
        while not self._path(number).exists():
            try:
                os.close(os.open(claim, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                with suppress(FileNotFoundError):
                    if time.time() - claim.stat().st_mtime > _CLAIM_S:
                        claim.unlink(missing_ok=True)
                time.sleep(0.02)
                continue
            try:
                _write(self._path(number), self._fetch(number))
                self._make_room()
            finally:
                claim.unlink(missing_ok=True)

    def _fetch(self, number: int) -> bytes:
        shard, start, end, place = self._place(number)
        url, wrong = f"{self._url}/{shard}", 0

        def once() -> bytes:
            nonlocal wrong
            data = _fetch_once(url, start, end)
            try:
                read_block(memoryview(data), place, check=True)
            except DamagedBlockError:
                wrong += 1
                if wrong == 3:  # whole and wrong, each time: so it is at its source
                    raise _DamagedAtSourceError("its checksum does not match, however often it is fetched") from None
                raise
            return data

        return _try_again(once, self._cache, what=f"{url}: block {number}")

    def _make_room(self) -> None:
        """Remove what was used longest ago, until the rest is small enough."""
        found = []
        for entry in os.scandir(self._folder):
            with suppress(FileNotFoundError):
                if entry.name.isdigit():
                    found.append((entry.stat().st_mtime, entry.stat().st_size, entry.path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found)[:-1]:
            if total <= self._cache.max_bytes:
                return
            Path(path).unlink(missing_ok=True)
            total -= size


def _fetch_once(url: str, start: int | None, end: int | None) -> bytes:
    """Raises whatever the protocol raises; OSError if it gives fewer bytes than were asked for."""
    fs, path = _open(url)
    data: bytes = fs.cat_file(path, start=start, end=end)
    if start is not None and end is not None and len(data) > end - start:
        data = data[start:end]  # a server that knows no ranges gives all
    if start is not None and end is not None and len(data) != end - start:
        raise OSError(f"{len(data)} bytes came of {end - start}")
    return data


def _open(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise DataError(f"{url}: cannot be opened: {error}; pip install 'xlpretrain[corpora]' has http") from None
    return fs, path


def _try_again(attempt: Callable[[], bytes], cache: BlockCache, *, what: str) -> bytes:
    deadline, wait_s = time.monotonic() + cache.patience_s, _FIRST_WAIT_S
    while True:
        try:
            return attempt()
        except (DataError, _DamagedAtSourceError):
            raise
        except Exception as error:  # each protocol raises its own
            missing = isinstance(error, FileNotFoundError)
            if missing or time.monotonic() + wait_s > deadline:
                advice = "is it the right place?" if missing else "is the network up? Resume when it is"
                raise DataError(f"{what}: cannot be fetched: {error!r}; {advice}") from None
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{time.monotonic_ns()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}; data.cache_dir names another place") from None
    finally:
        temporary.unlink(missing_ok=True)
