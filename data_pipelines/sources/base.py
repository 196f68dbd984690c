"""The interface of a source, and the keys that several types of sources share."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from data_pipelines.sources.files import decode
from data_pipelines.sources.find import File, find_files
from xlpretrain.data.tokenizers.base import lone_surrogate
from xlpretrain.errors import DataError
from xlpretrain.schema import FormerKey, Matching, Problem, Section

Paths = str | tuple[str, ...]
_TEXT_FORMAT = re.compile(r"(?:(?s:.)?[<>^])?\d{0,4}(?:\.\d{1,9})?s?")
"""Python's format specifications for strings, limited to a width of 9,999 characters."""
_SUBSET = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_SUBSET_RULE = "begin with a letter, a digit or _, and have only letters (a-z, A-Z), digits and . _ -"
_RESERVED = ("train", "valid", "test", "tokenizer")


@dataclass(frozen=True)
class BadRecord:
    """An invalid record: not JSON, not Unicode, or with a missing or null field.

    problem: a message. place: gives the record's location; called only for messages, since it may read the file again.
    """

    problem: str
    place: Callable[[], str]


class BaseSource(Section):
    """Keys of all sources."""

    subset: Annotated[str | None, Matching(_SUBSET, _SUBSET_RULE), FormerKey("corpus")] = None
    """Name of a separate dataset, built as out/SUBSET/train etc. Sources with the same subset (or none) are merged."""
    split: Annotated[Literal["train", "valid", "test"] | None, FormerKey("into")] = None
    """Put the whole source into this split instead of holding out a share."""
    weight: float | None = Field(None, gt=0)
    """Relative weight in the tokenizer's training sample (default: in proportion to the text)."""

    def problems(self) -> Iterator[Problem]:
        if self.subset in _RESERVED:
            yield (
                "subset",
                f"{self.subset} is a reserved name, as are {', '.join(_RESERVED)}; choose another name",
            )

    def find_files(self) -> list[File]:
        """The files to read, in order. Raises `DataError` if there are none."""
        raise NotImplementedError(f"{type(self).__name__} defines no find_files()")

    def can_split(self, file: File) -> bool:
        """True if `read` can read any range of bytes of a file, so that large files are split into several tasks."""
        return False

    def read(self, path: str, start: int, stop: int) -> Iterator[str | BadRecord]:
        """The documents that begin at bytes [start, stop) of a file (stop -1: no limit), including empty ones.

        Without `can_split` it is always (0, -1). The same file must give the same documents in any process. Raises
        `DataError`, with the place, for what makes the file unreadable; returns a `BadRecord` for an invalid record.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no read()")


class FileSource(BaseSource):
    """Keys of all file sources."""

    path: Paths
    """A file, a folder (all files below it), a glob such as corpus/**/*.txt, a URL of one of these, or a list of them;
    - is standard input."""

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if not self.path or (isinstance(self.path, tuple) and "" in self.path):
            yield "path", "must not be empty"

    def find_files(self) -> list[File]:
        return find_files(self.path)


class RecordSource(FileSource):
    """Keys of all sources of records."""

    field: str = "text"
    """Field with the document's text."""
    template: str | None = None
    """Template that combines several fields, such as "{title}\\n\\n{body}"; replaces `field`."""

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if self.template is not None:
            if problem := _find_template_problem(self.template):
                yield "template", problem
                return
            if "field" in self.model_fields_set:
                yield "template", "set field or template, not both"

    def fields(self) -> list[str]:
        """The fields that a document is made from."""
        if self.template is None:
            return [self.field]
        names = (name for _, name, _, _ in string.Formatter().parse(self.template) if name)
        return list(dict.fromkeys(names))

    def text_of(self, record: Any, place: Callable[[], str]) -> str | BadRecord:
        """The text of a record. place: gives its location for messages."""
        names = self.fields()
        if not isinstance(record, Mapping):
            return BadRecord(f"expected a JSON object with a field {names[0]!r}, got a {type(record).__name__}", place)
        for name in names:
            if problem := _problem_of(record, name):
                return BadRecord(problem, place)
        values = {name: record[name] for name in names}
        text = values[self.field] if self.template is None else self.template.format(**values)
        if (at := lone_surrogate(text)) is not None:
            field = self.template or self.field
            return BadRecord(f"invalid Unicode: a lone surrogate at character {at} of {field!r}", place)
        return text

    def parse_json(self, data: bytes, place: Callable[[], str]) -> str | BadRecord:
        """The text of a record in JSON. place: gives its location for messages."""
        text = decode_text(data, place)
        if isinstance(text, BadRecord):
            return text
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            return BadRecord(f"not JSON ({error})", place)
        return self.text_of(record, place)


def decode_text(data: bytes, place: Callable[[], str]) -> str | BadRecord:
    """A document in UTF-8, without a byte order mark. place: gives its location for messages."""
    try:
        return decode(data).removeprefix("\ufeff")
    except DataError as error:
        return BadRecord(str(error), place)


def _problem_of(record: Mapping[str, Any], field: str) -> str | None:
    """The reason that a field of a record is not text; None if it is."""
    if field not in record:
        names = ", ".join(sorted(record)) or "none"
        return f"no field {field!r}; the available fields are: {names} (set `field` in the source)"
    if isinstance(record[field], bytes):  # an Arrow string that is not UTF-8
        try:
            decode(record[field])
        except DataError as error:
            return f"the field {field!r} is {error}"
    if not isinstance(record[field], str):
        return f"the field {field!r} has type {type(record[field]).__name__}, expected text"
    return None


def _find_template_problem(template: str) -> str | None:
    try:
        fields = [field[1:] for field in string.Formatter().parse(template) if field[1] is not None]
    except ValueError as error:
        return f"invalid template: {error}; write a literal brace as {{{{"
    if not fields or not all(name.replace("-", "_").isidentifier() for name, _, _ in fields if name is not None):
        return 'expected named fields, such as "{title}\\n\\n{body}"'
    for name, spec, conversion in fields:
        if conversion not in (None, "s", "r", "a") or not _TEXT_FORMAT.fullmatch(spec or ""):
            written = f"{name}{'!' + conversion if conversion else ''}{':' + spec if spec else ''}"
            return f"{{{written}}}: not a string format, but all fields are strings; write {{{name}}}"
    return None
