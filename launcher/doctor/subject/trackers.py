"""Trackers of a config: package, credentials, and whether the service answers. Torch-free at import."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Iterator

from launcher.doctor.findings import Finding, failure, from_error, passed, skipped, warning
from launcher.doctor.request import Request
from xlpretrain.errors import XLPretrainError
from xlpretrain.extras import optional
from xlpretrain.file_system.credentials import without_credentials
from xlpretrain.tracking.base import TrackerConfig, describe_failure
from xlpretrain.tracking.mlflow import MlflowConfig
from xlpretrain.tracking.wandb import WandbConfig, possible_mode

_ANSWER_S = 10
_NO_LOGIN = "run `wandb login` or export WANDB_API_KEY, or say that it is meant (wandb.mode=offline)"


def check(request: Request) -> Iterator[Finding]:
    """Check each tracker of the config."""
    config = request.load_config()
    if config is None:
        yield skipped("trackers: no config" if request.config is None else "trackers: the config is not valid")
        return
    if not config.trackers:
        yield skipped("trackers: the config has none")
    for tracker in config.trackers:
        yield check_tracker(tracker)


def check_tracker(tracker: TrackerConfig) -> Finding:
    """Check one tracker as the run would use it. No key is printed."""
    try:
        tracker.check()
    except XLPretrainError as error:
        return from_error(error)
    if isinstance(tracker, WandbConfig):
        return _check_wandb(tracker)
    if isinstance(tracker, MlflowConfig):
        return _check_mlflow(tracker)
    return passed(f"{tracker.label}: {tracker.package or 'no package'} is installed")


def _check_wandb(tracker: WandbConfig) -> Finding:
    if tracker.mode == "disabled":
        return skipped("W&B: wandb.mode is disabled")
    if not tracker.is_installed:
        return warning("W&B is not installed, so metrics would not be logged to it", tracker.how_to_install)
    try:
        mode = possible_mode(tracker.mode)
    except BaseException as error:  # its client also raises SystemExit
        return failure(f"W&B refuses its settings or key: {_without_key(describe_failure(error))}", _NO_LOGIN)
    if mode == "disabled":
        return skipped("W&B: switched off by WANDB_MODE, WANDB_DISABLED or its own settings")
    if mode == "offline":
        return _judge_offline(tracker)
    return _ask_wandb(tracker)


def _judge_offline(tracker: WandbConfig) -> Finding:
    """Judge offline logging: chosen by config, environment or W&B's settings, or for want of a key."""
    with optional("wandb", "a check of its tracker"):
        import wandb

    if tracker.mode == "offline":
        return passed("W&B: offline, as wandb.mode says; `wandb sync` uploads it later")
    if wandb.setup(wandb.Settings(silent=True)).settings.mode in ("offline", "dryrun"):
        say = warning if tracker.mode == "online" else None
        text = "W&B: offline, as WANDB_MODE or its own settings say"
        return say(text, "unset WANDB_MODE, or run `wandb online`") if say else passed(text)
    text = "W&B: no key found, so the run would be logged offline"
    return (failure if tracker.mode == "online" else warning)(text, _NO_LOGIN)


def _ask_wandb(tracker: WandbConfig) -> Finding:
    with optional("wandb", "a check of its tracker"):
        import wandb
        from wandb.errors import AuthenticationError

    say = failure if tracker.mode == "online" else warning
    address = str(wandb.setup(wandb.Settings(silent=True)).settings.base_url)
    if why := _unreachable(address):
        return say(
            f"W&B: a key was found, but {address} does not answer: {why}",
            "without a way out, set a proxy (HTTPS_PROXY), or wandb.mode=offline and upload with `wandb sync` later",
        )
    try:
        viewer = wandb.Api(timeout=_ANSWER_S).viewer
    except AuthenticationError:
        return say(f"W&B: {address} refuses the key", "run `wandb login --relogin`, or correct WANDB_API_KEY")
    except BaseException as error:
        return warning(
            f"W&B: {address} answers, but not to the key's owner: {_without_key(describe_failure(error))}",
            "if runs are not logged, run `wandb login --relogin --verify`",
        )
    return passed(f"W&B: {address} accepts the key of {viewer.username}")


def _check_mlflow(tracker: MlflowConfig) -> Finding:
    uri = tracker.uri or os.environ["MLFLOW_TRACKING_URI"]
    shown = without_credentials(uri)
    if not uri.startswith(("http://", "https://")):
        return skipped(f"MLflow: {shown} is not a server; it was not opened, since that would create it")
    if why := _unreachable(uri):
        return failure(f"MLflow: {shown} does not answer: {why}", "start the server, or correct MLFLOW_TRACKING_URI")
    os.environ |= {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(_ANSWER_S)}
    with optional("mlflow", "a check of its tracker"):
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

    try:
        MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
    except MlflowException as error:
        return failure(
            f"MLflow: {shown} refuses a request: {without_credentials(describe_failure(error))}",
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
        )
    return passed(f"MLflow: {shown} answers")


def _unreachable(address: str) -> str:
    """Reason why a web server does not answer at all, or empty."""
    try:
        urllib.request.urlopen(address, timeout=_ANSWER_S).close()
    except urllib.error.HTTPError:
        return ""  # an answer
    except urllib.error.URLError as error:
        return str(error.reason)
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def _without_key(text: str) -> str:
    """A message without the key, should it be quoted there."""
    key = os.environ.get("WANDB_API_KEY", "")
    return text.replace(key, "***") if key else text
