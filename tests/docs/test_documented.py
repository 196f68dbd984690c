"""Every command, key, file, link and snippet of the documentation exists as it is written."""

from __future__ import annotations

import re

import documentation as docs
import pytest
import yaml
from repository import ROOT

from xlpretrain.errors import ConfigError


@pytest.mark.parametrize("page", docs.PAGES)
def test_every_block_is_right(page: str):
    for block in docs.blocks(page):
        assert block.language in docs.LANGUAGES, f"{block}: fence it, and name its language: {docs.LANGUAGES}"
        match block.language:
            case "sh":
                for words in docs.commands(block.text):
                    docs.check_command(words)
            case "yaml" if page not in docs.EXTENSIONS:
                docs.check_yaml(block.text, block)
            case "python":
                docs.check_python(block.text, block)


@pytest.mark.parametrize("page", docs.PAGES)
def test_every_inline_command_key_and_file_exists(page: str):
    written = {block.path for block in docs.blocks(page)}
    for span in docs.spans(page):
        if span.startswith(("xlpretrain ", "make ", "torchrun ")):
            for words in docs.commands(span):
                docs.check_command(words, partial=True)
        elif docs.is_key(span):
            key = span.partition("=")[0].partition(":")[0]
            assert any(docs.has_key(schema, key) for schema in docs.SCHEMAS), f"{page}: no such key: {key}"
        elif docs.is_path(span) and span not in written:
            assert docs.exists(span), f"{page}: no such file: {span}"


def test_every_stated_default_is_the_default():
    stated = [(page, key, value) for page in docs.PAGES for key, value in docs.stated_defaults(page)]
    assert len(stated) > 25
    for page, key, value in stated:
        assert docs.default_of(key) == yaml.safe_load(value), f"{page}: {key} is not {value} by default"


@pytest.mark.parametrize("page", [*docs.PAGES, *docs.DECISIONS])
def test_every_link_leads_somewhere(page: str):
    for target in docs.links(page):
        path, anchor = docs.repository_path(page, target)
        assert path.exists(), f"{page}: {target}"
        assert not anchor or anchor in docs.anchors(str(path.relative_to(ROOT))), f"{page}: {target}"


def test_every_command_that_messages_and_comments_recommend_exists():
    recommended = docs.commands_in_texts()
    assert len(recommended) > 20
    for command in recommended:
        for words in docs.commands(command):
            docs.check_command(words, partial=True)
    for command in docs.commands_in_comments():
        for words in docs.commands(command):
            docs.check_command(words)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("xlpretrain trian CONFIG", "no such command: xlpretrain trian"),
        ("xlpretrain data biuld CONFIG", "no such command: xlpretrain data biuld"),
        ("xlpretrain train CONFIG --nprok 4", "No such option: --nprok"),
        ("xlpretrain resume RUN ; xlpretrain stop RUN now", "unexpected extra argument"),
        ("xlpretrain train CONFIG optimizer.learning_rate=1", "no such key: optimizer.learning_rate"),
        ("xlpretrain train configs/quickstart.yaml max_steps=few", "max_steps"),
        ("xlpretrain train configs/no_such.yaml", "no such file: configs/no_such.yaml"),
        ("make quickly", "no such target"),
        ("torchrun -m xlpretrain.nowhere", "xlpretrain.nowhere"),
        ("xlpretrane train CONFIG", "unknown program"),
    ],
)
def test_a_wrong_command_is_found(command: str, message: str):
    with pytest.raises((AssertionError, ConfigError), match=re.escape(message)):
        for words in docs.commands(command):
            docs.check_command(words)


LOADED = "import xlpretrain\nrun = xlpretrain.load('a')\nrun.laod()"


def test_wrong_keys_values_and_names_are_found():
    for wrong in ("data: {trian: x}", "optimizer: {lr: fast}", "clean: {rules: [c5]}"):
        with pytest.raises(AssertionError, match="no schema takes this"):
            docs.check_yaml(wrong, "a page")
    for wrong in ("from xlpretrain import laod", "import xlpretrain\nxlpretrain.laod('a')", LOADED):
        with pytest.raises(AssertionError, match=r"has no .*laod"):
            docs.check_python(wrong, "a page")
