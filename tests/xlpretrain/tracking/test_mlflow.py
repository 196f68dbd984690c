"""MLflow's own stores and server. Modules: mlflow.py."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from guarded import PATIENCE_S, finish, row, start

from xlpretrain.errors import ConfigError
from xlpretrain.tracking.mlflow import MlflowConfig


def client(uri: str):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def shown(uri: str, metric: str = "train/loss") -> list[tuple[int, float]]:
    """Steps and values of the only run, as MLflow has them."""
    mlflow = client(uri)
    (run,) = mlflow.search_runs([mlflow.get_experiment_by_name("xlpretrain").experiment_id])
    history = mlflow.get_metric_history(run.info.run_id, metric)
    return sorted((point.step, point.value) for point in history)


def status(uri: str) -> str:
    mlflow = client(uri)
    (run,) = mlflow.search_runs([mlflow.get_experiment_by_name("xlpretrain").experiment_id])
    return run.info.status


def expected(steps: range) -> list[tuple[int, float]]:
    return [(step, pytest.approx(step / 3)) for step in steps]


def log(config: MlflowConfig, folder: Path, steps: range, *, state: str = "stopped", **more) -> None:
    tracker = start(config, folder, **more)
    for step in steps:
        tracker.log(row(step))
    finish(tracker, state)
    assert tracker.told == steps[-1]


def check_one_run(uri: str, folder: Path) -> None:
    """Over three attempts, of which the second was killed, each point is there once."""
    config = MlflowConfig(uri=uri, tags={"team": "a"})
    log(config, folder, range(1, 6))
    assert status(uri) == "KILLED"
    log(config, folder, range(6, 10), next_step=6)
    log(config, folder, range(10, 13), next_step=8, history=[row(8), row(9)], state="finished")
    assert shown(uri) == expected(range(1, 13))
    assert status(uri) == "FINISHED"
    mlflow = client(uri)
    (run,) = mlflow.search_runs([mlflow.get_experiment_by_name("xlpretrain").experiment_id])
    assert run.data.params == {"seed": "1", "model.type": "bert"}
    assert (run.info.run_name, run.data.tags["team"]) == ("mine", "a")


@pytest.mark.full
def test_attempts_are_one_run_and_a_point_told_twice_is_there_once(tmp_path: Path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    check_one_run(uri, tmp_path)
    names = {"valid/loss/my corpus (1)": 1.0}
    config = MlflowConfig(uri=uri)
    tracker = start(config, tmp_path, next_step=13)
    tracker.log({**row(13), **names})
    tracker.log({**row(14), "train/loss": float("nan")})
    finish(tracker, "failed")
    assert tracker.told == 14
    assert shown(uri, "valid/loss/my corpus _1_") == [(13, 1.0)]
    assert status(uri) == "FAILED"


def test_without_an_address_it_is_refused_before_the_run(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match="needs the address of a server"):
        MlflowConfig().check()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    MlflowConfig().check()


def test_a_server_that_is_down_switches_it_off(tmp_path: Path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker = start(MlflowConfig(uri=f"http://127.0.0.1:{free_port()}"), tmp_path)
    tracker.log(row(1))
    finish(tracker)
    assert "MLflow failed and is off for the rest of this attempt: " in caplog.text
    assert tracker.told == 0


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def serve(folder: Path, port: int) -> Iterator[str]:
    """A server of MLflow's with an SQLite database in a folder."""
    uri = f"http://127.0.0.1:{port}"
    with (folder / "server.txt").open("a") as output:
        server = psutil.Popen(
            [
                *(sys.executable, "-W", "ignore", "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
                *("--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/server.db"),
            ],
            stdout=output,
            stderr=output,
            cwd=folder,
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )
    try:
        deadline = time.monotonic() + 4 * PATIENCE_S
        while True:
            assert server.poll() is None and time.monotonic() < deadline, (folder / "server.txt").read_text()
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{uri}/health") as answer:
                assert answer.status == 200
                break
            time.sleep(0.1)
        yield uri
    finally:
        everything = [*server.children(recursive=True), server]
        for process in everything:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(everything)


@pytest.mark.full
def test_a_server_that_goes_down_in_the_middle_gets_the_rest_when_it_is_back(tmp_path: Path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    port = free_port()
    with serve(tmp_path, port) as uri:
        (tmp_path / "first").mkdir()
        check_one_run(uri, tmp_path / "first")
        config = MlflowConfig(uri=uri)
        tracker = start(config, tmp_path, next_step=13)
        tracker.log(row(13))
        deadline = time.monotonic() + PATIENCE_S
        while tracker.told < 13 and time.monotonic() < deadline:
            time.sleep(0.01)
    for step in range(14, 20):
        tracker.log(row(step))
    finish(tracker)
    assert tracker.told == 13
    assert "MLflow failed and is off for the rest of this attempt: " in caplog.text
    with serve(tmp_path, port) as uri:
        log(config, tmp_path, range(20, 22), next_step=14, history=[row(step) for step in range(14, 20)])
        assert shown(uri) == expected(range(1, 22))


KILLED = """
import os, sys, time
from pathlib import Path
import guarded
from xlpretrain.tracking.mlflow import MlflowConfig
tracker = guarded.start(MlflowConfig(uri=sys.argv[2]), Path(sys.argv[1]))
for step in range(1, 51):
    tracker.log(guarded.row(step))
while tracker.told < 50:
    time.sleep(0.01)
os.kill(os.getpid(), 9)
"""


@pytest.mark.full
def test_what_was_sent_survives_a_kill_and_the_run_is_found_again(tmp_path: Path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), uri], env=environment, capture_output=True)
    assert done.returncode == -9, done.stderr
    assert shown(uri) == expected(range(1, 51))
    log(MlflowConfig(uri=uri), tmp_path, range(51, 53), next_step=51)
    assert shown(uri) == expected(range(1, 53))
