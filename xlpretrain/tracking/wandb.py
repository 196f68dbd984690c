"""The Weights & Biases tracker. Torch-free."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal

from pydantic import Field

from xlpretrain.tracking.base import TrackedRun, Tracker, TrackerConfig, describe_failure

_TRUE = ("1", "on", "true", "yes")  # as in transformers, where WANDB_DISABLED comes from
logger = logging.getLogger(__name__)

WandbMode = Literal["auto", "online", "offline", "disabled"]


class WandbConfig(TrackerConfig):
    """Weights & Biases."""

    type: Literal["wandb"] = "wandb"
    """Weights & Biases."""
    mode: WandbMode = "auto"
    """auto: online if you are logged in to W&B, otherwise offline. WANDB_MODE, WANDB_DISABLED and W&B's own settings
    can only restrict this (to offline or disabled). A failure never stops or slows the run."""
    project: str = Field("xlpretrain", min_length=1)
    """The project to log to."""
    entity: str | None = None
    """The user or team (default: that of the API key)."""
    tags: tuple[str, ...] = ()
    """Tags of the run."""

    title = "W&B"
    package = "wandb"
    buffer_s = 60.0  # W&B writes its buffer every 15 s, so a kill loses less than this

    def check(self) -> None:
        """Raise `ConfigError` if mode is online or offline and W&B is not installed."""
        if self.mode in ("online", "offline"):
            super().check()

    def build(self, run: TrackedRun) -> Tracker | None:
        """Start W&B, offline if it cannot be online; None if it is disabled."""
        if self.mode == "disabled" or _is_switched_off():
            return None
        if not self.is_installed:
            logger.warning("W&B is not installed, so metrics are not logged to it; %s", self.how_to_install)
            return None
        if self.mode != "offline":
            try:
                mode = possible_mode(self.mode)
                if self.mode == "online" and mode != "online":
                    logger.warning("W&B: wandb.mode is online, but W&B is %s: by its settings, or not logged in", mode)
                return WandbTracker(self, run, mode) if mode != "disabled" else None
            except BaseException as error:  # a dead W&B service raises OSError, its client SystemExit
                reason = describe_failure(error)
                logger.warning("W&B: online logging is not possible, so this attempt is logged offline: %s", reason)
                _teardown()
        return None if possible_mode("offline") == "disabled" else WandbTracker(self, run, "offline")


class WandbTracker(Tracker):
    """A run in W&B.

    Steps are logged as `train/step`, not as W&B's own step, because W&B drops repeated steps of a resumed run.
    """

    def __init__(self, config: WandbConfig, run: TrackedRun, mode: Literal["online", "offline"]):
        import wandb  # takes a second, and only rank 0 needs it

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
        if mode == "online":
            self.url = self._run.url or ""
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
    """The requested mode, or a more restricted one if W&B is switched off or has no credentials. Never prompts.

    This asks W&B itself, since where it stores credentials changes between versions. May take seconds; raises whatever
    W&B raises, for example on a malformed API key.
    """
    if wanted == "disabled" or _is_switched_off():
        return "disabled"
    import wandb

    own = wandb.setup(wandb.Settings(silent=True)).settings.mode  # from WANDB_MODE, `wandb offline` or `wandb disabled`
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
    """Tear down W&B, which would otherwise retry at process exit and print a traceback or hang."""
    import wandb

    with suppress(BaseException):
        wandb.teardown()
