"""Packages, cores, limits, devices and products of this machine.

Modules: request.py.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from small_disk import mount_small_disk

from launcher.doctor.findings import Level
from launcher.doctor.machine import cores, devices, limits, products, versions
from launcher.doctor.machine.cores import Core
from launcher.doctor.request import Request


def test_the_installed_packages_are_admitted():
    found = list(versions.check(Request()))
    assert {finding.level for finding in found} == {Level.PASS}, found
    assert f"torch {torch.__version__.partition('+')[0]}" in " ".join(finding.text for finding in found)


def test_a_package_out_of_its_range_or_missing_is_named_with_the_command_that_installs_it():
    wanted = [Requirement("torch>=99"), Requirement("no-such-package>=1"), Requirement("numpy>=1")]
    outdated, missing = versions.check_packages(wanted, is_required=True)
    assert outdated.level == missing.level == Level.FAIL
    assert "xlpretrain needs >=99" in outdated.text and outdated.remedy == 'pip install "torch>=99"'
    assert missing.text == "no-such-package is not installed"
    (optional,) = versions.check_packages(wanted[:2], is_required=False)
    assert optional.level == Level.WARN
    assert versions.check_python("3.10.1", ">=3.11").level == Level.FAIL


def test_a_busy_core_is_found():
    """Two children spin on one core, so that a third thread gets a third of it."""
    busy = min(os.sched_getaffinity(0))
    spin = f"import os; os.sched_setaffinity(0, {{{busy}}}); print(flush=True)\nwhile True: pass"
    children = [subprocess.Popen([sys.executable, "-c", spin], stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for child in children:
            assert child.stdout is not None
            child.stdout.readline()
        found = list(cores.check(Request()))
    finally:
        for child in children:
            child.kill()
            child.communicate()
    (about,) = [finding for finding in found if "busy" in finding.text]
    assert about.level == Level.WARN and re.match(rf"cores? {busy}\b", about.text), about
    assert "end other work there" in about.remedy


def test_quota_slow_cores_and_a_hypervisor_are_told_apart():
    even = [Core(number, 0.99, 1000.0) for number in range(4)]
    (fine,) = cores.judge(even, stolen=0.0, quota=None)
    assert fine.level == Level.PASS and "4 cores" in fine.text
    assert "quota is 2" in next(iter(cores.judge(even, stolen=0.0, quota=2.0))).text
    (slow,) = cores.judge([*even, Core(4, 0.99, 300.0)], stolen=0.0, quota=None)
    assert "core 4 is slower" in slow.text and "30%" in slow.text
    taken, _ = cores.judge(even, stolen=0.4, quota=None)
    assert "hypervisor took 40%" in taken.text


def test_measuring_leaves_this_thread_on_its_cores():
    before = os.sched_getaffinity(0)
    cores.measure(sorted(before))
    assert os.sched_getaffinity(0) == before


def test_limits_of_this_process_are_read():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
    try:
        found = list(limits.check(Request()))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    (files,) = [finding for finding in found if finding.text.startswith("open files")]
    assert files.level == Level.FAIL and "at most 200" in files.text and "ulimit -n" in files.remedy


def test_small_shared_memory_locked_memory_and_core_dumps_are_told(tmp_path: Path):
    with mount_small_disk(tmp_path / "shm", size="64m"):
        small = limits.check_shared_memory(tmp_path / "shm")
    assert small.level == Level.WARN and "--shm-size" in small.remedy
    assert limits.check_shared_memory(tmp_path / "none").level == Level.FAIL
    assert limits.check_locked_memory(1 << 16, has_rdma=True).level == Level.WARN
    assert limits.check_locked_memory(1 << 16, has_rdma=False).level == Level.SKIPPED
    assert limits.check_cores(resource.RLIM_INFINITY, pattern="core").level == Level.WARN
    assert limits.check_cores(resource.RLIM_INFINITY, pattern="|/usr/bin/handler").level == Level.PASS
    assert limits.check_processes(100).level == Level.WARN


def test_too_few_devices_are_found():
    cpus = devices.check_number(Request(num_processes=64), num_gpus=0, num_cores=8)
    assert cpus.level == Level.WARN and "too few cores: 8 for 64 ranks" in cpus.text
    gpus = devices.check_number(Request(num_processes=9), num_gpus=8, num_cores=64)
    assert gpus.level == Level.FAIL and "too few GPUs: 8 for 9 ranks" in gpus.text
    node = devices.check_number(Request(num_processes=8, num_gpus=8), num_gpus=7, num_cores=64)
    assert node.level == Level.FAIL and "found 7, the site profile asks for 8" in node.text


def test_a_driver_with_gpus_that_torch_cannot_use_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if torch.cuda.is_available():
        pytest.skip("torch can use the GPUs here")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nprintf '550.54\\n550.54\\n'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = list(devices.check(Request(num_processes=1)))
    assert found[0].level == Level.FAIL and "lists 2 GPUs" in found[0].text and "a build for CPUs" in found[0].text


def test_each_gpu_is_named_with_its_free_memory(monkeypatch: pytest.MonkeyPatch):
    """With torch's calls to CUDA replaced."""
    free = {0: 79 << 30, 1: 50 << 30}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device.index], 80 << 30))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    real = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device, dtype: real(tensor, "cpu", dtype))
    found = {finding.text.partition(",")[0]: finding for finding in devices.check(Request(num_processes=2))}
    assert found["GPU 0: NVIDIA H100 80GB HBM3"].level == Level.PASS
    (taken,) = [finding for finding in found.values() if finding.text.startswith("GPU 1")]
    assert taken.level == Level.FAIL and "in use by other processes" in taken.text


def test_products_are_judged_by_data_sheet_neighbours_and_themselves():
    slow, late, fine = products.judge_gpus(["NVIDIA H100"] * 2 + ["Unknown"], [400e12, 700e12, 900e12])
    assert slow.level == Level.WARN and "40% of the data sheet" in slow.text
    assert late.level == Level.WARN and "the fastest has 900" in late.text
    assert fine.level == Level.PASS and "no data sheet known" in fine.text
    assert products.judge_cpu([10e9], [19e9, 19e9], threads=2).level == Level.PASS
    assert "usually" in products.judge_cpu([10e9], [19e9, 5e9, 5e9], threads=2).text
    assert products.judge_cpu([10e9], [11e9, 11e9], threads=8).level == Level.WARN


def test_products_of_this_machine_are_measured():
    for finding in products.check(Request()):
        assert "FLOP/s" in finding.text
