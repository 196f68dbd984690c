"""The console of a run: one live line on a terminal, a plain line per logged step elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from xlpretrain.tracking.console import format_duration

_SAID = ("valid/perplexity", "valid/bits_per_byte", "valid/accuracy")
"""Held-out metrics that are shown otherwise; accuracy is that of the first term."""


class RunConsole:
    """One live line on a terminal, a plain line per logged step elsewhere."""

    def __init__(self, *, max_steps: int, log: Path | None = None):
        """log: file for plain lines, if stdout is a terminal; other output is copied there by rank_log.py."""
        self._max_steps = max_steps
        self._log = log
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._rate: float | None = None
        self._last: tuple[int, float] | None = None
        if self._live:
            self._live.start()

    def print(self, message: str) -> None:
        """Print a permanent line."""
        self._note(message)
        self._console.print(message, markup=False)

    def log(self, metrics: Mapping[str, float | int]) -> None:
        """Show the metrics of one step."""
        if any(name.startswith("valid/") for name in metrics):
            self.print(self._describe_evaluation(metrics))
        if "train/loss" not in metrics:
            return
        line = self._describe_step(metrics)
        if self._live:
            self._note(line)
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)
        else:
            self.print(line)

    def close(self) -> None:
        """Stop the live line, keeping its last content."""
        if self._live:
            self._live.stop()

    def _note(self, line: str) -> None:
        if self._live and self._log is not None:
            with suppress(OSError):
                self._log.parent.mkdir(exist_ok=True)
                with self._log.open("a", encoding="utf-8") as file:
                    file.write(f"{line}\n")

    def _describe_step(self, metrics: Mapping[str, float | int]) -> str:
        step, now = int(metrics["step"]), time.monotonic()
        if self._last is not None and step > self._last[0]:
            rate = (now - self._last[1]) / (step - self._last[0])
            self._rate = rate if self._rate is None else 0.8 * self._rate + 0.2 * rate
        self._last = (step, now)
        left = "" if self._rate is None else f"  {format_duration((self._max_steps - step) * self._rate)} left"
        waiting = metrics["time/data_wait_s"] / metrics["time/step_s"]
        return (
            f"step {step:>{len(str(self._max_steps))}}/{self._max_steps} {100 * step / self._max_steps:3.0f}%{left}"
            f"  loss {metrics['train/loss']:.4f}  {metrics['time/tokens_per_second']:,.0f} tok/s"
            f"  grad {metrics['train/grad_norm']:.2f}  lr {metrics['train/lr']:.2e}"
            f"  mfu {100 * metrics['time/mfu']:.0f}%  wait {100 * waiting:.1f}%"
        )

    @staticmethod
    def _describe_evaluation(metrics: Mapping[str, float | int]) -> str:
        parts = [f"held-out loss {metrics['valid/loss']:.4f}"] if "valid/loss" in metrics else []
        if "valid/perplexity" in metrics:
            parts.append(f"perplexity {metrics['valid/perplexity']:.2f}")
        if "valid/bits_per_byte" in metrics:
            parts.append(f"{metrics['valid/bits_per_byte']:.3f} bits per byte")
        for name, value in metrics.items():
            if name.startswith("valid/") and name not in _SAID and "loss" not in name:
                parts.append(f"{name.removeprefix('valid/').replace('_', ' ')} {value:.3f}")
        return f"step {metrics['step']}: {', '.join(parts)}"
