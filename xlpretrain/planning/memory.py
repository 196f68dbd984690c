"""The memory of one rank of a run, by part, and the largest micro-batch for a given amount of it.

    memory_of(config, vocab_size=32000, num_ranks=8, device="cuda").peak

Nothing of the model's size is allocated: activations are counted on tensors without values (`activations`), the state
follows from the parameters' shapes (`training_state`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from xlpretrain.config.run_config import RunConfig
from xlpretrain.engine.config import DeepSpeedConfig
from xlpretrain.planning.activations import DeviceKind, PassCounter, PassMemory
from xlpretrain.planning.counting.training_state import state_memory

_STEPS_READ = 4
"""Steps of micro-batches in memory: the current one, two that are ready (`data/loader.py`), and one in the making."""
_RUNTIME = {"cpu": 130 * 2**20, "cuda": 0}
"""Threads, their stacks, allocation arenas and kernels' scratch memory, as measured (`benchmarks/plan.py`). On a GPU
the CUDA context is outside of what torch allocates, and missing from the memory that is free."""
_STAGE_3 = {"cpu": 48 * 2**20, "cuda": 0}
"""What stage 3 takes besides, for models of any size: 50 to 54 MB were measured with 2 and 6 million parameters."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one rank.

    Attributes:
        parts: of its device's memory (its own, on a CPU) at the worst moment; their sum is `peak`.
        moment: what happens then: "forward and backward", "reduction of gradients", "update", or
            "setup" on a CPU, where a new model is in fp32.
        moments: the peak of each of these.
        host: in the host's memory beside a GPU; empty on a CPU.
        untouched: address space that is reserved and never used, in addition to `peak`; RLIMIT_DATA counts it.
    """

    parts: Mapping[str, int]
    moment: str
    moments: Mapping[str, int]
    micro_batch_size: int
    host: Mapping[str, int] = field(default_factory=dict)
    untouched: int = 0

    @property
    def peak(self) -> int:
        """Bytes at the worst moment."""
        return sum(self.parts.values())

    def describe(self) -> str:
        """One line per part, the largest first, then the sum."""
        rows = [*sorted(self.parts.items(), key=lambda item: -item[1]), (f"peak, in {self.moment}", self.peak)]
        rows = [(name, size) for name, size in rows if size]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"  {name:<{width}} {readable(size):>9}" for name, size in rows)


def readable(num_bytes: int) -> str:
    """A size in MiB or GiB."""
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"


class MemoryPlanner:
    """Plans of one run at any `micro_batch_size`, for which its model is counted only once."""

    def __init__(self, config: RunConfig, *, vocab_size: int, num_ranks: int, device: DeviceKind):
        self._config, self._num_ranks, self._device = config, num_ranks, device
        self._passes = PassCounter(config, vocab_size=vocab_size, device=device)
        self._state = state_memory(config, self._passes.model, num_ranks=num_ranks, device=device)
        self._libraries = _RUNTIME[device]
        if isinstance(config.engine, DeepSpeedConfig) and config.engine.actual_stage == 3:
            self._libraries += _STAGE_3[device]

    def at(self, micro_batch_size: int) -> MemoryPlan:
        """The plan with micro-batches of at most this size."""
        state = self._state
        sizes = micro_batch_sizes(self._config, num_ranks=self._num_ranks, micro_batch_size=micro_batch_size)
        one = self._passes.at(max(sizes))
        memories, besides = self._by_streams(one, sizes)
        always = {**state.held, "memories": memories, "libraries": self._libraries}
        if self._device == "cpu":
            always |= besides
        whole = state.held_gradient * state.elements
        earlier = whole if state.accumulates and len(sizes) > 1 else 0
        peak = one.peak(0 if earlier else state.held_gradient)
        kept = min(one.kept, peak)
        moments = {
            "forward and backward": {
                "activations": kept,
                "temporary tensors": peak - kept,
                "gathered weights": state.gathered,
                "whole gradients": earlier,
            },
            "reduction of gradients": {"whole gradients": whole, "temporary tensors": state.reduction},
            "update": {"temporary tensors": state.update},
        }
        if self._device == "cpu":
            # Most tensors of a pass are small enough for the heap, which the C library returns only from its end.
            for moment in ("reduction of gradients", "update"):
                moments[moment]["freed, still resident"] = one.peak()
            moments["setup"] = {"new model": max(0, state.setup - sum(always.values()))}
        totals = {name: sum((*always.values(), *parts.values())) for name, parts in moments.items()}
        worst = max(totals, key=lambda name: totals[name])
        return MemoryPlan(
            parts={**always, **moments[worst]},
            moment=worst,
            moments=totals,
            micro_batch_size=micro_batch_size,
            host=besides if self._device == "cuda" else {},
            untouched=state.untouched,
        )

    def _by_streams(self, one: PassMemory, sizes: list[int]) -> tuple[int, dict[str, int]]:
        """Bytes of memories on the device, and of what is on the host.

        Memories are those that a step reads and those that it leaves behind (`engine.train_step`), or, with
        `engine.memory_device: host`, two sets of buffers there (`HostMemories`) and a few micro-batches' on the device.
        The copy for saves is that of `Saver.reserve`.
        """
        memory, batches = (size * sum(sizes) // max(sizes) for size in (one.next_memory, one.batch))
        besides = {"copy for saves": self._state.saved + memory, "data pipeline": _STEPS_READ * batches}
        if self._config.engine.memory_device == "device":
            return 2 * memory, besides
        besides["memories on the host"] = 2 * memory
        return one.next_memory * (3 if self._device == "cuda" else 1), besides


def memory_of(config: RunConfig, *, vocab_size: int, num_ranks: int, device: DeviceKind) -> MemoryPlan:
    """The memory of one rank of a run; its `micro_batch_size` must be a number.

    Args:
        vocab_size: of the tokenizer.
        device: "cpu", for the paths that the code takes there, or "cuda".
    """
    assert isinstance(config.micro_batch_size, int), "resolved"
    planner = MemoryPlanner(config, vocab_size=vocab_size, num_ranks=num_ranks, device=device)
    return planner.at(config.micro_batch_size)


def largest_micro_batch(
    config: RunConfig, *, vocab_size: int, num_ranks: int, device: DeviceKind, limit_bytes: int
) -> int | None:
    """The largest `micro_batch_size` whose peak is at most `limit_bytes`; None if not even 1 fits."""
    planner = MemoryPlanner(config, vocab_size=vocab_size, num_ranks=num_ranks, device=device)
    sizes = candidates(config, num_ranks=num_ranks)
    return next((size for size in sizes if planner.at(size).peak <= limit_bytes), None)


def candidates(config: RunConfig, *, num_ranks: int) -> list[int]:
    """The sizes of micro-batches that differ, the largest first: one for each number of micro-batches in a step.

    `global_batch_size` and the ranks give a rank its streams, which are split as evenly as possible
    (`distributed.micro_batches`).
    """
    streams = max(math.ceil(len(group.streams) / num_ranks) for group in config.stream_groups)
    return sorted({math.ceil(streams / number) for number in range(1, streams + 1)}, reverse=True)


def micro_batch_sizes(config: RunConfig, *, num_ranks: int, micro_batch_size: int) -> list[int]:
    """The sizes of the micro-batches of the rank that has most streams."""
    sized = config.model_copy(update={"micro_batch_size": micro_batch_size})
    ranks = (sized.micro_batches(rank, num_ranks) for rank in {0, num_ranks - 1})
    return max(([len(streams) for streams in found] for found in ranks), key=sum)
