"""The data of a run: a corpus in shards, or files of examples. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_serializer

from xlpretrain.data.examples.choices import ChoicesDataConfig
from xlpretrain.data.examples.config import ExampleDataConfig
from xlpretrain.data.examples.labelled import LabelledDataConfig
from xlpretrain.data.examples.multilabelled import MultilabelledDataConfig
from xlpretrain.data.examples.questions import QuestionsDataConfig
from xlpretrain.data.examples.tagged import TaggedDataConfig
from xlpretrain.data.mixture import CorpusConfig, Mixture
from xlpretrain.data.splits import DamagePolicy, DataConfig, DataSplits
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.data.storage.remote import BlockCache, default_folder
from xlpretrain.data.tokenizers.base import Tokenizer
from xlpretrain.file_system.urls import is_url
from xlpretrain.schema import FormerKey, OneOrMany, Problem, TaggedUnion


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


def _absolute(place: str) -> str:
    return place if is_url(place) else str(Path(place).absolute())


EXAMPLES: dict[str, type[ExampleDataConfig]] = {
    "labelled": LabelledDataConfig,
    "multilabelled": MultilabelledDataConfig,
    "tagged": TaggedDataConfig,
    "choices": ChoicesDataConfig,
    "questions": QuestionsDataConfig,
}
"""The data of tasks, by the key `type`."""
DataConfigUnion = Annotated[DataConfig, TaggedUnion({"corpus": CorpusDataConfig, **EXAMPLES})]
"""The data of a run, selected by the key `type`."""
