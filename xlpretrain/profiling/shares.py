"""Shares of a step's time by what it was spent on, from the trace of a profile. Torch-free.

Ranges tell attention, loss, optimizer, data and collectives apart: those of the loop, and those around modules. The
rest goes by the names of operations. Every moment counts once, so the shares add up to the whole. On a GPU that is the
time of its kernels: where several run at once, the one that computes; where none runs, what the host was doing. A step
lasts from its data to its update; rows of metrics, evaluations and saves are in none.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from xlpretrain.errors import XLPretrainError
from xlpretrain.profiling import names
from xlpretrain.profiling.trace import Span, Trace

GROUPS = {
    "products": "linear layers",
    "attention": "scores, softmax and weighted values, forward and backward",
    "loss": "from hidden states to the loss, with the products over the vocabulary",
    "elementwise": "norms, dropout, activations, and what is compiled with them",
    "optimizer": "clipping and the optimizer",
    "communication": "collectives, with waiting for other ranks",
    "copies": "between types, layouts and devices; zeros",
    "data": "waiting for the loader",
    "host": "no operation runs: Python, launches",
    "other": "embeddings, masks, sums",
}
"""Groups, and what is in them."""

Times = defaultdict[str, float]
"""Microseconds by group or by name."""
_OF_RANGE = {
    names.DATA: "data",
    names.COMMUNICATION: "communication",
    names.UPDATE: "optimizer",
    names.ATTENTION: "attention",
    names.PROJECTION: "products",
    names.LOSS: "loss",
}
_WAITING = ("data", "communication", "pause")
_PRODUCTS = frozenset(
    f"aten::{name}" for name in ("mm", "addmm", "bmm", "baddbmm", "linear", "matmul", "_addmm_activation", "einsum")
)
_COPIES = frozenset(f"aten::{name}" for name in ("copy_", "cat", "fill_", "zero_", "_foreach_copy_", "_foreach_zero_"))
_WORDS = {
    "communication": ("nccl", "gloo:", "c10d::"),
    "attention": ("scaled_dot_product", "attention", "flash", "fmha"),
    "loss": ("chunkedloss", "deviceloss", "cross_entropy", "nll_loss", "linear_cross"),
    "products": ("triton_tem", "mkldnn::_linear", "mkl::_mkl_linear"),
    "elementwise": (
        *("layer_norm", "layernorm", "rms_norm", "dropout", "dropped", "gelu", "relu", "silu", "tanh"),
        *("triton_", "compiled", "cpp_fused"),
    ),
}
"""Parts of names, in lower case, of operations outside of ranges; the first group that has one wins."""


@dataclass(frozen=True)
class StepShares:
    """The time of a step on one rank.

    num_steps: profiled steps. seconds: per step, by group. operations: seconds per step of each kernel, or on a CPU of
    each operation, the longest first. on_gpu: True if the times are those of kernels.
    """

    num_steps: int
    seconds: Mapping[str, float]
    operations: Mapping[str, float]
    on_gpu: bool

    @property
    def step_s(self) -> float:
        """Seconds of a whole step."""
        return sum(self.seconds.values())


def step_shares(trace: Trace) -> StepShares:
    """The shares of the steps in a trace. Raises `XLPretrainError` if it has none."""
    main = next((each for each in trace.host.values() if any(span.name == names.UPDATE for span in each)), [])
    steps = _steps(main)
    if not steps:
        raise XLPretrainError("the trace has no training step in it")
    if trace.device:
        times, operations = _device_times(trace.device, main, steps)
    else:
        times, operations = _host_times(main, steps)
    scale = 1e-6 / len(steps)
    return StepShares(
        num_steps=len(steps),
        seconds={group: times[group] * scale for group in GROUPS},
        operations={name: operations[name] * scale for name in sorted(operations, key=operations.__getitem__)[::-1]},
        on_gpu=bool(trace.device),
    )


def _steps(main: Iterable[Span]) -> list[tuple[float, float]]:
    """Start and end of each step, from waiting for its data to its update; the rest of the time is in no step."""
    found: list[tuple[float, float]] = []
    begun: float | None = None
    for span in main:
        if span.name in (names.DATA, names.FORWARD, names.UPDATE) and not _is_in_pause(span):
            begun = span.start if begun is None else begun
            if span.name == names.UPDATE:
                found.append((begun, span.end))
                begun = None
    return found


def _host_times(main: Iterable[Span], steps: Sequence[tuple[float, float]]) -> tuple[Times, Times]:
    """Microseconds of each group, and of each operation, on the thread that computes."""
    inside = [span for span in main if any(start <= span.start < end for start, end in steps)]
    own = {span: span.end - span.start for span in inside}
    for span in inside:
        if span.parent in own:
            own[span.parent] -= min(span.end, span.parent.end) - span.start
    times, operations = Times(float), Times(float)
    for span, time in own.items():
        is_range = span.kind == "user_annotation"
        group = _group(span)
        times["host" if is_range and group not in _WAITING else group] += time
        if not is_range:
            operations[span.name] += time
    times["host"] += sum(end - start for start, end in steps) - sum(times.values())
    return times, operations


def _device_times(
    kernels: Sequence[Span], main: Iterable[Span], steps: Sequence[tuple[float, float]]
) -> tuple[Times, Times]:
    """Microseconds of each group, and of each kernel, on a GPU; without kernels, of what the host was doing."""
    operations = Times(float)
    active: list[tuple[float, float, tuple[int, str]]] = []
    for kernel in kernels:
        operations[kernel.name] += kernel.end - kernel.start
        group = _group(kernel)
        rank = {"communication": 1, "copies": 2}.get(group, 0)
        active.append((kernel.start, kernel.end, (rank, group)))
    for span in main:
        if span.kind == "user_annotation" and (group := _group(span)) in _WAITING:
            active.append((span.start, span.end, (4, group)))
    for (_, end), (start, _) in pairwise(steps):
        active.append((end, start, (3, "pause")))
    window = steps[0][0], max(steps[-1][1], *(kernel.end for kernel in kernels))
    times = Times(float)
    for start, end, (_, group) in _first_of_each_moment(active, window):
        times[group] += end - start
    return times, operations


def _first_of_each_moment(
    active: Iterable[tuple[float, float, tuple[int, str]]], window: tuple[float, float]
) -> Iterator[tuple[float, float, tuple[int, str]]]:
    """Cut a window where anything begins or ends; each piece has the first label of what goes on there."""
    changes = [(time, label, by) for start, end, label in active for time, by in ((start, 1), (end, -1))]
    now, going_on = window[0], Counter[tuple[int, str]]()
    for time, label, by in sorted([*changes, (window[1], (9, "host"), 0)], key=lambda change: change[0]):
        at = min(max(time, now), window[1])
        yield now, at, min((label for label, number in going_on.items() if number), default=(9, "host"))
        now = at
        going_on[label] += by


def _group(span: Span) -> str:
    """The group of a span: that of the innermost range around it, or around its forward operation, else by names."""
    if _is_in_pause(span):
        return "pause"
    if (found := _range_of(span)) is not None:
        return found
    around = [each for each in _with_forward(span) if each.kind != "user_annotation"]
    called = [each for each in around if each.kind in ("cpu_op", "kernel")]
    text = " ".join(each.name for each in around).lower()
    if any(each.name in _PRODUCTS for each in called):
        return "attention" if any(word in text for word in _WORDS["attention"]) else "products"
    by_name = (group for group, words in _WORDS.items() if any(word in text for word in words))
    is_copy = span.kind.startswith("gpu_mem") or any(each.name in _COPIES for each in called[:2])
    return next(by_name, "copies" if is_copy else "other")


def _is_in_pause(span: Span) -> bool:
    return any(each.name == names.PAUSE for each in span.around())


def _range_of(span: Span | None) -> str | None:
    while span is not None:
        if span.name in _OF_RANGE:
            return _OF_RANGE[span.name]
        if span.forward is not None and (found := _range_of(span.forward)) is not None:
            return found
        span = span.parent
    return None


def _with_forward(span: Span) -> Iterator[Span]:
    """A span, those around it up to a node of the backward pass, and the forward operation of that node."""
    for each in span.around():
        yield each
        if each.forward is not None:
            yield each.forward
            return
