"""The site of the documentation: adapted links, navigation, and the reference of the config keys."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

import documentation as docs
import pytest
from repository import ROOT

from xlpretrain import schema
from xlpretrain.config.run_config import RunConfig

SCRIPTS = ROOT / "tools" / "docs_site"


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("config_reference")


@pytest.fixture
def site(reference: ModuleType) -> ModuleType:
    return importlib.import_module("build_site")


def test_links_lead_to_the_new_places_and_files_are_copied(site: ModuleType):
    places = site.sources()
    text = (
        "[a](docs/running.md#metrics) ![b](docs/quickstart.png) [c](CONTRIBUTING.md) [d](https://example.com/docs/x.md)"
        " [e [f]](docs/extend/README.md) [g](#h) `[i](nowhere.md)`\n```md\n[j](nowhere.md)\n```\n"
        "[k](slurm/pretrain.sbatch)"
    )
    adapted, copied = site.adapt(text, Path("README.md"), places)
    assert adapted == (
        "[a](running.md#metrics) ![b](quickstart.png) [c](contributing.md) [d](https://example.com/docs/x.md)"
        " [e [f]](extend/index.md) [g](#h) `[i](nowhere.md)`\n```md\n[j](nowhere.md)\n```\n"
        "[k](files/slurm/pretrain.sbatch)"
    )
    assert copied == {Path("docs/quickstart.png"), Path("slurm/pretrain.sbatch")}
    adapted, _ = site.adapt("[a](../README.md) [b](extend/README.md)", Path("docs/slurm.md"), places)
    assert adapted == "[a](index.md) [b](extend/index.md)"
    with pytest.raises(SystemExit, match=r"docs/slurm\.md: broken link: README\.md"):
        site.adapt("[a](README.md)", Path("docs/slurm.md"), places)


def test_every_page_is_on_the_site_and_in_its_navigation(
    site: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(site, "BUILD", tmp_path)
    nav = site.navigation(site.collect())
    pages = {str(path.relative_to(tmp_path / "pages")) for path in (tmp_path / "pages").rglob("*.md")}
    assert len(pages) >= len(docs.PAGES) + len(docs.DECISIONS)
    assert set(re.findall(r"'([^']+\.md)'", nav)) == pages
    assert (tmp_path / "pages" / "files" / "slurm" / "pretrain.sbatch").read_bytes() == (
        ROOT / "slurm" / "pretrain.sbatch"
    ).read_bytes()


def test_the_reference_has_every_key_of_every_section(reference: ModuleType):
    pages = {name: reference.page(name) for name in reference.ROOTS}
    run = pages["run"]
    for row in (
        "| `global_batch_size` | integer, > 0 | `16` | Samples per step, which is also the number of streams.",
        "| `model` | section, `type`: `transformer_xl`, `xlnet`, `albert`, `bert` | required | See [transformer_xl]",
        "| `best` | text | `loss` | Criterion for the best evaluation",
        "| `name` | text, must start with a letter or a digit, and contain only letters (a-z, A-Z)",
        "| `threshold` | number or null, > 0 | `null` | Nats by which",
        "| `trackers` | list of sections, `type`: `wandb`, `tensorboard`, `mlflow` | `wandb` | Trackers that get",
        "| `text` | list of text, at most 2 | `[]` | Column of the text",
    ):
        assert row in run, row
    config = ROOT / "configs" / "quickstart.yaml"
    for path, *_ in schema.explain(schema.load(RunConfig, config)):
        assert f"| `{path.rpartition('.')[2]}` |" in run, path
    for page in pages.values():
        anchors = re.findall(r"\{ #([a-z0-9-]+) \}$", page, re.MULTILINE)
        assert len(anchors) == len(set(anchors))
        assert set(re.findall(r"\]\(#([^)]+)\)", page)) == set(anchors)
        assert "||" not in page.replace("| |", "") and "section |  |  |" not in page
