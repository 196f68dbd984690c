"""The documentation of installed Python packages as a corpus. Modules are parsed, not imported."""

from __future__ import annotations

import ast
import gc
import hashlib
import importlib.util
import inspect
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from data_pipelines.execution.workers import Workers
from data_pipelines.sources.base import BadRecord, BaseSource
from data_pipelines.sources.find import File, local_file
from data_pipelines.sources.text import JsonlSource, read_jsonl
from xlpretrain.errors import DataError

SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "testing", "idle_test", "__pycache__", "lib2to3"}
ADDS_DOCUMENTATION = re.compile(r"add_?(doc|newdoc|docstr|docstring)(_all)?$|^(auto|replace|add)_\w*docstrings?\w*$")
"""Functions that packages call to document C++ code (`torch/_torch_docs.py`) or generated code."""

FILES_PER_TASK = 32


class PythonDocsSource(BaseSource):
    """The docstrings of installed Python packages: one document per module, each paragraph once."""

    type: Literal["python_docs"] = "python_docs"
    """Type of source."""
    packages: tuple[str, ...] = ("torch", "numpy", "sympy")
    """Packages to read; packages that are not installed are skipped."""
    stdlib: bool = True
    """Also read the standard library and Python's help topics."""

    def find_files(self) -> list[File]:
        return [local_file(path) for path in find_modules(self.packages, stdlib=self.stdlib)]

    def can_split(self, file: File) -> bool:
        return True

    def read(self, path: str, start: int, stop: int) -> Iterator[str | BadRecord]:
        """The documents of the JSON lines that a build has made of the modules (`read_modules`)."""
        return read_jsonl(JsonlSource(path=path), path, start, stop)


def find_modules(packages: Sequence[str], *, stdlib: bool) -> list[Path]:
    """The source files of the installed packages and of the standard library, sorted within each package."""
    folders = [Path(folder) for name in packages for folder in _package_folders(name)]
    if stdlib:
        folders.append(Path(sysconfig.get_paths()["stdlib"]))
    files = {file: None for folder in folders for file in sorted(folder.rglob("*.py")) if _is_wanted(file, folder)}
    if not files:
        raise DataError(f"python_docs: none of these packages is installed: {', '.join(packages)}")
    return list(files)


def read_modules(files: Sequence[Path], workers: Workers) -> Iterator[str]:
    """One document per module and help topic, made of the paragraphs not seen before."""
    tasks = [files[start : start + FILES_PER_TASK] for start in range(0, len(files), FILES_PER_TASK)]
    seen: set[bytes] = set()
    for documents in workers.map(_read_paragraphs, tasks):
        for paragraphs in documents:
            if document := "\n\n".join(_unseen(paragraphs, seen)):
                yield document


def _package_folders(name: str) -> list[str]:
    top, *inner = name.split(".")
    try:
        spec = importlib.util.find_spec(top)  # does not import a top-level package
    except (ImportError, ValueError):
        return []
    return [str(Path(folder, *inner)) for folder in (spec.submodule_search_locations or ())] if spec else []


def _is_wanted(file: Path, folder: Path) -> bool:
    return SKIPPED_FOLDERS.isdisjoint(file.relative_to(folder).parts)


def _unseen(paragraphs: Iterable[str], seen: set[bytes]) -> Iterator[str]:
    for paragraph in paragraphs:
        digest = hashlib.blake2b(" ".join(paragraph.split()).encode(), digest_size=12).digest()
        if digest not in seen:
            seen.add(digest)
            yield paragraph


def _read_paragraphs(files: Sequence[Path]) -> list[list[str]]:
    """The paragraphs of every document in some modules; none for a module that does not parse."""
    gc.disable()  # syntax trees have no cycles; parsing takes half the time
    try:
        documents = [texts for file in files for texts in _read_module(file)]
    finally:
        gc.enable()
    return [[p for text in texts for p in _paragraphs(text)] for texts in documents]


def _read_module(file: Path) -> list[list[str]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's code
            tree = ast.parse(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from None
    except (SyntaxError, ValueError, RecursionError):
        return []
    if file.parts[-2:] == ("pydoc_data", "topics.py"):
        return [[topic] for topic in _long_strings(tree)]
    return [list(_documentation(tree))]


def _documentation(node: ast.AST) -> Iterator[str]:
    """Docstrings and the texts passed to functions that add documentation, in source order."""
    match node:
        case ast.Module() | ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
            yield ast.get_docstring(node, clean=False) or ""
    for call in [node.value] if isinstance(node, ast.Expr) else getattr(node, "decorator_list", ()):
        if isinstance(call, ast.Call) and ADDS_DOCUMENTATION.search(_called_name(call)):
            yield from (text for argument in [*call.args, *call.keywords] for text in _long_strings(argument))
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield from _documentation(child)


def _long_strings(node: ast.AST) -> list[str]:
    """String constants that are prose rather than names, in source order."""
    constants = [n for n in ast.walk(node) if isinstance(n, ast.Constant)]
    constants.sort(key=lambda constant: (constant.lineno, constant.col_offset))
    return [c.value for c in constants if isinstance(c.value, str) and len(c.value.split()) > 3]


def _paragraphs(text: str) -> list[str]:
    found = re.split(r"\n\s*\n", inspect.cleandoc(text))
    return [paragraph.rstrip() for paragraph in found if paragraph.strip() and _is_encodable(paragraph)]


def _called_name(call: ast.Call) -> str:
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, written as an escape
        return False
    return True
