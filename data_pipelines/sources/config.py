"""The configuration of what is read: a section for each type of source."""

from __future__ import annotations

import string
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from xlpretrain.schema import Problem, Section, TaggedUnion

Paths = str | tuple[str, ...]
_RESERVED = ("train", "valid", "test", "tokenizer")


class BaseSource(Section):
    """Keys of every source."""

    corpus: str | None = Field(None, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")
    """Keep it apart, as out/CORPUS/train and so on; sources with the same name (or none) are merged."""
    into: Literal["train", "valid", "test"] | None = None
    """Put all of it into this split, instead of holding out a share."""
    weight: float | None = Field(None, gt=0)
    """Its part of the tokenizer's training sample, relative to the others (default: its part of the text)."""

    def problems(self) -> Iterator[Problem]:
        if self.corpus in _RESERVED:
            yield "corpus", f"{self.corpus} has a meaning in `out`; choose another name"


class FileSource(BaseSource):
    """Keys of every source of files."""

    path: Paths
    """A file, a folder (every file under it), a glob such as corpus/**/*.txt, a URL of these, or a list; - is standard
    input."""

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if not self.path or (isinstance(self.path, tuple) and "" in self.path):
            yield "path", "must name files"


class RecordSource(FileSource):
    """Keys of every source of records."""

    field: str = "text"
    """The key that holds a document's text."""
    template: str | None = None
    """The document out of several fields, such as "{title}\\n\\n{body}", in place of `field`."""

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if self.template is not None:
            try:
                names = [name for _, name, _, _ in string.Formatter().parse(self.template) if name is not None]
            except ValueError as error:
                yield "template", f"not a template: {error}; write {{{{ for a brace"
                return
            if not names or not all(name.replace("-", "_").isidentifier() for name in names):
                yield "template", 'expected fields by their names, such as "{title}\\n\\n{body}"'
            if "field" in self.model_fields_set:
                yield "template", "give field or template, not both"


class TextSource(FileSource):
    """Plain text files."""

    type: Literal["text"] = "text"
    split: Literal["files", "blank_lines"] = "files"
    """Unit of a document: a whole file, or the text between blank lines."""


class JsonlSource(RecordSource):
    """Files of one JSON object a line; also what datatrove writes."""

    type: Literal["jsonl"] = "jsonl"


class ParquetSource(RecordSource):
    """Parquet files, a row a document."""

    type: Literal["parquet"] = "parquet"


class WebdatasetSource(RecordSource):
    """Tars of raw text as webdataset has them: NAME.txt is a document, NAME.json a record."""

    type: Literal["webdataset"] = "webdataset"
    member: Literal["txt", "json"] = "txt"
    """Members to read."""


class HuggingFaceSource(RecordSource):
    """Folders that `datasets` has saved by `save_to_disk`; the hub is never asked."""

    type: Literal["huggingface"] = "huggingface"
    part: str | None = None
    """Split to read, if there are several."""


class PythonDocsSource(BaseSource):
    """The docstrings of installed Python packages, a document a module, each paragraph once."""

    type: Literal["python_docs"] = "python_docs"
    packages: tuple[str, ...] = ("torch", "numpy", "sympy")
    """Packages to read; those that are not installed are left out."""
    stdlib: bool = True
    """Read the standard library and Python's help topics too."""


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
