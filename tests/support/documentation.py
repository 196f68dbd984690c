"""The documentation as data: blocks, inline code and links of its pages, and the commands and keys in them."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch.distributed.run as torchrun
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token
from pydantic import ValidationError
from repository import ROOT
from typer.main import get_command

from data_pipelines.config import DataConfig
from launcher.cli import main
from launcher.slurm.profile import ClusterConfig
from xlpretrain.config import run_config
from xlpretrain.config.run_config import RunConfig
from xlpretrain.evaluation.loaded_run import LoadedRun
from xlpretrain.schema import Section, validate

EXTENSIONS = [f"docs/extend/{p.name}" for p in ROOT.glob("docs/extend/*.md") if p.stem != "README"]
"""Pages whose code makes a package; tests/docs/extend/ follows each, with its configs and commands."""
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "slurm/README.md",
    *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md")),
    "docs/extend/README.md",
    *EXTENSIONS,
]
DECISIONS = [f"docs/decisions/{p.name}" for p in ROOT.glob("docs/decisions/*.md")]
PROGRAMS = ("xlpretrain", "launcher", "data_pipelines")
SCHEMAS = (RunConfig, DataConfig, ClusterConfig)
LANGUAGES = ("sh", "yaml", "python", "text", "diff", "toml")
OTHER_PROGRAMS = {".", "cp", "sbatch", "wandb", "export", "pip"}
"""Programs of documented commands besides `xlpretrain`, `torchrun`, `python` and `make`."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page. path: of the file that it is to be written to, if the text before it names one."""

    page: str
    line: int
    language: str
    text: str
    path: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@cache
def tokens(page: str) -> list[Token]:
    """The page as markdown-it parses it."""
    return MarkdownIt("commonmark").enable("table").parse((ROOT / page).read_text(encoding="utf-8"))


def blocks(page: str) -> list[Block]:
    """All code blocks of a page; an indented one has no language."""
    found, before = [], ""
    for token in tokens(page):
        if token.type in ("fence", "code_block"):
            named = re.search(r"[Ww]rite `([\w./-]+)`[^`]*:$", before)
            found.append(Block(page, (token.map or [0])[0] + 1, token.info, token.content, named and named[1]))
        before = token.content if token.type == "inline" else before if token.type == "paragraph_close" else ""
    return found


def _inline(page: str, kind: str) -> Iterator[Token]:
    for token in tokens(page):
        yield from (child for child in token.children or () if child.type == kind)


def spans(page: str) -> list[str]:
    """The inline code of a page, each on one line."""
    return [" ".join(token.content.split()) for token in _inline(page, "code_inline")]


def links(page: str) -> list[str]:
    """Targets of the links and pictures of a page, without those on the web."""
    found = [str(token.attrs["href"]) for token in _inline(page, "link_open")]
    found += [str(token.attrs["src"]) for token in _inline(page, "image")]
    return [target for target in found if not target.startswith("http")]


def anchors(page: str) -> set[str]:
    """Names that a link can use for the headings of a page, as GitHub makes them."""
    titles = [tokens(page)[i + 1].content for i, token in enumerate(tokens(page)) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@cache
def texts_of_code() -> list[str]:
    """Every string of our programs, with `{}` for each formatted value."""
    texts = []
    for folder in PROGRAMS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    texts.append("".join(str(p.value) if isinstance(p, ast.Constant) else "{}" for p in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return texts


def commands_in_texts() -> set[str]:
    """Commands that messages, help and docstrings recommend in backticks."""
    return {found for text in texts_of_code() for found in re.findall(r"`(xlpretrain [^`]+)`", " ".join(text.split()))}


def commands_in_comments() -> set[str]:
    """Commands on lines of their own in comments of shipped files and in docstrings of scripts."""
    pattern = re.compile(r"^(?:#| {4}) *((?:xlpretrain|sbatch|python [a-z]+/|torchrun) ?.*)$", re.MULTILINE)
    folders = ("configs", "examples", "slurm", "benchmarks", "tools")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".yaml", ".sbatch")]
    found = {command for path in paths for command in pattern.findall(path.read_text(encoding="utf-8"))}
    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            found |= set(pattern.findall(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""))
    return {command.split("  ")[0] for command in found}


def commands(text: str) -> list[list[str]]:
    """The commands of a shell block as words, without comments, `...`, and the brackets around optional arguments."""
    text = re.sub(r"(?<=\s)\[([^\[\]]*)\]", r"\1", text.replace("\\\n", " "))
    found: list[list[str]] = []
    for line in text.splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars=";")
        words.whitespace_split = True
        command: list[str] = []
        for word in [*words, ";"]:
            if word == ";" and command:
                found.append(command)
                command = []
            elif word not in ("...", ";"):
                command.append(word)
    return found


def check_command(words: list[str], *, partial: bool = False) -> None:
    """Raises if a command does not exist, or not with these options, choices, keys and files of the repository.

    A `partial` one may lack arguments.
    """
    words = [re.sub(r"^(N|R|S|STEP|M|\{\})$", "1", word) for word in words]  # placeholders of numbers
    program, *arguments = words
    match program:
        case "xlpretrain":
            _check_ours(arguments, partial=partial)
        case "make":
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert set(arguments) <= set(targets), f"no such target: {words}"
        case "torchrun":
            given = torchrun.get_args_parser().parse_args(arguments)
            assert importlib.util.find_spec(given.training_script), words
        case "python" if arguments[0] == "-m":
            assert importlib.util.find_spec(arguments[1]), words
        case _:
            assert program in {*OTHER_PROGRAMS, "python"}, f"unknown program: {words}"
    for word in words:
        if re.match(r"(configs|examples|slurm|benchmarks|tools)/.*\.\w+$", word):
            assert (ROOT / word).exists(), f"no such file: {word}"


_command_line = cache(lambda: get_command(main.app))


def _check_ours(words: list[str], *, partial: bool) -> None:
    command: Any = _command_line()
    path = ["xlpretrain"]
    while hasattr(command, "commands"):
        if partial and (not words or words == ["--help"]):
            return
        assert words and words[0] in command.commands, f"no such command: {' '.join([*path, *words])}"
        path.append(words[0])
        command, words = command.commands[words[0]], words[1:]
    try:
        given = command.make_context(path[-1], list(words)).params
    except Exception as error:
        if partial and type(error).__name__ in ("MissingParameter", "BadOptionUsage"):
            return
        raise AssertionError(f"{' '.join([*path, *words])}: {error}") from error
    schema = DataConfig if path[1:] == ["data", "build"] else RunConfig
    overrides = [o for o in given.get("overrides") or given.get("moved") or () if o.partition("=")[0].islower()]
    for override in overrides:
        key = override.partition("=")[0]
        assert key == "key" or has_key(schema, key), f"{' '.join([*path, *words])}: no such key: {key}"
    config = given.get("config")
    if config is not None and schema is RunConfig and (ROOT / config).exists() and "..." not in " ".join(overrides):
        run_config.load(ROOT / config, [o for o in overrides if o != "key=value"])


def has_key(section: type[Section], key: str) -> bool:
    """True if a dotted key exists in a section, in any variant of its parts."""
    schema = _schema(section)
    return _has_key(schema, key.split("."), schema["$defs"])


@cache
def _schema(section: type[Section]) -> dict[str, Any]:
    return section.model_json_schema()


def _has_key(node: dict[str, Any], parts: list[str], definitions: dict[str, Any]) -> bool:
    if "$ref" in node:
        node = definitions[node["$ref"].rpartition("/")[2]]
    choices = node.get("anyOf") or node.get("oneOf")
    if choices:
        return any(_has_key(choice, parts, definitions) for choice in choices)
    if not parts:
        return True
    if "items" in node:
        return _has_key(node["items"], parts[1:] if parts[0].isdigit() else parts, definitions)
    if parts[0] in node.get("properties", {}):
        return _has_key(node["properties"][parts[0]], parts[1:], definitions)
    return bool(node.get("type") == "object" and node.get("additionalProperties"))


def stated_defaults(page: str) -> Iterator[tuple[str, str]]:
    """Keys and the defaults that a page states: `key` (value) in its text, and the table rows of keys and defaults."""
    text = (ROOT / page).read_text(encoding="utf-8")
    yield from re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)`\s\(([\d.]*\d)(?= s\)|[;,)])", text)
    for section, rows in re.findall(
        r"^\| key(?: under `([a-z]+)`)? \| default \|.*\n((?:\|.*\n)+)", text, re.MULTILINE
    ):
        for keys, values in re.findall(r"^\| (`[a-z_.`, ]+) \| ([^|]+) \|", rows, re.MULTILINE):
            for key, value in zip(keys.split(", "), values.split(", "), strict=False):
                if re.fullmatch(r"[\d.]+|true|false|`.*`", value):
                    yield f"{section}.{key.strip('`')}".lstrip("."), value.strip("`")


@cache
def _defaults() -> list[Section]:
    """A run and a dataset that give only what is required."""
    model, objective = {"type": "transformer_xl"}, {"type": "causal_lm"}
    run = {"data": {"train": "a", "valid": "b"}, "model": model, "objective": objective, "max_steps": 1000}
    data = {"out": "a", "sources": [{"type": "jsonl", "path": "b"}]}
    return [validate(RunConfig, run, "defaults"), validate(DataConfig, data, "defaults"), ClusterConfig()]


def default_of(key: str) -> Any:
    """The default of a dotted key. Raises AttributeError if there is no such key."""
    owner = next(config for config in _defaults() if key.partition(".")[0] in type(config).model_fields)
    return functools.reduce(getattr, key.split("."), owner)


def check_yaml(text: str, where: object) -> None:
    """Raises unless one of the schemas takes a fragment: keys and values; what is required may be missing."""
    data = yaml.safe_load(text)
    found = {schema.__name__: _problems(schema, data) for schema in SCHEMAS}
    assert not all(found.values()), f"{where}: no schema takes this: {found}"


def _problems(schema: type[Section], data: dict[str, Any]) -> list[str]:
    try:
        schema.model_validate(data, strict=False)
    except ValidationError as error:
        return [f"{e['loc']}: {e['msg']}" for e in error.errors() if e["type"] != "missing"]
    return []


def check_python(text: str, where: object) -> None:
    """Raises unless it compiles, and our modules and objects have the attributes that it names."""
    tree = ast.parse(text)
    known: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            ours = [name.name for name in node.names if name.name.split(".")[0] in PROGRAMS]
            known |= {name: importlib.import_module(name) for name in ours}
        elif isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in PROGRAMS:
            module = importlib.import_module(str(node.module))
            missing = [name.name for name in node.names if not hasattr(module, name.name)]
            assert not missing, f"{where}: {node.module} has no {missing}"
        elif isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("xlpretrain.load("):
            known[ast.unparse(node.targets[0])] = LoadedRun
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in known:
            owner = known[node.value.id]
            there = hasattr(owner, node.attr) or node.attr in getattr(owner, "__annotations__", {})
            assert there, f"{where}: {node.value.id} has no {node.attr}"


def is_path(span: str) -> bool:
    """True for inline code that names a file or folder of the repository or of one of its programs."""
    top = re.match(r"(benchmarks|configs|data_pipelines|docs|examples|launcher|slurm|tests|tools|xlpretrain)/", span)
    return re.fullmatch(r"[\w./-]+", span) is not None and (top is not None or re.search(r"/.*\.py$", span) is not None)


def exists(span: str) -> bool:
    """True if there is such a file or folder."""
    return any((folder / span).exists() for folder in (ROOT, *(ROOT / program for program in PROGRAMS)))


def is_key(span: str) -> bool:
    """True for inline code that names a key of a config, perhaps with its value."""
    name = re.match(r"([a-z_]+)(\.[a-z_0-9]+)+(?=$|[=:])", span)
    files = (".json", ".jsonl", ".pt", ".safetensors", ".md", ".py", ".yaml", ".png", ".csv", ".log")
    sections = {field for schema in SCHEMAS for field in schema.model_fields}
    return name is not None and name[1] in sections and not name[0].endswith(files)


def repository_path(page: str, target: str) -> tuple[Path, str]:
    """File and anchor of a link on a page."""
    path, _, anchor = target.partition("#")
    return ((ROOT / page).parent / path).resolve() if path else ROOT / page, anchor
