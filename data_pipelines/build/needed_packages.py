"""The optional packages of a build, checked before it begins. Torch-free."""

from __future__ import annotations

from data_pipelines.cleaning.clean import sources_of
from data_pipelines.config import DataConfig
from data_pipelines.sources.columnar import HuggingFaceSource, ParquetSource
from xlpretrain.extras import require


def require_packages(config: DataConfig) -> None:
    """Raise `MissingPackageError` if a package that the build will need is not installed."""
    for source in (*config.sources, *sources_of(config.clean)):
        if isinstance(source, ParquetSource | HuggingFaceSource):
            require("pyarrow", f"a source of type {source.type}")
    if config.clean.repair:
        require("ftfy", "clean.repair")
    if config.clean.minhash_dedup:
        require("datasketch", "clean.minhash_dedup")
