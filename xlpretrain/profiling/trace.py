"""Spans of a Chrome trace as torch's profiler writes it: operations, named ranges and kernels. Torch-free.

A span knows the span around it on its thread. The node of a backward pass also knows the operation of the forward pass
whose gradient it computes, by the sequence number that autograd gives both, and a kernel the call that launched it.
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlpretrain.errors import XLPretrainError

_HOST = frozenset({"cpu_op", "user_annotation", "cuda_runtime", "cuda_driver"})
_DEVICE = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})


@dataclass(slots=True, eq=False)
class Span:
    """Something that took time, from `start` to `end` in microseconds.

    kind: Chrome's category. thread: of the host; a stream for a kernel. parent: the span around it on its thread; the
    launching call for a kernel. forward: see above.
    """

    name: str
    kind: str
    thread: tuple[Any, Any]
    start: float
    end: float
    parent: Span | None = None
    forward: Span | None = None

    def around(self) -> Iterator[Span]:
        """This span, and those around it, from the inside out."""
        span: Span | None = self
        while span is not None:
            yield span
            span = span.parent


@dataclass(frozen=True)
class Trace:
    """All spans of a trace, by start. host: by thread. device: kernels, copies and fills."""

    host: Mapping[tuple[Any, Any], list[Span]]
    device: list[Span]


def read_trace(path: Path) -> Trace:
    """Read a trace, compressed or not. Raises OSError, and `XLPretrainError` if it is not one."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            return parse_trace(json.load(file)["traceEvents"])
    except (ValueError, KeyError, TypeError, EOFError, gzip.BadGzipFile) as error:
        raise XLPretrainError(
            f"{path}: not a trace of torch's profiler: {error}; delete it, or profile again"
        ) from None


def parse_trace(events: Iterable[Mapping[str, Any]]) -> Trace:
    """The spans among the `traceEvents` of a trace, each linked to those that it belongs to."""
    host: defaultdict[tuple[Any, Any], list[Span]] = defaultdict(list)
    device: list[tuple[Span, Any]] = []
    launches: dict[Any, Span] = {}
    forward: dict[Any, Span] = {}
    backward: list[tuple[Span, Any]] = []
    for event in events:
        kind = event.get("cat")
        if event.get("ph") != "X" or kind not in _HOST | _DEVICE:
            continue
        start, found = float(event["ts"]), event.get("args", {})
        span = Span(event["name"], kind, (event.get("pid"), event["tid"]), start, start + float(event.get("dur", 0)))
        if kind in _DEVICE:
            device.append((span, found.get("correlation")))
            continue
        host[span.thread].append(span)
        if kind in ("cuda_runtime", "cuda_driver"):
            launches[found.get("correlation")] = span
        number = found.get("Sequence number")
        if number is not None and found.get("Fwd thread id"):
            backward.append((span, number))
        elif number is not None and (number not in forward or forward[number].start < span.start):
            forward[number] = span  # those before it, or around it, only saw the number that it used
    for spans in host.values():
        _nest(spans)
    for span, number in backward:
        span.forward = forward.get(number)
    for span, number in device:
        span.parent = launches.get(number)
    return Trace(host, sorted((span for span, _ in device), key=lambda span: span.start))


def _nest(spans: list[Span]) -> None:
    """Sort the spans of a thread, and find the span around each."""
    spans.sort(key=lambda span: (span.start, -span.end))
    open_spans: list[Span] = []
    for span in spans:
        while open_spans and open_spans[-1].end <= span.start:
            open_spans.pop()
        span.parent = open_spans[-1] if open_spans else None
        open_spans.append(span)
