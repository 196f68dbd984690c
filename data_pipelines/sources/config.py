"""The configuration of sources: one section per type."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from xlpretrain.schema import FormerKey, Matching, Problem, Section, TaggedUnion

Paths = str | tuple[str, ...]
_TEXT_FORMAT = re.compile(r"(?:(?s:.)?[<>^])?\d{0,4}(?:\.\d{1,9})?s?")
"""Python's format specifications for strings, limited to a width of 9,999 characters."""
_SUBSET = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_SUBSET_RULE = "begin with a letter, a digit or _, and have only letters (a-z, A-Z), digits and . _ -"
_RESERVED = ("train", "valid", "test", "tokenizer")


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


class FileSource(BaseSource):
    """Keys of all file sources."""

    path: Paths
    """A file, a folder (all files below it), a glob such as corpus/**/*.txt, a URL of one of these, or a list of them;
    - is standard input."""

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if not self.path or (isinstance(self.path, tuple) and "" in self.path):
            yield "path", "must not be empty"


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


class TextSource(FileSource):
    """Plain text files."""

    type: Literal["text"] = "text"
    documents: Annotated[Literal["files", "blank_lines"], FormerKey("split", values=("files", "blank_lines"))] = "files"
    """What a document is: a whole file, or the text between blank lines."""


class JsonlSource(RecordSource):
    """JSON lines files, with one object per line; also the output of datatrove."""

    type: Literal["jsonl"] = "jsonl"


class ParquetSource(RecordSource):
    """Parquet files, with one document per row."""

    type: Literal["parquet"] = "parquet"


class WebdatasetSource(RecordSource):
    """Webdataset tars of raw text: NAME.txt is a document, NAME.json a record."""

    type: Literal["webdataset"] = "webdataset"
    member: Literal["txt", "json"] = "txt"
    """Extension of the members to read."""


class HuggingFaceSource(RecordSource):
    """Folders saved by `save_to_disk` of `datasets`; the Hub is never accessed."""

    type: Literal["huggingface"] = "huggingface"
    part: str | None = None
    """Split to read, if the folder has several."""


class PythonDocsSource(BaseSource):
    """The docstrings of installed Python packages: one document per module, each paragraph once."""

    type: Literal["python_docs"] = "python_docs"
    packages: tuple[str, ...] = ("torch", "numpy", "sympy")
    """Packages to read; packages that are not installed are skipped."""
    stdlib: bool = True
    """Also read the standard library and Python's help topics."""


_SOURCES = {
    "text": TextSource,
    "jsonl": JsonlSource,
    "parquet": ParquetSource,
    "webdataset": WebdatasetSource,
    "huggingface": HuggingFaceSource,
    "python_docs": PythonDocsSource,
}

Source = Annotated[
    TextSource | JsonlSource | ParquetSource | WebdatasetSource | HuggingFaceSource | PythonDocsSource,
    TaggedUnion(_SOURCES),
]
