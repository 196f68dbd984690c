"""The documentation of installed Python packages as a corpus: read with `ast`, nothing is imported."""

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

from data_pipelines.parallel import ordered_map
from xlpretrain.errors import DataError

SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "testing", "idle_test", "__pycache__", "lib2to3"}
ADDS_DOCUMENTATION = re.compile(r"add_?(doc|newdoc|docstr|docstring)(_all)?$|^(auto|replace|add)_\w*docstrings?\w*$")
"""Functions that packages call to document what is written in C++ (`torch/_torch_docs.py`) or generated."""

FILES_PER_TASK = 32


def find_modules(packages: Sequence[str], *, stdlib: bool) -> list[Path]:
    """The source files of those packages that are installed, and of the standard library, sorted within each."""
    folders = [Path(folder) for name in packages for folder in _package_folders(name)]
    if stdlib:
        folders.append(Path(sysconfig.get_paths()["stdlib"]))
    files = {file: None for folder in folders for file in sorted(folder.rglob("*.py")) if _is_wanted(file, folder)}
    if not files:
        raise DataError(f"python_docs: none of these packages is installed: {', '.join(packages)}")
    return list(files)


def read_modules(files: Sequence[Path], *, workers: int) -> Iterator[str]:
    """One document a module (and one for each help topic): its paragraphs, without those seen before."""
    tasks = [files[start : start + FILES_PER_TASK] for start in range(0, len(files), FILES_PER_TASK)]
    seen: set[bytes] = set()
    for documents in ordered_map(_read_paragraphs, tasks, workers=workers):
        for paragraphs in documents:
            if document := "\n\n".join(_unseen(paragraphs, seen)):
                yield document


def _package_folders(name: str) -> list[str]:
    try:
        spec = importlib.util.find_spec(name)  # of a top-level name: does not import it
    except (ImportError, ValueError):
        return []
    return list(spec.submodule_search_locations or ()) if spec else []


def _is_wanted(file: Path, folder: Path) -> bool:
    return SKIPPED_FOLDERS.isdisjoint(file.relative_to(folder).parts)


def _unseen(paragraphs: Iterable[str], seen: set[bytes]) -> Iterator[str]:
    for paragraph in paragraphs:
        digest = hashlib.blake2b(" ".join(paragraph.split()).encode(), digest_size=12).digest()
        if digest not in seen:
            seen.add(digest)
            yield paragraph


def _read_paragraphs(files: Sequence[Path]) -> list[list[str]]:
    """The paragraphs of every document in some modules; a module that does not parse has none."""
    documents = []
    gc.disable()  # syntax trees are large, and hold no cycles
    for file in files:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in other people's code
                tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError, RecursionError, OSError):
            continue
        is_topics = file.parts[-2:] == ("pydoc_data", "topics.py")
        for texts in [[text] for text in _long_strings(tree)] if is_topics else [list(_docstrings(tree))]:
            paragraphs = [p.rstrip() for text in texts for p in re.split(r"\n\s*\n", inspect.cleandoc(text))]
            documents.append([p for p in paragraphs if p.strip() and _is_encodable(p)])
    return documents


def _docstrings(tree: ast.Module) -> Iterator[str]:
    """Docstrings in the order of the source, and the texts handed to functions that add documentation."""
    for node in _in_order(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if text := ast.get_docstring(node, clean=False):
                yield text
        elif isinstance(node, ast.Call) and ADDS_DOCUMENTATION.search(_called_name(node)):
            yield from (text for argument in [*node.args, *node.keywords] for text in _long_strings(argument))


def _in_order(tree: ast.AST) -> list[ast.AST]:
    """Every node, in the order of the source."""
    return sorted(ast.walk(tree), key=lambda node: (getattr(node, "lineno", 0), getattr(node, "col_offset", 0)))


def _long_strings(node: ast.AST) -> Iterator[str]:
    """String constants that are prose rather than names."""
    for inner in _in_order(node):
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str) and len(inner.value.split()) > 3:
            yield inner.value


def _called_name(call: ast.Call) -> str:
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, written as an escape
        return False
    return True
