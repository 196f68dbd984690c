"""Deliver one alert, by HTTP or to a command, within a time limit. No error message has a secret. Torch-free."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import unquote, urlsplit

from xlpretrain.run_dir.rank_log import RUN
from xlpretrain.version import __version__

LIMIT_S = 10.0
"""Seconds that one alert may take."""
EVENT = "XLPRETRAIN_EVENT"
"""Environment variable of a command with the event; `RUN` has the run folder."""


class UndeliverableError(Exception):
    """An alert that could not be delivered. The message has no secret."""


def is_address(url: str) -> bool:
    """True if `url` is one of HTTP, with a host."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return False


def has_secret(url: str) -> bool:
    """True if anything but scheme, host and port is in a URL: path and query of a webhook are its password."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return True
    return "@" in parts.netloc or parts.path not in ("", "/") or bool(parts.query or parts.fragment)


def post(url: str, alert: Mapping[str, Any], limit_s: float) -> None:
    """Post an alert as JSON; any answer of 2xx is fine. Raises `UndeliverableError`.

    Proxies are taken from the environment, as by other programs (https_proxy, no_proxy).
    """
    headers = {"Content-Type": "application/json; charset=utf-8", "User-Agent": f"xlpretrain/{__version__}"}
    parts = urlsplit(url)
    login, _, host = parts.netloc.rpartition("@")
    if login:
        headers["Authorization"] = f"Basic {base64.b64encode(unquote(login).encode()).decode()}"
    try:
        place = parts._replace(netloc=host, fragment="").geturl()
        request = urllib.request.Request(place, json.dumps(alert).encode(), headers, method="POST")
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=limit_s):
            return
    except urllib.error.HTTPError as error:
        error.close()
        raise UndeliverableError(f"{_host(url)} answered {error.code}") from None
    except urllib.error.URLError as error:
        reason = error.reason
        raise UndeliverableError(f"{_host(url)}: {_describe(reason, limit_s)}") from None
    except Exception as error:
        raise UndeliverableError(f"{_host(url)}: {_describe(error, limit_s)}") from None


def find(command: Sequence[str]) -> str:
    """Path of a command's program. Raises `UndeliverableError` if there is none."""
    found = shutil.which(command[0])
    if found is None:
        raise UndeliverableError(f"{command[0]}: no such program")
    return found


def run(command: Sequence[str], alert: Mapping[str, Any], limit_s: float) -> None:
    """Run a command with an alert on standard input. Raises `UndeliverableError`.

    Its output is discarded. After `limit_s` it is killed, with all that it started.
    """
    program = find(command)
    try:
        process = subprocess.Popen(
            [program, *command[1:]],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, EVENT: str(alert["event"]), RUN: str(alert["folder"])},
            start_new_session=True,  # out of reach of Ctrl-C, and killed as a whole
        )
    except OSError as error:
        raise UndeliverableError(f"{command[0]} could not be started: {error.strerror}") from None
    try:
        process.communicate(json.dumps(alert).encode() + b"\n", timeout=limit_s)
    except subprocess.TimeoutExpired:
        raise UndeliverableError(f"{command[0]} did not end within {limit_s:g} s and was killed") from None
    finally:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        raise UndeliverableError(f"{command[0]} ended with exit code {process.returncode}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Treats redirects as errors: following one would drop the body, and might tell another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _host(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)


def _describe(error: object, limit_s: float) -> str:
    """The reason of a failed request. The text of an exception is not used: it may have the URL."""
    if isinstance(error, TimeoutError):
        return f"no answer in {limit_s:g} s"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__
