"""The data of a run: a corpus in shards, or files of labelled texts. Torch-free."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_serializer

from xlpretrain.data.labelled import LabelledDataset, check_labels
from xlpretrain.data.mixture import Corpus, CorpusConfig, Mixture
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.data.storage.remote import BlockCache, default_folder, is_url
from xlpretrain.data.tokenizers.base import Tokenizer
from xlpretrain.data.tokenizers.open import load_tokenizer
from xlpretrain.schema import OneOrMany, Problem, Section, TaggedUnion

DamagePolicy = Literal["error", "skip"]


@dataclass(frozen=True)
class DataSplits:
    """The splits of a run, and the tokenizer of both."""

    train: Mixture
    valid: TokenDataset | None
    tokenizer: Tokenizer


class DataConfig(Section, ABC):
    """The splits of a run."""

    type: str
    shuffle_blocks: int
    on_damage: DamagePolicy

    @abstractmethod
    def open(self, *, kept: Tokenizer | None = None) -> DataSplits:
        """Open and check the datasets. kept: the tokenizer, should it lie nowhere else. Raises `DataError`."""

    @abstractmethod
    def open_train(self, tokenizer: Tokenizer) -> Mixture:
        """Open the training data alone. Raises `DataError`."""

    @abstractmethod
    def open_split(self, split: Path | str, tokenizer: Tokenizer) -> TokenDataset:
        """Another dataset of this kind. Raises `DataError`."""

    @abstractmethod
    def places(self) -> dict[str, str]:
        """Every path or URL of data, by its key in this section, such as `train` or `train.0.path`."""

    @abstractmethod
    def fingerprints(self, data: DataSplits) -> dict[str, str]:
        """The digest of what lies at each of `places`, once it was opened."""

    @abstractmethod
    def tokenizer_path(self) -> Path:
        """The path of the tokenizer. Raises `DataError`."""

    @abstractmethod
    def absolute(self) -> Self:
        """The same places, wherever one stands."""


class CorpusDataConfig(DataConfig):
    """Datasets made by `xlpretrain data build`."""

    type: Literal["corpus"] = "corpus"
    """Kind of data."""
    train: Annotated[tuple[CorpusConfig, ...], Field(min_length=1), OneOrMany(CorpusConfig, "path")]
    """Folder or URL of the training split (it holds an index.json); or a mixture, a list of {path, weight, max_epochs}.
    """
    valid: str | None = None
    """Folder or URL of the held-out split (default: no evaluation)."""
    shuffle_blocks: PositiveInt = 64
    """Blocks among which rows are shuffled, where nothing is remembered from row to row."""

    on_damage: DamagePolicy = "error"
    """Policy for a block whose checksum is wrong. error: exit and name it; skip: continue without its samples, counted
    in events/damaged_rows."""

    cache_dir: Path | None = None
    """Folder for cached blocks of remote datasets (default: ~/.cache/xlpretrain)."""
    cache_bytes: PositiveInt = 32 << 30
    """Size limit of the cache of each remote dataset; the least recently used blocks are evicted first."""
    patience_s: PositiveFloat = 300.0
    """For how long a fetch that fails is tried again."""

    @property
    def cache(self) -> BlockCache:
        """The cache for remote datasets."""
        return BlockCache(self.cache_dir or default_folder(), self.cache_bytes, self.patience_s)

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

    def open(self, *, kept: Tokenizer | None = None) -> DataSplits:
        """Open and check the datasets. kept: used in place of the tokenizer beside them if it is the same."""
        train = Mixture.open(self.train, cache=self.cache)
        valid = None if self.valid is None else self._open(self.valid, train.tokenizer_sha256)
        is_theirs = kept is not None and kept.sha256 == train.tokenizer_sha256
        return DataSplits(train, valid, kept if kept is not None and is_theirs else train.open_tokenizer())

    def open_train(self, tokenizer: Tokenizer) -> Mixture:
        """Open the training data alone. Raises `DataError`, also if another tokenizer encoded it."""
        return Mixture.open(self.train, tokenizer_sha256=tokenizer.sha256, cache=self.cache)

    def open_split(self, split: Path | str, tokenizer: Tokenizer) -> TokenDataset:
        """The split in a folder or behind a URL. Raises `DataError`, also if another tokenizer encoded it."""
        return self._open(str(split), tokenizer.sha256)

    def places(self) -> dict[str, str]:
        """Every path or URL of data by its key: `train` or, of a mixture, `train.0.path` and so on; `valid`."""
        given = self._as_given(self.train)
        found = (
            {"train": given} if isinstance(given, str) else {f"train.{i}.path": c["path"] for i, c in enumerate(given)}
        )
        return found if self.valid is None else {**found, "valid": self.valid}

    def fingerprints(self, data: DataSplits) -> dict[str, str]:
        """The digest of what lies at each of `places`, once it was opened."""
        manifests = [*data.train.manifests, *([] if data.valid is None else [data.valid])]
        return {key: manifest.fingerprint for key, manifest in zip(self.places(), manifests, strict=True)}

    def tokenizer_path(self) -> Path:
        """Beside the splits. Raises `DataError` if it is another one there."""
        first = TokenDataset.open(self.train[0].path, cache=self.cache)
        first.open_tokenizer()
        return first.tokenizer_path

    def _open(self, split: str, tokenizer_sha256: str) -> TokenDataset:
        return TokenDataset.open(split, tokenizer_sha256=tokenizer_sha256, cache=self.cache)


class LabelledDataConfig(DataConfig):
    """Files of labelled texts: CSV or TSV with a header, or JSON lines."""

    type: Literal["labelled"] = "labelled"
    """Kind of data."""
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
    on_damage: ClassVar[DamagePolicy] = "error"  # type: ignore[misc]

    def open(self, *, kept: Tokenizer | None = None) -> DataSplits:
        """Read and encode the files. Raises `DataError`, also for labels that only one of them has.

        kept: used in place of `tokenizer` if that is not there any more.
        """
        tokenizer = load_tokenizer(self.tokenizer) if kept is None or self.tokenizer.exists() else kept
        train = self.open_split(self.train, tokenizer)
        valid = None if self.valid is None else self.open_split(self.valid, tokenizer)
        check_labels(train, valid)
        return DataSplits(self._mixture(train), valid, tokenizer)

    def open_train(self, tokenizer: Tokenizer) -> Mixture:
        """Read and encode the file to train on. Raises `DataError`."""
        return self._mixture(self.open_split(self.train, tokenizer))

    def open_split(self, split: Path | str, tokenizer: Tokenizer) -> LabelledDataset:
        """Another file with the same columns. Raises `DataError`."""
        return LabelledDataset(Path(split), tokenizer, text=self.text, label=self.label)

    def _mixture(self, train: LabelledDataset) -> Mixture:
        return Mixture([Corpus(self.train.stem, train, 1.0, None)])

    def places(self) -> dict[str, str]:
        """Every path by its key: `train`, `tokenizer` and `valid`."""
        found = {"train": self.train, "tokenizer": self.tokenizer, "valid": self.valid}
        return {key: str(path) for key, path in found.items() if path is not None}

    def fingerprints(self, data: DataSplits) -> dict[str, str]:
        """The digest of what lies at each of `places`, once it was opened."""
        found = {"train": data.train.fingerprint, "tokenizer": data.tokenizer.sha256}
        return found if data.valid is None else {**found, "valid": data.valid.fingerprint}

    def tokenizer_path(self) -> Path:
        """As the config says."""
        return self.tokenizer

    def absolute(self) -> Self:
        """The same files, wherever one stands."""
        return self.model_copy(update={name: value.absolute() for name, value in self if isinstance(value, Path)})


def _absolute(place: str) -> str:
    return place if is_url(place) else str(Path(place).absolute())


DataConfigUnion = Annotated[DataConfig, TaggedUnion({"corpus": CorpusDataConfig, "labelled": LabelledDataConfig})]
"""The data of a run, told by its key `type`."""
