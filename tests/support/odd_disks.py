"""File systems and machines with faults: mounts through FUSE that lie or are slow, a library without O_EXCL."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

NO_EXCLUSIVE = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#define WITHOUT(name) \\
    int name(const char *path, int flags, ...) { \\
        va_list more; va_start(more, flags); int mode = va_arg(more, int); va_end(more); \\
        int (*next)(const char *, int, ...) = dlsym(RTLD_NEXT, #name); \\
        return next(path, flags & ~O_EXCL, mode); \\
    }
WITHOUT(open)
WITHOUT(open64)
"""
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")


@cache
def why_not_installed(program: str, package: str) -> str:
    """Reason why a program or file is missing, or empty. Installs its Debian package as root."""
    if shutil.which(program) or Path(program).is_file():
        return ""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return f"{program} is missing, and installing {package} needs root and apt-get"
    install = [
        "apt-get",
        "-qq",
        "-o",
        "DPkg::Lock::Timeout=120",
        "install",
        "--yes",
        "--no-install-recommends",
        package,
    ]
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in ([*install[:4], "update"], install):
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=quiet, timeout=120, check=False)
        except subprocess.TimeoutExpired:
            return f"{' '.join(command)}: not done after 120 s"
    found = shutil.which(program) or Path(program).is_file()
    return "" if found else f"apt-get could not install {package}: {done.stderr.strip()[-200:]}"


def require_installed(program: str, package: str) -> None:
    """Skip the test if a program cannot be installed."""
    if reason := why_not_installed(program, package):
        pytest.skip(reason)


@contextmanager
def mounted(back: Path, mount: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Mount `back` at `mount` through bindfs; yields its process. Skips the test if that is not possible."""
    require_installed("bindfs", "bindfs")
    mount.mkdir()
    process = subprocess.Popen(["bindfs", "-f", *options, back, mount], stderr=subprocess.PIPE)
    try:
        while not mount.is_mount():
            if process.poll() is not None:
                assert process.stderr is not None
                pytest.skip(f"bindfs cannot mount here: {process.stderr.read().decode().strip()}")
        yield process
    finally:
        process.kill()
        process.communicate()
        subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True)


def library_without_exclusive(folder: Path) -> Path:
    """Compile a library for LD_PRELOAD that drops O_EXCL, as servers that do not know it. Skips without a compiler."""
    if shutil.which("gcc") is None:
        pytest.skip("no C compiler")
    source, library = folder / "no_exclusive.c", folder / "no_exclusive.so"
    source.write_text(NO_EXCLUSIVE)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library
