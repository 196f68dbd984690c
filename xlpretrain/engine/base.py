"""The engine interface, which runs training steps: `zero` (DeepSpeed) and `plain` (torch only, the reference)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from xlpretrain.engine.state_shards import Partition, ReadRange, StateShard
from xlpretrain.models.pretraining_model import Batch, Loss, PretrainingModel
from xlpretrain.optim.groups import GroupSummary


class LossTermScales:
    """Scales loss sums into the step's loss: sum_k weight_k * sums_k / counts_k."""

    def __init__(self, weights: Mapping[str, float]):
        self._weights = weights
        self._scales: dict[str, float] = {}

    def start(self, counts: Mapping[str, int | float]) -> None:
        """Start a step with these counts over all micro-batches and ranks; a term with count 0 contributes nothing."""
        self._scales = {term: w / counts[term] if counts[term] else 0.0 for term, w in self._weights.items()}

    def total(self, loss: Loss) -> Float[Tensor, ""]:
        """One micro-batch's part of the step's loss. If it is not finite, all its gradients are NaN."""
        total = torch.stack([loss.sums[term] * scale for term, scale in self._scales.items()]).sum()
        # Computed on the device, to avoid a synchronization. A loss of NaN or inf can have finite gradients.
        return total * torch.where(total.detach().isfinite(), 1.0, torch.nan)


class Engine(ABC):
    """Base class of engines. Every rank must call every method, in the same order.

    ZeRO 2 and 3 reduce gradients in the order in which they are computed, so every parameter must be used in every
    forward pass, even that of a micro-batch without samples.
    """

    model: PretrainingModel
    device: torch.device
    shapes: Mapping[str, torch.Size]
    """Shape of every parameter by name; tied parameters appear once. (Under ZeRO-3 the model's tensors are empty.)"""
    kinds: Mapping[str, tuple[str, ...]]
    """Kinds of state kept for each parameter, by name: `weight`, the optimizer's state keys, `average` if kept."""
    groups: Sequence[GroupSummary]
    """Parameter groups of the optimizer."""
    layout: Mapping[str, str | int]
    """Settings that must be equal for a resume to be bit-identical: engine, stage, precision and so on."""
    libraries: ClassVar[tuple[str, ...]] = ()
    """Packages, besides torch, whose versions must match for a bit-identical resume."""
    _state: Partition

    def set_num_micro_batches(self, number: int) -> None:
        """Set the number of `backward` calls in a step, between two steps."""
        self.layout = {**self.layout, "micro_batches": number}

    @abstractmethod
    def start_step(self, counts: Mapping[str, int | float]) -> None:
        """Start a step whose loss terms have `counts` predictions over all micro-batches and ranks."""

    @abstractmethod
    def forward(self, batch: Batch, mems: Float[Tensor, "L B M D"]) -> tuple[Loss, Float[Tensor, "L B M D"]]:
        """Run one micro-batch in training mode; returns its loss and its streams' next memory."""

    @abstractmethod
    def backward(self, loss: Loss) -> None:
        """Add the gradient of sum_k weight_k * sums_k / counts_k; a term with count 0 contributes nothing.

        A loss that is not finite makes the whole step's gradient NaN on every rank.
        """

    @abstractmethod
    def update(self, lr: float) -> Float64[Tensor, ""]:
        """Reduce and clip gradients and update once, each group with learning rate `lr` times its `lr_factor`.

        Returns the global gradient norm before clipping: on the device if it was not read there, else on the CPU. If it
        is not finite, the update is skipped on every rank: weights and optimizer state do not change.
        """

    @abstractmethod
    def evaluate(self, batch: Batch, mems: Float[Tensor, "L B M D"]) -> tuple[Loss, Float[Tensor, "L B M D"]]:
        """Run one micro-batch in evaluation mode, without gradients."""

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Compute with the moving average (`optimizer.average`) in place of the weights. For evaluation only.

        No other state may be saved or loaded meanwhile. The weights are the same in every bit afterwards.
        """
        self._state.swap_average()
        self._copy_to_model()
        try:
            yield
        finally:
            self._state.swap_average()
            self._copy_to_model()

    def state_ranges(self) -> list[StateShard]:
        """The state that this rank must save to resume. Call it only between steps."""
        return self._state.ranges()

    def ranges_to_load(self) -> list[tuple[str, int, int]]:
        """The ranges (name, start, stop) that loading reads on this rank, for each kind of a parameter's state."""
        return self._state.ranges_to_load()

    @property
    def num_updates(self) -> int:
        """Number of updates made, not counting skipped ones. Reading it may wait for the device."""
        return int(self._state.num_updates)

    def load_state(self, read: ReadRange, updates: int) -> None:
        """Load a saved state, written by any engine, ZeRO stage and world size."""
        self._state.load(read, updates)
        self._copy_to_model()

    def load_weights(self, read: ReadRange, *, fresh: Set[str] = frozenset()) -> None:
        """Load only the weights (kind `weight`), except for the `fresh` parameters; resets the optimizer."""
        self._state.load(read, None, fresh=fresh)
        self._copy_to_model()

    def _set_rates(self, lr: float) -> None:
        for group in self._state.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_factor", 1.0)

    @abstractmethod
    def _copy_to_model(self) -> None:
        """Copy the master weights into the weights that the model computes with, on every rank."""
