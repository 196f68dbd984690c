"""The tracker of Weights & Biases. Torch-free."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal

from pydantic import Field

from xlpretrain.tracking.base import TrackedRun, Tracker, TrackerConfig, describe_failure

_TRUE = ("1", "on", "true", "yes")  # what transformers, which made WANDB_DISABLED known, takes for true
logger = logging.getLogger(__name__)

WandbMode = Literal["auto", "online", "offline", "disabled"]


class WandbConfig(TrackerConfig):
    """Weights & Biases."""

    type: Literal["wandb"] = "wandb"
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

    title = "W&B"
    package = "wandb"
    buffer_s = 60.0  # W&B writes its buffer every 15 s: what a kill can cost it lies within this

    def check(self) -> None:
        """Raise `ConfigError` if W&B is asked for by name and is not installed."""
        if self.mode in ("online", "offline"):
            super().check()

    def build(self, run: TrackedRun) -> Tracker | None:
        """Start W&B, offline where it cannot be online; None if it is disabled."""
        if self.mode == "disabled" or _is_switched_off():
            return None
        if not self.is_installed:
            logger.warning("W&B is not installed, so it does not get the metrics; %s", self.how_to_install)
            return None
        if self.mode != "offline":
            try:
                mode = possible_mode(self.mode)
                if self.mode == "online" and mode != "online":
                    logger.warning("W&B: wandb.mode is online, but W&B is %s: switched so, or not logged in", mode)
                return WandbTracker(self, run, mode) if mode != "disabled" else None
            except BaseException as error:  # W&B's service dying raises OSError, its client SystemExit
                reason = describe_failure(error)
                logger.warning("W&B: online logging is not possible, so this attempt is logged offline: %s", reason)
                _teardown()
        return None if possible_mode("offline") == "disabled" else WandbTracker(self, run, "offline")


class WandbTracker(Tracker):
    """A run in W&B.

    Steps are logged as `train/step` and not as W&B's own step, which drops what a resumed run logs again.
    """

    def __init__(self, config: WandbConfig, run: TrackedRun, mode: Literal["online", "offline"]):
        import wandb  # here, since it costs a second and is not needed by other ranks

        settings = wandb.Settings(
            init_timeout=15, finish_timeout=15, console="off", disable_git=True, save_code=False, silent=True
        )
        self._run: Any = wandb.init(
            id=run.id,
            name=run.name,
            project=config.project,
            entity=config.entity,
            tags=list(config.tags),
            dir=str(run.folder),
            mode=mode,
            resume="allow",
            config=dict(run.config),
            settings=settings,
        )
        self._run.define_metric("train/step")
        self._run.define_metric("*", step_metric="train/step")

    def log(self, metrics: Mapping[str, float | int]) -> None:
        """Log one step."""
        values = {key: value for key, value in metrics.items() if key != "step"}
        try:
            self._run.log({"train/step": metrics["step"], **values})
        except BaseException:
            _teardown()
            raise

    def close(self, state: str) -> None:
        """Upload what is left, within seconds."""
        try:
            self._run.finish(exit_code=int(state == "failed"))
        except BaseException:
            _teardown()
            raise


def possible_mode(wanted: WandbMode) -> Literal["online", "offline", "disabled"]:
    """The mode that is wanted, or a quieter one where W&B is switched off or knows no credentials. Never prompts.

    W&B itself is asked: where it keeps credentials, and under which host, changes between its versions. May take
    seconds; raises whatever W&B does, such as for a malformed API key.
    """
    if wanted == "disabled" or _is_switched_off():
        return "disabled"
    import wandb

    own = wandb.setup(wandb.Settings(silent=True)).settings.mode  # of WANDB_MODE, `wandb offline` and `wandb disabled`
    if own == "disabled":
        return "disabled"
    if wanted == "offline" or own in ("offline", "dryrun"):
        return "offline"
    return "online" if wandb.login(prompt=False, verify=False) else "offline"


def _is_switched_off() -> bool:
    """True if the environment disables W&B."""
    env = os.environ
    return env.get("WANDB_DISABLED", "").lower() in _TRUE or env.get("WANDB_MODE") == "disabled"


def _teardown() -> None:
    """Forget W&B, which would else try again when the process ends, and print a traceback or wait for ever."""
    import wandb

    with suppress(BaseException):
        wandb.teardown()
