"""Build and check datasets: `xlpretrain data build`, `verify` and `stats`. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_pipelines.build import pipeline
from data_pipelines.config import DataConfig
from data_pipelines.sharding.stats import stats as stats
from data_pipelines.sharding.verify import verify as verify
from launcher.slurm.profile import load_cluster
from launcher.slurm.submission import build_jobs
from xlpretrain import schema


def build(config: Path, overrides: Sequence[str], *, force: bool, cluster: Path | None, num_jobs: int) -> None:
    """Build a dataset on this machine or, given a site profile, as Slurm jobs. Raises `XLPretrainError`."""
    settings = schema.load(DataConfig, config, overrides)
    if cluster is None:
        build_jobs.refuse_if_active(settings.out)
        pipeline.build(settings, force=force)
    else:
        build_jobs.build(settings, load_cluster(cluster), num_jobs=num_jobs, force=force)
