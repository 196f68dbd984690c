"""Build the documentation as a site: make docs

Collects the pages under build/docs: README, docs/, CONTRIBUTING and CHANGELOG, with their links adapted to the new
places; the reference of the config keys, made from the schema; and the pages of `api/`, into which mkdocstrings puts
docstrings. Zensical makes the site from them, in build/docs/site. A broken link is an error.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import config_reference

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
BUILD = ROOT / "build" / "docs"
SITE = BUILD / "site"
GUIDES = [
    "data.md",
    "masked-lm.md",
    "permutation-lm.md",
    "running.md",
    "branches.md",
    "slurm.md",
    "gpu.md",
    "finetune.md",
]
"""The first guides, in this order; any others follow by name."""
_LINK = re.compile(r"(!?\[(?:[^\]\[]|\[[^\]]*\])*\]\()([^)\s#]*)((?:#[^)\s]*)?\))")
_CODE = re.compile(r"(^(`{3,}).*?^\2`*$|`+[^`]+`+)", re.MULTILINE | re.DOTALL)


def sources() -> dict[Path, Path]:
    """Pages of the repository and their places on the site, both relative."""
    places = {Path("README.md"): Path("index.md")}
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        places[Path(name)] = Path(name.lower())
    for path in sorted((ROOT / "docs").rglob("*.md")):
        place = path.relative_to(ROOT / "docs")
        places[path.relative_to(ROOT)] = place.with_name("index.md") if place.name == "README.md" else place
    return places


def adapt(text: str, source: Path, places: dict[Path, Path]) -> tuple[str, set[Path]]:
    """Point the links of a page to the places of their targets on the site.

    Links that do not lead to a page lead to a copy of the file; returns those files, too.
    """
    copied: set[Path] = set()

    def moved(match: re.Match[str]) -> str:
        before, target, after = match.groups()
        if not target or re.match(r"[a-z]+:", target):
            return match[0]
        path = Path(os.path.normpath(source.parent / target))
        place = places.get(path)
        if place is None:
            if not (ROOT / path).is_file():
                raise SystemExit(f"{source}: broken link: {target}")
            place = asset(path)
            copied.add(path)
        return f"{before}{os.path.relpath(place, places[source].parent)}{after}"

    parts = _CODE.split(text)  # text, code, its fence, text, ...
    kept = [_LINK.sub(moved, part) if index % 3 == 0 else part for index, part in enumerate(parts) if index % 3 != 2]
    return "".join(kept), copied


def asset(path: Path) -> Path:
    """Place on the site of a file that is not a page."""
    return path.relative_to("docs") if path.parts[0] == "docs" else Path("files") / path


def collect() -> list[str]:
    """Write all pages and files under `BUILD`. Returns the guides in their order."""
    shutil.rmtree(BUILD, ignore_errors=True)
    places = sources()
    for source, place in places.items():
        text, copied = adapt((ROOT / source).read_text(encoding="utf-8"), source, places)
        _write(BUILD / "pages" / place, text)
        for path in copied:
            target = BUILD / "pages" / asset(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, target)
    for name in config_reference.ROOTS:
        _write(BUILD / "pages" / "reference" / f"{name}.md", config_reference.page(name))
    shutil.copytree(HERE / "api", BUILD / "pages" / "api")
    shutil.copyfile(HERE / "extra.css", BUILD / "pages" / "extra.css")
    known = [place.name for place in places.values() if len(place.parts) == 1]
    known = [name for name in known if name not in ("index.md", "contributing.md", "changelog.md")]
    return sorted(known, key=lambda name: (GUIDES.index(name) if name in GUIDES else len(GUIDES), name))


def navigation(guides: list[str]) -> str:
    """The `nav` of zensical.toml."""
    pages = BUILD / "pages"

    def inside(folder: str) -> list[str]:
        return sorted(str(path.relative_to(pages)) for path in (pages / folder).glob("*.md") if path.stem != "index")

    nav = {
        "Guides": guides,
        "Config reference": [f"reference/{name}.md" for name in config_reference.ROOTS],
        "Python API": inside("api"),
        "Extending": ["extend/index.md", *inside("extend")],
        "Contributing": ["contributing.md", "changelog.md"],
        "Decisions": inside("decisions"),
    }
    lines = [f"  {{ {name!r} = {found!r} }}," for name, found in nav.items()]
    return "\n".join(["nav = [", "  'index.md',", *lines, "]"])


def main() -> None:
    guides = collect()
    config = (HERE / "zensical.toml").read_text(encoding="utf-8")
    _write(BUILD / "zensical.toml", config.replace("nav = []", navigation(guides)))
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    if subprocess.run(command, cwd=BUILD).returncode != 0:
        sys.exit("the site has problems, see above")
    served = f"python -m http.server --directory {SITE.relative_to(ROOT)}"
    print(f"{len(list(SITE.rglob('*.html')))} pages; with search: {served}")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
