"""Tables of texts, or pairs of texts, with any number of labels each. Torch-free.

The labels are in one column, separated (`news|sport`) or as a JSON list; or in one column of 0 and 1 for each label.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from xlpretrain.data.examples.base import ExampleDataset
from xlpretrain.data.examples.config import ExampleDataConfig
from xlpretrain.data.examples.labelled import MISSING, LabelledDataset, objects_table, text_columns
from xlpretrain.data.tables.text_tables import Table, read_table
from xlpretrain.data.tokenizers.base import Tokenizer
from xlpretrain.errors import DataError

_YES, _NO, _UNKNOWN = {"1", "1.0", "true"}, {"0", "0.0", "false"}, {"-1", "-1.0", *MISSING}


class MultilabelledDataset(LabelledDataset):
    """A table with any number of labels for each text or pair of texts.

    names: the labels in the order of their columns of 0 and 1; empty if one column has them all. The target of an
    example is a tuple of its distinct labels; None if they are not known.
    """

    def __init__(
        self,
        table: Table,
        path: Path,
        tokenizer: Tokenizer,
        *,
        text: Sequence[str],
        label: Sequence[str],
        separator: str,
    ):
        """Encode a table. Raises `DataError` if a column is missing, or for labels that cannot be read."""
        several = len(label) > 1
        there = any(name in table.columns for name in label)
        found = _read_labels(table, label, separator=separator) if there else [None] * len(table)
        super().__init__(table, path, tokenizer, text=text, label=label[0])
        if several and there:
            self.labels = ["" if of is None else json.dumps(of, ensure_ascii=False) for of in found]
        self.names, self.separator = tuple(label) if several else (), separator
        self.examples = [replace(example, target=of) for example, of in zip(self.examples, found, strict=True)]
        self._reopen = partial(
            MultilabelledDataset, table, path, tokenizer, text=text, label=label, separator=separator
        )

    def joined(self, labels: Sequence[str]) -> str:
        """Labels as the file has them in one column: separated, or `[]` for none."""
        return self.separator.join(labels) or "[]"


class MultilabelledDataConfig(ExampleDataConfig):
    """Files of texts with any number of labels: CSV or TSV with a header, or JSON lines."""

    type: Literal["multilabelled"] = "multilabelled"
    """Kind of data."""
    text: tuple[str, ...] = Field(("text",), min_length=1, max_length=2)
    """Column with the text, or the two columns with a pair of texts."""
    label: tuple[str, ...] = Field(("label",), min_length=1)
    """Column with the labels, separated or as JSON lists; or several columns of 0 and 1, each named like its label."""
    separator: str = Field("|", min_length=1)
    """Separator of labels in one column."""

    @classmethod
    def columns_in(cls, train: Path, *, text: Sequence[str], label: Sequence[str]) -> dict[str, Any]:
        """The columns: by default, the text is in all columns but the labels'. Raises `ConfigError`."""
        return {"text": text_columns(train, text, label), "label": list(label)}

    def from_objects(self, objects: Iterable[object], tokenizer: Tokenizer) -> MultilabelledDataset:
        """Texts, or pairs of texts. Raises `ConfigError` for anything else, and `DataError` for invalid Unicode."""
        table = objects_table(objects, self.text)
        return self._dataset(table, Path(table.name), tokenizer, text=self.text)

    def open_split(self, split: Path | str, tokenizer: Tokenizer) -> MultilabelledDataset:
        """Read a file to train or evaluate on. Raises `DataError` if a column or a label is missing."""
        path = Path(split)
        table = read_table(path, lists=self.label)
        table.columns_of(self.label)  # raises for a missing column
        data = self._dataset(table, path, tokenizer, text=self.text)
        for line, example in zip(data.line_numbers, data.examples, strict=True):
            if example.target is None:
                raise DataError(
                    f"{path}: line {line}: no labels ({', '.join(self.label)}); add them, remove the row, or write"
                    f" {'0' if data.names else '[]'} for a text that has none"
                )
        return data

    def open_unlabelled(self, path: Path | None, tokenizer: Tokenizer) -> MultilabelledDataset:
        """Read a file that may lack labels, or standard input. Raises `DataError`."""
        table = read_table(path, optional=self.label, lists=self.label)
        only = len(self.text) == 1 and len(table.columns) == 1
        columns = table.columns if only else self.text  # a single column is the text, whatever its name
        return self._dataset(table, Path(table.name), tokenizer, text=columns)

    def _dataset(self, table: Table, path: Path, tokenizer: Tokenizer, *, text: Sequence[str]) -> MultilabelledDataset:
        return MultilabelledDataset(table, path, tokenizer, text=text, label=self.label, separator=self.separator)


def multilabelled(data: ExampleDataset) -> MultilabelledDataset:
    """The dataset as a table of texts with several labels, for tasks whose `data_type` requires it."""
    assert isinstance(data, MultilabelledDataset)
    return data


def _read_labels(table: Table, columns: Sequence[str], *, separator: str) -> list[tuple[str, ...] | None]:
    """The labels of each row, None where they are missing. Raises `DataError`."""
    if len(columns) == 1:
        cells = zip(table.column(columns[0]), table.line_numbers, strict=True)
        return [_from_cell(cell, separator, f"{table.name}: line {line}") for cell, line in cells]
    found: list[tuple[str, ...] | None] = []
    for row, line in zip(table.columns_of(columns), table.line_numbers, strict=True):
        spelled = [cell.strip().lower() for cell in row]
        for cell, column in zip(spelled, columns, strict=True):
            if cell not in _YES | _NO | _UNKNOWN:
                raise DataError(f"{table.name}: line {line}: the label column {column!r} must be 0 or 1, got {cell!r}")
        known = all(cell not in _UNKNOWN for cell in spelled)
        chosen = tuple(column for cell, column in zip(spelled, columns, strict=True) if cell in _YES)
        found.append(chosen if known else None)
    return found


def _from_cell(cell: str, separator: str, where: str) -> tuple[str, ...] | None:
    """The distinct labels in a cell, in its order; None if it is blank or NaN. Raises `DataError`."""
    spelled = cell.strip()
    if spelled.lower() in MISSING:
        return None
    if not spelled.startswith("["):
        parts = [part.strip() for part in spelled.split(separator)]
        return tuple(dict.fromkeys(part for part in parts if part))
    values = _list_in(spelled)
    if values is None:
        shown = spelled if len(spelled) <= 60 else f"{spelled[:60]}..."
        raise DataError(f'{where}: expected a list of labels such as ["news", "sport"], got {shown}')
    return tuple(dict.fromkeys(values))


def _list_in(spelled: str) -> list[str] | None:
    """The labels in a list, as JSON or as Python prints it (pandas); None if it is neither."""
    try:
        values = json.loads(spelled)
    except (ValueError, RecursionError):
        try:
            values = ast.literal_eval(spelled)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return None
        if repr(values) != spelled:  # such as "['a' 'b']", which NumPy prints and Python reads as one string
            return None
    if not isinstance(values, list) or any(isinstance(v, bool) or not isinstance(v, str | int) for v in values):
        return None
    labels = [str(value).strip() for value in values]
    return None if any(label.lower() in MISSING for label in labels) else labels
