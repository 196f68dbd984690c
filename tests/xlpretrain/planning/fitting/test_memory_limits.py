"""The memory that a rank may take, from files such as Linux has."""

from __future__ import annotations

import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from planned_runs import VOCAB, planned_config

from xlpretrain.planning.fitting.memory_limits import MemoryLimit, memory_limit
from xlpretrain.planning.memory import memory_of

CPU = torch.device("cpu")
MIB = 2**20


def machine(root: Path, *, available: int, cgroup: str = "0::/a/b\n") -> Path:
    """A machine with some MiB available, and a process in a cgroup that has 100 MiB of address space."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 999 kB\nMemAvailable:   {available * 1024} kB\n")
    (root / "proc/self/cgroup").write_text(cgroup)
    (root / "proc/self/status").write_text(f"VmSize:\t {200 * 1024} kB\nVmData:\t {100 * 1024} kB\n")
    return root


def write_cgroup(folder: Path, limit: str, used: int, files: int, *, version: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = (
        ("memory.max", "memory.current", "inactive_file")
        if version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    )
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used * MIB}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {files * MIB}\n")


def test_without_limits_ranks_share_what_is_available(tmp_path: Path):
    limit = memory_limit(CPU, ranks_here=4, root=machine(tmp_path, available=1000))
    assert (limit.touched[0], limit.reserved) == (250 * MIB, None)
    assert limit.describe() == "250.0 MiB (available on this machine, one of 4 equal parts)"


def test_the_tightest_cgroup_counts_without_pages_of_files(tmp_path: Path):
    root = machine(tmp_path, available=1000)
    write_cgroup(root / "sys/fs/cgroup/a/b", "max", used=1, files=0)
    write_cgroup(root / "sys/fs/cgroup/a", str(400 * MIB), used=150, files=50)
    limit = memory_limit(CPU, ranks_here=1, root=root)
    assert limit.touched[0] == 300 * MIB
    assert limit.touched[1] == f"left in the cgroup {root}/sys/fs/cgroup/a"


def test_cgroups_of_version_1_count(tmp_path: Path):
    root = machine(tmp_path, available=1000, cgroup="3:cpu:/x\n2:memory:/job\n")
    write_cgroup(root / "sys/fs/cgroup/memory/job", str(200 * MIB), used=50, files=10, version=1)
    assert memory_limit(CPU, ranks_here=2, root=root).touched[0] == 80 * MIB


def test_limits_of_address_space_count_per_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    limits = {resource.RLIMIT_DATA: 700 * MIB, resource.RLIMIT_AS: 500 * MIB}
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limits[which], -1))
    limit = memory_limit(CPU, ranks_here=2, root=machine(tmp_path, available=1000))
    assert limit.reserved == (300 * MIB, "RLIMIT_AS")
    limits[resource.RLIMIT_AS] = resource.RLIM_INFINITY
    assert memory_limit(CPU, ranks_here=2, root=tmp_path).reserved == (600 * MIB, "RLIMIT_DATA")


def test_a_plan_must_stay_within_both_limits():
    plan = memory_of(planned_config(engine={"type": "plain"}), vocab_size=VOCAB, num_ranks=1, device="cpu")
    enough = (plan.peak, "enough")
    assert MemoryLimit(enough).fits(plan)
    assert MemoryLimit(enough, enough).fits(plan)
    assert not MemoryLimit((plan.peak - 1, "less")).fits(plan)
    assert not MemoryLimit(enough, enough).fits(replace(plan, untouched=1))
