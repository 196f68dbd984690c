"""Connections and collectives: blocked by the kernel in a network of their own, and real ranks.

Modules: collective.py.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import commands
import pytest
from odd_disks import mounted
from repository import ROOT

from launcher.doctor.findings import Level, parse_findings
from launcher.doctor.network import ports, ranks, shared_folder
from launcher.doctor.request import Request


def in_own_network(command: str) -> subprocess.CompletedProcess[str]:
    """Run shell commands in a network namespace, whose loopback is down at first. Skips the test without root."""
    unshare = ["unshare", "--net", "--", "bash", "-c", command]
    if subprocess.run([*unshare[:3], "true"], capture_output=True).returncode:
        pytest.skip("no network namespaces can be made here")
    return subprocess.run(unshare, capture_output=True, text=True, env=commands.environment())


def doctor(*arguments: str) -> str:
    return shlex.join([str(commands.BIN / "xlpretrain"), "doctor", *arguments])


def test_connections_on_this_machine_are_made():
    found = list(ports.check(Request()))
    assert found[-1].level == Level.PASS and "127.0.0.1" in found[-1].text, found
    assert ports.loopback_problem() == ""


def test_a_loopback_that_is_down_is_named():
    done = in_own_network(doctor("--only", "network"))
    assert done.returncode == 2, done.stderr
    assert "no connection to 127.0.0.1" in done.stdout and "ip link set lo up" in done.stdout


def test_blocked_ports_of_jobs_are_named():
    """The kernel refuses TCP to the ports of jobs, as a firewall does; others are open."""
    first = "ip rule add priority 1 ipproto tcp dport 12000-31999 prohibit"
    local = "ip rule add priority 2 lookup local && ip rule del priority 0"
    done = in_own_network(f"ip link set lo up && {first} && {local} || exit 99; {doctor('--only', 'network')}")
    if done.returncode == 99:
        pytest.skip(f"no such rule can be made here: {done.stderr}")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "no connection to 127.0.0.1: port " in done.stdout and "12000 to 65535" in done.stdout


def test_a_port_that_another_program_holds_is_named():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen(1)
        assert "cannot be opened" in ports._connect("127.0.0.1", other.getsockname()[1])


def test_a_host_name_that_does_not_resolve_has_no_address():
    assert ports.addresses_of("no-such-host.invalid") == []
    assert ports.addresses_of("localhost")


@pytest.mark.full
def test_without_loopback_no_ranks_are_started():
    done = in_own_network(doctor("--only", "ranks", "--nproc", "2"))
    assert done.stdout.startswith("skipped") and "cannot connect to each other" in done.stdout, done.stderr


@pytest.mark.full
def test_ranks_of_this_machine_sum_and_are_measured():
    out, _ = commands.run("doctor", "--only", "ranks", "--nproc", 2)
    assert "gloo: all-reduce over 2 ranks is correct: " in out and "B/s" in out


@pytest.mark.full
def test_no_more_ranks_are_started_than_there_are_devices():
    """One core, however many ranks are asked for."""
    core = min(os.sched_getaffinity(0))
    pinned = ["-c", f"import os, sys; os.sched_setaffinity(0, {{{core}}}); os.execv(sys.argv[1], sys.argv[1:])"]
    program = [str(commands.BIN / "xlpretrain"), "doctor", "--only", "ranks", "--nproc", "1000"]
    out, _ = commands.run(*pinned, *program, program="python")
    assert "1000 ranks: only 1 are started, one per device" in out and "over 1 rank, nothing to exchange" in out


@pytest.mark.full
def test_ranks_that_cannot_join_are_reported_with_their_last_words(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(commands.EXTRA, "GLOO_SOCKET_IFNAME", "nowhere0")
    out, _ = commands.run("doctor", "--only", "ranks", "--nproc", 2, expect=2)
    assert "did not finish an all-reduce" in out and "GLOO_SOCKET_IFNAME" in out and "exited with code" in out


@pytest.mark.full
def test_names_hidden_between_ranks_with_caches_of_their_own_are_found(tmp_path: Path):
    """Two ranks in mount namespaces of their own, in which the folder of runs is one mount or the other."""
    back, runs = tmp_path / "back", tmp_path / "runs"
    back.mkdir()
    runs.mkdir()
    cached = ("-o", "attr_timeout=20,entry_timeout=20,negative_timeout=20")
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    program = (
        "import sys\nfrom launcher.doctor.network import ranks\nfrom launcher.doctor.request import Request\n"
        "sys.exit(ranks.main(Request.from_json(sys.argv[1])))"
    )
    rank_0_or_1 = [sys.executable, "-c", program, Request(runs_dir=str(runs)).to_json()]
    unshare = ["unshare", "--mount", "bash", "-c"]
    with mounted(back, tmp_path / "node0", *cached), mounted(back, tmp_path / "node1", *cached):
        started = [
            subprocess.Popen(
                [*unshare, f'mount --bind {tmp_path}/node{rank} {runs} && exec "$@"', "in", *rank_0_or_1],
                stdout=subprocess.PIPE,
                text=True,
                env={
                    **commands.environment(),
                    "PYTHONPATH": str(ROOT),
                    **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank)},
                },
            )
            for rank in range(2)
        ]
        said = [process.communicate(timeout=200)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    findings, _ = parse_findings(said[0])
    assert any("exclusive creation holds between this process and rank 1" in one.text for one in findings), findings
    (hidden,) = [one for one in findings if "names stay hidden" in one.text]
    assert hidden.level == Level.WARN and f"rank 1 on {os.uname().nodename}" in hidden.text
    assert not list(back.iterdir())


def test_sums_rates_and_clocks_are_judged():
    times = {8: 1e-3, ranks._LARGE_CPU: 0.01}
    (wrong,) = ranks.judge("gloo", "4 ranks", wrong=1, size=1 << 20, times_s=times, exchanged=1.5)
    assert wrong.level == Level.FAIL and "wrong sum" in wrong.text
    (good,) = ranks.judge("gloo", "4 ranks", wrong=0, size=ranks._LARGE_CPU, times_s=times, exchanged=1.5)
    assert good.level == Level.PASS and "2.52 GB/s" in good.text
    (slow,) = ranks.judge("nccl", "4 ranks", wrong=0, size=ranks._LARGE_CPU, times_s=times, exchanged=1.5)
    assert slow.level == Level.WARN and "nvidia-smi topo" in slow.remedy
    (apart,) = ranks.judge_clocks({"node1": 1000.0, "node2": 1000.1, "node3": 1200.0})
    assert apart.level == Level.FAIL and "farthest off: node3 (+199.9 s)" in apart.text
    (near,) = ranks.judge_clocks({"node1": 1000.0, "node2": 1000.1})
    assert near.level == Level.PASS
    assert list(ranks.judge_clocks({"node1": 1000.0})) == []


def test_one_rank_has_no_other_to_look_at_its_folder(group, tmp_path: Path):
    assert shared_folder.check(Request(runs_dir=str(tmp_path)), ["here"]) == []
    (alone,) = ranks.measure(ranks.torch.device("cpu"), "gloo", 1 << 16, [("here", "cpu")])
    assert alone.level == Level.PASS and json.dumps(alone.to_dict())
