"""Alerts: what is sent, to whom, and that nothing can harm the sender. Modules: alerts.py, alert_delivery.py."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from webhook_server import SECRET, receiving

from xlpretrain import schema
from xlpretrain.errors import ConfigError
from xlpretrain.run_dir.alerts import EVENTS, Alerts, AlertsConfig, describe_stop
from xlpretrain.run_dir.layout import RunDir, Status
from xlpretrain.run_dir.outcome import TAKEN_OVER, Verdict

AT_STEP_7 = Status("running", step=7, max_steps=20, url="https://wandb.ai/a/b/runs/c")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "mine" / "logs").mkdir(parents=True)
    return RunDir(tmp_path / "mine")


def sender(run: RunDir, *, limit_s: float = 10.0, **section: object) -> tuple[Alerts, list[str]]:
    """A sender and the list of its warnings."""
    warned: list[str] = []
    config = schema.validate(AlertsConfig, section, "alerts")
    return Alerts(config, run, warn=warned.append, limit_s=limit_s), warned


def test_a_webhook_gets_what_the_documentation_says(run: RunDir, monkeypatch: pytest.MonkeyPatch):
    with receiving() as server:
        monkeypatch.setenv("HOOK", f"{server.url}?b=c\n")
        alerts, warned = sender(run, webhook="$HOOK")
        alerts.send("failure", "see s3://key:pw@host/b?sig=1 <unk> & more", status=AT_STEP_7, restarting=True)
        alerts.wait()
    host = os.uname().nodename
    (alert,) = server.alerts
    at = alert.pop("time")
    assert abs(time.time() - time.mktime(time.strptime(at[:19], "%Y-%m-%dT%H:%M:%S"))) < 100
    assert alert == {
        "event": "failure",
        "run": "mine",
        "step": 7,
        "message": "see s3://***@host/b?*** <unk> & more",
        "restarting": True,
        "host": host,
        "folder": str(run.path),
        "url": "https://wandb.ai/a/b/runs/c",
        "text": f"mine failed after step 7 on {host}: see s3://***@host/b?*** &lt;unk&gt; &amp; more; it restarts"
        " https://wandb.ai/a/b/runs/c",
    }
    ((method, path, headers),) = server.requests
    assert (method, path) == ("POST", f"/services/{SECRET}?b=c")
    assert headers["Content-Type"] == "application/json; charset=utf-8"
    assert warned == []


def test_user_and_password_of_a_url_become_a_header(run: RunDir, monkeypatch: pytest.MonkeyPatch):
    with receiving() as server:
        monkeypatch.setenv("HOOK", server.url.replace("http://", "http://me:a%40b@"))
        alerts, warned = sender(run, webhook="$HOOK")
        alerts.send("start", "")
        alerts.wait()
    assert server.requests[0][2]["Authorization"] == "Basic bWU6YUBi"
    assert server.alerts[0]["text"] == f"mine started at step 0 on {os.uname().nodename}"
    assert (server.alerts[0]["url"], warned) == (None, [])


def test_only_listed_events_are_sent_and_a_stall_counts_as_a_failure(run: RunDir):
    with receiving() as server:
        alerts, _ = sender(run, webhook=server.origin, events=["failure", "finish"])
        for event in EVENTS:
            alerts.send(event, event)
        alerts.wait()
        assert sorted(alert["message"] for alert in server.alerts) == ["failure", "finish", "stall"]
        assert sorted(server.events()) == ["failure", "failure", "finish"]


@pytest.mark.parametrize(
    ("found", "event", "message"),
    [
        (Verdict("finished", 0), "finish", ""),
        (Verdict("stopped", 75, "stopped by the user"), "stop", "by `xlpretrain stop`"),
        (Verdict("stopped", 75, "stopped early: time"), "stop", "stop.time_budget_s is used up"),
        (
            Verdict("stopped", 75, "stopped early: signal; Slurm ended the job"),
            "stop",
            "by a signal; Slurm ended the job",
        ),
        (Verdict("failed", 2, "non-finite"), "failure", "non-finite"),
        (Verdict("crashed", 1, "crashed: rank 1 was killed"), "failure", "crashed: rank 1 was killed"),
        (Verdict("crashed", 1, "crashed: rank 0 exits: no progress for 9 s"), "stall", "crashed: rank 0 exits"),
    ],
)
def test_the_end_of_an_attempt_is_one_event(run: RunDir, found: Verdict, event: str, message: str):
    run.write_status(Status("running", step=5))
    with receiving() as server:
        alerts, _ = sender(run, webhook=server.origin)
        alerts.send_end(found)
        alerts.wait()
    (alert,) = server.alerts
    assert (alert["event"], alert["step"]) == (event, 5)
    assert alert["message"].startswith(message)


def test_new_stacks_of_a_hung_rank_make_a_stall_once(run: RunDir):
    crash = Verdict("crashed", 1, "crashed: rank 1 was killed by SIGKILL")
    (run.logs / "hang-00000001-rank-00000.txt").touch()
    with receiving() as server:
        alerts, _ = sender(run, webhook=server.origin)
        alerts.send_end(crash)
        alerts.wait()
        (run.logs / "hang-00000003-rank-00001.txt").touch()
        for _ in range(2):
            alerts.send_end(crash, restarting=True)
            alerts.wait()
        alerts.send_end(Verdict("fenced", 76, TAKEN_OVER))
        alerts.wait()
    assert server.events() == ["failure", "stall", "failure"]
    assert [alert["restarting"] for alert in server.alerts] == [False, True, True]


@contextlib.contextmanager
def dead() -> Iterator[str]:
    """A URL at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/services/{SECRET}"


@pytest.mark.parametrize(
    ("manner", "reason"),
    [
        ("dead", "127.0.0.1:{port}: Connection refused"),
        ("error", "127.0.0.1:{port} answered 500"),
        ("redirect", "127.0.0.1:{port} answered 302"),
        ("silent", "127.0.0.1:{port}: no answer in 0.9 s"),
        ("drop", "127.0.0.1:{port}: RemoteDisconnected"),
        ("cut", "127.0.0.1:{port}: BadStatusLine"),
    ],
)
def test_a_bad_webhook_is_warned_of_once_without_its_secret(
    run: RunDir, manner, reason: str, monkeypatch: pytest.MonkeyPatch
):
    with contextlib.ExitStack() as stack:
        server = None if manner == "dead" else stack.enter_context(receiving(manner))
        url = stack.enter_context(dead()) if server is None else server.url
        monkeypatch.setenv("HOOK", url)
        alerts, warned = sender(run, webhook="$HOOK", limit_s=1.0)
        alerts.send("start", "")
        alerts.send("finish", "")
        alerts.wait()
        alerts.wait()
    expected = reason.format(port=url.split("/")[2].split(":")[1])
    assert warned == [f"warning: alerts.webhook: an alert could not be sent: {expected}; the run goes on"]
    if server is not None:
        assert [method for method, *_ in server.requests] == ["POST", "POST"], "no redirect is followed"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "the environment variable HOOK is not set"),
        (" ", "the environment variable HOOK is not set"),
        (f"file:///{SECRET}", "$HOOK does not begin with http:// or https:// and a host"),
        (f"https://[{SECRET}", "$HOOK does not begin with http:// or https:// and a host"),
        (f"http://127.0.0.1:1/a b{SECRET}", "127.0.0.1:1: InvalidURL"),
        (f"http://127.0.0.1:1/ü{SECRET}", "127.0.0.1:1: UnicodeEncodeError"),
        ("http://no.such.host.invalid/x", "no.such.host.invalid: "),
    ],
)
def test_a_variable_without_a_usable_address_is_warned_of(
    run: RunDir, value: str | None, reason: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("HOOK", raising=False)
    if value is not None:
        monkeypatch.setenv("HOOK", value)
    alerts, warned = sender(run, webhook="$HOOK")
    alerts.send("start", "")
    alerts.wait()
    (line,) = warned
    assert line.startswith(f"warning: alerts.webhook: an alert could not be sent: {reason}")
    assert SECRET not in line


def script(folder: Path, text: str) -> str:
    path = folder / "tell"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_command_gets_the_alert_on_standard_input_and_in_its_environment(run: RunDir, tmp_path: Path):
    program = script(tmp_path, 'cat > "$1"; echo "$XLPRETRAIN_EVENT $XLPRETRAIN_RUN" >> "$1"; echo noise')
    alerts, warned = sender(run, command=[program, str(tmp_path / "got")])
    alerts.send("spike", "high", status=AT_STEP_7)
    alerts.wait()
    got, told = (tmp_path / "got").read_text().splitlines()
    assert json.loads(got)["text"].startswith("mine has a loss spike at step 7 on ")
    assert (told, warned) == (f"spike {run.path}", [])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("exit 3", "ended with exit code 3"),
        ("exec 0<&-; exit 4", "ended with exit code 4"),
        (None, "no such program"),
    ],
)
def test_a_command_that_fails_is_warned_of_once(run: RunDir, tmp_path: Path, text: str | None, reason: str):
    program = script(tmp_path, text) if text else str(tmp_path / "none")
    alerts, warned = sender(run, command=[program])
    for _ in range(2):
        alerts.send("start", "x" * 100_000)
        alerts.wait()
    assert len(warned) == 1
    assert f"alerts.command: an alert could not be sent: {program}" in warned[0] and reason in warned[0]


def test_a_command_that_hangs_is_killed_with_its_children(run: RunDir, tmp_path: Path):
    program = script(tmp_path, "sleep 98765.75 & wait")
    alerts, warned = sender(run, command=[program], limit_s=2.0)
    alerts.send("start", "")
    alerts.wait()
    reason = f"{program} did not end within 1.8 s and was killed"
    assert warned == [f"warning: alerts.command: an alert could not be sent: {reason}; the run goes on"]
    left = [
        each for each in psutil.process_iter(["cmdline"]) if {program, "98765.75"} & {*(each.info["cmdline"] or ())}
    ]
    _, alive = psutil.wait_procs(left, timeout=60)  # a killed process may take a moment to end
    assert alive == []


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"webhook": f"https://hooks.example.com/{SECRET}"}, "a secret"),
        ({"webhook": "https://me:xyzzy@example.com"}, "a secret"),
        ({"webhook": f"https://example.com?{SECRET}"}, "a secret"),
        ({"webhook": f"https://example.com:{SECRET}"}, "must begin with http"),
        ({"webhook": f"ftp://example.com/{SECRET}"}, "must begin with http"),
        ({"webhook": f"https://$HOST/{SECRET}"}, "must be $NAME"),
        ({"command": ["curl", "-d", "@-", f"--url=https://example.com/{SECRET}"]}, "command.3 "),
        ({"command": [""]}, "must be the name or path of a program"),
        ({"events": []}, "events"),
        ({"events": ["end"]}, "events.0"),
    ],
)
def test_configs_that_are_unusable_or_hold_a_secret_are_refused_without_showing_it(section: dict, message: str):
    with pytest.raises(ConfigError) as caught:
        schema.validate(AlertsConfig, section, "alerts")
    assert message in str(caught.value)
    assert "xyzzy" not in str(caught.value)


def test_what_would_keep_alerts_from_being_sent_is_known_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("HOOK", raising=False)
    config = AlertsConfig(webhook="$HOOK", command=("no-such-program",))
    assert config.warnings() == [
        "alerts.webhook: the environment variable HOOK is not set",
        "alerts.command: no-such-program: no such program",
    ]
    monkeypatch.setenv("HOOK", "https://example.com/x")
    monkeypatch.chdir(tmp_path)
    script(tmp_path, "exit 0")
    found = AlertsConfig(webhook="$HOOK", command=("./tell", "a/b")).absolute()
    assert found.command == (str(tmp_path / "tell"), "a/b")
    assert found.warnings() == AlertsConfig().warnings() == []
    assert AlertsConfig(command=("mail",)).absolute().command == ("mail",)


def test_every_reason_of_a_stop_has_words():
    assert [describe_stop(reason).split()[0] for reason in ("user", "signal", "time", "disk")] == [
        "by",
        "by",
        "stop.time_budget_s",
        "metrics.jsonl",
    ]
