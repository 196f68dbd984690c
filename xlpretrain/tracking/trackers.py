"""Trackers, which show metrics while a run trains: Weights & Biases, and the console. Rank 0 only."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field
from rich.console import Console
from rich.live import Live
from rich.text import Text

from xlpretrain.extras import MissingPackageError, require
from xlpretrain.schema import Section
from xlpretrain.tracking.console import format_duration

_CALL_TIMEOUT_S = 20.0  # longer than the worst log() seen (2 ms usual, 94 ms worst), shorter than anyone's patience
_INIT_TIMEOUT_S = 30.0
_TRUE = ("1", "on", "true", "yes")  # what transformers, which made WANDB_DISABLED known, takes for true
logger = logging.getLogger(__name__)

WandbMode = Literal["auto", "online", "offline", "disabled"]


class WandbConfig(Section):
    """Weights & Biases."""

    mode: WandbMode = "auto"
    """auto: online where you are logged in to W&B, offline otherwise. WANDB_MODE, WANDB_DISABLED and W&B's own settings
    can only make it quieter. A failure never stops or slows the run."""
    project: str = Field("xlpretrain", min_length=1)
    """The project to log to."""
    entity: str | None = None
    """The user or team (default: the key's own)."""
    tags: tuple[str, ...] = ()
    """Tags of the run."""


class LogConfig(Section):
    """Metrics."""

    every_steps: int = Field(10, gt=0)
    """Steps between two lines of metrics."""


class Tracker(Protocol):
    """Something that shows metrics."""

    def log(self, metrics: Mapping[str, float | int]) -> None:
        """Show the metrics of one step (key `step`)."""

    def close(self) -> None:
        """Finish; nothing is logged afterwards."""


class WandbTracker:
    """W&B, made harmless: each call is bounded in time and its first failure ends W&B for this start of the run.

    Steps are logged as `train/step` and not as W&B's own step, which drops what a resumed run logs again.
    """

    def __init__(self, config: WandbConfig, *, folder: Path, run_id: str, name: str, run_config: Mapping[str, Any]):
        self._run: Any = None
        if config.mode != "disabled" and not _switched_off():
            try:
                require("wandb", "logging to W&B")
            except MissingPackageError as error:
                logger.warning("%s; the run goes on without it", error)
                return
        start = partial(self._start, config, folder=folder, run_id=run_id, name=name, run_config=run_config)
        if config.mode != "offline":
            reason = _attempt(partial(start, config.mode), _INIT_TIMEOUT_S)
            if reason is None:
                return
            logger.warning("W&B: online logging is not possible, so this attempt is logged offline: %s", reason)
            self._switch_off()
        self._guard(partial(start, "offline"), _INIT_TIMEOUT_S)

    def _start(
        self,
        config: WandbConfig,
        wanted: WandbMode,
        *,
        folder: Path,
        run_id: str,
        name: str,
        run_config: Mapping[str, Any],
    ) -> None:
        mode = possible_mode(wanted)
        if wanted == "online" and mode != wanted:
            logger.warning("W&B: wandb.mode is online, but W&B is %s: switched so, or not logged in", mode)
        if mode == "disabled":
            return
        import wandb  # here, since it costs a second and is not needed by other ranks

        settings = wandb.Settings(
            init_timeout=15, finish_timeout=15, console="off", disable_git=True, save_code=False, silent=True
        )
        self._run = wandb.init(
            id=run_id,
            name=name,
            project=config.project,
            entity=config.entity,
            tags=list(config.tags),
            dir=str(folder),
            mode=mode,
            resume="allow",
            config=dict(run_config),
            settings=settings,
        )
        self._run.define_metric("train/step")
        self._run.define_metric("*", step_metric="train/step")

    def log(self, metrics: Mapping[str, float | int]) -> None:
        """Log one step."""
        if self._run is not None:
            values = {key: value for key, value in metrics.items() if key != "step"}
            self._guard(lambda: self._run.log({"train/step": metrics["step"], **values}), _CALL_TIMEOUT_S)

    def close(self) -> None:
        """Upload what is left, within seconds."""
        if self._run is not None:
            self._guard(lambda: self._run.finish(), _CALL_TIMEOUT_S)
            self._run = None

    def _guard(self, call: Callable[[], Any], timeout_s: float) -> bool:
        """Make a call; if it fails, W&B is off from now on. Returns whether it succeeded."""
        reason = _attempt(call, timeout_s)
        if reason is not None:
            logger.warning("W&B failed and is off for the rest of this attempt: %s", reason)
            self._switch_off()
        return reason is None

    def _switch_off(self) -> None:
        """Forget W&B, which would else try again when the process ends, and print a traceback or wait for ever."""
        self._run = None
        _attempt(_teardown, _CALL_TIMEOUT_S)


def possible_mode(wanted: WandbMode) -> Literal["online", "offline", "disabled"]:
    """The mode that is wanted, or a quieter one where W&B is switched off or knows no credentials. Never prompts.

    W&B itself is asked: where it keeps credentials, and under which host, changes between its versions. May take
    seconds; raises whatever W&B does, such as for a malformed API key.
    """
    if wanted == "disabled" or _switched_off():
        return "disabled"
    import wandb

    own = wandb.setup(wandb.Settings(silent=True)).settings.mode  # of WANDB_MODE, `wandb offline` and `wandb disabled`
    if own == "disabled":
        return "disabled"
    if wanted == "offline" or own in ("offline", "dryrun"):
        return "offline"
    return "online" if wandb.login(prompt=False, verify=False) else "offline"


def _switched_off() -> bool:
    """True if the environment disables W&B."""
    env = os.environ
    return env.get("WANDB_DISABLED", "").lower() in _TRUE or env.get("WANDB_MODE") == "disabled"


def _attempt(call: Callable[[], Any], timeout_s: float) -> str | None:
    """Make a call on a thread of its own, since W&B may raise anything, or never return. Returns what went wrong."""
    failure: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:  # W&B's service dying raises OSError, its client SystemExit
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True, name="wandb-call")
    try:
        thread.start()
    except RuntimeError as error:  # no more threads
        return str(error)
    thread.join(timeout_s)
    if failure:
        return f"{type(failure[0]).__name__}: {failure[0]}".splitlines()[0][:200]
    return f"no answer in {timeout_s:.0f} s" if thread.is_alive() else None


def _teardown() -> None:
    import wandb

    wandb.teardown()


class ConsoleTracker:
    """One live line on a terminal, a plain line per logged step elsewhere."""

    def __init__(self, *, max_steps: int, log: Path | None = None):
        """log: a file for plain lines, if this is a terminal; what goes elsewhere is copied there (rank_log.py)."""
        self._max_steps = max_steps
        self._log = log
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._rate: float | None = None
        self._last: tuple[int, float] | None = None
        if self._live:
            self._live.start()

    def print(self, message: str) -> None:
        """Print a line that stays."""
        self._note(message)
        self._console.print(message, markup=False)

    def log(self, metrics: Mapping[str, float | int]) -> None:
        """Show one step."""
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
        """Leave the last line standing."""
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
            if name.startswith("valid/") and name.endswith("_accuracy"):
                parts.append(f"{name.removeprefix('valid/').replace('_', ' ')} {value:.3f}")
        return f"step {metrics['step']}: {', '.join(parts)}"
