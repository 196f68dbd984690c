"""Health of every GPU of a node: the driver's report, memory in use, and a product with a known result."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # imported late: torch takes seconds
    import torch

_SMI_FIELDS = {
    "ecc.errors.uncorrected.volatile.total": "uncorrected memory errors since its last reset",
    "remapped_rows.pending": "memory rows that are remapped only by a reset",
    "remapped_rows.failure": "memory rows that cannot be remapped",
}
"""What nvidia-smi tells of a GPU, if it supports the field, and what any answer but 0 and No means."""
_SMI_TIMEOUT_S = 60
_FREE_BYTES = 2 << 30
"""Memory in use beyond this belongs to another process; the CUDA context of the check takes about 0.5 GB."""

_WAIT_S = 30
"""Time for the processes of a previous attempt to leave the GPU."""


def check_gpus(devices: Sequence[torch.device]) -> list[str]:
    """Problems of the GPUs, each naming its GPU. One that is broken does not keep the others from being checked."""
    problems = _reported()
    for device in devices:
        try:
            problems += [f"{_name(device)}: {problem}" for problem in _measured(device)]
        except RuntimeError as error:  # of CUDA
            problems.append(f"{_name(device)}: {str(error).splitlines()[0]}")
    return problems


def _reported() -> list[str]:
    """Problems that nvidia-smi reports; none where it is not installed."""
    query = ",".join(("index", *_SMI_FIELDS))
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=_SMI_TIMEOUT_S,
        )
    except FileNotFoundError:
        return []
    except subprocess.TimeoutExpired:
        return [f"nvidia-smi did not answer within {_SMI_TIMEOUT_S} s"]
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip()
        old = "not a valid field" in said  # an older driver
        return [] if old else [f"nvidia-smi failed with {done.returncode}: {said.splitlines()[0] if said else ''}"]
    problems = []
    for line in done.stdout.splitlines():
        index, *answers = (answer.strip() for answer in line.split(","))
        for answer, meaning in zip(answers, _SMI_FIELDS.values(), strict=False):
            if answer == "Yes" or (answer.isdecimal() and int(answer)):
                problems.append(f"GPU {index}: nvidia-smi reports {meaning} ({answer})")
    return problems


def _measured(device: torch.device) -> list[str]:
    import torch

    problems = []
    if device.type == "cuda":
        for _ in range(_WAIT_S):
            free, total = torch.cuda.mem_get_info(device)
            if total - free <= _FREE_BYTES:
                break
            time.sleep(1)
        if total - free > _FREE_BYTES:
            problems.append(f"{(total - free) / 2**30:.1f} of {total / 2**30:.1f} GiB are in use by other processes")
    draw = torch.Generator().manual_seed(0)
    left, right = (torch.randint(-1, 2, (512, 512), generator=draw) for _ in range(2))
    expected = left @ right  # sums of at most 256: exact in every data type below
    for dtype in (torch.float32, torch.bfloat16):
        product = left.to(device, dtype) @ right.to(device, dtype)
        if not torch.equal(product.cpu().long(), expected):
            problems.append(f"a product of {dtype} matrices has wrong elements")
    return problems


def _name(device: torch.device) -> str:
    return f"GPU {device.index}" if device.type == "cuda" else str(device)
