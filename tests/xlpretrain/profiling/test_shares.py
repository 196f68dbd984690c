"""Shares of a step from traces made by hand, on a CPU and on a GPU: every moment counts once. Module: names.py."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from xlpretrain.errors import XLPretrainError
from xlpretrain.profiling import names
from xlpretrain.profiling.shares import StepShares, step_shares
from xlpretrain.profiling.trace import parse_trace, read_trace

MAIN, BACKWARD_THREAD, LOADER = 1, 2, 3


def event(name: str, start: float, end: float, *, kind: str = "cpu_op", thread: int = MAIN, **more: Any) -> dict:
    """An event of a trace, in milliseconds. more: its `args`, with _ for spaces."""
    found = {key.replace("_", " "): value for key, value in more.items()}
    place = {"pid": 0 if kind in ("kernel", "gpu_memcpy") else 77, "tid": thread}
    return {
        "ph": "X",
        "cat": kind,
        "name": name,
        "ts": 1000 * start,
        "dur": 1000 * (end - start),
        **place,
        "args": found,
    }


def named(name: str, start: float, end: float, thread: int = MAIN) -> dict:
    return event(name, start, end, kind="user_annotation", thread=thread)


def launched(name: str, start: float, end: float, number: int, at: float, *, kind: str = "kernel", thread: int = MAIN):
    """A kernel, and the call that launched it at `at`."""
    call = event("cudaLaunchKernel", at, at + 0.01, kind="cuda_runtime", thread=thread, correlation=number)
    return [call, event(name, start, end, kind=kind, thread=7, correlation=number)]


def of(*events: dict) -> StepShares:
    return step_shares(parse_trace(events))


def milliseconds(shares: StepShares) -> dict[str, float]:
    """Of the groups that have any, rounded."""
    return {group: round(1000 * s, 3) for group, s in shares.seconds.items() if abs(s) > 1e-9}


STEP = [
    named(names.DATA, 0, 5),
    named(names.FORWARD, 10, 50),
    event("aten::embedding", 11, 13),
    named(names.ATTENTION, 15, 30),
    named(names.PROJECTION, 15, 20),
    event("aten::linear", 15, 20),
    event("aten::addmm", 16, 19),
    event("aten::bmm", 20, 28, Sequence_number=7, Fwd_thread_id=0),
    event("aten::native_layer_norm", 31, 33),
    event("aten::copy_", 33, 34),
    named(names.LOSS, 40, 50),
    event("ChunkedLoss", 40, 48, Sequence_number=8, Fwd_thread_id=0),
    event("aten::mm", 41, 47),
    named(names.BACKWARD, 50, 80),
    event("autograd::engine::evaluate_function: BmmBackward0", 50, 60, Sequence_number=7, Fwd_thread_id=1),
    event("aten::bmm", 52, 58),
    event("ChunkedLossBackward", 60, 64, Sequence_number=8, Fwd_thread_id=1),
    event("aten::mm", 64, 70),
    named(names.UPDATE, 80, 100),
    named(names.COMMUNICATION, 80, 90),
    event("aten::_fused_adamw_", 92, 98),
]


def test_each_moment_of_a_step_on_a_cpu_is_in_one_group():
    shares = of(*STEP)
    assert milliseconds(shares) == {
        "products": 5 + 6,  # the projection, and a product of the backward pass
        "attention": 8 + 10,  # with the node that computes its gradient
        "loss": 8 + 4,
        "elementwise": 2,
        "optimizer": 6,
        "communication": 10,
        "copies": 1,
        "data": 5,
        "host": 5 + 1 + 2 + 2 + 1 + 6 + 2 + 10 + 2 + 2,
        "other": 2,
    }
    assert shares.step_s == pytest.approx(0.1)
    assert (shares.num_steps, shares.on_gpu) == (1, False)
    assert 1000 * shares.operations["aten::bmm"] == pytest.approx(8 + 6)


def test_what_is_between_steps_and_in_pauses_and_on_other_threads_is_in_no_step():
    later = [{**each, "ts": each["ts"] + 1_000_000} for each in STEP]
    between = [
        named(names.PAUSE, 200, 400),
        named(names.FORWARD, 210, 390),  # of a probe
        named(names.UPDATE, 390, 395),
        event("aten::mm", 220, 300),
        event("aten::mm", 0, 1000, thread=LOADER),
        named("gloo:all_reduce", 0, 1000, thread=LOADER),
    ]
    save = [named(names.PAUSE, 1006, 1009), event("aten::copy_", 1006, 1008)]
    shares = of(*STEP, *between, *later, *save)
    assert shares.num_steps == 2
    once, twice = milliseconds(of(*STEP)), milliseconds(shares)
    assert twice == {**once, "host": once["host"] - 1.5}, "the save was 3 ms of two steps"


def test_on_a_gpu_kernels_count_and_gaps_are_what_the_host_was_doing():
    shares = of(
        named(names.DATA, 0, 10),
        named(names.COMMUNICATION, 10, 14),
        named(names.FORWARD, 14, 20),
        event("aten::mm", 15, 16),
        *launched("gemm", 20, 30, 1, at=15.5),
        named(names.ATTENTION, 16, 18),
        event("aten::bmm", 16, 18, Sequence_number=3, Fwd_thread_id=0),
        *launched("gemm", 30, 34, 2, at=16.5),
        named(names.BACKWARD, 20, 30),
        event("BmmBackward0", 21, 23, thread=BACKWARD_THREAD, Sequence_number=3, Fwd_thread_id=1),
        *launched("gemm", 34, 40, 3, at=22, thread=BACKWARD_THREAD),
        *launched("ncclDevKernel_AllReduce", 38, 50, 4, at=24, thread=BACKWARD_THREAD),
        *launched("Memcpy HtoD", 45, 52, 5, at=25, kind="gpu_memcpy"),
        named(names.UPDATE, 30, 35),
        event("aten::_fused_adamw_", 31, 32),
        *launched("adam", 55, 60, 6, at=31.5),
    )
    assert milliseconds(shares) == {
        "products": 10,
        "attention": 4 + 6,
        "optimizer": 5,
        "communication": 4 + 10,  # the wait in the agreement, and what no computation hides
        "copies": 2,
        "data": 10,
        "host": 6 + 3,
    }
    assert shares.on_gpu and shares.step_s == pytest.approx(0.06)
    assert 1000 * shares.operations["gemm"] == pytest.approx(20)


def test_operations_outside_of_ranges_go_by_their_names():
    """As in compiled layers."""
    shares = of(
        named(names.FORWARD, 0, 100),
        event("Torch-Compiled Region: 0/0", 0, 50),
        event("aten::_scaled_dot_product_flash_attention_for_cpu", 0, 10),
        event("aten::addmm", 10, 30),
        event("CompiledFunctionBackward", 50, 70),
        event("aten::mm", 50, 65),
        event("c10d::allreduce_", 70, 80),
        event("aten::nll_loss_forward", 80, 90),
        named(names.UPDATE, 90, 100),
    )
    assert milliseconds(shares) == {
        "attention": 10,
        "products": 20 + 15,
        "elementwise": 20 + 5,
        "communication": 10,
        "loss": 10,
        "host": 10,
    }


def test_a_file_that_is_no_trace_is_refused(tmp_path: Path):
    cut = tmp_path / "cut.json.gz"
    cut.write_bytes(gzip.compress(b'{"traceEvents": []}')[:-9])
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"events": []}))
    for path in (cut, other):
        with pytest.raises(XLPretrainError, match="not a trace"):
            read_trace(path)
    with pytest.raises(XLPretrainError, match="no training step"):
        of(event("aten::mm", 0, 1))
