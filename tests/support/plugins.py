"""Packages that extend xlpretrain by entry points, made from files or from a page of the documentation."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import documentation
import pytest

from xlpretrain.schema import registry


def install(
    folder: Path, name: str, files: Mapping[str, str], plugins: Mapping[str, str], version: str = "0.1"
) -> Path:
    """Write a package and its metadata as an installer would. Returns the folder, which belongs on the path.

    files: contents by path. plugins: the entry points, such as {"optimizer.muon": "my_package.muon:Muon"}.
    """
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    metadata = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    points = "".join(f"{point} = {value}\n" for point, value in plugins.items())
    (metadata / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{points}")
    return folder


def install_page(page: str, folder: Path) -> Path:
    """Do what a page says: write each block that follows "Write `PATH`:" to its file, and install the package.

    Returns the folder, which belongs on PYTHONPATH. Checks the number of lines of code that the page states.
    """
    files = {block.path: block.text for block in documentation.blocks(page) if block.path}
    project = tomllib.loads(files["pyproject.toml"])["project"]
    code = [text for path, text in files.items() if path.endswith((".py", ".toml"))]
    lines = sum(1 for text in code for line in text.splitlines() if line.strip())
    stated = f"{lines} lines"
    assert stated in (documentation.ROOT / page).read_text(encoding="utf-8"), f"{page} must say that it takes {stated}"
    return install(folder, project["name"], files, project["entry-points"][registry.GROUP], project["version"])


@contextmanager
def on_path(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make installed packages of a folder known to this process."""
    patch.syspath_prepend(str(folder))
    registry._found.cache_clear()
    yield
    patch.undo()
    registry._found.cache_clear()
