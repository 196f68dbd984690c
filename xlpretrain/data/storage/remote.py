"""Blocks of remote datasets: fetched ahead by byte range, verified, and cached on disk. Torch-free.

The cache is a folder with one file per block that any number of processes can share: verified files are added by a
rename, and a removed file stays readable in processes that have mapped it.
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

from xlpretrain.data.storage.shard_reader import BlockLocation, DamagedBlockError, TokenBlock, read_block
from xlpretrain.errors import DataError
from xlpretrain.file_system.credentials import without_credentials
from xlpretrain.file_system.urls import open_file_system

_AT_ONCE = 8
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.2, 30.0
_CLAIM_S = 10.0  # a claim of another process expires after this


class _DamagedAtSourceError(DamagedBlockError):
    """The block is damaged at its source, so retrying does not help."""


def default_folder() -> Path:
    """The default cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "xlpretrain"


@dataclass(frozen=True)
class BlockCache:
    """The cache of a remote dataset: folder, size limit, and how long to retry a failing request."""

    folder: Path = field(default_factory=default_folder)
    max_bytes: int = 32 << 30
    retry_s: float = 300.0


def fetch(url: str, cache: BlockCache, *, start: int | None = None, end: int | None = None) -> bytes:
    """Fetch a URL, or its bytes [start, end), with retries for `cache.retry_s` seconds. Raises `DataError`."""
    return _try_again(lambda: _fetch_once(url, start, end), cache, what=url)


def download(url: str, cache: BlockCache, names: Mapping[str, bool]) -> Path:
    """Download files of a split; returns the local folder of the split.

    names: paths relative to the split, and whether each file is required. Raises `DataError`.
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
    """The blocks of one remote dataset. place: gives the name of a block's shard, its byte range there, and its index
    entry."""

    def __init__(
        self, url: str, folder: Path, cache: BlockCache, place: Callable[[int], tuple[str, int, int, BlockLocation]]
    ):
        self._url, self._folder, self._cache, self._place = url.rstrip("/"), folder, cache, place
        self._start_threads()
        folder.mkdir(parents=True, exist_ok=True)

    def _start_threads(self) -> None:
        self._pid = os.getpid()
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="prefetch")
        self._coming: dict[int, Future[None]] = {}
        self._lock = Lock()

    def _of_this_process(self) -> None:
        """Create new threads and locks after a fork, for example in a DataLoader worker."""
        if self._pid != os.getpid():
            self._start_threads()

    def prefetch(self, number: int) -> None:
        """Start to fetch a block, unless it is cached or already being fetched."""
        self._of_this_process()
        with self._lock:
            if number not in self._coming and not self._path(number).exists():
                self._coming[number] = self._pool.submit(self._bring, number)

    def block(self, number: int) -> TokenBlock:
        """A verified block. Raises `DataError` if it cannot be fetched, `DamagedBlockError` if it is damaged."""
        self._of_this_process()
        *_, place = self._place(number)
        for _ in range(10):
            with self._lock:
                coming = self._coming.pop(number, None)
            if coming is not None:
                coming.result()
            elif not self._path(number).exists():
                self._bring(number)
            with suppress(FileNotFoundError):  # evicted by another process
                with self._path(number).open("rb") as file:
                    data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
                try:
                    block = read_block(data, place, check=True)
                except DamagedBlockError:  # damaged in the cache
                    self._path(number).unlink(missing_ok=True)
                    continue
                with suppress(OSError):
                    os.utime(self._path(number))
                return block
        raise DataError(
            f"{self._folder}: the cache is too small for one block; raise data.cache_bytes or set another "
            "data.cache_dir"
        )

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:08d}"

    def _bring(self, number: int) -> None:
        """Fetch a block into the cache, or wait for another process that is fetching it."""
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
                if wrong == 3:  # complete but wrong each time: damaged at the source
                    raise _DamagedAtSourceError("its checksum does not match, after 3 downloads") from None
                raise
            return data

        return _try_again(once, self._cache, what=f"{url}: block {number}")

    def _make_room(self) -> None:
        """Evict the least recently used blocks until the cache is within its limit."""
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
    """Fetch once. Raises any error of the protocol, and OSError if it returns fewer bytes than requested."""
    fs, path = open_file_system(url)
    data: bytes = fs.cat_file(path, start=start, end=end)
    if start is not None and end is not None and len(data) > end - start:
        data = data[start:end]  # the server ignored the range
    if start is not None and end is not None and len(data) != end - start:
        raise OSError(f"received {len(data)} of {end - start} bytes")
    return data


def _try_again(attempt: Callable[[], bytes], cache: BlockCache, *, what: str) -> bytes:
    deadline, wait_s = time.monotonic() + cache.retry_s, _FIRST_WAIT_S
    while True:
        try:
            return attempt()
        except (DataError, _DamagedAtSourceError):
            raise
        except Exception as error:  # protocols have their own errors
            missing = isinstance(error, FileNotFoundError)
            if missing or time.monotonic() + wait_s > deadline:
                advice = "check the URL" if missing else "check the network, then resume"
                reason = without_credentials(f"{what}: cannot be fetched: {error!r}")
                raise DataError(f"{reason}; {advice}") from None
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{time.monotonic_ns()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}; set another data.cache_dir") from None
    finally:
        temporary.unlink(missing_ok=True)
