"""The kernels of fused relative attention as one file without xlpretrain, for models exported with their own code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from xlpretrain.models.kernels import fused

_FOLDER = Path(fused.__file__).parent
_PROGRAMS = ("parts", "forward", "queries", "keys", "distances", "sums")
_SOURCES = (
    *("tiles.py", "visibility.py"),
    *(f"programs/{name}.py" for name in _PROGRAMS),
    *("launch.py", "scores.py", "operators.py"),
)
"""In the order in which they need each other."""
_ONLY = {"visibility.py": ("Visibility",)}
"""The definitions that are taken from a file; of others, all are."""
_HEAD = '''"""Fused relative attention of a model pretrained with xlpretrain. Requires torch, Triton and a GPU.

Written by `xlpretrain export`: the files of `xlpretrain/models/kernels/fused`, one after the other. Imported only with
`attention="fused"`.
"""

from __future__ import annotations

import re
import sys
{imports}

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError('attention="fused" needs Triton: pip install triton') from error

_NAMESPACE = "xlpretrain_" + re.sub(r"\\W", "_", __name__)
"""Of the operators; each copy of this file has its own."""
'''


def fused_code() -> str:
    """The text of the file."""
    imports, parts = set[str](), []
    for name in _SOURCES:
        text = (_FOLDER / name).read_text(encoding="utf-8")
        tree = ast.parse(text)
        imports |= {ast.unparse(node) for node in tree.body if _is_needed(node)}
        parts += list(_definitions(tree, text.splitlines(), _ONLY.get(name)))
    body = "\n\n\n".join(parts)
    body = body.replace('"xlpretrain::', '_NAMESPACE + "::').replace(
        "torch.ops.xlpretrain.", "getattr(torch.ops, _NAMESPACE)."
    )
    return _HEAD.format(imports="\n".join(sorted(imports))) + "\n\n" + body + "\n"


def _is_needed(node: ast.stmt) -> bool:
    """True for an import of the standard library or of torch."""
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").split(".")[0] not in ("__future__", "jaxtyping", "triton", "xlpretrain")
    return isinstance(node, ast.Import) and all(name.name.split(".")[0] != "triton" for name in node.names)


def _definitions(tree: ast.Module, lines: list[str], only: tuple[str, ...] | None) -> Iterator[str]:
    """The text of each top-level statement that is no docstring and no import, decorators included."""
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom) or (isinstance(node, ast.Expr) and _is_text(node.value)):
            continue
        if only is not None and getattr(node, "name", None) not in only:
            continue
        first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])
        yield _of_this_file(node, lines[first - 1 : node.end_lineno], first)


def _is_text(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _of_this_file(node: ast.stmt, lines: list[str], first: int) -> str:
    """The statement, with this file in place of what it imports where it is used (`with optional(..): import ..`)."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.With) and isinstance(inner.body[0], ast.ImportFrom):
            (name,) = inner.body[0].names
            assert inner.end_lineno is not None
            indent = " " * inner.col_offset
            lines[inner.lineno - first : inner.end_lineno - first + 1] = [
                f"{indent}{name.asname or name.name} = sys.modules[__name__]"
            ]
            break
    return "\n".join(lines)
