"""Measure the structure of the code base: make house [ROOT=another checkout]

Static: modules next to the rooms of xlpretrain/, files on one level, layers of the import contract, import cycles,
function-local imports in launcher/, lines of code without docstrings and comments. Dynamic: how many of our files a
batch, a save and a config key cross, traced in a golden run that is resumed for two steps.
"""

from __future__ import annotations

import ast
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import tokenize
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

PROGRAMS = ("xlpretrain", "launcher", "data_pipelines")
GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "0.1.0" / "folders.tar.xz"
MADE_AT = "/tmp/xlpretrain-golden"
MARKS = {"_fetch": "batch", "_step": "batch", "begin_to_save": "save", "start_save": "save", "load": "config key"}
"""Functions of the loop and of the config below which calls are counted."""
THREADS = {"loader": "batch", "saver": "save"}


def modules(root: Path) -> dict[str, Path]:
    """All modules of the three programs, by name."""
    found = {}
    for program in PROGRAMS:
        for path in sorted((root / program).rglob("*.py")):
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imports(found: Mapping[str, Path]) -> dict[str, set[str]]:
    """Imports of our modules by module, including function-local ones."""
    graph: dict[str, set[str]] = {}
    for name, path in found.items():
        targets = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    targets.add(inner if inner in found else node.module)
            elif isinstance(node, ast.Import):
                targets.update(alias.name for alias in node.names)
        graph[name] = (targets & found.keys()) - {name}
    return graph


def cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Import cycles: groups of modules that import each other."""
    reach: dict[str, set[str]] = {}
    for start in graph:
        seen: set[str] = set()
        waiting = list(graph[start])
        while waiting:
            if (name := waiting.pop()) not in seen:
                seen.add(name)
                waiting += graph[name]
        reach[start] = seen
    groups = {tuple(sorted(b for b in reach[a] if a in reach[b])) for a in graph if a in reach[a]}
    return [list(group) for group in sorted(groups)]


def layers(root: Path) -> int:
    """Layers of the import contract inside xlpretrain."""
    contracts = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    return max(len(contract["layers"]) for contract in contracts if contract.get("containers") == ["xlpretrain"])


def local_imports(found: Mapping[str, Path], program: str) -> int:
    """Number of imports inside functions."""
    count = 0
    for name, path in found.items():
        if name.split(".")[0] == program:
            tree = ast.parse(path.read_text())
            functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
            inside = {node for f in functions for node in ast.walk(f) if isinstance(node, ast.Import | ast.ImportFrom)}
            count += len(inside)
    return count


def code_lines(path: Path) -> int:
    """Lines of code, without docstrings, comments and blank lines."""
    text = path.read_text()
    docs: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            docs.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    used: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped:
            used.update(range(token.start[0], token.end[0] + 1))
    return len(used - docs)


def static_figures(root: Path) -> dict[str, object]:
    """Figures counted in the source."""
    found = modules(root)
    per_level: dict[Path, int] = {}
    for path in found.values():
        if path.name != "__init__.py":
            per_level[path.parent] = per_level.get(path.parent, 0) + 1
    fullest = max(per_level, key=lambda folder: per_level[folder])
    graph = imports(found)
    return {
        "modules beside the rooms of xlpretrain/": per_level[root / "xlpretrain"],
        "most files on one level": f"{per_level[fullest]} ({fullest.relative_to(root)})",
        "layers in xlpretrain's import contract": layers(root),
        "import cycles": len(cycles(graph)),
        "function-local imports in launcher/": local_imports(found, "launcher"),
        "modules": len(found),
        "lines of code without docstrings": sum(map(code_lines, found.values())),
    }


def crossed_files(root: Path) -> dict[str, int]:
    """Number of our files in which a function is called for a batch, a save and a config key."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(GOLDEN) as archive:
            archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.3 and older have none
            archive.extractall(folder)
        run = Path(folder) / "runs" / "transformer_xl_plain_fp32_1"
        config = run / "config.yaml"
        config.write_text(config.read_text().replace(MADE_AT, folder))
        out = Path(folder) / "crossed.json"
        command = [sys.executable, __file__, "--trace", str(out), str(config), "max_steps=8"]
        env = {**os.environ, "PYTHONPATH": str(root), "WANDB_MODE": "disabled"}
        subprocess.run(command, check=True, env=env, cwd=root, stdout=subprocess.DEVNULL)
        found: dict[str, list[str]] = json.loads(out.read_text())
    return {f"files that a {what} crosses": len(files) for what, files in found.items()}


def trace(out: Path, arguments: list[str]) -> None:
    """Run a rank in this process and record the files of all calls, by purpose."""
    import threading
    from types import FrameType
    from typing import Any

    import xlpretrain.__main__ as rank

    root = str(Path(rank.__file__).parents[1])
    files: dict[str, set[str]] = {what: set() for what in ("batch", "save", "config key")}
    ours = tuple(f"{root}{os.sep}{program}{os.sep}" for program in PROGRAMS)

    def purposes(frame: FrameType | None) -> Iterator[str]:
        while frame is not None:
            name, path = frame.f_code.co_name, frame.f_code.co_filename
            if path.startswith(ours):
                stem = Path(path).stem
                if name in MARKS and stem in ("trainer", "loop", "config", "run_config"):
                    yield MARKS[name]
                if stem in THREADS and threading.current_thread() is not threading.main_thread():
                    yield THREADS[stem]
            frame = frame.f_back

    def hear(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(ours):
            for what in set(purposes(frame)):
                files[what].add(frame.f_code.co_filename)

    threading.setprofile(hear)
    sys.setprofile(hear)
    code = rank.main(arguments)
    sys.setprofile(None)
    out.write_text(json.dumps({what: sorted(found) for what, found in files.items()}))
    assert code == 0


def main() -> None:
    """Print the figures of a checkout (default: this one)."""
    if sys.argv[1:2] == ["--trace"]:
        trace(Path(sys.argv[2]), sys.argv[3:])
        return
    root = Path(sys.argv[1] if sys.argv[1:] else Path(__file__).parents[1]).resolve()
    for what, figure in {**static_figures(root), **crossed_files(root)}.items():
        print(f"{what:45} {figure}")


if __name__ == "__main__":
    main()
