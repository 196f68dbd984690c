"""The section `data` of a run's configuration. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_serializer

from xlpretrain.data.remote import Cache, default_folder, is_url
from xlpretrain.schema import OrOne, Problem, Section


class CorpusConfig(Section):
    """One of the corpora that a run trains on."""

    path: str
    """Folder or URL of the training split (it holds an index.json)."""
    weight: PositiveFloat = 1.0
    """Its share of the rows is this, divided by the sum of all weights."""
    max_epochs: PositiveFloat | None = None
    """After so many passes it is not read any more, and the others share its part (default: no end)."""


class DataPaths(Section):
    """Datasets made by `xlpretrain data build`."""

    train: Annotated[tuple[CorpusConfig, ...], Field(min_length=1), OrOne(CorpusConfig, "path")]
    """Folder or URL of the training split (it holds an index.json); or a mixture, a list of {path, weight, max_epochs}.
    """
    valid: str | None = None
    """Folder or URL of the held-out split (default: no evaluation)."""
    shuffle_blocks: PositiveInt = 64
    """Blocks among which rows are shuffled, where nothing is remembered from row to row."""

    on_damage: Literal["error", "skip"] = "error"
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


def _absolute(place: str) -> str:
    return place if is_url(place) else str(Path(place).absolute())
