"""The tour in CONTRIBUTING.md and the import contracts name the same layers, and torch-free modules load no torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from repository import ROOT

CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]


def contract_of(program: str) -> list[set[str]]:
    (layers,) = [contract["layers"] for contract in CONTRACTS if contract.get("containers") == [program]]
    return [set(re.split(r" [|:] ", layer)) for layer in layers]


def tour_of(program: str) -> list[set[str]]:
    _, _, table = (ROOT / "CONTRIBUTING.md").read_text().partition(f"| layer of `{program}/` |")
    rows = table.split("\n\n")[0].splitlines()[2:]
    return [set(re.findall(r"`(\w+)`", row.split("|")[1])) for row in rows]


@pytest.mark.parametrize("program", ["xlpretrain", "launcher", "data_pipelines"])
def test_the_tour_names_the_layers_of_the_contract(program: str):
    assert tour_of(program) == contract_of(program)


def test_xlpretrain_has_ten_layers_at_most():
    assert len(contract_of("xlpretrain")) <= 10


@pytest.mark.parametrize("program", ["xlpretrain", "launcher", "data_pipelines"])
def test_every_room_is_in_the_contract(program: str):
    """A room that no contract names is checked by none."""
    rooms = {path.parent.name for path in (ROOT / program).glob("*/__init__.py")}
    assert rooms <= set().union(*contract_of(program))


def test_at_most_ten_files_are_on_one_level():
    for program in ("xlpretrain", "launcher", "data_pipelines"):
        for folder in {path.parent for path in (ROOT / program).rglob("*.py")}:
            files = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
            assert len(files) <= 10, f"{folder}: {sorted(files)}"


def test_every_module_is_named_by_a_test():
    """By the name of a test's file, by an import, or in its docstring (`Modules: ...`)."""
    names, named = set(), set()
    for path in (ROOT / "tests").rglob("*.py"):
        tree = ast.parse(path.read_text())
        names.add(path.name)
        named |= set(re.findall(r"\w+\.py", ast.get_docstring(tree) or ""))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                named |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
    unnamed = [
        str(path.relative_to(ROOT))
        for program in ("xlpretrain", "launcher", "data_pipelines")
        for path in (ROOT / program).rglob("*.py")
        if path.name != "__init__.py"
        and f"test_{path.name}" not in names
        and not {path.name, ".".join(path.relative_to(ROOT).with_suffix("").parts)} & named
    ]
    assert not unnamed


def torch_free_modules() -> list[str]:
    """Those that the import contract lists, and those whose docstring says so."""
    (listed,) = [contract["source_modules"] for contract in CONTRACTS if contract["name"] == "Torch-free"]
    found = set()
    for program in ("xlpretrain", "launcher", "data_pipelines"):
        for path in (ROOT / program).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            claimed = "Torch-free." in path.read_text()[:3000].split("from __future__")[0]
            if claimed or any(name == each or name.startswith(f"{each}.") for each in listed):
                found.add(name)
    return sorted(found)


def test_torch_free_modules_load_no_torch(tmp_path: Path):
    """Each in an interpreter of its own, forked from one that has imported nothing of ours."""
    modules = torch_free_modules()
    assert len(modules) > 80
    script = """
import importlib, os, sys
for name in sys.argv[1:]:
    if (child := os.fork()) == 0:
        try:
            importlib.import_module(name)
        except BaseException as error:
            print(f"{name}: {error!r}", flush=True)
        else:
            if "torch" in sys.modules:
                print(f"{name} loads torch", flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", script, *modules], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout == ""
