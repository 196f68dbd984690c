import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import guarded
import pytest
import wandb
from wandb_file import read_run_history

from xlpretrain.tracking.guard import GuardedTracker
from xlpretrain.tracking.wandb import WandbConfig


@pytest.fixture(autouse=True)
def no_wandb_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nobody is logged in, and W&B reads its environment anew."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    yield
    wandb.teardown()


def tracker(tmp_path: Path, **config) -> GuardedTracker:
    return guarded.start(WandbConfig(**config), tmp_path)


def logged_steps(folder: Path, number: int) -> list[int]:
    """The steps in W&B's files once there are `number`: its service may write on after `finish` has returned."""
    deadline = time.monotonic() + 20
    while len(rows := read_run_history(folder)) < number and time.monotonic() < deadline:
        time.sleep(0.1)
    assert all(row["train/loss"] == row["train/step"] / 3 for row in rows)
    return [row["train/step"] for row in rows]


def test_without_a_key_every_step_is_in_the_offline_files_under_its_own_step(tmp_path: Path):
    for steps in (range(1, 6), range(4, 9)):  # a second start logs some steps again
        wandb = tracker(tmp_path)
        for step in steps:
            wandb.log({"step": step, "train/loss": step / 3})
        guarded.finish(wandb)
    assert logged_steps(tmp_path, 10) == [1, 2, 3, 4, 5, 4, 5, 6, 7, 8]
    assert {path.stem for path in tmp_path.glob("wandb/*/*.wandb")} == {"run-abc123"}


def cli(*arguments: str) -> None:
    """W&B's own program, of the installed version."""
    command = [sys.executable, "-m", "wandb", *arguments]
    subprocess.run(command, check=True, capture_output=True, timeout=60, cwd=os.environ["HOME"])


SWITCHES = ["WANDB_MODE=disabled", "WANDB_DISABLED=true", "its settings file"]


@pytest.mark.parametrize(
    ("mode", "switch"), [("disabled", ""), *itertools.product(["auto", "online", "offline"], SWITCHES)]
)
def test_disabled_writes_nothing_wherever_it_is_said(tmp_path: Path, monkeypatch, mode: str, switch: str):
    if "=" in switch:
        monkeypatch.setenv(*switch.split("="))
    elif switch:
        system = tmp_path / "home/.config/wandb"
        system.mkdir(parents=True)
        (system / "settings").write_text("[default]\nmode = disabled\n")
    runs = tmp_path / "run"
    runs.mkdir()
    wandb = tracker(runs, mode=mode)
    wandb.log(guarded.row(20))
    guarded.finish(wandb)
    assert list(runs.iterdir()) == []


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_offline_in_the_environment_is_offline_although_there_is_a_key(tmp_path: Path, monkeypatch, caplog, mode: str):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    wandb = tracker(tmp_path, mode=mode)
    wandb.log({"step": 20, "train/loss": 20 / 3})
    guarded.finish(wandb)
    assert logged_steps(tmp_path, 1) == [20]
    assert ("wandb.mode is online, but W&B is offline" in caplog.text) == (mode == "online")


class WandbServer(ThreadingHTTPServer):
    """A W&B server that refuses every key, and keeps those that it was sent."""

    def __init__(self) -> None:
        self.keys: set[str] = set()
        super().__init__(("127.0.0.1", 0), RefuseEveryKey)
        self.url = f"http://127.0.0.1:{self.server_port}"


class RefuseEveryKey(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.server.keys.add(self.headers.get("Authorization", ""))
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST  # noqa: N815 (the names are those of the standard library)

    def log_message(self, *arguments) -> None:
        pass


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_who_has_logged_in_is_online_by_default_and_a_refused_key_ends_offline(tmp_path: Path, server, caplog):
    cli("login", "--no-verify", "--host", server.url, "a" * 40)
    wandb = tracker(tmp_path)
    wandb.log({"step": 20, "train/loss": 20 / 3})
    guarded.finish(wandb)
    assert "Basic YXBpOmFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWE=" in server.keys  # api:aaa...
    assert "online logging is not possible" in caplog.text
    assert "a" * 40 not in caplog.text
    assert logged_steps(tmp_path, 1) == [20]


LOGGED_IN = """
from xlpretrain.tracking.wandb import possible_mode
print(possible_mode("auto"), possible_mode("online"), possible_mode("offline"))
"""


@pytest.mark.parametrize("by", ["the installed version", "a version before 0.31", "nobody"])
def test_a_login_is_found_whichever_host_it_was_written_under(by: str):
    if by == "the installed version":
        cli("login", "--no-verify", "a" * 40)
    elif by != "nobody":
        Path("~/.netrc").expanduser().write_text(f"machine api.wandb.ai\n  login user\n  password {'a' * 40}\n")
    done = subprocess.run([sys.executable, "-c", LOGGED_IN], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["offline" if by == "nobody" else "online"] * 2 + ["offline"]
    assert done.stderr == ""


def test_a_bad_key_ends_in_offline_logging(tmp_path: Path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_API_KEY", "short")
    wandb = tracker(tmp_path)
    for step in (20, 30):
        wandb.log({"step": step, "train/loss": step / 3})
    guarded.finish(wandb)
    assert "online logging is not possible" in caplog.text
    assert "is off" not in caplog.text  # it is not: one line, and it is true
    assert "short" not in caplog.text
    assert logged_steps(tmp_path, 2) == [20, 30]


KILLED_SERVICE = """
import sys, time
from pathlib import Path
import guarded, psutil
from xlpretrain.tracking.wandb import WandbConfig
wandb = guarded.start(WandbConfig(), Path(sys.argv[1]))
wandb.log({"step": 1, "train/loss": 1.0})
children = [child for child in psutil.Process().children(recursive=True)]
assert children, "no W&B service to kill"
for child in children:
    child.kill()
for step in range(2, 30):
    wandb.log({"step": step, "train/loss": 1.0})
guarded.finish(wandb)
print("went on")
"""


def test_a_killed_wandb_service_is_survived(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED_SERVICE, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    assert "went on" in done.stdout
    assert "W&B failed and is off" in done.stderr
