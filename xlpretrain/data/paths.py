"""Where the data of a run lies: a corpus in shards, or files of labelled texts. Torch-free."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_serializer

from xlpretrain.data.config import CorpusConfig
from xlpretrain.data.labelled import LabelledTexts, check_labels
from xlpretrain.data.manifest import Manifest
from xlpretrain.data.mixture import Corpus, Mixture
from xlpretrain.data.remote import Cache, default_folder, is_url
from xlpretrain.data.tokenizer import Tokenizer
from xlpretrain.schema import Choice, OrOne, Problem, Section

OnDamage = Literal["error", "skip"]


@dataclass(frozen=True)
class Datasets:
    """The splits of a run, and the tokenizer of both."""

    train: Mixture
    valid: Manifest | None
    tokenizer: Tokenizer


class DataPaths(Section, ABC):
    """The splits of a run."""

    type: str
    shuffle_blocks: int
    on_damage: OnDamage

    @abstractmethod
    def open(self) -> Datasets:
        """The datasets, checked. Raises `DataError`."""

    @abstractmethod
    def open_split(self, split: Path, tokenizer: Tokenizer) -> Manifest:
        """Another dataset of this kind. Raises `DataError`."""

    @abstractmethod
    def tokenizer_path(self) -> Path:
        """Where the tokenizer lies. Raises `DataError`."""

    @abstractmethod
    def absolute(self) -> Self:
        """The same places, wherever one stands."""


class CorpusPaths(DataPaths):
    """Datasets made by `xlpretrain data build`."""

    type: Literal["corpus"] = "corpus"
    """Which kind of data this is."""
    train: Annotated[tuple[CorpusConfig, ...], Field(min_length=1), OrOne(CorpusConfig, "path")]
    """Folder or URL of the training split (it holds an index.json); or a mixture, a list of {path, weight, max_epochs}.
    """
    valid: str | None = None
    """Folder or URL of the held-out split (default: no evaluation)."""
    shuffle_blocks: PositiveInt = 64
    """Blocks among which rows are shuffled, where nothing is remembered from row to row."""

    on_damage: OnDamage = "error"
    """What to do about a block whose checksum is wrong. error: end with its name; skip: go on without its rows, counted
    in events/damaged_rows."""

    cache_dir: Path | None = None
    """Where blocks of datasets behind a URL are kept (default: ~/.cache/xlpretrain)."""
    cache_bytes: PositiveInt = 32 << 30
    """How much of each such dataset is kept; what was used longest ago goes first."""
    patience_s: PositiveFloat = 300.0
    """For how long a fetch that fails is tried again."""

    @property
    def cache(self) -> Cache:
        """Of datasets behind a URL."""
        return Cache(self.cache_dir or default_folder(), self.cache_bytes, self.patience_s)

    def absolute(self) -> Self:
        """The same with absolute paths."""
        return self.model_copy(
            update={
                "train": tuple(c.model_copy(update={"path": _absolute(c.path)}) for c in self.train),
                "valid": _absolute(self.valid) if self.valid else None,
                "cache_dir": self.cache_dir.absolute() if self.cache_dir else None,
            }
        )

    def problems(self) -> Iterator[Problem]:
        """Corpora must be told apart."""
        paths = [corpus.path for corpus in self.train]
        for index, path in enumerate(paths):
            if path in paths[:index]:
                yield f"train.{index}.path", f"{path} is there already; give it once, with the sum of the weights"

    @field_serializer("train")
    def _as_given(self, value: tuple[CorpusConfig, ...]) -> Any:
        if len(value) == 1 and value[0] == CorpusConfig(path=value[0].path):
            return value[0].path
        return [corpus.model_dump(mode="json") for corpus in value]

    def open(self) -> Datasets:
        """The datasets, checked. Raises `DataError`."""
        train = Mixture.open(self.train, cache=self.cache)
        valid = None if self.valid is None else self._open(self.valid, train.tokenizer_sha256)
        return Datasets(train, valid, train.open_tokenizer())

    def open_split(self, split: Path, tokenizer: Tokenizer) -> Manifest:
        """The split in a folder. Raises `DataError`, also if another tokenizer encoded it."""
        return self._open(str(split), tokenizer.sha256)

    def tokenizer_path(self) -> Path:
        """Beside the splits. Raises `DataError` if it is another one there."""
        first = Manifest.open(self.train[0].path, cache=self.cache)
        first.open_tokenizer()
        return first.tokenizer_path

    def _open(self, split: str, tokenizer_sha256: str) -> Manifest:
        return Manifest.open(split, tokenizer_sha256=tokenizer_sha256, cache=self.cache)


class LabelledPaths(DataPaths):
    """Files of labelled texts: CSV or TSV with a header, or JSON lines."""

    type: Literal["labelled"] = "labelled"
    """Which kind of data this is."""
    train: Path
    """The file to train on."""
    valid: Path | None = None
    """The file to evaluate on."""
    tokenizer: Path
    """The tokenizer of the model: a SentencePiece model, or a tokenizer.json."""
    text: tuple[str, ...] = Field(("text",), min_length=1, max_length=2)
    """The column of the text, or those of a pair of texts."""
    label: str = "label"
    """The column of the label."""

    shuffle_blocks: ClassVar[int] = 1  # type: ignore[misc]
    on_damage: ClassVar[OnDamage] = "error"  # type: ignore[misc]

    def open(self) -> Datasets:
        """The files, encoded. Raises `DataError`, also for labels that only one of them has."""
        tokenizer = Tokenizer.load(self.tokenizer)
        train = self.open_split(self.train, tokenizer)
        valid = None if self.valid is None else self.open_split(self.valid, tokenizer)
        check_labels(train, valid)
        return Datasets(Mixture([Corpus(self.train.stem, train, 1.0, None)]), valid, tokenizer)

    def open_split(self, split: Path, tokenizer: Tokenizer) -> LabelledTexts:
        """Another file with the same columns. Raises `DataError`."""
        return LabelledTexts(split, tokenizer, text=self.text, label=self.label)

    def tokenizer_path(self) -> Path:
        """As the config says."""
        return self.tokenizer

    def absolute(self) -> Self:
        """The same files, wherever one stands."""
        return self.model_copy(update={name: value.absolute() for name, value in self if isinstance(value, Path)})


def _absolute(place: str) -> str:
    return place if is_url(place) else str(Path(place).absolute())


AnyData = Annotated[DataPaths, Choice({"corpus": CorpusPaths, "labelled": LabelledPaths})]
"""The data of a run, told by its key `type`."""
