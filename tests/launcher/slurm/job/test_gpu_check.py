"""The check of every GPU, with nvidia-smi and torch's calls to CUDA replaced; products run on the CPU."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from launcher.slurm.job.gpu_check import check_gpus

CPU = torch.device("cpu")


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes an nvidia-smi that prints a text and exits with a code."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def write(text: str, code: int = 0) -> None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho '{text}'\nexit {code}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)

    return write


def test_a_sound_gpu_has_no_problems(nvidia_smi):
    assert check_gpus([CPU]) == []  # without nvidia-smi
    nvidia_smi("0, 0, No, No\n1, [N/A], [N/A], [N/A]")
    assert check_gpus([CPU]) == []
    nvidia_smi('Field "remapped_rows.pending" is not a valid field to query.', code=2)
    assert check_gpus([CPU]) == []


def test_what_nvidia_smi_reports_names_the_gpu(nvidia_smi):
    nvidia_smi("0, 0, No, No\n5, 2, Yes, No\n6, 0, No, Yes")
    assert check_gpus([]) == [
        "GPU 5: nvidia-smi reports uncorrected memory errors since its last reset (2)",
        "GPU 5: nvidia-smi reports memory rows that are remapped only by a reset (Yes)",
        "GPU 6: nvidia-smi reports memory rows that cannot be remapped (Yes)",
    ]
    nvidia_smi("Unable to determine the device handle for GPU 0000:3B:00.0: GPU is lost.", code=15)
    assert check_gpus([]) == [
        "nvidia-smi failed with 15: Unable to determine the device handle for GPU 0000:3B:00.0: GPU is lost."
    ]


def test_each_gpu_is_asked_for_its_memory_and_a_broken_one_does_not_hide_the_others(
    nvidia_smi, monkeypatch: pytest.MonkeyPatch
):
    def memory(device: torch.device) -> tuple[int, int]:
        if device.index == 1:
            raise RuntimeError("CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be")
        return (40 << 30 if device.index == 2 else 79 << 30), 80 << 30

    real = torch.Tensor.to
    monkeypatch.setattr(torch.cuda, "mem_get_info", memory)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device, dtype: real(tensor, CPU, dtype))
    assert check_gpus([torch.device("cuda", i) for i in range(4)]) == [
        "GPU 1: CUDA error: uncorrectable ECC error encountered",
        "GPU 2: 40.0 of 80.0 GiB are in use by other processes",
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_wrong_element_of_a_product_is_found(nvidia_smi, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype):
    real = torch.Tensor.__matmul__

    def wrong(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        product = real(left, right)
        if left.dtype == dtype:
            product[100, 7] += 1
        return product

    monkeypatch.setattr(torch.Tensor, "__matmul__", wrong)
    assert check_gpus([CPU]) == [f"cpu: a product of {dtype} matrices has wrong elements"]
