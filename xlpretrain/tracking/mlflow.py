"""The MLflow tracker. Torch-free."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field

from xlpretrain.errors import ConfigError
from xlpretrain.tracking.base import TrackedRun, Tracker, TrackerConfig

_RUN_TAG = "xlpretrain.run"
_METRICS_PER_CALL = 1000  # this and the next two are MLflow's limits
_PARAMS_PER_CALL = 100
_PARAM_LENGTH = 500
_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class MlflowConfig(TrackerConfig):
    """MLflow."""

    type: Literal["mlflow"] = "mlflow"
    """MLflow's tracking server."""
    uri: str | None = None
    """Tracking URI: a server such as http://host:5000, or any other that MLflow accepts (default: MLFLOW_TRACKING_URI).
    Put credentials in MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD or MLFLOW_TRACKING_TOKEN."""
    experiment: str = Field("xlpretrain", min_length=1)
    """The experiment to log to; created if it does not exist."""
    tags: dict[str, str] = {}  # noqa: RUF012 (pydantic copies it)
    """Tags of the run."""

    title = "MLflow"
    package = "mlflow"
    timeout_s = 600.0  # MLflow retries for minutes, long enough for a server to restart

    def check(self) -> None:
        """Raise `ConfigError` if MLflow is not installed or there is no tracking URI."""
        super().check()
        if not (self.uri or os.environ.get("MLFLOW_TRACKING_URI")):
            raise ConfigError(
                "trackers: mlflow needs the address of a server: give trackers.mlflow.uri, such as"
                " http://localhost:5000, or set MLFLOW_TRACKING_URI"
            )

    def build(self, run: TrackedRun) -> Tracker:
        """Find the run in MLflow, or create it."""
        return MlflowTracker(self, run)


class MlflowTracker(Tracker):
    """A run in MLflow, identified by a tag.

    Each point carries the time at which it was recorded, so sending it twice adds no duplicate.
    """

    def __init__(self, config: MlflowConfig, run: TrackedRun):
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=config.uri)
        self._run_id = self._find(config, run) or self._make(config, run)
        self._waiting: list[Any] = []

    def log(self, metrics: Mapping[str, float | int]) -> None:
        """Log one step."""
        from mlflow.entities import Metric

        step, at_ms = int(metrics["step"]), int(1000 * metrics["time/logged_at_s"])
        self._waiting += [
            Metric(re.sub(r"[^\w\-. /]", "_", name), float(value), at_ms, step)
            for name, value in metrics.items()
            if name != "step"
        ]
        if len(self._waiting) >= _METRICS_PER_CALL:
            self.flush()

    def flush(self) -> None:
        """Send what was logged."""
        while self._waiting:
            self._client.log_batch(self._run_id, metrics=self._waiting[:_METRICS_PER_CALL])
            del self._waiting[:_METRICS_PER_CALL]

    def close(self, state: str) -> None:
        """Send what is left and set the final status of the attempt."""
        self.flush()
        self._client.set_terminated(self._run_id, _STATUS[state])

    def _find(self, config: MlflowConfig, run: TrackedRun) -> str | None:
        experiment = self._client.get_experiment_by_name(config.experiment)
        if experiment is None:
            return None
        found = self._client.search_runs([experiment.experiment_id], f"tags.`{_RUN_TAG}` = '{run.id}'", max_results=1)
        if not found:
            return None
        self._client.update_run(found[0].info.run_id, status="RUNNING")
        return str(found[0].info.run_id)

    def _make(self, config: MlflowConfig, run: TrackedRun) -> str:
        from mlflow.entities import Param

        experiment = self._client.get_experiment_by_name(config.experiment)
        place = experiment.experiment_id if experiment else self._client.create_experiment(config.experiment)
        made = self._client.create_run(place, run_name=run.name, tags={**config.tags, _RUN_TAG: run.id}).info.run_id
        params = [Param(key, value[:_PARAM_LENGTH]) for key, value in _flatten(run.config)]
        for start in range(0, len(params), _PARAMS_PER_CALL):
            self._client.log_batch(made, params=params[start : start + _PARAMS_PER_CALL])
        return str(made)


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted keys with their values as text."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
