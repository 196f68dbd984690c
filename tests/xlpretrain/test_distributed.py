from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torchrun import torchrun

from xlpretrain import distributed
from xlpretrain.errors import RankError
from xlpretrain.machine import cpus


@given(world_size=st.integers(1, 64), num_streams=st.integers(1, 300), micro_batch_size=st.integers(1, 70))
def test_micro_batches_cover_every_stream_once_in_order_evenly(
    world_size: int, num_streams: int, micro_batch_size: int
) -> None:
    cuts = [
        distributed.micro_batches(rank, world_size, num_streams=num_streams, micro_batch_size=micro_batch_size)
        for rank in range(world_size)
    ]
    assert [s for of_rank in cuts for streams in of_rank for s in streams] == list(range(num_streams))
    largest_share = -(-num_streams // world_size)
    assert {len(of_rank) for of_rank in cuts} == {-(-largest_share // micro_batch_size)}
    for rank, of_rank in enumerate(cuts):
        sizes = [len(streams) for streams in of_rank]
        assert max(sizes) <= micro_batch_size
        assert max(sizes) - min(sizes) <= 1
        assert sum(sizes) == len(distributed.streams_of(rank, world_size, num_streams))


def test_without_an_environment_the_group_is_a_real_one_of_one() -> None:
    device = distributed.init()
    try:
        assert dist.is_initialized() and (distributed.rank(), distributed.world_size()) == (0, 1)
        assert device == torch.device("cpu") or device.type == "cuda"
        assert distributed.all_reduce_sum([1.5, 2.0]) == [1.5, 2.0]
        assert distributed.gather_objects("a") == ["a"] and distributed.broadcast_object("b") == "b"
    finally:
        distributed.shutdown()
    assert not dist.is_initialized() and distributed.world_size() == 1


def test_gpus_get_a_backend_for_messages_on_the_cpu_beside_nccl():
    cuda = torch.device("cuda", 3)
    assert distributed.backend_for(torch.device("cpu"), has_nccl=True) == "gloo"
    assert distributed.backend_for(cuda, has_nccl=True) == "cpu:gloo,cuda:nccl"
    assert distributed.backend_for(cuda, has_nccl=False) == "gloo"


def test_a_rank_with_a_gpu_runs_on_the_cpus_near_it_and_exchanges_messages_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With torch's calls to CUDA and the scheduler's replaced, on a build of torch without NCCL."""
    cpu = min(os.sched_getaffinity(0))
    node, gpu = tmp_path / "devices/system/node/node1", tmp_path / "bus/pci/devices/0001:3b:00.0"
    for folder, file, text in ((node, "cpulist", f"{cpu}\n"), (gpu, "numa_node", "1\n")):
        folder.mkdir(parents=True)
        (folder / file).write_text(text)
    monkeypatch.setattr(cpus, "SYS", tmp_path)
    properties = SimpleNamespace(pci_domain_id=1, pci_bus_id=0x3B, pci_device_id=0)
    for name, value in (
        ("is_available", lambda: True),
        ("device_count", lambda: 1),
        ("set_device", lambda device: None),
        ("get_device_properties", lambda device: properties),
    ):
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(dist, "is_nccl_available", lambda: False)
    bound: list[set[int]] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: bound.append(cpus))
    threads = torch.get_num_threads()
    try:
        for off in ("", "off"):
            monkeypatch.setenv(cpus.AFFINITY_ENV, off)
            assert distributed.init() == torch.device("cuda", 0)
            assert distributed.all_reduce_sum([1.5]) == [1.5]
            distributed.shutdown()
            assert bound == [{cpu}]
    finally:
        distributed.shutdown()
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"WORLD_SIZE": "", "MASTER_PORT": ""}, "RANK is set, but not WORLD_SIZE, MASTER_PORT: start ranks with"),
        ({"RANK": "2"}, "RANK=2 and WORLD_SIZE=2: expected integers, with ranks from 0 to WORLD_SIZE - 1"),
        ({"RANK": "one", "LOCAL_RANK": "-1"}, "RANK=one, LOCAL_RANK=-1: expected integers"),
        ({}, r"rank 1 of 2 cannot connect to the others at localhost:1 \(MASTER_ADDR, MASTER_PORT\): "),
    ],
    ids=["missing", "too many", "no number", "nobody there"],
)
def test_a_rank_that_cannot_meet_the_others_is_one_message(
    changes: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1", **changes}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RankError, match=message):
        distributed.init(timeout_s=1)
    assert not dist.is_initialized()


def test_two_ranks_see_the_same(tmp_path: Path) -> None:
    torchrun("distributed_cases.py", tmp_path, nproc=2)
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for rank, of_rank in enumerate(seen):
        assert of_rank["world_size"] == 2 and of_rank["local_rank"] == rank
        assert of_rank["sum"] == [2.0**53, 0.1]
        assert of_rank["gathered"] == [{"rank": 0}, {"rank": 1}]
        assert of_rank["broadcast"] == "from 0"
        # Not 1, which torchrun asks for by OMP_NUM_THREADS: ranks share the machine's cores whoever starts them.
        assert of_rank["threads"] == max(1, len(os.sched_getaffinity(0)) // 2)
