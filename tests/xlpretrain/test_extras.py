"""Optional packages: the table against pyproject.toml, imports against the table, and the line that names the extra."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pytest
from repository import ROOT

from data_pipelines.build.needed_packages import require_packages
from data_pipelines.config import DataConfig
from data_pipelines.sharding import stats
from launcher.cli.actions import finetune, training
from launcher.local.options import StartOptions
from launcher.slurm.job.allocation import Allocation
from xlpretrain import schema
from xlpretrain.data.tokenizers.huggingface import HuggingFaceTokenizer
from xlpretrain.extras import PACKAGES, MissingPackageError, is_missing, optional, require
from xlpretrain.file_system.urls import open_file_system
from xlpretrain.objectives.tasks.metrics.classes import ClassMetrics

PROGRAMS = ("xlpretrain", "data_pipelines", "launcher")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
OWN_PARTS = {"pydantic_core": "pydantic", "markupsafe": "jinja2"}  # comes with it, in a version that it names
EXPORTED = {f"{name}_xlpretrain.py" for name in ("backbone", "heads", "modeling", "visibility")}
"""Files that go with exported models, and run under transformers."""


def name_of(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement)[0].lower()


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """The top-level modules that a file imports, and whether that happens when the file itself is imported."""

    def walk(node: ast.AST, at_import: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], at_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0], at_import
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        inner = at_import and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inner)

    yield from walk(ast.parse(path.read_text()), True)


def sources() -> list[Path]:
    return [path for program in PROGRAMS for path in (ROOT / program).rglob("*.py") if path.name not in EXPORTED]


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch):
    """Makes packages look as if they were not installed."""

    def without(*modules: str) -> None:
        for module in modules:
            for name in [name for name in sys.modules if name.startswith(f"{module}.")]:
                monkeypatch.setitem(sys.modules, name, None)
            monkeypatch.setitem(sys.modules, module, None)

    return without


def test_the_table_is_that_of_pyproject():
    declared = {
        (name_of(requirement).removesuffix("-skinny"), extra)
        for extra, requirements in EXTRAS.items()
        if extra not in ("all", "dev", "docs")
        for requirement in requirements
    }
    assert {(package.distribution, package.extra) for package in PACKAGES.values()} == declared
    assert EXTRAS["all"] == [f"xlpretrain[{','.join(sorted(set(EXTRAS) - {'all', 'dev', 'docs', 'triton'}))}]"]
    assert "xlpretrain[all,triton]" in EXTRAS["dev"]


def test_every_requirement_is_pinned_and_the_pins_are_sorted():
    lines = (ROOT / "constraints.txt").read_text().splitlines()[1:]
    pins = [line.partition("==")[0].lower() for line in lines]
    assert len(set(pins)) == len(pins) > 100
    wanted = {name_of(each) for group in (PROJECT["dependencies"], *EXTRAS.values()) for each in group} - {"xlpretrain"}
    assert {re.sub(r"[-_.]+", "-", name) for name in wanted} <= {re.sub(r"[-_.]+", "-", name) for name in pins}


FUSED = ROOT / "xlpretrain/models/kernels/fused"
TRITON_PROGRAMS = {*(FUSED / "programs").glob("*.py"), FUSED / "layer" / "programs.py"}
"""Modules whose functions are in Triton's language; they are imported where these are launched."""


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_every_import_is_declared_and_optional_ones_go_by_the_table():
    base = {name_of(requirement) for requirement in PROJECT["dependencies"]}
    owners = packages_distributions()
    found = set()
    for path in sources():
        text = path.read_text()
        for module, at_import in imports(path):
            if module in PACKAGES:
                found.add(module)
                if path in TRITON_PROGRAMS:
                    continue
                assert not at_import, f"{path}: imports {module} at its top"
                checked = rf'\b(optional|require)\("{module}"|^    package = "{module}"$'  # or a tracker's declaration
                assert re.search(checked, text, re.MULTILINE), f"{path}: {module} without `optional`"
            elif module not in sys.stdlib_module_names and module not in PROGRAMS:
                names = {OWN_PARTS.get(name.lower(), name.lower()) for name in owners[module]}
                assert names & base, f"{path}: {module} is no dependency"
    assert {"datasketch", "ftfy", "matplotlib", "pyarrow", "sklearn", "submitit", "tokenizers", "wandb"} <= found


def test_every_module_is_imported_without_any_optional_package():
    modules = [_module(path) for path in sources()]
    script = f"""
import importlib, sys
sys.modules.update(dict.fromkeys({list(PACKAGES)!r}))
for name in sys.argv[1:]:
    importlib.import_module(name)
"""
    programs = {_module(path) for path in TRITON_PROGRAMS}
    names = [name for name in modules if not name.endswith("__main__") and name not in programs]
    found = subprocess.run([sys.executable, "-c", script, *names], capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 0, found.stderr


def test_a_missing_package_is_told_from_one_that_is_broken(without):
    with optional("matplotlib", "a plot"):
        import matplotlib
    require("matplotlib", "a plot")
    broken = r"a plot needs matplotlib: .* but cannot be imported: no libpng\)$"
    with pytest.raises(MissingPackageError, match=broken), optional("matplotlib", "a plot"):
        raise ImportError("no libpng")
    without("matplotlib")
    assert is_missing("matplotlib") and is_missing("no_such_package") and not is_missing("numpy")
    line = r'^a plot needs matplotlib: pip install "xlpretrain\[plots\]"$'
    with pytest.raises(MissingPackageError, match=line), optional("matplotlib", "a plot"):
        import matplotlib.figure  # noqa: F401
    with pytest.raises(MissingPackageError, match=line):
        require("matplotlib", "a plot")


def load(tmp_path: Path, **config: object) -> DataConfig:
    return schema.validate(DataConfig, {"out": str(tmp_path / "out"), **config}, "a test")


PARQUET = [{"type": "parquet", "path": "x.parquet"}]
TEXT = [{"type": "text", "path": "x.txt"}]


@pytest.mark.parametrize(
    ("module", "config", "message"),
    [
        ("pyarrow", {"sources": PARQUET}, 'a source of type parquet needs pyarrow: pip install "xlpretrain[corpora]"'),
        ("ftfy", {"sources": TEXT, "clean": {"repair": True}}, "clean.repair needs ftfy"),
        ("datasketch", {"sources": TEXT, "clean": {"minhash_dedup": True}}, "clean.minhash_dedup needs datasketch"),
    ],
)
def test_a_build_says_at_once_what_it_lacks(tmp_path: Path, without, module: str, config: dict, message: str):
    require_packages(load(tmp_path, **config))
    without(module)
    with pytest.raises(MissingPackageError, match=re.escape(message)):
        require_packages(load(tmp_path, **config))
    require_packages(load(tmp_path, sources=TEXT))


def submit(tmp_path: Path) -> None:
    none = tmp_path / "none.yaml"
    training.submit(
        none, (), cluster=none, nodes=None, sweeps=(), allow_recipe_change=False, dry_run=False
    )  # fmt: skip


def fine_tune(tmp_path: Path) -> None:
    none = tmp_path / "none"
    finetune.finetune(
        none, task="classify", train=none, valid=none, name=None, text=(), label="label", overrides=[],
        num_seeds=1, runs_dir=none, options=StartOptions(), part=None,
    )  # fmt: skip


def in_a_job(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_JOB_ID", "7")
        patch.setenv("SLURM_JOB_NODELIST", "node[1-2]")
        Allocation.current()


@pytest.mark.parametrize(
    ("module", "call", "message"),
    [
        ("submitit", submit, 'xlpretrain submit needs submitit: pip install "xlpretrain[slurm]"'),
        ("submitit", in_a_job, 'a Slurm job needs submitit: pip install "xlpretrain[slurm]"'),
        (
            "sklearn",
            fine_tune,
            'xlpretrain finetune --task classify needs scikit-learn: pip install "xlpretrain[classify]"',
        ),
        (
            "sklearn",
            lambda _: ClassMetrics.compute(["a"], np.ones((1, 1)), ["a"]),
            'scoring a classifier needs scikit-learn: pip install "xlpretrain[classify]"',
        ),
        (
            "matplotlib",
            lambda tmp_path: stats.stats(tmp_path / "none", plot=tmp_path / "plot.png"),
            '--plot needs matplotlib: pip install "xlpretrain[plots]"',
        ),
        (
            "tokenizers",
            lambda _: HuggingFaceTokenizer(b"{}", name="tokenizer.json"),
            'tokenizer.json needs tokenizers: pip install "xlpretrain[wordpiece]"',
        ),
        (
            "aiohttp",
            lambda _: open_file_system("https://user:password@host/x"),
            'https://***@host/x needs aiohttp: pip install "xlpretrain[corpora]"',
        ),
    ],
)
def test_what_is_missing_is_said_before_anything_is_looked_at(tmp_path: Path, without, module: str, call, message: str):
    """The files that are named do not exist, which nobody comes to see."""
    without(module)
    with pytest.raises(MissingPackageError) as error:
        call(tmp_path)
    assert str(error.value) == message
    assert error.value.exit_code == 2
    assert not list(tmp_path.iterdir())
