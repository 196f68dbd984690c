"""Ranks: the process group, the few collectives the loop needs, and which streams a rank works on.

Under torchrun (or with its environment variables) the group spans the job. Without them it is a real group of one, so
that there is one code path.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from xlpretrain.errors import LaunchError, RankError, XLPretrainError

T = TypeVar("T")
_OF_MACHINE = ("LOCAL_RANK", "LOCAL_WORLD_SIZE")


def init(*, timeout_s: float = 1800.0) -> torch.device:
    """Join the process group, and set this rank's device and CPU threads. Every rank must call it, once.

    gloo on CPU, NCCL on CUDA. Raises `RankError` where this machine has fewer GPUs than ranks, where the environment
    does not tell who this rank is, and where the others are not met.
    """
    _check_environment(os.environ)
    # Set here, not left to torchrun (which means 1 by OMP_NUM_THREADS): the same run whoever starts it.
    threads = max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.set_num_threads(threads)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        if local_rank() >= torch.cuda.device_count():
            raise RankError(
                f"local rank {local_rank()} has no GPU: this machine shows {torch.cuda.device_count()}; "
                "start at most that many processes here"
            )
        device = torch.device("cuda", local_rank())
        torch.cuda.set_device(device)
    timeout = timedelta(seconds=timeout_s)
    backend = "gloo" if device.type == "cpu" else "nccl"
    if "RANK" in os.environ:
        try:
            dist.init_process_group(backend, timeout=timeout)
        except (dist.DistError, ValueError) as error:
            meet_at = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            raise RankError(
                f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} does not meet the others at {meet_at}"
                f" (MASTER_ADDR, MASTER_PORT): {str(error).splitlines()[0]}"
            ) from error
    else:
        dist.init_process_group(
            backend, timeout=timeout, store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1
        )
    return device


def _check_environment(environment: Mapping[str, str]) -> None:
    """Raise `RankError` where only a part of what a rank is told is there, or is no rank."""
    needed = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in needed if not environment.get(name)]
    if "RANK" not in environment:
        return
    fix = "start ranks with torchrun or `xlpretrain train`, which set them all, or unset RANK to run alone"
    if missing:
        raise RankError(f"RANK is set, but not {', '.join(missing)}: {fix}")
    numbers = {name: environment.get(name, "0") for name in ("RANK", "WORLD_SIZE", "MASTER_PORT", *_OF_MACHINE)}
    bad = [f"{name}={value}" for name, value in numbers.items() if not value.isdecimal()]
    if bad or not int(numbers["RANK"]) < int(numbers["WORLD_SIZE"]):
        bad = bad or [f"RANK={numbers['RANK']} and WORLD_SIZE={numbers['WORLD_SIZE']}"]
        raise RankError(f"{', '.join(bad)}: ranks are whole numbers from 0 to WORLD_SIZE - 1; {fix}")


def shutdown() -> None:
    """Leave the process group. Every rank must call it, after its last collective."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process among all, from 0; 0 outside a group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes; 1 outside a group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """This process among those of its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def all_reduce_sum(values: Sequence[float]) -> list[float]:
    """The values summed over ranks in float64 (exact for counts below 2^53). Every rank must call it."""
    total = torch.tensor(values, dtype=torch.float64, device=_device())
    if world_size() > 1:
        dist.all_reduce(total)
    return [float(value) for value in total.tolist()]


def barrier() -> None:
    """Wait for every rank."""
    all_reduce_sum([0.0])


def gather_objects(value: Any) -> list[Any]:
    """The picklable `value` of every rank, in their order, on every rank. Every rank must call it."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast_object(value: Any) -> Any:
    """Rank 0's picklable `value`, on every rank. Every rank must call it."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def run_on_rank_0(call: Callable[[], T]) -> T:
    """Run `call` on rank 0 and return its result on every rank. Every rank must call it.

    What the user did wrong there, and what the file system refused, is raised on every rank as `XLPretrainError`.
    """
    result: T | None = None
    error: XLPretrainError | None = None
    if rank() == 0:
        try:
            result = call()
        except XLPretrainError as caught:
            error = caught
        except OSError as caught:
            error = LaunchError(f"{caught.filename}: {caught.strerror}")
    result, error = broadcast_object((result, error))
    if error is not None:
        raise error
    return result


def share_trouble(error: XLPretrainError | None) -> None:
    """Raise the first rank's `error` on every rank, if any rank has one. Every rank must call it."""
    for found in gather_objects(error):
        if found is not None:
            raise found


def share_any_trouble(error: XLPretrainError | None) -> None:
    """The same, at the price of one small all-reduce as long as there is no error."""
    if all_reduce_sum([error is not None])[0]:
        share_trouble(error)


def streams_of(rank: int, world_size: int, num_streams: int) -> range:
    """The streams that `rank` works on: consecutive, and as many as the others' to within one."""
    return range(rank * num_streams // world_size, (rank + 1) * num_streams // world_size)


def micro_batches(rank: int, world_size: int, *, num_streams: int, micro_batch_size: int) -> list[range]:
    """A rank's streams cut into micro-batches: as many on every rank, as even as possible.

    Their number is what the largest share needs for none to be above `micro_batch_size`; on another rank one may be
    empty.
    """
    largest_share = math.ceil(num_streams / world_size)
    number = math.ceil(largest_share / micro_batch_size)
    streams = streams_of(rank, world_size, num_streams)
    return [streams[i * len(streams) // number : (i + 1) * len(streams) // number] for i in range(number)]


def _device() -> torch.device:
    """The device of the tensors in the group's collectives."""
    on_cuda = dist.is_initialized() and dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_cuda else torch.device("cpu")
