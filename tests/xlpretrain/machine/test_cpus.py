"""CPUs near a GPU, on made sysfs trees."""

from __future__ import annotations

from pathlib import Path

import pytest

from xlpretrain.machine import cpus

ALL = set(range(16))


@pytest.fixture
def two_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two NUMA nodes of four cores with two hardware threads: node 0 has 0-3 and 8-11, node 1 has 4-7 and 12-15."""
    monkeypatch.setattr(cpus, "SYS", tmp_path)
    for node, of_node in enumerate(("0-3,8-11\n", "4-7,12-15\n")):
        folder = tmp_path / f"devices/system/node/node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(of_node)
    for cpu in ALL:
        folder = tmp_path / f"devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{cpu % 8},{cpu % 8 + 8}\n")
    for address, node in (("0000:3b:00.0", "1\n"), ("0000:1a:00.0", "-1\n")):
        folder = tmp_path / "bus/pci/devices" / address
        folder.mkdir(parents=True)
        (folder / "numa_node").write_text(node)


@pytest.mark.usefixtures("two_sockets")
def test_the_node_of_a_gpu_is_the_kernels_word_for_it():
    assert cpus.numa_node_of_pci("0000:3b:00.0") == 1
    assert cpus.numa_node_of_pci("0000:1a:00.0") is None  # a machine without NUMA, or a virtual one
    assert cpus.numa_node_of_pci("0000:ff:00.0") is None


@pytest.mark.usefixtures("two_sockets")
def test_ranks_of_a_node_divide_its_cores_and_keep_hardware_threads_together():
    shares = [cpus.cpu_share(rank, [0, 0, 1], [ALL] * 3) for rank in range(3)]
    assert shares == [{0, 1, 8, 9}, {2, 3, 10, 11}, {4, 5, 6, 7, 12, 13, 14, 15}]


@pytest.mark.usefixtures("two_sockets")
def test_only_allowed_cpus_are_used():
    allowed = {1, 2, 3, 9, 12}  # such as a job's part of the machine
    assert [cpus.cpu_share(rank, [0, 0], [allowed] * 2) for rank in range(2)] == [{1, 9}, {2, 3}]


@pytest.mark.usefixtures("two_sockets")
@pytest.mark.parametrize(
    ("nodes", "allowed"),
    [
        ([None, 0], [ALL, ALL]),
        ([0, 0], [{0, 8}, {1, 9}]),
        ([0, 0], [{4, 5}, {4, 5}]),
        ([7, 7], [ALL, ALL]),
        ([0, 0, 0], [{3, 11}] * 3),
    ],
    ids=["unknown node", "bound by the scheduler", "no allowed CPU there", "no such node", "fewer cores than ranks"],
)
def test_a_rank_is_left_where_it_is_without_a_better_place(nodes: list[int | None], allowed: list[set[int]]):
    assert cpus.cpu_share(0, nodes, allowed) is None


def test_the_interface_is_the_one_that_leads_to_the_address():
    assert cpus.interface_towards("127.0.0.1", 12345) == "lo"
    assert cpus.interface_towards("no-such-host.invalid", 12345) is None
