"""The data of a task: files of examples. Torch-free."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from xlpretrain.data.examples.base import ExampleDataset
from xlpretrain.data.mixture import Corpus, Mixture
from xlpretrain.data.splits import DamagePolicy, DataConfig, DataSplits
from xlpretrain.data.tokenizers.base import Tokenizer
from xlpretrain.data.tokenizers.open import load_tokenizer
from xlpretrain.errors import ConfigError


class ExampleDataConfig(DataConfig):
    """Files of examples of a task, each read whole."""

    train: Path
    """Training file."""
    valid: Path | None = None
    """Validation file (default: no evaluation)."""
    tokenizer: Path
    """Tokenizer of the model: a SentencePiece model or a tokenizer.json."""

    shuffle_blocks: ClassVar[int] = 1  # type: ignore[misc]
    on_damage: ClassVar[DamagePolicy] = "error"  # type: ignore[misc]

    @classmethod
    @abstractmethod
    def columns_in(cls, train: Path, *, text: Sequence[str], label: Sequence[str]) -> dict[str, Any]:
        """The config keys that name the columns of a training file.

        text, label: columns that the user named, at least one of `label` (by default `label`); `text` may be empty.
        Raises `XLPretrainError` if they cannot be found.
        """

    @abstractmethod
    def from_objects(self, objects: Iterable[object], tokenizer: Tokenizer) -> ExampleDataset:
        """Examples given in Python, without targets. Raises `ConfigError` and `DataError`."""

    @abstractmethod
    def open_split(self, split: Path | str, tokenizer: Tokenizer) -> ExampleDataset:
        """Read another file of the same format. Raises `DataError`, also for examples without a target."""

    @abstractmethod
    def open_unlabelled(self, path: Path | None, tokenizer: Tokenizer) -> ExampleDataset:
        """Read a file whose examples may lack targets, or standard input. Raises `DataError`."""

    def open(self, *, kept: Tokenizer | None = None) -> DataSplits:
        """Read and encode the files. Raises `DataError`.

        kept: used instead of `tokenizer` if that no longer exists.
        """
        tokenizer = load_tokenizer(self.tokenizer) if kept is None or self.tokenizer.exists() else kept
        train = self.open_split(self.train, tokenizer)
        valid = None if self.valid is None else self.open_split(self.valid, tokenizer)
        return DataSplits(self._mixture(train), valid, tokenizer)

    def open_train(self, tokenizer: Tokenizer) -> Mixture:
        """Read and encode the training file. Raises `DataError`."""
        return self._mixture(self.open_split(self.train, tokenizer))

    def _mixture(self, train: ExampleDataset) -> Mixture:
        return Mixture([Corpus(self.train.stem, train, 1.0, None)])

    def places(self) -> dict[str, str]:
        """The paths by key: `train`, `tokenizer` and `valid`."""
        found = {"train": self.train, "tokenizer": self.tokenizer, "valid": self.valid}
        return {key: str(path) for key, path in found.items() if path is not None}

    def fingerprints(self, data: DataSplits) -> dict[str, str]:
        """The digest of the content at each of `places`. data: the opened splits."""
        found = {"train": data.train.fingerprint, "tokenizer": data.tokenizer.sha256}
        return found if data.valid is None else {**found, "valid": data.valid.fingerprint}

    def tokenizer_path(self) -> Path:
        """The tokenizer named in the config."""
        return self.tokenizer

    def absolute(self) -> Self:
        """A copy with absolute paths."""
        return self.model_copy(update={name: value.absolute() for name, value in self if isinstance(value, Path)})


def only_column(label: Sequence[str]) -> str:
    """The one column of targets. Raises `ConfigError` if the user named several."""
    if len(label) != 1:
        raise ConfigError(
            f"--label: expected one column, got {', '.join(label) or 'none'} (several labels for a text: --task"
            " multilabel)"
        )
    return label[0]
