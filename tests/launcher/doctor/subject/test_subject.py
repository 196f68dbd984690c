"""Config, data and trackers, against real datasets, and servers on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import commands
import pytest
from commands import write_config
from flaky_server import serving

from launcher.doctor.findings import Level
from launcher.doctor.request import Request
from launcher.doctor.subject import config, data, trackers
from xlpretrain.tracking.mlflow import MlflowConfig
from xlpretrain.tracking.tensorboard import TensorBoardConfig
from xlpretrain.tracking.wandb import WandbConfig


@pytest.fixture
def request_of(tmp_path: Path, tiny_dataset: Path):
    """Makes a request for the config of a small run, with changes."""

    def make(**changes) -> Request:
        name = f"config-{len(list(tmp_path.glob('*.yaml')))}.yaml"  # loaded once per path
        return Request(config=str(write_config(tmp_path / name, tiny_dataset, **changes)), num_processes=2)

    return make


def test_a_valid_config_and_its_data_pass(request_of, tmp_path: Path):
    request = request_of()
    (found,) = config.check(request)
    assert found.level == Level.PASS and "transformer_xl, causal_lm" in found.text
    train, valid, start = data.check(request)
    assert train.level == valid.level == Level.PASS
    assert "checksum of the index and of 2 of" in train.text and "vocabulary of 300 agree" in train.text
    assert start.level == Level.PASS and "on 2 ranks" in start.text
    assert [path.name for path in tmp_path.iterdir()] == ["config-0.yaml"], "no run folder was made"


def test_mistakes_in_a_config_are_one_failure_and_its_data_is_not_looked_for(request_of):
    request = request_of(max_stepz=3)
    (found,) = config.check(request)
    assert found.level == Level.FAIL and "did you mean max_steps?" in found.text
    (skipped,) = data.check(request)
    assert skipped.level == Level.SKIPPED and "not valid" in skipped.text
    (skipped,) = trackers.check(request)
    assert skipped.level == Level.SKIPPED


def test_missing_and_damaged_data_fail_with_the_way_to_get_it(request_of, build_small, tmp_path: Path):
    (missing,) = data.check(request_of(data={"train": str(tmp_path / "none")}))
    assert missing.level == Level.FAIL and "not a dataset" in missing.text and "xlpretrain data build" in missing.remedy
    built = build_small(["A first document. " * 200, "A second one. " * 200])
    shard = next((built / "train").glob("*.tar"))
    content = bytearray(shard.read_bytes())
    content[600:640] = bytes(40)
    shard.write_bytes(content)
    (damaged,) = data.check(request_of(data={"train": str(built / "train")}))
    assert damaged.level == Level.FAIL and "damaged" in damaged.text and "build the dataset again" in damaged.remedy


def test_more_ranks_than_samples_are_refused_as_train_would(request_of):
    request = request_of(global_batch_size=1, micro_batch_size=1)
    *_, found = data.check(request)
    assert found.level == Level.FAIL and "would not start 2 ranks" in found.text


def test_data_at_a_url_is_read_without_filling_the_users_cache(request_of, tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with serving(tiny_dataset) as server:
        request = request_of(data={"train": f"{server.url}/train", "valid": f"{server.url}/valid"})
        found = list(data.check(request))
    assert {one.level for one in found} == {Level.PASS}, found
    assert found[0].text.startswith("http://127.0.0.1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config-0.yaml"]


class Answers(BaseHTTPRequestHandler):
    """Answers every request with the server's code and body."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        code, body = self.server.answer  # type: ignore[attr-defined]
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST  # noqa: N815 (the names are those of the standard library)

    def log_message(self, *arguments) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.answer = (200, b"{}")  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def url(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}"


@pytest.mark.full
def test_mlflow_is_asked_and_a_local_store_is_not_opened(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(name, "")  # restored after the test
    assert trackers.check_tracker(MlflowConfig(uri=url(server))).level == Level.PASS
    server.answer = (403, b'{"error_code": "PERMISSION_DENIED", "message": "no"}')
    refused = trackers.check_tracker(MlflowConfig(uri=url(server)))
    assert refused.level == Level.FAIL and "MLFLOW_TRACKING_TOKEN" in refused.remedy
    dead = trackers.check_tracker(MlflowConfig(uri="http://127.0.0.1:9"))
    assert dead.level == Level.FAIL and "does not answer" in dead.text
    local = trackers.check_tracker(MlflowConfig(uri=f"sqlite:///{tmp_path}/mlflow.db"))
    assert local.level == Level.SKIPPED and not list(tmp_path.iterdir())
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert trackers.check_tracker(MlflowConfig()).level == Level.FAIL


def test_tensorboard_needs_only_its_package_and_disabled_trackers_are_skipped():
    assert trackers.check_tracker(TensorBoardConfig()).level == Level.PASS
    assert trackers.check_tracker(WandbConfig(mode="disabled")).level == Level.SKIPPED


@pytest.fixture
def doctor(request_of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the check of a W&B tracker of this mode as a command, at a home without credentials."""
    monkeypatch.setitem(commands.EXTRA, "HOME", str(tmp_path))

    def run(mode: str, *, expect: int, **environment: str) -> str:
        for name, value in environment.items():
            monkeypatch.setitem(commands.EXTRA, name, value)
        request = request_of(wandb={"mode": mode})
        out, err = commands.run("doctor", request.config, "--only", "trackers", expect=expect)
        assert "a" * 40 not in out + err, "the key is never printed"
        return out

    return run


@pytest.mark.full
def test_a_missing_key_is_found(doctor):
    said = doctor("auto", expect=0)
    assert said.startswith("warn") and "no key found" in said and "wandb login" in said


@pytest.mark.full
@pytest.mark.parametrize(("mode", "level"), [("online", "fail"), ("offline", "pass")])
def test_online_without_a_key_fails_and_offline_passes(doctor, mode: str, level: str):
    assert doctor(mode, expect=2 if level == "fail" else 0).startswith(level)


@pytest.mark.full
def test_a_refused_key_and_a_dead_server_are_told(doctor, server):
    server.answer = (401, b"")
    said = doctor("online", expect=2, WANDB_API_KEY="a" * 40, WANDB_BASE_URL=url(server))
    assert "refuses the key" in said
    said = doctor("online", expect=2, WANDB_BASE_URL="http://127.0.0.1:9")
    assert "does not answer" in said


def test_requests_survive_json():
    request = Request(config="a.yaml", overrides=("max_steps=3",), num_processes=4, cluster="c.yaml", token="abc")
    assert Request.from_json(request.to_json()) == request
    assert json.loads(request.to_json())["overrides"] == ["max_steps=3"]
