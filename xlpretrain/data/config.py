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
from xlpretrain.data.storage.remote import BlockCache, default_folder
from xlpretrain.data.tokenizers.base import Tokenizer
from xlpretrain.data.tokenizers.open import load_tokenizer
from xlpretrain.file_system.urls import is_url
from xlpretrain.schema import FormerKey, OneOrMany, Problem, Section, TaggedUnion

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


class CorpusDataConfig(DataConfig):
    """Datasets built by `xlpretrain data build`."""

    type: Literal["corpus"] = "corpus"
    """Kind of data."""
    train: Annotated[tuple[CorpusConfig, ...], Field(min_length=1), OneOrMany(CorpusConfig, "path")]
    """Folder or URL of the training split (with an index.json); or a mixture: a list of {path, weight, max_epochs}."""
    valid: str | None = None
    """Folder or URL of the held-out split (default: no evaluation)."""
    shuffle_blocks: PositiveInt = 64
    """Number of blocks among which samples are shuffled; only for objectives without a memory."""

    on_damage: DamagePolicy = "error"
    """Policy for blocks with a wrong checksum. error: exit and name the block; skip: continue without its samples,
    which are counted in events/damaged_rows."""

    cache_dir: Path | None = None
    """Folder for cached blocks of remote datasets (default: ~/.cache/xlpretrain)."""
    cache_bytes: PositiveInt = 32 << 30
    """Size limit of the cache of each remote dataset; least recently used blocks are evicted first."""
    retry_s: Annotated[PositiveFloat, FormerKey("patience_s")] = 300.0
    """Seconds for which a failing request is retried."""

    @property
    def cache(self) -> BlockCache:
        """The cache for remote datasets."""
        return BlockCache(self.cache_dir or default_folder(), self.cache_bytes, self.retry_s)

    def absolute(self) -> Self:
        """A copy with absolute paths."""
        return self.model_copy(
            update={
                "train": tuple(c.model_copy(update={"path": _absolute(c.path)}) for c in self.train),
                "valid": _absolute(self.valid) if self.valid else None,
                "cache_dir": self.cache_dir.absolute() if self.cache_dir else None,
            }
        )

    def problems(self) -> Iterator[Problem]:
        """Corpora listed twice."""
        paths = [corpus.path for corpus in self.train]
        for index, path in enumerate(paths):
            if path in paths[:index]:
                yield f"train.{index}.path", f"{path} is listed twice; list it once, with the sum of the weights"

    @field_serializer("train")
    def _as_given(self, value: tuple[CorpusConfig, ...]) -> Any:
        if len(value) == 1 and value[0] == CorpusConfig(path=value[0].path):
            return value[0].path
        return [corpus.model_dump(mode="json") for corpus in value]

    def open(self, *, kept: Tokenizer | None = None) -> DataSplits:
        """Open and check the datasets. kept: used instead of the tokenizer beside them if it is the same."""
        train = Mixture.open(self.train, cache=self.cache)
        valid = None if self.valid is None else self._open(self.valid, train.tokenizer_sha256)
        is_theirs = kept is not None and kept.sha256 == train.tokenizer_sha256
        return DataSplits(train, valid, kept if kept is not None and is_theirs else train.open_tokenizer())

    def open_train(self, tokenizer: Tokenizer) -> Mixture:
        """Open the training data alone. Raises `DataError`, also if it was encoded with another tokenizer."""
        return Mixture.open(self.train, tokenizer_sha256=tokenizer.sha256, cache=self.cache)

    def open_split(self, split: Path | str, tokenizer: Tokenizer) -> TokenDataset:
        """Open a split by folder or URL. Raises `DataError`, also if it was encoded with another tokenizer."""
        return self._open(str(split), tokenizer.sha256)

    def places(self) -> dict[str, str]:
        """The paths and URLs by key: `train`, or `train.0.path` etc. for a mixture; and `valid`."""
        given = self._as_given(self.train)
        found = (
            {"train": given} if isinstance(given, str) else {f"train.{i}.path": c["path"] for i, c in enumerate(given)}
        )
        return found if self.valid is None else {**found, "valid": self.valid}

    def fingerprints(self, data: DataSplits) -> dict[str, str]:
        """The digest of the content at each of `places`. data: the opened splits."""
        manifests = [*data.train.manifests, *([] if data.valid is None else [data.valid])]
        return {key: manifest.fingerprint for key, manifest in zip(self.places(), manifests, strict=True)}

    def tokenizer_path(self) -> Path:
        """The tokenizer beside the splits. Raises `DataError` if it is not the one that encoded them."""
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
    """Training file."""
    valid: Path | None = None
    """Validation file (default: no evaluation)."""
    tokenizer: Path
    """Tokenizer of the model: a SentencePiece model or a tokenizer.json."""
    text: tuple[str, ...] = Field(("text",), min_length=1, max_length=2)
    """Column with the text, or the two columns with a pair of texts."""
    label: str = "label"
    """Column with the label."""

    shuffle_blocks: ClassVar[int] = 1  # type: ignore[misc]
    on_damage: ClassVar[DamagePolicy] = "error"  # type: ignore[misc]

    def open(self, *, kept: Tokenizer | None = None) -> DataSplits:
        """Read and encode the files. Raises `DataError`, also for labels of `valid` that `train` does not have.

        kept: used instead of `tokenizer` if that no longer exists.
        """
        tokenizer = load_tokenizer(self.tokenizer) if kept is None or self.tokenizer.exists() else kept
        train = self.open_split(self.train, tokenizer)
        valid = None if self.valid is None else self.open_split(self.valid, tokenizer)
        check_labels(train, valid)
        return DataSplits(self._mixture(train), valid, tokenizer)

    def open_train(self, tokenizer: Tokenizer) -> Mixture:
        """Read and encode the training file. Raises `DataError`."""
        return self._mixture(self.open_split(self.train, tokenizer))

    def open_split(self, split: Path | str, tokenizer: Tokenizer) -> LabelledDataset:
        """Read another file with the same columns. Raises `DataError`."""
        return LabelledDataset(Path(split), tokenizer, text=self.text, label=self.label)

    def _mixture(self, train: LabelledDataset) -> Mixture:
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


def _absolute(place: str) -> str:
    return place if is_url(place) else str(Path(place).absolute())


DataConfigUnion = Annotated[DataConfig, TaggedUnion({"corpus": CorpusDataConfig, "labelled": LabelledDataConfig})]
"""The data of a run, selected by the key `type`."""
