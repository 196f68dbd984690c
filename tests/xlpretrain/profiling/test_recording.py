"""A recording of real steps: its ranges, its file, and nothing left behind. Modules: ranges.py, trace.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from xlpretrain.profiling import names, ranges
from xlpretrain.profiling.recording import Recording
from xlpretrain.profiling.shares import step_shares
from xlpretrain.profiling.trace import read_trace

CPU = torch.device("cpu")


class Scores(nn.Module):
    """Something that can fail after it has begun."""

    fails = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.bmm(x, x)
        if self.fails:
            raise ArithmeticError("in the middle")
        return y


def step(scores: Scores, linear: nn.Linear) -> None:
    with ranges.named(names.FORWARD):
        total = scores(linear(torch.ones(2, 64, 64))).sum()
    with ranges.named(names.BACKWARD):
        total.backward()
    with ranges.named(names.UPDATE):
        linear.weight.grad = None


def test_ranges_and_modules_are_recorded_and_hooks_are_gone_afterwards(tmp_path: Path):
    scores, linear = Scores(), nn.Linear(64, 64)
    recording = Recording([(scores, names.ATTENTION)], CPU)
    recording.start()
    step(scores, linear)
    with ranges.paused(), ranges.named(names.PAUSE):
        torch.ones(2).cumsum(0)
    scores.fails = True
    with pytest.raises(ArithmeticError), ranges.named(names.PAUSE):
        scores(torch.ones(2, 64, 64))
    scores.fails = False
    step(scores, linear)
    recording.stop()
    assert not scores._forward_hooks and not scores._forward_pre_hooks
    assert ranges.named(names.FORWARD) is ranges.named(names.UPDATE), "nothing, once the recording has ended"

    path = tmp_path / "profiles" / "trace.json.gz"
    recording.write_trace(path)
    assert recording.write_memory(tmp_path / "memory.pickle") is False, "only on a GPU"
    assert [each.name for each in path.parent.iterdir()] == ["trace.json.gz"]
    trace = read_trace(path)
    spans = [span for thread in trace.host.values() for span in thread]
    assert sum(span.name == names.ATTENTION for span in spans) == 3, "also the one that failed"
    assert not any("cumsum" in span.name for span in spans), "left out"
    backward = [span for span in spans if span.name == "BmmBackward0"]
    assert len(backward) == 2 and all(span.forward and span.forward.name == "aten::bmm" for span in backward)
    shares = step_shares(trace)
    assert shares.num_steps == 2
    assert all(shares.seconds[group] > 0 for group in ("products", "attention", "host"))
    assert all(seconds >= 0 for seconds in shares.seconds.values())


def test_a_write_that_fails_leaves_nothing(tmp_path: Path):
    recording = Recording([], CPU)
    recording.start()
    recording.stop()

    def lost() -> None:
        raise OSError("no lease")

    with pytest.raises(OSError, match="no lease"):
        recording.write_trace(tmp_path / "trace.json.gz", fence=lost)
    assert not list(tmp_path.iterdir())
