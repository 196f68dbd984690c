"""A server that takes alerts, well or badly."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Manner = Literal["well", "error", "redirect", "silent", "drop", "cut"]
SECRET = "T0AB/B1CD/xyzzy-plugh-42"
"""Path of the webhook, whose possession allows to post to it."""


class WebhookServer:
    """A webhook on this machine.

    alerts: the bodies posted so far. requests: method, path and headers of each request.
    """

    def __init__(self, manner: Manner):
        self.alerts: list[dict[str, Any]] = []
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.came = threading.Condition()
        self._closing = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                server.note(self, b"{}")
                self.send_response(200)
                self.end_headers()

            def do_POST(self) -> None:
                server.note(self, self.rfile.read(int(self.headers["Content-Length"])))
                match manner:
                    case "silent":
                        server._closing.wait()
                    case "drop":
                        pass
                    case "cut":
                        self.wfile.write(b"HTTP/1.0 2")
                    case "redirect":
                        self.send_response(302)
                        self.send_header("Location", f"{server.origin}/elsewhere")
                        self.end_headers()
                    case _:
                        self.send_response(200 if manner == "well" else 500)
                        self.end_headers()
                        self.wfile.write(b"ok")

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.origin = f"http://127.0.0.1:{self._server.server_port}"
        self.url = f"{self.origin}/services/{SECRET}"

    def note(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        """Record a request."""
        with self.came:
            self.alerts.append(json.loads(body))
            self.requests.append((request.command, request.path, dict(request.headers)))
            self.came.notify_all()

    def events(self) -> list[str]:
        """The events so far."""
        return [alert["event"] for alert in self.alerts]

    def wait_for(self, number: int, timeout_s: float = 60) -> None:
        """Wait for this many alerts."""
        with self.came:
            assert self.came.wait_for(lambda: len(self.alerts) >= number, timeout_s), self.alerts


@contextmanager
def receiving(manner: Manner = "well") -> Iterator[WebhookServer]:
    """Run a server within the context."""
    server = WebhookServer(manner)
    thread = threading.Thread(target=server._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server._closing.set()
        server._server.shutdown()
        server._server.server_close()
