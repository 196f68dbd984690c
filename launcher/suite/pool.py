"""Run processes, several at a time, each on devices of its own; a signal lets them save and exit. Torch-free."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Literal

Event = Literal["started", "finished", "failed", "stopped"]
"""`stopped`: by a signal to this process."""

_LOOK_EVERY_S = 0.2
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


@dataclass(frozen=True)
class Command:
    """A process to run. log: file to which its output is appended."""

    name: str
    arguments: Sequence[str]
    log: Path


@dataclass
class Pool:
    """Runs commands in as many slots as there are environments.

    environments: variables of each slot, such as the devices of its processes. tell: called with each event, its
    command, its exit code (None when it starts) and its duration in seconds. stopped_by: the first signal that this
    process has received; 0: none.
    """

    environments: Sequence[Mapping[str, str]]
    tell: Callable[[Event, Command, int | None, float], None]
    stopped_by: int = 0
    _running: dict[int, tuple[Command, subprocess.Popen[bytes], float]] = field(default_factory=dict)

    def run(self, commands: Sequence[Command]) -> dict[str, Event]:
        """Run all commands to their end, or until a signal, and return how each ended that was started, by name.

        Call it on the main thread. A signal is forwarded to the processes, which have sessions of their own; no others
        are started then.
        """
        ended: dict[str, Event] = {}
        waiting = list(reversed(commands))
        with self._signals():
            while self._running or (waiting and not self.stopped_by):
                for slot in range(len(self.environments)):
                    if slot not in self._running and waiting and not self.stopped_by:
                        self._start(slot, waiting.pop())
                for command, event in self._collect():
                    ended[command.name] = event
                time.sleep(_LOOK_EVERY_S)
        return ended

    def _start(self, slot: int, command: Command) -> None:
        command.log.parent.mkdir(parents=True, exist_ok=True)
        self.tell("started", command, None, 0.0)
        with command.log.open("ab") as log:
            process = subprocess.Popen(
                command.arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environments[slot]},
                start_new_session=True,  # Ctrl-C reaches this process only, which forwards it
            )
        self._running[slot] = command, process, time.monotonic()
        if self.stopped_by:  # by a signal that came before it was in the table
            self._forward(self.stopped_by)

    def _collect(self) -> Iterator[tuple[Command, Event]]:
        for slot, (command, process, since) in list(self._running.items()):
            if (code := process.poll()) is not None:
                del self._running[slot]
                event: Event = "finished" if code == 0 else "stopped" if self.stopped_by else "failed"
                self.tell(event, command, code, time.monotonic() - since)
                yield command, event

    @contextmanager
    def _signals(self) -> Iterator[None]:
        # Under nohup, SIGHUP stays ignored.
        heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        previous = {number: signal.signal(number, self._hear) for number in heard}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.stopped_by = self.stopped_by or number
        self._forward(number)

    def _forward(self, number: int) -> None:
        """Forward a signal. A launcher understands a second and a third Ctrl-C (launcher/local/interrupts.py)."""
        for _, process, _ in list(self._running.values()):
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)
