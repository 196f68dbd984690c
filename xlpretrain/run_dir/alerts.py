"""Alerts: tell a webhook or a command that a run starts, ends, hangs or rolls back. Torch-free.

Rank 0 sends the start of an attempt and loss spikes. The end of an attempt is sent by its launcher or by the supervisor
of its Slurm job, which outlive killed ranks; under a bare torchrun, which has neither, by rank 0. Each alert is sent on
a thread of its own, so neither training nor the launcher waits for it, except at their end.
"""

from __future__ import annotations

import html
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field

from xlpretrain.file_system.credentials import without_credentials
from xlpretrain.run_dir import alert_delivery
from xlpretrain.run_dir.alert_delivery import LIMIT_S, UndeliverableError
from xlpretrain.run_dir.layout import RunDir, Status
from xlpretrain.run_dir.outcome import STOPPED_BY_USER, Verdict
from xlpretrain.run_dir.watchdog import NO_PROGRESS
from xlpretrain.schema import Problem, Section

Event = Literal["start", "stop", "failure", "spike", "stall", "finish"]
EVENTS: tuple[Event, ...] = get_args(Event)

_VARIABLE = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)")
_TITLES = {
    "start": "started at step {step}",
    "stop": "stopped at step {step}",
    "failure": "failed after step {step}",
    "spike": "has a loss spike at step {step}",
    "stall": "hung after step {step}",
    "finish": "finished at step {step}",
}
_STOPS = {
    "user": "by `xlpretrain stop`",
    "signal": "by a signal",
    "time": "stop.time_budget_s is used up",
    "disk": "metrics.jsonl or status.json cannot be written",
}


class AlertsConfig(Section):
    """Alerts: messages to a webhook or a command when a run starts, ends, or gets into trouble."""

    webhook: str | None = None
    """Address that each alert is posted to as JSON. Whoever knows the whole URL of a webhook can post to it, so put it
    in an environment variable and give its name, as in $SLACK_WEBHOOK. An address without user, path and query may
    stand here itself. (Default: none.)"""
    command: tuple[str, ...] = ()
    """Program and arguments to start for each alert, with the JSON on standard input (default: none)."""
    events: tuple[Event, ...] = Field(EVENTS, min_length=1)
    """The events to send. A stall is sent as a failure if only that is listed."""

    def problems(self) -> Iterator[Problem]:
        """Yield a problem for addresses that cannot be used, or that must not be written to files."""
        if self.webhook is not None and not _VARIABLE.fullmatch(self.webhook):
            if "$" in self.webhook:
                yield "webhook", "must be $NAME, with the name of an environment variable and nothing else"
            elif not alert_delivery.is_address(self.webhook):
                yield "webhook", "must begin with http:// or https:// and a host, or be $NAME"
            elif alert_delivery.has_secret(self.webhook):
                yield (
                    "webhook",
                    "is a URL with a user, path or query, which is a secret, and configs are copied into runs, logs and"
                    " trackers: export it as an environment variable, and give its name (in a shell in single quotes):"
                    " '$NAME'",
                )
        for index, argument in enumerate(self.command):
            url = re.search(r"\w+://\S*", argument)
            if url is not None and alert_delivery.has_secret(url[0]):
                yield (
                    f"command.{index}",
                    "has a URL with a user, path or query, which may be a secret, and configs are copied into runs,"
                    " logs and trackers: let the command read it from the environment or from a file",
                )
        if self.command and not self.command[0].strip():
            yield "command.0", "must be the name or path of a program, got nothing"

    def absolute(self) -> AlertsConfig:
        """Make the path of the command absolute. A bare name is searched on PATH when it is started."""
        program = self.command[:1]
        if not program or "/" not in program[0]:
            return self
        return self.model_copy(update={"command": (str(Path(program[0]).absolute()), *self.command[1:])})

    def warnings(self) -> list[str]:
        """Reasons that would keep alerts from being sent from this process, one line for each."""
        found = []
        for label, check in (("webhook", self.address), ("command", partial(alert_delivery.find, self.command))):
            if getattr(self, label):
                try:
                    check()
                except UndeliverableError as error:
                    found.append(f"alerts.{label}: {error}")
        return found

    def address(self) -> str:
        """URL of the webhook. Raises `UndeliverableError` if its environment variable is not set or has no URL."""
        found = _VARIABLE.fullmatch(self.webhook or "")
        url = os.environ.get(found[1], "").strip() if found else self.webhook or ""
        if found and not url:
            raise UndeliverableError(f"the environment variable {found[1]} is not set")
        if not alert_delivery.is_address(url):
            raise UndeliverableError(f"{self.webhook} does not begin with http:// or https:// and a host")
        return url


@dataclass(frozen=True)
class _Sending:
    thread: threading.Thread
    label: str
    deadline: float


class Alerts:
    """Sender of a run's alerts in one process. Without a webhook and a command it does nothing."""

    def __init__(self, config: AlertsConfig, run: RunDir, *, warn: Callable[[str], None], limit_s: float = LIMIT_S):
        """warn: prints a line; called from any thread, once for each of webhook and command.

        limit_s: seconds after which sending an alert is given up.
        """
        self._config, self._run, self._warn, self._limit_s = config, run, warn, limit_s
        self._sending: list[_Sending] = []
        self._warned: set[str] = set()
        self._lock = threading.Lock()
        self._stacks = self._hang_stacks()

    def send(self, event: Event, message: str, *, status: Status | None = None, restarting: bool = False) -> None:
        """Send an alert in the background. Never raises, and never waits.

        status: the run's status (default: read from the run folder). restarting: another attempt follows by itself.
        """
        event = "failure" if event == "stall" and "stall" not in self._config.events else event
        if event not in self._config.events or not (self._config.webhook or self._config.command):
            return
        alert = self._payload(event, message, status or self._last_status(), restarting=restarting)
        if self._config.webhook:
            self._start("webhook", lambda limit_s: alert_delivery.post(self._config.address(), alert, limit_s))
        if self._config.command:
            self._start("command", lambda limit_s: alert_delivery.run(self._config.command, alert, limit_s))

    def send_end(self, found: Verdict, *, restarting: bool = False, message: str = "") -> None:
        """Send the alert on the end of an attempt: finish, stop, failure, or stall if a rank wrote its stacks.

        message: instead of the verdict's. Nothing is sent if another attempt has taken over: it sends its own.
        """
        known, self._stacks = self._stacks, self._hang_stacks()
        match found.outcome:
            case "finished":
                self.send("finish", message)
            case "stopped":
                self.send("stop", message or describe_stop(found.message), restarting=restarting)
            case "failed" | "crashed":
                hung = self._stacks - known or NO_PROGRESS in found.message
                self.send("stall" if hung else "failure", message or found.message, restarting=restarting)

    def wait(self) -> None:
        """Wait for the alerts being sent, each until `limit_s` after it was sent. Ctrl-C ends the wait."""
        with suppress(KeyboardInterrupt):
            for sending in self._sending:
                sending.thread.join(max(0.0, sending.deadline - time.monotonic()))
                if sending.thread.is_alive():
                    self._warn_once(sending.label, f"no answer in {self._limit_s:g} s")
        self._sending = []

    def _start(self, way: str, deliver: Callable[[float], None]) -> None:
        def work() -> None:
            try:
                deliver(0.9 * self._limit_s)  # the rest is for killing a command
            except UndeliverableError as error:
                self._warn_once(way, str(error))
            except Exception as error:  # its text may have the URL
                self._warn_once(way, type(error).__name__)

        thread = threading.Thread(target=work, daemon=True, name=f"alert-{way}")
        try:
            thread.start()
        except RuntimeError as error:  # no more threads
            self._warn_once(way, str(error))
        else:
            self._sending.append(_Sending(thread, way, time.monotonic() + self._limit_s))

    def _warn_once(self, way: str, reason: str) -> None:
        with self._lock:
            if way in self._warned:
                return
            self._warned.add(way)
        self._warn(f"warning: alerts.{way}: an alert could not be sent: {reason}; the run goes on")

    def _payload(self, event: Event, message: str, status: Status, *, restarting: bool) -> dict[str, Any]:
        host, message = os.uname().nodename, without_credentials(message)
        title = f"{self._run.path.absolute().name} {_TITLES[event].format(step=status.step)} on {host}"
        more = [f": {message}" if message else "", "; it restarts" if restarting else ""]
        return {
            "event": event,
            "run": self._run.path.absolute().name,
            "step": status.step,
            "message": message,
            "restarting": restarting,
            "host": host,
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "folder": str(self._run.path.absolute()),
            "url": status.url or None,
            "text": html.escape("".join([title, *more, f" {status.url}" if status.url else ""]), quote=False),
        }

    def _last_status(self) -> Status:
        with suppress(OSError, ValueError, TypeError):
            return self._run.read_status() or Status("running")
        return Status("running")

    def _hang_stacks(self) -> set[str]:
        with suppress(OSError):
            return {path.name for path in self._run.logs.glob("hang-*.txt")}
        return set()


def describe_stop(reason: str) -> str:
    """The cause of a stop, in words; from a verdict's message or the reason in a status."""
    first, *more = reason.removeprefix("stopped early: ").split("; ", 1)
    return "; ".join([_STOPS.get("user" if first == STOPPED_BY_USER else first, first), *more])
