"""An environment that has the wheel, and no package besides those that the wheel requires."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tomllib
import venv
from importlib.metadata import PackageNotFoundError, distribution, requires
from pathlib import Path

from packaging.requirements import Requirement
from repository import ROOT


def required() -> set[str]:
    """The distributions that a plain installation of xlpretrain brings, as far as they are installed here."""
    found: set[str] = set()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting = [(project["dependencies"], "")]
    while waiting:
        lines, extra = waiting.pop()
        for requirement in map(Requirement, lines):
            wanted = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
            if not wanted or requirement.name in found:
                continue
            try:
                distribution(requirement.name)
            except PackageNotFoundError:
                continue  # for another machine, such as CUDA's libraries
            found.add(requirement.name)
            waiting += [(requires(requirement.name) or [], each) for each in ("", *requirement.extras)]
    return found


def make_environment(folder: Path, *, names: set[str]) -> Path:
    """Make an environment with these distributions, linked to this environment's, and the wheel of this tree.

    Returns its folder of programs. Building the wheel downloads hatchling.
    """
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", folder / "wheels", ROOT], check=True)
    place = folder / "env"
    venv.create(place, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(place), "platbase": str(place)}))
    for name in names:
        installed = distribution(name)
        for top in {file.parts[0] for file in installed.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(installed.locate_file(top))))
    (wheel,) = (folder / "wheels").glob("*.whl")
    subprocess.run([*pip, "--python", place, "install", "--no-deps", wheel], check=True)
    return place / "bin"
