"""The interface of a run's data: where the splits are, and how to open them. Torch-free."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from xlpretrain.data.mixture import Mixture
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.data.tokenizers.base import Tokenizer
from xlpretrain.schema import Section

DamagePolicy = Literal["error", "skip"]


@dataclass(frozen=True)
class DataSplits:
    """The splits of a run, and their tokenizer."""

    train: Mixture
    valid: TokenDataset | None
    tokenizer: Tokenizer


class DataConfig(Section, ABC):
    """The data of a run."""

    type: str
    shuffle_blocks: int
    on_damage: DamagePolicy

    @abstractmethod
    def open(self, *, kept: Tokenizer | None = None) -> DataSplits:
        """Open and check the datasets. kept: the run's copy of the tokenizer, as a fallback. Raises `DataError`."""

    @abstractmethod
    def open_train(self, tokenizer: Tokenizer) -> Mixture:
        """Open the training data alone. Raises `DataError`."""

    @abstractmethod
    def open_split(self, split: Path | str, tokenizer: Tokenizer) -> TokenDataset:
        """Open another dataset of the same type. Raises `DataError`."""

    @abstractmethod
    def places(self) -> dict[str, str]:
        """The paths and URLs of the data, by key in this section, such as `train` or `train.0.path`."""

    @abstractmethod
    def fingerprints(self, data: DataSplits) -> dict[str, str]:
        """The digest of the content at each of `places`. data: the opened splits."""

    @abstractmethod
    def tokenizer_path(self) -> Path:
        """The path of the tokenizer. Raises `DataError`."""

    @abstractmethod
    def absolute(self) -> Self:
        """A copy with absolute paths."""
