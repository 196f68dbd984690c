"""Skips windows of the data after loss spikes. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from xlpretrain.data.samples import Sample, SampleSource

Window = tuple[int, int]
"""A range of steps [first, last) of the data, counted without skipping."""


@dataclass(frozen=True)
class SkippedWindows(SampleSource):
    """The samples of a run without those in `windows` (ascending, disjoint). Memories are reset after each window.

    new_tokens: tokens that each sample adds to the memory of its stream, by the sample's `part`.
    """

    samples: SampleSource
    windows: Sequence[Window]
    new_tokens: Sequence[int]

    def prefetch(self, *, step: int, stream: int) -> None:
        """Start to fetch the blocks of a sample."""
        self.samples.prefetch(step=shifted_step(step, self.windows)[0], stream=stream)

    @property
    def is_remote(self) -> bool:
        """True if prefetching helps."""
        return self.samples.is_remote

    @property
    def corpora(self) -> Sequence[str]:
        """Names of the corpora of a mixture."""
        return self.samples.corpora

    def corpus(self, *, step: int, stream: int) -> int:
        """Index of a sample's corpus."""
        return self.samples.corpus(step=shifted_step(step, self.windows)[0], stream=stream)

    def part(self, stream: int) -> int:
        """Index of the group that a stream belongs to."""
        return self.samples.part(stream)

    def sample(self, *, step: int, stream: int) -> Sample:
        """The sample that `stream` reads at training step `step`."""
        data_step, fresh_since = shifted_step(step, self.windows)
        sample = self.samples.sample(step=data_step, stream=stream)
        known = (data_step - fresh_since) * self.new_tokens[sample.part]
        return replace(sample, mem_valid_len=min(sample.mem_valid_len, known))


def shifted_step(step: int, windows: Iterable[Window]) -> tuple[int, int]:
    """The data step that training step `step` reads, and the end of the last window before it (or 0)."""
    fresh_since = 0
    for first, last in windows:
        if step < first:
            break
        step, fresh_since = step + last - first, last
    return step, fresh_since


def add_window(windows: Iterable[Window], new: Window) -> list[Window]:
    """Add a window; returns them in ascending order, with adjacent and overlapping ones merged."""
    merged: list[Window] = []
    for first, last in sorted([*windows, new]):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return merged
