"""Run processes, several at a time, each on devices of its own; a signal lets them save and exit. Torch-free."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Literal

from xlpretrain.errors import ConfigError
from xlpretrain.run_dir import job_log

Event = Literal["started", "finished", "failed", "stopped"]
"""`stopped`: by a signal to this process."""

_LOOK_EVERY_S = 0.2
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


@dataclass(frozen=True)
class Slot:
    """The devices that a process may use. gpus: names as in CUDA_VISIBLE_DEVICES; cores: numbers of CPUs. None: all."""

    gpus: Sequence[str] | None = None
    cores: Sequence[int] | None = None


def divide_machine(num_slots: int, *, num_processes: int | None = None) -> list[Slot]:
    """Divide the GPUs of this machine, or the cores of one without GPUs. A single slot has all of them.

    num_processes: GPUs of a slot (None: an equal share). Raises `ConfigError` if there are too few GPUs.
    """
    if not (gpus := visible_gpus()):
        cores = sorted(os.sched_getaffinity(0))
        if num_slots == 1 or num_slots > len(cores):
            return [Slot()] * num_slots
        each = len(cores) // num_slots
        return [Slot(cores=cores[n * each : (n + 1) * each]) for n in range(num_slots)]
    if num_slots == 1 and num_processes is None:
        return [Slot()]
    each = num_processes or max(len(gpus) // num_slots, 1)
    if num_slots * each > len(gpus):
        raise ConfigError(
            f"--jobs {num_slots}: {num_slots} times {each} processes need {num_slots * each} GPUs, not {len(gpus)}"
        )
    return [Slot(gpus=gpus[n * each : (n + 1) * each]) for n in range(num_slots)]


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch  # takes seconds

    count = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]


@dataclass(frozen=True)
class Command:
    """A process to run. log: file to which its output is appended; None: it has the output of this process."""

    name: str
    arguments: Sequence[str]
    log: Path | None


@dataclass
class Pool:
    """Runs commands, one in each slot at a time.

    on_event: called with each event, its command, its exit code (None when it starts) and its duration in seconds.
    stopped_by: the first signal that this process has received; 0: none.
    """

    slots: Sequence[Slot]
    on_event: Callable[[Event, Command, int | None, float], None]
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
                for slot in range(len(self.slots)):
                    if slot not in self._running and waiting and not self.stopped_by:
                        self._start(slot, waiting.pop())
                for command, event in self._collect():
                    ended[command.name] = event
                time.sleep(_LOOK_EVERY_S)
        return ended

    def _start(self, slot: int, command: Command) -> None:
        self.on_event("started", command, None, 0.0)
        given = self.slots[slot]
        devices = {} if given.gpus is None else {"CUDA_VISIBLE_DEVICES": ",".join(given.gpus)}
        with _output(command.log) as output:
            process = subprocess.Popen(
                command.arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **devices},
                start_new_session=True,  # Ctrl-C reaches this process only, which forwards it
            )
        if given.cores is not None:
            with suppress(ProcessLookupError):
                os.sched_setaffinity(process.pid, given.cores)  # of all that it starts, too
        self._running[slot] = command, process, time.monotonic()
        if self.stopped_by:  # by a signal that came before it was in the table
            self._forward(self.stopped_by)

    def _collect(self) -> Iterator[tuple[Command, Event]]:
        for slot, (command, process, since) in list(self._running.items()):
            if (code := process.poll()) is not None:
                del self._running[slot]
                event: Event = "finished" if code == 0 else "stopped" if self.stopped_by else "failed"
                self.on_event(event, command, code, time.monotonic() - since)
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


def log_sizes(commands: Iterable[Command]) -> dict[str, int]:
    """The size of each command's log by now, by name."""
    return {
        command.name: command.log.stat().st_size if command.log is not None and command.log.exists() else 0
        for command in commands
    }


def describe_failure(code: int | None, log: Path | None, *, since: int = 0) -> str:
    """The exit code or signal of a process, and the last words of its log. since: size of the log when it started."""
    why = f"exit code {code}" if code is not None and code >= 0 else f"killed by {signal.Signals(-(code or 0)).name}"
    words = "" if log is None else job_log.last_words(log, since=since)
    return f"{why}: {words}" if words else why


@contextmanager
def _output(log: Path | None) -> Iterator[IO[bytes] | None]:
    if log is None:
        yield None
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        yield file
