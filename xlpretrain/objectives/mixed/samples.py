"""Training samples of several groups of streams, each with its own order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from xlpretrain.data.samples import Sample, TrainSamples
from xlpretrain.data.skip_windows import Window


@dataclass(frozen=True)
class GroupedSamples(TrainSamples):
    """The samples of a run whose streams are in groups.

    of_groups: the samples of each group, whose streams are numbered from 0. streams: the run's streams of each group:
    consecutive, from 0 on.
    """

    of_groups: Sequence[TrainSamples]
    streams: Sequence[range]

    @property
    def groups(self) -> Sequence[TrainSamples]:
        """The samples of each group."""
        return self.of_groups

    def sample(self, *, step: int, stream: int) -> Sample:
        """The sample that `stream` reads at `step`."""
        group, within = self._find(stream)
        return replace(self.of_groups[group].sample(step=step, stream=within), stream=stream, part=group)

    def prefetch(self, *, step: int, stream: int) -> None:
        """Start to fetch the blocks of a sample."""
        group, within = self._find(stream)
        self.of_groups[group].prefetch(step=step, stream=within)

    @property
    def is_remote(self) -> bool:
        """True if prefetching helps."""
        return any(group.is_remote for group in self.of_groups)

    @property
    def corpora(self) -> Sequence[str]:
        """Names of the corpora of a mixture."""
        return self.of_groups[0].corpora

    def corpus(self, *, step: int, stream: int) -> int:
        """Index of a sample's corpus."""
        group, within = self._find(stream)
        return self.of_groups[group].corpus(step=step, stream=within)

    def part(self, stream: int) -> int:
        """Index of the group that a stream belongs to."""
        return self._find(stream)[0]

    @property
    def steps_per_epoch(self) -> float:
        """Number of steps in which all groups together read as many samples as the data have."""
        return 1 / sum(1 / group.steps_per_epoch for group in self.of_groups)

    def passes(self, step: int) -> float:
        """Passes of all groups together."""
        return sum(group.passes(step) for group in self.of_groups)

    def with_windows(self, windows: Sequence[Window]) -> GroupedSamples:
        """The same samples when data steps are skipped."""
        return replace(self, of_groups=[group.with_windows(windows) for group in self.of_groups])

    def skipped_tokens(self, stage: int) -> int:
        """Tokens that all groups skip at the start of a stage."""
        return sum(group.skipped_tokens(stage) for group in self.of_groups)

    def epochs(self, step: int) -> dict[str, float]:
        """Passes of all groups together over each corpus of a mixture."""
        passes: list[Mapping[str, float]] = [group.epochs(step) for group in self.of_groups]
        return {name: sum(of_group[name] for of_group in passes) for name in passes[0]}

    def _find(self, stream: int) -> tuple[int, int]:
        """The group of a stream, and the stream's number in it."""
        group = next(number for number, streams in enumerate(self.streams) if stream in streams)
        return group, stream - self.streams[group].start
