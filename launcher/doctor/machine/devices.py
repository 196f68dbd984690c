"""GPUs: driver, number, free memory, a product on each; cores for the ranks of a machine without GPUs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import torch

from launcher.doctor.findings import Finding, failure, passed, skipped, warning
from launcher.doctor.request import Request
from launcher.local.torchrun import default_num_processes
from launcher.slurm.job.gpu_check import check_gpus
from launcher.units import format_bytes

_SMI_S = 30
_FREE_SHARE = 0.9


def check(request: Request) -> Iterator[Finding]:
    """Check the devices, and that there are enough for the ranks."""
    listed, driver = gpus_of_driver()
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count:
        yield passed(f"CUDA {torch.version.cuda} (torch {torch.__version__}), driver {driver or 'unknown'}")
        yield from _check_each(count)
    elif listed:
        yield _unusable(listed, driver)
    else:
        yield skipped(f"GPUs: none found here (torch {torch.__version__})")
    yield check_number(request, num_gpus=count, num_cores=len(os.sched_getaffinity(0)))


def check_number(request: Request, *, num_gpus: int, num_cores: int) -> Finding:
    """Check that there are as many devices as ranks."""
    ranks = num_ranks(request)
    if request.num_gpus is not None and num_gpus < request.num_gpus:
        return failure(
            f"too few GPUs: found {num_gpus}, the site profile asks for {request.num_gpus}",
            "correct gpus_per_node or gres in the profile, or CUDA_VISIBLE_DEVICES and the driver on the node",
        )
    if num_gpus and ranks > num_gpus:
        return failure(
            f"too few GPUs: {num_gpus} for {ranks} ranks",
            "each rank needs one: start fewer with --nproc, or use more nodes",
        )
    if not num_gpus and ranks > num_cores:
        return warning(
            f"too few cores: {num_cores} for {ranks} ranks",
            "start fewer with --nproc; ranks that share a core wait for each other",
        )
    text = f"{ranks} rank{'' if ranks == 1 else 's'} on "
    return passed(text + (f"{num_gpus} GPUs" if num_gpus else f"{num_cores} cores"))


def num_ranks(request: Request) -> int:
    """Number of ranks that `train` would start on this machine."""
    config = request.load_config()
    return request.num_processes or default_num_processes(config.smallest_batch if config else 1 << 20)


def gpus_of_driver() -> tuple[int, str]:
    """Number of GPUs that nvidia-smi lists, and the driver's version; 0 without nvidia-smi."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SMI_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0, ""
    lines = done.stdout.split() if done.returncode == 0 else []
    return len(lines), lines[0] if lines else ""


def _unusable(listed: int, driver: str) -> Finding:
    text = f"nvidia-smi lists {listed} GPUs, but torch {torch.__version__} can use none"
    if torch.version.cuda is None:
        return failure(f"{text}: it is a build for CPUs", "install torch for CUDA (https://pytorch.org/get-started)")
    return failure(
        f"{text}: it needs a driver for CUDA {torch.version.cuda}, this one is {driver}",
        "update the driver, install torch for an older CUDA, or check CUDA_VISIBLE_DEVICES",
    )


def _check_each(count: int) -> Iterator[Finding]:
    devices = [torch.device("cuda", number) for number in range(count)]
    problems = check_gpus(devices)
    for problem in problems:
        yield failure(problem, "end other processes on it (`nvidia-smi`), or leave it out with CUDA_VISIBLE_DEVICES")
    for device in devices:
        name = f"GPU {device.index}"
        if any(problem.startswith(f"{name}:") for problem in problems):
            continue
        free, total = torch.cuda.mem_get_info(device)
        text = f"{name}: {torch.cuda.get_device_name(device)}, {format_bytes(free)} of {format_bytes(total)} free"
        if free < _FREE_SHARE * total:
            yield warning(text, "end other processes on it (`nvidia-smi`)")
        else:
            yield passed(f"{text}, products are correct")
