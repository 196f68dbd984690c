"""Versions of Python and of the packages, against those that xlpretrain admits. Torch-free."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement

from launcher.doctor.findings import Finding, failure, passed, skipped, warning
from launcher.doctor.request import Request

_SHOWN = ("torch", "deepspeed", "webdataset", "numpy", "pydantic", "sentencepiece")


def check(request: Request) -> Iterator[Finding]:
    """Check Python, the required packages, and the optional ones that are installed."""
    try:
        ours = metadata.metadata("xlpretrain")
        requirements = [Requirement(line) for line in metadata.requires("xlpretrain") or []]
    except metadata.PackageNotFoundError:
        yield skipped("versions: xlpretrain is not installed as a package, so those that it admits are not known")
        return
    yield check_python(platform.python_version(), ours["Requires-Python"])
    required = [wanted for wanted in requirements if wanted.marker is None]
    optional = [wanted for wanted in requirements if wanted.marker is not None and _is_optional(wanted)]
    yield from check_packages(required, is_required=True)
    yield from check_packages(optional, is_required=False)


def check_python(version: str, admitted: str) -> Finding:
    """Check Python's version against a specifier such as >=3.11."""
    if Requirement(f"python{admitted}").specifier.contains(version, prereleases=True):
        return passed(f"Python {version} (admitted: {admitted})")
    return failure(f"Python {version} is not {admitted}", "make a virtual environment with another Python")


def check_packages(wanted: list[Requirement], *, is_required: bool) -> Iterator[Finding]:
    """Check installed packages against requirements; one pass for all that match."""
    found: dict[str, str] = {}
    wrong = False
    for requirement in wanted:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            if is_required:
                wrong = True
                yield failure(
                    f"{requirement.name} is not installed", f'pip install "{requirement.name}{requirement.specifier}"'
                )
            continue
        found[requirement.name] = version
        if not requirement.specifier.contains(version, prereleases=True):
            wrong = True
            say = failure if is_required else warning
            yield say(
                f"{requirement.name} {version} is installed, xlpretrain needs {requirement.specifier}",
                f'pip install "{requirement.name}{requirement.specifier}"',
            )
    kind = "required" if is_required else "optional"
    if not wrong and found:
        shown = [f"{name} {found[name]}" for name in _SHOWN if name in found] or [f"{n} {v}" for n, v in found.items()]
        more = f" and {len(found) - len(shown)} more" if len(found) > len(shown) else ""
        yield passed(f"{kind} packages: {', '.join(shown)}{more}")


def _is_optional(wanted: Requirement) -> bool:
    """True for a package of the extra `all` on this platform; the others are for development."""
    assert wanted.marker is not None
    return any(
        wanted.marker.evaluate({"extra": extra})
        for extra in ("classify", "corpora", "mlflow", "plots", "slurm", "tensorboard", "triton", "wandb", "wordpiece")
    )
