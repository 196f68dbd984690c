"""docs/extend/tracker.md, done as written."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import commands
import plugins
import pytest
from repository import ROOT

PAGE = "docs/extend/tracker.md"


class Service(ThreadingHTTPServer):
    """Keeps the metrics of runs. Out of order, it refuses every message from a step's on."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.losses: dict[str, dict[int, float]] = {}
        self.messages: list[dict] = []
        self.out_of_order_from: float = float("inf")
        self.url = f"http://127.0.0.1:{self.server_port}/metrics"

    def receive(self, message: dict) -> bool:
        """Returns whether it could be kept."""
        losses = self.losses.setdefault(message["run"], {})
        for step in [step for step in losses if step >= message.get("next_step", step + 1)]:
            del losses[step]
        if "metrics" in message:
            step = message["metrics"]["step"]
            if step >= self.out_of_order_from:
                return False
            assert step not in losses
            losses[step] = message["metrics"]["train/loss"]
        self.messages.append(message)
        return True


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        kept = self.server.receive(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200 if kept else 500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments) -> None:
        pass


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        yield service
        service.shutdown()


@pytest.mark.full
def test_a_service_that_fails_hurts_nothing_and_gets_the_rest_afterwards(
    tiny_dataset: Path, tmp_path: Path, service: Service
):
    plugins.install_page(PAGE, tmp_path)
    environment = commands.environment() | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    changes = [
        f"data.train={tiny_dataset / 'train'}",
        f"trackers.webhook.url={service.url}",
        "engine.type=plain",
        "engine.precision=fp32",
    ]

    def train(*more: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "xlpretrain", "webhook.yaml", *changes, *more],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stderr

    service.out_of_order_from = 6
    refused = "webhook failed and is off for the rest of this attempt: HTTPError: HTTP Error 500: Internal Server Error"
    assert refused in train("max_steps=10").splitlines()
    service.out_of_order_from = float("inf")
    assert train("max_steps=14") == ""
    run = tmp_path / "runs" / "webhook"
    provenance = json.loads((run / "provenance.json").read_text())
    expected = {row["step"]: row["train/loss"] for row in commands.read_metrics(run)}
    assert list(expected) == list(range(1, 15))
    assert service.losses == {provenance["id"]: expected}
    assert service.messages[-1]["state"] == "finished" and service.messages[0]["name"] == "webhook"
    assert provenance["plugins"] == {"tracker.webhook": "webhook 0.1"}
    assert not (run / "wandb").exists()
