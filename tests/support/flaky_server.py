"""An unreliable web server."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class FlakyServer:
    """Serves a folder with range requests. A fraction `bad` of the answers is late, truncated, corrupt or missing.

    requests: number of requests per path and range.
    """

    def __init__(self, folder: Path, *, bad: float, delay_s: float = 0.02):
        self.requests: Counter[tuple[str, str]] = Counter()
        self.bad, self._folder, self._delay_s, self._rng = bad, folder, delay_s, random.Random(0)
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                server.answer(self)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request, well or badly."""
        asked = request.headers.get("Range", "")
        self.requests[request.path, asked] += 1
        time.sleep(self._delay_s)
        path = self._folder / request.path.lstrip("/")
        if not path.is_file():
            request.send_error(404)
            return
        data = path.read_bytes()
        first, last = 0, len(data) - 1
        if asked:
            low, _, high = asked.removeprefix("bytes=").partition("-")
            first, last = int(low), min(int(high), last) if high else last
        body = data[first : last + 1]
        kind = self._rng.choice(["late", "short", "garbage", "drop", "error"]) if self._rng.random() < self.bad else ""
        if kind == "error":
            request.send_error(503)
            return
        if kind == "late":
            time.sleep(10 * self._delay_s)
        if kind == "garbage" and asked:
            body = bytes(len(body))
        request.send_response(206 if asked else 200)
        request.send_header("Content-Length", str(len(body)))
        if asked:
            request.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        request.end_headers()
        if kind in ("short", "drop"):
            request.wfile.write(body[: len(body) // 2 if kind == "short" else 0])
            request.close_connection = True
            return
        request.wfile.write(body)


@contextmanager
def serving(folder: Path, *, bad: float = 0.0) -> Iterator[FlakyServer]:
    """Run a server within the context."""
    server = FlakyServer(folder, bad=bad)
    thread = threading.Thread(target=server._server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server._server.shutdown()
        server._server.server_close()
