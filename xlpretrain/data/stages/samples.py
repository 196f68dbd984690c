"""The samples of a run with stages. Torch-free."""

from __future__ import annotations

import bisect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from xlpretrain.data.mixture_schedule import MixtureSchedule
from xlpretrain.data.order import BlockPosition, Contiguous, Shuffled
from xlpretrain.data.samples import CorpusSamples, Sample, StreamSamples, TrainSamples
from xlpretrain.data.skip_windows import Window, shifted_step
from xlpretrain.data.stages.places import ContiguousStage, StreamPlaces, StreamVisit, block_number


@dataclass(frozen=True)
class StageData:
    """The samples of a stage. first: its first training step. parts: samples of each corpus. weights: of each corpus.

    The orders of `parts` may be made for another number of streams; theirs is not used.
    """

    first: int
    parts: Sequence[CorpusSamples]
    weights: Sequence[float]
    num_streams: int
    new_tokens: int

    @property
    def num_orders(self) -> int:
        """Number of streams of the orders: two streams share one if the second reads backwards."""
        return self.num_streams // 2 if self.parts[0].bidirectional_streams else self.num_streams

    @property
    def steps_per_epoch(self) -> float:
        """Number of steps that read as many samples as the corpora have."""
        orders = (part.order for part in self.parts)
        return sum(order.num_visits * order.samples_per_visit for order in orders) / self.num_orders


class StageStart(NamedTuple):
    """The beginning of a stage, where the one before it has stopped.

    step: its first training step. skipped_tokens: tokens that are never read in this epoch because of the change.
    """

    step: int
    skipped_tokens: int


class SamplePlace(NamedTuple):
    """A sample's stage, corpus, and position in it. in_memory: see `StreamVisit`."""

    stage: int
    corpus: int
    position: BlockPosition
    in_memory: int


class _Stage(ABC):
    """The arithmetic of one stage. first: its first data step. begun: visits that have begun before it."""

    first: int
    begun: int
    skipped_tokens = 0

    @abstractmethod
    def visit(self, *, step: int, stream: int) -> StreamVisit:
        """The sample of an order's stream, `step` data steps after the stage has begun."""

    @abstractmethod
    def begun_after(self, steps: int) -> int:
        """About the number of visits that have begun `steps` data steps after the stage has."""


class _Reading(_Stage):
    """A stage in contiguous order."""

    def __init__(self, first: int, reading: ContiguousStage):
        self.first, self.reading, self.begun = first, reading, reading.entry.num_begun
        self.skipped_tokens = reading.skipped_tokens

    def visit(self, *, step: int, stream: int) -> StreamVisit:
        return self.reading.visit(step=step, stream=stream)

    def begun_after(self, steps: int) -> int:
        return self.begun + steps * self.reading.num_streams // self.reading.samples_per_block


class _Drawing(_Stage):
    """A stage in shuffled order."""

    def __init__(self, first: int, begun: int, num_streams: int):
        self.first, self.begun, self.num_streams = first, begun, num_streams

    def visit(self, *, step: int, stream: int) -> StreamVisit:
        return StreamVisit(self.begun + (step + 1) * self.num_streams - 1 - stream, 0, 0)

    def begun_after(self, steps: int) -> int:
        return self.begun + steps * self.num_streams


class StagedSamples(TrainSamples):
    """The training samples of a run with stages: the first one reads as a run without stages does.

    Each corpus is read in one order through all stages. In contiguous order every stream keeps its place
    (`ContiguousStage`). In shuffled order reading goes on with the next sample if the samples stay the same, else with
    the first sample of the next window of blocks.
    """

    def __init__(self, names: Sequence[str], stages: Sequence[StageData], windows: Sequence[Window] = ()):
        """names: of the corpora; of one dataset alone, none. windows: skipped data steps; stages begin at the same
        training steps nevertheless."""
        self.names, self.data, self._windows = names, stages, windows
        self._is_contiguous = isinstance(stages[0].parts[0].order, Contiguous)
        firsts = [shifted_step(stage.first, windows)[0] if stage.first else 0 for stage in stages]
        self._firsts = firsts
        self._stages: list[_Stage] = self._read_on() if self._is_contiguous else self._draw_on()
        changes = [(self._begun(i), stage.weights) for i, stage in enumerate(stages)]
        self.schedule = MixtureSchedule(
            stages[0].weights, [None] * len(stages[0].weights), changes=[*_without_repeats(changes)][1:]
        )
        self._place_corpora()

    def with_windows(self, windows: Sequence[Window]) -> StagedSamples:
        """The same samples after other data steps were skipped."""
        return StagedSamples(self.names, self.data, windows)

    @property
    def starts(self) -> list[StageStart]:
        """The beginning of each stage."""
        return [
            StageStart(data.first, stage.skipped_tokens) for data, stage in zip(self.data, self._stages, strict=True)
        ]

    @property
    def steps_per_epoch(self) -> float:
        """Number of steps of the first stage that read as many samples as the data have."""
        return self.data[0].steps_per_epoch

    def passes(self, step: int) -> float:
        """Passes over the data after `step` data steps."""
        ends = [*self._firsts[1:], step]
        lengths = (max(min(end, step) - first, 0) for first, end in zip(self._firsts, ends, strict=True))
        return sum(length / stage.steps_per_epoch for stage, length in zip(self.data, lengths, strict=True))

    @property
    def corpora(self) -> Sequence[str]:
        """Names of the corpora."""
        return self.names

    @property
    def is_remote(self) -> bool:
        """True if any corpus is remote."""
        return any(part.is_remote for part in self.data[0].parts)

    def corpus(self, *, step: int, stream: int) -> int:
        """Index of a sample's corpus."""
        i, visit = self._visit(step=step, stream=stream)
        return self._number(i, visit.visit)[0]

    def epochs(self, step: int) -> dict[str, float]:
        """Passes over each corpus before a step, by assigned visits."""
        i = self._index(step)
        stage = self._stages[i]
        read = self.schedule.counts(stage.begun_after(step - stage.first) - self._ahead) + self._shifts[i]
        visits = (part.order.num_visits for part in self.data[i].parts)
        return {name: int(count) / num for name, count, num in zip(self.names, read, visits, strict=False)}

    def sample(self, *, step: int, stream: int) -> Sample:
        """The sample that `stream` reads at `step`."""
        place = self.place(step=step, stream=stream)
        parts = self.data[place.stage].parts
        part = parts[place.corpus]
        sample = part.read(place.position, stream=stream, samples_read=0)
        before = sum(other.num_samples for other in parts[: place.corpus])
        return replace(
            sample,
            sample_index=sample.sample_index + before,
            mem_valid_len=min(part.mem_len, place.in_memory) if isinstance(part, StreamSamples) else 0,
        )

    def place(self, *, step: int, stream: int) -> SamplePlace:
        """The place of the sample that `stream` reads at `step`, in time logarithmic in the number of stages."""
        i, visit = self._visit(step=step, stream=stream)
        corpus, number = self._number(i, visit.visit)
        position = self.data[i].parts[corpus].order.at(number, visit.sample)
        return SamplePlace(i, corpus, position, visit.in_memory)

    def prefetch(self, *, step: int, stream: int) -> None:
        """Start to fetch the blocks of a sample; none of streams that are not read at that step."""
        i = self._index(step)
        if stream < self.data[i].num_streams:
            place = self.place(step=step, stream=stream)
            self.data[i].parts[place.corpus].prefetch_at(place.position)

    def _visit(self, *, step: int, stream: int) -> tuple[int, StreamVisit]:
        i = self._index(step)
        data = self.data[i]
        own = min(stream, data.num_streams - 1)
        own = own // 2 if data.parts[0].bidirectional_streams else own
        return i, self._stages[i].visit(step=step - self._firsts[i], stream=own)

    def _number(self, stage: int, visit: int) -> tuple[int, int]:
        """The corpus of a visit, and the visit's number in that corpus's order in this stage."""
        if not self.names:
            if self._is_contiguous:
                orders = self.data[0].num_orders
                return 0, block_number(visit, num_streams=orders, reversed_below=self._reversed_below)
            orders = self.data[stage].num_orders
            in_step = (visit - self._stages[stage].begun) % orders
            return 0, visit + orders - 1 - 2 * in_step + int(self._shifts[stage][0])
        corpus, number = self.schedule.corpus_at(visit)
        return corpus, number + int(self._shifts[stage][corpus])

    def _index(self, step: int) -> int:
        return bisect.bisect_right(self._firsts, step) - 1

    @property
    def _ahead(self) -> int:
        """Visits that have begun before the first step."""
        return self._stages[0].begun

    def _begun(self, stage: int) -> int:
        return self._stages[stage].begun if stage else 0

    def _read_on(self) -> list[_Stage]:
        first = self.data[0].parts[0]
        assert isinstance(first, StreamSamples)
        places = StreamPlaces.at_start(
            total=max(stage.num_orders for stage in self.data),
            num_streams=self.data[0].num_orders,
            new_tokens=self.data[0].new_tokens,
            block_tokens=first.block_tokens,
        )
        found: list[_Stage] = []
        for stage, at, end in zip(self.data, self._firsts, [*self._firsts[1:], None], strict=True):
            reading = ContiguousStage(places, num_streams=stage.num_orders, new_tokens=stage.new_tokens)
            found.append(_Reading(at, reading))
            places = reading.after(end - at) if end is not None else places
        return found

    @property
    def _reversed_below(self) -> int | None:
        if len(self._stages) == 1:
            return None
        rounds = self.data[0].num_orders
        return -(-self._stages[1].begun // rounds) * rounds

    def _draw_on(self) -> list[_Stage]:
        found: list[_Stage] = []
        begun = 0
        for stage, at, end in zip(self.data, self._firsts, [*self._firsts[1:], None], strict=True):
            found.append(_Drawing(at, begun, stage.num_orders))
            begun = found[-1].begun_after(end - at) if end is not None else begun
        return found

    def _place_corpora(self) -> None:
        """Find by how much the visits' numbers differ from their counts, by stage and corpus: samples may change."""
        number = len(self.data[0].parts)
        self._shifts = [np.zeros(number, np.int64)]
        for i in range(1, len(self.data)):
            shift = self._shifts[-1].copy()
            read = self.schedule.counts(self._begun(i))
            for corpus in range(number):
                before, now = (self.data[j].parts[corpus] for j in (i - 1, i))
                if isinstance(before.order, Shuffled) and isinstance(now.order, Shuffled) and before is not now:
                    at = int(read[corpus] + shift[corpus])
                    begins, skipped = now.order.next_window_after(at, before.order)
                    shift[corpus] = begins - int(read[corpus])
                    self._stages[i].skipped_tokens += skipped * self.data[i - 1].new_tokens
            self._shifts.append(shift)


def _without_repeats(changes: Sequence[tuple[int, Sequence[float]]]) -> Sequence[tuple[int, Sequence[float]]]:
    """The changes that change the weights."""
    return [each for i, each in enumerate(changes) if i == 0 or tuple(each[1]) != tuple(changes[i - 1][1])]
