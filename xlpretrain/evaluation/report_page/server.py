"""A report that is served on the loopback interface and grows with its runs. Torch-free."""

from __future__ import annotations

import errno
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from xlpretrain.errors import LaunchError, XLPretrainError
from xlpretrain.evaluation.report_page.page import PageOptions, render
from xlpretrain.evaluation.report_page.run_data import RunReader

_LOOPBACK = "127.0.0.1"
_HOSTS = ("127.0.0.1", "localhost")
"""Names under which a browser may ask for the page. A page of another site that resolves its own name to this machine
(DNS rebinding) asks under that name."""
_OLD_S = 60.0
"""Age at which a page is rendered again although no file has changed: heartbeats grow old."""


class LivePage:
    """The page of some runs, rendered again when a browser asks for it and a run has changed. Thread-safe."""

    def __init__(self, readers: Sequence[RunReader], options: PageOptions):
        self._readers, self._options = readers, options
        self._lock = threading.Lock()
        self._rendered_at = float("-inf")
        self._content = b""
        self._version = ""

    def current(self) -> tuple[bytes, str]:
        """The page, and a tag that changes with it. Raises `XLPretrainError`."""
        with self._lock:
            changed = [reader.refresh() for reader in self._readers]
            now = time.monotonic()
            if any(changed) or now - self._rendered_at > _OLD_S:
                runs = [reader.read() for reader in self._readers]
                self._content = render(runs, self._options).encode()
                self._version, self._rendered_at = f'"{time.time_ns()}"', now
            return self._content, self._version


class PageServer(ThreadingHTTPServer):
    """An HTTP server of one page, at /."""

    daemon_threads = True

    def __init__(self, page: LivePage, port: int):
        """port: 0 for any free one. Raises `LaunchError` if the port cannot be used."""
        self.page = page
        try:
            super().__init__((_LOOPBACK, port), _Handler)
        except OSError as error:
            reason = {errno.EADDRINUSE: "is in use", errno.EACCES: "needs root"}.get(error.errno or 0, str(error))
            raise LaunchError(
                f"port {port} {reason}; choose another with --port N, or --port 0 for any free one"
            ) from None
        except OverflowError:
            raise LaunchError(f"port {port}: expected 0 to 65535") from None

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{_LOOPBACK}:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore browsers that leave in the middle of an answer."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: PageServer

    def do_GET(self) -> None:
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if host not in _HOSTS:
            self._answer(HTTPStatus.FORBIDDEN, f"ask for {self.server.url}\n".encode())
        elif self.path.partition("?")[0] != "/":
            self._answer(HTTPStatus.NOT_FOUND, b"the report is at /\n")
        else:
            try:
                content, version = self.server.page.current()
            except XLPretrainError as error:
                self._answer(HTTPStatus.SERVICE_UNAVAILABLE, f"{error}\n".encode())
            else:
                self._answer_page(content, version)

    def _answer_page(self, content: bytes, version: str) -> None:
        if self.headers.get("If-None-Match") == version:
            self.send_response(HTTPStatus.NOT_MODIFIED)
            self.send_header("ETag", version)
            self.end_headers()
        else:
            self._answer(HTTPStatus.OK, content, kind="text/html", ETag=version)

    def _answer(self, status: HTTPStatus, content: bytes, *, kind: str = "text/plain", **headers: str) -> None:
        self.send_response(status)
        fixed = {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(content))}
        guards = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY"}
        for name, value in {**fixed, **guards, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Requests are not logged."""


def serve(readers: Sequence[RunReader], *, port: int, refresh_s: float, announce: Callable[[str], None]) -> None:
    """Serve the page of some runs until Ctrl-C. announce: called with its address. Raises `LaunchError`."""
    with PageServer(LivePage(readers, PageOptions(refresh_s=refresh_s)), port) as server:
        announce(server.url)
        with suppress(KeyboardInterrupt):
            server.serve_forever()
