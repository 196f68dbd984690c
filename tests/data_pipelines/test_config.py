"""The configuration of a dataset: its former keys."""

from data_pipelines.config import DataConfig
from data_pipelines.sources.config import TextSource
from xlpretrain.schema import validate


def test_former_keys_of_sources_and_cleaning_are_read():
    sources = [
        {"type": "text", "path": "a", "split": "blank_lines", "corpus": "web", "into": "valid"},
        {"type": "text", "path": "b", "split": "files"},
    ]
    clean = {"near_duplicates": True, "overlap": {"against": [{"type": "text", "path": "c", "into": None}]}}
    config = validate(DataConfig, {"out": "x", "sources": sources, "clean": clean}, "data.yaml")
    assert config.sources == (
        TextSource(path="a", documents="blank_lines", subset="web", split="valid"),
        TextSource(path="b", documents="files"),
    )
    assert config.clean.minhash_dedup
    assert config.clean.decontaminate is not None
    assert config.clean.decontaminate.against == (TextSource(path="c"),)
