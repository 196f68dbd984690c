"""The split of each document, and the order of documents: functions of each document's text alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from data_pipelines.config import DataConfig, SplitConfig
from xlpretrain.errors import DataError

SPLITS = ("train", "valid", "test")
PRECEDENCE = (2, 1, 0)
"""Order of precedence among copies: the one in the split with the lowest number stays, so held-out copies win."""


@dataclass(frozen=True)
class SplitKey:
    """The key of one dataset in a build: a split of a corpus (or of all corpora without a name)."""

    corpus: str
    split: str

    @property
    def folder(self) -> str:
        """The folder of this dataset in `out`."""
        return f"{self.corpus}/{self.split}" if self.corpus else self.split


def groups(config: DataConfig) -> list[SplitKey]:
    """The datasets that a build makes; the training split of every corpus first."""
    corpora = dict.fromkeys(source.corpus or "" for source in config.sources)
    named = {(source.corpus or "", source.into) for source in config.sources}
    shares = {"train": 1.0, "valid": config.splits.valid, "test": config.splits.test}
    return [
        SplitKey(corpus, split)
        for corpus in corpora
        for split in SPLITS
        if split == "train" or (shares[split] > 0 and (corpus, None) in named) or (corpus, split) in named
    ]


def hash_text(text: bytes, *, seed: int) -> tuple[bytes, bytes]:
    """16 bytes that tell a document's split, and 16 that tell its order."""
    digest = hashlib.blake2b(text, digest_size=16).digest()
    return digest, hashlib.blake2b(digest, key=str(seed).encode(), digest_size=16).digest()


def assign_split(digest: bytes, config: SplitConfig) -> int:
    """The split of a document, as its number in `SPLITS`."""
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
        raise DataError("the corpus is empty: no document in the sources holds any text, or all are left out")
    for group, count in counts.items():
        if count == 0:
            of = f" of {group.corpus}" if group.corpus else ""
            raise DataError(
                f"none of the {total} documents falls into {group.folder}{of}: add documents, cut them smaller (a text "
                "source can `split: blank_lines`), or change splits.valid and splits.test"
            )
