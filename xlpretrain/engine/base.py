"""The interface of an engine, which steps a model: `zero` (DeepSpeed) and `plain` (torch alone, its reference)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from xlpretrain.engine.state_shards import Partition, ReadRange, StateShard
from xlpretrain.models.pretraining_model import Batch, Loss, PretrainingModel
from xlpretrain.optim.groups import GroupSummary


class LossTermScales:
    """From sums to the step's loss: sum_k weight_k * sums_k / counts_k."""

    def __init__(self, weights: Mapping[str, float]):
        self._weights = weights
        self._scales: dict[str, float] = {}

    def start(self, counts: Mapping[str, int]) -> None:
        """A step with these counts over all micro-batches and ranks; a term with none counts for nothing."""
        self._scales = {term: w / counts[term] if counts[term] else 0.0 for term, w in self._weights.items()}

    def total(self, loss: Loss) -> Float[Tensor, ""]:
        """One micro-batch's part of the step's loss. Where it is not finite, so is every gradient of it."""
        total = torch.stack([loss.sums[term] * scale for term, scale in self._scales.items()]).sum()
        # On the device: no wait for the value. A loss of NaN or inf can have gradients that are finite.
        return total * torch.where(total.detach().isfinite(), 1.0, torch.nan)


class Engine(ABC):
    """Every rank calls every method, in the same order.

    Under ZeRO 2 and 3 gradients are reduced in the order in which they come about, so every parameter must take part
    in every forward pass, also in that of a micro-batch without samples.
    """

    model: PretrainingModel
    device: torch.device
    shapes: Mapping[str, torch.Size]
    """Shape of every parameter by name, tied ones once. (Under ZeRO-3 the model's own tensors are empty.)"""
    kinds: Mapping[str, tuple[str, ...]]
    """Kinds of state kept for each parameter, by name: `weight`, then the optimizer's state keys."""
    groups: Sequence[GroupSummary]
    """Parameter groups of the optimizer."""
    layout: Mapping[str, str | int]
    """Settings that must be equal for a resume to be bit-identical: engine, stage, precision and so on."""
    libraries: ClassVar[tuple[str, ...]] = ()
    """Packages beside torch whose versions a bit-identical resume depends on."""
    _state: Partition

    @abstractmethod
    def start_step(self, counts: Mapping[str, int]) -> None:
        """Begin a step whose loss terms have `counts` predictions over all micro-batches and ranks."""

    @abstractmethod
    def forward(self, batch: Batch, mems: Float[Tensor, "L B M D"]) -> tuple[Loss, Float[Tensor, "L B M D"]]:
        """Run one micro-batch through the model in training mode: its loss, and its streams' next memory."""

    @abstractmethod
    def backward(self, loss: Loss) -> None:
        """Add the gradient of sum_k weight_k * sums_k / counts_k; a term with count 0 contributes nothing.

        A loss that is not finite makes the whole step's gradient NaN on every rank.
        """

    @abstractmethod
    def update(self, lr: float) -> float:
        """Reduce, clip and update once, each group with `lr` times its `lr_factor`.

        Returns the global gradient norm before clipping.

        Where the norm is not finite, no weight and no optimizer state changes, on any rank.
        """

    @abstractmethod
    def evaluate(self, batch: Batch, mems: Float[Tensor, "L B M D"]) -> tuple[Loss, Float[Tensor, "L B M D"]]:
        """Forward in evaluation mode, without gradients."""

    def state_ranges(self) -> list[StateShard]:
        """The state that this rank must save to resume. Call it only between steps."""
        return self._state.ranges()

    def ranges_to_load(self) -> list[tuple[str, int, int]]:
        """(name, start, stop) of what loading will read on this rank, for every kind that the parameter has."""
        return self._state.ranges_to_load()

    @property
    def num_updates(self) -> int:
        """Number of updates made (skipped ones excluded)."""
        return self._state.num_updates

    def load_state(self, read: ReadRange, updates: int) -> None:
        """Take over a saved state, of any engine, stage and world size."""
        self._state.load(read, updates)
        self._copy_to_model()

    def load_weights(self, read: ReadRange, *, fresh: Set[str] = frozenset()) -> None:
        """Take over the weights alone (kind `weight`) but for the `fresh` parameters; the optimizer starts anew."""
        self._state.load(read, None, fresh=fresh)
        self._copy_to_model()

    def _set_rates(self, lr: float) -> None:
        for group in self._state.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_factor", 1.0)

    @abstractmethod
    def _copy_to_model(self) -> None:
        """The masters into the weights that the model computes with, on every rank."""
