"""Process group, collectives of the training loop, and the assignment of streams to ranks.

Under torchrun (or with its environment variables) the group spans the job. Without them it is a group of one process,
so that there is a single code path.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from xlpretrain.errors import LaunchError, RankError, XLPretrainError
from xlpretrain.machine import cpus
from xlpretrain.profiling.names import COMMUNICATION
from xlpretrain.profiling.ranges import named

T = TypeVar("T")
_OF_MACHINE = ("LOCAL_RANK", "LOCAL_WORLD_SIZE")
_waited_s = 0.0


def init(*, timeout_s: float = 1800.0) -> torch.device:
    """Join the process group and set this rank's device and CPU threads. Every rank must call it, once.

    Tensors on the CPU are sent by gloo, those on a GPU by NCCL, which is bound to this rank's GPU.

    Raises `RankError` if this machine has fewer GPUs than ranks, if the environment variables of the rank are
    incomplete, and if it cannot connect to the other ranks.
    """
    _check_environment(os.environ)
    # Set here, since torchrun would set 1 by OMP_NUM_THREADS: results must not depend on the launcher.
    threads = max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.set_num_threads(threads)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        if local_rank() >= torch.cuda.device_count():
            raise RankError(
                f"local rank {local_rank()} has no GPU: this machine has {torch.cuda.device_count()}; "
                "start at most that many ranks here"
            )
        device = torch.device("cuda", local_rank())
        torch.cuda.set_device(device)
    timeout = timedelta(seconds=timeout_s)
    backend = backend_for(device, has_nccl=dist.is_nccl_available())
    if "RANK" in os.environ:
        # In a group of one, a bound device only makes DeepSpeed's groups split communicators without peers.
        bound = device if "nccl" in backend and int(os.environ["WORLD_SIZE"]) > 1 else None
        if bound is not None and int(os.environ["WORLD_SIZE"]) > int(os.environ.get("LOCAL_WORLD_SIZE", "1")):
            _choose_interface_of_gloo(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        try:
            dist.init_process_group(backend, timeout=timeout, device_id=bound)
        except (dist.DistError, ValueError) as error:
            meet_at = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            raise RankError(
                f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} cannot connect to the others at {meet_at}"
                f" (MASTER_ADDR, MASTER_PORT): {str(error).splitlines()[0]}"
            ) from error
    else:
        dist.init_process_group(
            backend, timeout=timeout, store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1
        )
    if device.type == "cuda":
        _bind_to_cpus_near(device)
    return device


def backend_for(device: torch.device, *, has_nccl: bool) -> str:
    """The backends of a process group whose ranks compute on `device`.

    On CUDA it has two, so that messages between the ranks' Python code (counts, stops, errors) neither wait for the
    work queued on the GPU nor copy anything to it.
    """
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" and has_nccl else "gloo"


def _choose_interface_of_gloo(address: str, port: int) -> None:
    """Let gloo use the network that leads to rank 0's machine; by itself it needs a host name that resolves."""
    interface = cpus.interface_towards(address, port)
    if interface not in (None, "lo"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", str(interface))


def _bind_to_cpus_near(device: torch.device) -> None:
    """Run this rank, and the threads that it starts from now on, on its part of its GPU's NUMA node."""
    properties = torch.cuda.get_device_properties(device)
    address = ":".join(
        f"{getattr(properties, name):0{width}x}"
        for name, width in (("pci_domain_id", 4), ("pci_bus_id", 2), ("pci_device_id", 2))
    )
    mine = (os.uname().nodename, local_rank(), cpus.numa_node_of_pci(f"{address}.0"), os.sched_getaffinity(0))
    here = sorted((found for found in gather_objects(mine) if found[0] == mine[0]), key=lambda found: found[1])
    _, ranks, nodes, allowed = zip(*here, strict=True)
    own = cpus.cpu_share(ranks.index(local_rank()), nodes, allowed)
    if own is not None and not cpus.affinity_is_off():
        os.sched_setaffinity(0, own)
        torch.set_num_threads(len(own))


def _check_environment(environment: Mapping[str, str]) -> None:
    """Raise `RankError` if some of a rank's environment variables are missing or invalid."""
    needed = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in needed if not environment.get(name)]
    if "RANK" not in environment:
        return
    fix = "start ranks with torchrun or `xlpretrain train`, which set them all, or unset RANK for a single process"
    if missing:
        raise RankError(f"RANK is set, but not {', '.join(missing)}: {fix}")
    numbers = {name: environment.get(name, "0") for name in ("RANK", "WORLD_SIZE", "MASTER_PORT", *_OF_MACHINE)}
    bad = [f"{name}={value}" for name, value in numbers.items() if not value.isdecimal()]
    if bad or not int(numbers["RANK"]) < int(numbers["WORLD_SIZE"]):
        bad = bad or [f"RANK={numbers['RANK']} and WORLD_SIZE={numbers['WORLD_SIZE']}"]
        raise RankError(f"{', '.join(bad)}: expected integers, with ranks from 0 to WORLD_SIZE - 1; {fix}")


def shutdown() -> None:
    """Leave the process group. Every rank must call it, after its last collective."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Global rank of this process; 0 outside a group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes; 1 outside a group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """Rank of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def all_reduce_sum(values: Sequence[float]) -> list[float]:
    """Sum values over ranks in float64 (exact for counts below 2^53), on the CPU. Every rank must call it."""
    total = torch.tensor(values, dtype=torch.float64)
    if world_size() > 1:
        with waiting():
            dist.all_reduce(total)
    return [float(value) for value in total.tolist()]


@contextmanager
def waiting() -> Iterator[None]:
    """Count the block's time as spent in a collective (see `waited_s`), and name it in a profile."""
    global _waited_s
    before_s, started = _waited_s, time.perf_counter()
    try:
        with named(COMMUNICATION):
            yield
    finally:
        _waited_s = before_s + time.perf_counter() - started  # a block within this one is not counted twice


def waited_s() -> float:
    """Seconds that this process has spent in collectives in which its host waits for other ranks."""
    return _waited_s


def barrier() -> None:
    """Wait for all ranks, not for the work queued on their GPUs. Every rank must call it."""
    all_reduce_sum([0.0])


def gather_objects(value: Any) -> list[Any]:
    """Gather the picklable `value` of each rank, in rank order, on every rank. Every rank must call it."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast_object(value: Any) -> Any:
    """Broadcast rank 0's picklable `value` to every rank. Every rank must call it."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def run_on_rank_0(call: Callable[[], T]) -> T:
    """Run `call` on rank 0 and return its result on every rank. Every rank must call it.

    An `XLPretrainError` or OSError there is raised on every rank as `XLPretrainError`.
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
    """Raise the first error like `share_trouble`; costs one small all-reduce if there is none."""
    if all_reduce_sum([error is not None])[0]:
        share_trouble(error)


def streams_of(rank: int, world_size: int, num_streams: int) -> range:
    """Streams of a rank: consecutive; the numbers of streams of any two ranks differ by at most one."""
    return range(rank * num_streams // world_size, (rank + 1) * num_streams // world_size)


def join_ranges(ranges: Sequence[range]) -> Sequence[int]:
    """The numbers in all of these ranges, in order: a range if there is one, else a list."""
    return ranges[0] if len(ranges) == 1 else [number for some in ranges for number in some]


def micro_batches(rank: int, world_size: int, *, num_streams: int, micro_batch_size: int) -> list[range]:
    """Split a rank's streams into micro-batches of similar size; every rank has the same number of them.

    Their number is the smallest for which no rank's micro-batches exceed `micro_batch_size`; on some ranks one may be
    empty.
    """
    largest_share = math.ceil(num_streams / world_size)
    number = math.ceil(largest_share / micro_batch_size)
    streams = streams_of(rank, world_size, num_streams)
    return [streams[i * len(streams) // number : (i + 1) * len(streams) // number] for i in range(number)]
