"""Bytes that each rank sends in a training step, by the formulas of rings, and how much of it is hidden by work.

A ring of n ranks reduces or gathers a buffer in n - 1 rounds, in each of which every rank sends one n-th of it
(Patarasu and Yuan 2009). ZeRO's volumes: Rajbhandari et al. 2019 (arXiv:1910.02054), section 7; and what DeepSpeed
0.19 does (docs/decisions/0046).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from xlpretrain.config.run_config import RunConfig
from xlpretrain.engine.config import DTYPES, DeepSpeedConfig, options_on_gpus

_BUCKET = 500_000_000
"""DeepSpeed's default size of a bucket, in elements."""
_PERSISTENT = 100_000
"""Elements up to which DeepSpeed's stage 3 keeps a parameter whole."""


@dataclass(frozen=True)
class Exchange:
    """A collective operation of a step."""

    name: str
    sent_bytes: float
    """By each rank, in a step."""
    num_calls: int
    """In a step."""
    overlaps: bool
    """True if it runs while the device computes."""


def sent_in_all_reduce(num_bytes: float, num_ranks: int) -> float:
    """Bytes that each rank sends to sum a buffer over all ranks: a reduce-scatter and an all-gather."""
    return 2 * sent_in_all_gather(num_bytes, num_ranks)


def sent_in_all_gather(num_bytes: float, num_ranks: int) -> float:
    """Bytes that each rank sends so that all get a whole buffer, or in a reduce-scatter of one.

    num_bytes: size of the whole buffer.
    """
    return num_bytes * (num_ranks - 1) / num_ranks


def exchanges(
    config: RunConfig, *, num_parameters: int, num_tensors: int, num_micro_batches: int, num_ranks: int, on_gpus: bool
) -> list[Exchange]:
    """The collectives of a step for the config's engine; none for a single rank."""
    engine = config.engine
    if num_ranks == 1:
        return []
    gradients = num_parameters * DTYPES[engine.grad_dtype].itemsize
    weights = num_parameters * DTYPES[engine.precision].itemsize
    if not isinstance(engine, DeepSpeedConfig):
        return [Exchange("all-reduce of gradients", sent_in_all_reduce(gradients, num_ranks), 1, overlaps=False)]
    stage = engine.actual_stage
    ours = options_on_gpus(stage, num_ranks=num_ranks) if on_gpus else {}
    options = {**ours, **engine.deepspeed.get("zero_optimization", {})}
    buckets = math.ceil(num_parameters / float(options.get("reduce_bucket_size", _BUCKET)))
    overlaps = bool(options.get("overlap_comm", stage == 3)) and on_gpus
    if stage == 0:
        return [Exchange("all-reduce of gradients", sent_in_all_reduce(gradients, num_ranks), buckets, overlaps=False)]
    # Stage 2 and 3 keep no whole gradient, so each micro-batch's is reduced.
    times = num_micro_batches if stage > 1 else 1
    if stage < 3:
        reduced = times * sent_in_all_reduce(gradients, num_ranks)
        gathered = sent_in_all_gather(weights, num_ranks)
        return [
            Exchange("all-reduce of gradients", reduced, times * buckets, overlaps),
            Exchange("all-gather of weights", gathered, math.ceil(num_parameters / _BUCKET), overlaps=False),
        ]
    return [
        Exchange(
            "reduce-scatter of gradients", times * sent_in_all_gather(gradients, num_ranks), times * buckets, overlaps
        ),
        Exchange(
            "all-gather of weights",
            2 * times * sent_in_all_gather(weights, num_ranks),  # for the forward and for the backward pass
            2 * times * num_tensors,
            overlaps,
        ),
    ]
