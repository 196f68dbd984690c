"""The types of sources. A new one is a file and a line here."""

from typing import Annotated

from data_pipelines.sources.base import BaseSource
from data_pipelines.sources.columnar import HuggingFaceSource, ParquetSource
from data_pipelines.sources.python_docs import PythonDocsSource
from data_pipelines.sources.text import JsonlSource, TextSource
from data_pipelines.sources.webdataset import WebdatasetSource
from xlpretrain.schema import Registry, TaggedUnion

SOURCES: Registry[BaseSource] = Registry(
    "source",
    BaseSource,
    {
        "text": TextSource,
        "jsonl": JsonlSource,
        "parquet": ParquetSource,
        "webdataset": WebdatasetSource,
        "huggingface": HuggingFaceSource,
        "python_docs": PythonDocsSource,
    },
)

Source = Annotated[BaseSource, TaggedUnion(SOURCES)]
"""The config of any source, selected by its key `type`."""
