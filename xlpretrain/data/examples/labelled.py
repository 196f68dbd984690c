"""Tables of labelled texts, or pairs of texts. Torch-free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from xlpretrain.data.examples.base import ExampleDataset, content_of
from xlpretrain.data.examples.config import ExampleDataConfig, only_column
from xlpretrain.data.samples import Example
from xlpretrain.data.tables.text_tables import Table, read_table
from xlpretrain.data.tokenizers.base import Tokenizer, check_text
from xlpretrain.errors import ConfigError, DataError

MISSING = frozenset({"", "nan", "-nan", "<na>", "#n/a"})
"""Spellings of missing values in files from other programs, in lower case."""


class LabelledDataset(ExampleDataset):
    """A table with a label for each text or pair of texts.

    texts, labels: the examples' texts and labels, as in the file; labels is None if the file has none. line_numbers:
    their first lines in the file. The target of an example is its label, as a string.
    """

    def __init__(self, table: Table, path: Path, tokenizer: Tokenizer, *, text: Sequence[str], label: str):
        """Encode a table. Raises `DataError` if a column is missing."""
        self.texts = table.columns_of(text)
        self.labels = table.column(label) if label in table.columns else None
        self.columns, self.line_numbers = tuple(text), table.line_numbers
        parts = [tuple(tokenizer.encode_batch(texts)) for texts in self.texts]
        labels: Sequence[str | None] = self.labels if self.labels is not None else [None] * len(parts)
        super().__init__(
            path,
            tokenizer,
            [Example(part, label, number) for number, (part, label) in enumerate(zip(parts, labels, strict=True))],
            content=content_of(path),
            source_bytes=sum(len(part.encode()) for texts in self.texts for part in texts),
        )
        self._reopen = partial(LabelledDataset, table, path, tokenizer, text=text, label=label)

    @classmethod
    def open(cls, path: Path, tokenizer: Tokenizer, *, text: Sequence[str], label: str) -> LabelledDataset:  # type: ignore[override]
        """Read and encode a file to train or evaluate on. Raises `DataError` if a column or a label is missing."""
        table = read_table(path)
        for line, value in zip(table.line_numbers, table.column(label), strict=True):
            if value.strip().lower() in MISSING:
                got = f", but {value.strip()}" if value.strip() else ""
                raise DataError(f"{path}: line {line}: no label ({label}){got}; add one, or remove the row")
        return cls(table, path, tokenizer, text=text, label=label)

    def rows_with(
        self, header: Sequence[str], values: Iterable[Sequence[Any]]
    ) -> tuple[list[str], Iterator[Sequence[Any]]]:
        """The header and rows of a table of the texts, the labels if there are any, and each example's values."""
        labels = self.labels

        def rows() -> Iterator[Sequence[Any]]:
            for number, row in enumerate(values):
                yield [*self.texts[number], *([] if labels is None else [labels[number]]), *row]

        return [*self.columns, *([] if labels is None else ["label"]), *header], rows()

    @property
    def known_labels(self) -> list[str]:
        """The label of each example of a file that has labels."""
        assert self.labels is not None, "`open` checks it"
        return self.labels


class LabelledDataConfig(ExampleDataConfig):
    """Files of labelled texts: CSV or TSV with a header, or JSON lines."""

    type: Literal["labelled"] = "labelled"
    """Kind of data."""
    text: tuple[str, ...] = Field(("text",), min_length=1, max_length=2)
    """Column with the text, or the two columns with a pair of texts."""
    label: str = "label"
    """Column with the label."""

    @classmethod
    def columns_in(cls, train: Path, *, text: Sequence[str], label: Sequence[str]) -> dict[str, Any]:
        """The columns: by default, the text is in all columns but the label's. Raises `ConfigError`."""
        return {"text": text_columns(train, text, label), "label": only_column(label)}

    def from_objects(self, objects: Iterable[object], tokenizer: Tokenizer) -> LabelledDataset:
        """Texts, or pairs of texts. Raises `ConfigError` for anything else, and `DataError` for invalid Unicode."""
        table = objects_table(objects, self.text)
        return LabelledDataset(table, Path(table.name), tokenizer, text=self.text, label=self.label)

    def open_split(self, split: Path | str, tokenizer: Tokenizer) -> LabelledDataset:
        """Read another file with the same columns. Raises `DataError`."""
        return LabelledDataset.open(Path(split), tokenizer, text=self.text, label=self.label)

    def open_unlabelled(self, path: Path | None, tokenizer: Tokenizer) -> LabelledDataset:
        """Read a file that may lack labels, or standard input. Raises `DataError`."""
        table = read_table(path, optional=[self.label])
        only = len(self.text) == 1 and len(table.columns) == 1
        columns = table.columns if only else self.text  # a single column is the text, whatever its name
        return LabelledDataset(table, Path(table.name), tokenizer, text=columns, label=self.label)


def text_columns(train: Path, text: Sequence[str], label: Sequence[str]) -> list[str]:
    """The columns of the texts: those named, or by default all but the labels'. Raises `ConfigError`, `DataError`."""
    found = list(text) or [column for column in read_table(train, lists=label).columns if column not in label]
    if not 1 <= len(found) <= 2:
        besides = ", ".join(map(repr, label))
        raise ConfigError(
            f"{train}: unknown text column; besides {besides} it has {', '.join(found) or 'none'};"
            " name it with --text COLUMN (twice for pairs)"
        )
    return found


def objects_table(objects: Iterable[object], columns: Sequence[str]) -> Table:
    """Texts, or pairs of texts, given in Python as a table. Raises `ConfigError` and `DataError`."""
    rows = [_texts_of(given, number, columns) for number, given in enumerate(objects, 1)]
    return Table("the examples", tuple(columns), rows, range(1, len(rows) + 1))


def _texts_of(given: object, number: int, columns: Sequence[str]) -> tuple[str, ...]:
    """The texts of one example. Raises `ConfigError` and `DataError`."""
    if not isinstance(given, Iterable):
        kind = type(given).__name__
        raise ConfigError(f"predict: expected texts or pairs of texts, got an element of type {kind}")
    texts = (given,) if isinstance(given, str) else tuple(given)
    if len(texts) != len(columns):
        expected = f"{len(columns)} texts per example ({', '.join(columns)})"
        raise ConfigError(f"predict: expected {expected}, got {len(texts)} in example {number}")
    for text in texts:
        check_text(text, f"example {number}")
    return texts


def labelled(data: ExampleDataset) -> LabelledDataset:
    """The dataset as a table of labelled texts, for tasks whose `data_type` requires it."""
    assert isinstance(data, LabelledDataset)
    return data


def distinct_labels(examples: LabelledDataset) -> list[str]:
    """The distinct labels, stripped and sorted."""
    return sorted({label.strip() for label in examples.known_labels})


def check_labels(train: LabelledDataset, valid: LabelledDataset | None) -> None:
    """Check that a classifier can be trained on one and evaluated on the other. Raises `DataError`."""
    known = set(distinct_labels(train))
    if len(known) < 2:
        raise DataError(
            f"{train.path}: all rows have the label {known.pop()!r}; a classifier needs at least two labels"
        )
    strange = Counter(label.strip() for label in (valid.known_labels if valid else ()) if label.strip() not in known)
    if valid is not None and strange:
        found = ", ".join(f"{label!r} ({count:,} rows)" for label, count in sorted(strange.items()))
        raise DataError(f"{valid.path}: labels that are not in {train.path}: {found}")
