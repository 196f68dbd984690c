"""The split and the order of documents, which depend on each document's text alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from data_pipelines.config import DataConfig, SplitConfig
from xlpretrain.errors import DataError

SPLITS = ("train", "valid", "test")
PRECEDENCE = (2, 1, 0)
"""Precedence of each split among copies of a document: the lowest number is kept, so held-out copies win."""


@dataclass(frozen=True)
class SplitKey:
    """The key of one dataset in a build: a split of a subset (or of all sources without one)."""

    corpus: str
    split: str

    @property
    def folder(self) -> str:
        """The dataset's folder, relative to `out`."""
        return f"{self.corpus}/{self.split}" if self.corpus else self.split


def groups(config: DataConfig) -> list[SplitKey]:
    """The datasets that a build makes, by subset; the training split comes first."""
    corpora = dict.fromkeys(source.subset or "" for source in config.sources)
    named = {(source.subset or "", source.split) for source in config.sources}
    shares = {"train": 1.0, "valid": config.splits.valid, "test": config.splits.test}
    return [
        SplitKey(corpus, split)
        for corpus in corpora
        for split in SPLITS
        if split == "train" or (shares[split] > 0 and (corpus, None) in named) or (corpus, split) in named
    ]


def hash_text(text: bytes, *, seed: int) -> tuple[bytes, bytes]:
    """Two 16-byte hashes of a document: one determines its split, the other its order."""
    digest = hashlib.blake2b(text, digest_size=16).digest()
    return digest, hashlib.blake2b(digest, key=str(seed).encode(), digest_size=16).digest()


def assign_split(digest: bytes, config: SplitConfig) -> int:
    """The split of a document, as an index into `SPLITS`."""
    point = int.from_bytes(digest[:8], "big") / 2**64
    for number, share in ((2, config.test), (1, config.valid)):
        if point < share:
            return number
        point -= share
    return 0


def require_documents(counts: dict[SplitKey, int]) -> None:
    """Raise `DataError` if a group would be empty."""
    total = sum(counts.values())
    if total == 0:
        raise DataError("the corpus is empty: the sources contain no text, or cleaning removed every document")
    for group, count in counts.items():
        if count == 0:
            of = f" of {group.corpus}" if group.corpus else ""
            raise DataError(
                f"none of the {total} documents was assigned to {group.folder}{of}: add documents, split them (a text "
                "source can use `documents: blank_lines`), or change splits.valid and splits.test"
            )
