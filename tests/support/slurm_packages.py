"""Check if a Slurm test cluster can run here, and install Slurm's packages if root on a disposable machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

SBIN = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
"""Search path for programs: an ordinary user's PATH lacks the folders of daemons."""
UNSHARE = ("unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")
"""Command that isolates a process like a separate machine, except for the network."""
_PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
_PROGRAMS = ("slurmctld", "slurmd", "munged", "srun", "sbatch", "squeue", "scontrol")
_POLICY = Path("/usr/sbin/policy-rc.d")


@cache
def why_no_slurm() -> str:
    """Reason why no cluster can run on this machine, or empty. Installs the packages as root with apt-get."""
    if not _missing():
        return ""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return (
            f"Slurm is not installed ({', '.join(_missing())} missing) and installing it needs root and apt-get:"
            f" apt-get install --no-install-recommends {' '.join(_PACKAGES)}"
        )
    said = _install()
    return f"apt-get could not install Slurm ({', '.join(_missing())} missing): {said}" if _missing() else ""


@cache
def why_not_isolated(kind: str) -> str:
    """Reason why nodes cannot be isolated as `kind` ("uts", "netns", "none"), or empty."""
    if kind == "none":
        return ""
    if os.geteuid() != 0:
        return f"nodes of isolation {kind!r} need root: they are made of namespaces"
    trials = [[*UNSHARE, "hostname", "node1"]]
    if kind == "netns":
        trials += [["unshare", "--net", "ip", "link", "set", "lo", "up"]]
        trials += [["ip", "link", "add", "xlprobe", "type", "bridge"], ["ip", "link", "delete", "xlprobe"]]
    for trial in trials:
        try:
            done = subprocess.run(trial, capture_output=True, text=True, env={"PATH": SBIN}, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"nodes of isolation {kind!r} cannot be made here: {error}"
        if done.returncode:
            return f"nodes of isolation {kind!r} cannot be made here: {' '.join(trial)}: {done.stderr.strip()}"
    return ""


def _missing() -> list[str]:
    return [program for program in _PROGRAMS if not shutil.which(program, path=SBIN)]


def _install() -> str:
    """Last line of apt-get's output."""
    get = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=120"]
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    said = ""
    with _no_daemons():
        for command in ([*get, "update"], [*get, "install", "--yes", "--no-install-recommends", *_PACKAGES]):
            try:
                done = subprocess.run(command, capture_output=True, text=True, env=quiet, timeout=240, check=False)
            except subprocess.TimeoutExpired:
                return f"{' '.join(command)}: not done after 240 s"
            said = next(iter(reversed(done.stderr.strip().splitlines())), said)
    return said


@contextmanager
def _no_daemons() -> Iterator[None]:
    """Prevent the packages from starting their daemons."""
    if _POLICY.exists():
        yield
        return
    _POLICY.write_text("#!/bin/sh\nexit 101\n")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink()
