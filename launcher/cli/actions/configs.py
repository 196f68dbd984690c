"""Show, explain, list and copy configs: `xlpretrain config`. Torch-free."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from data_pipelines.config import DataConfig
from xlpretrain import schema
from xlpretrain.errors import ConfigError
from xlpretrain.schema import Section

_LAUNCHER = Path(__file__).parents[2]


def builtin_configs() -> dict[str, Path]:
    """Paths of the built-in configs by name. A wheel has them in launcher/; a checkout, beside the packages."""
    folder = _LAUNCHER / "configs"
    return {
        path.stem: path for path in sorted((folder if folder.is_dir() else _LAUNCHER.parent / "configs").glob("*.yaml"))
    }


def list_builtin() -> None:
    """Print the names of the built-in configs, each with its first comment line."""
    for name, path in builtin_configs().items():
        first = path.read_text(encoding="utf-8").splitlines()[0]
        print(f"{name:<36} {first.removeprefix('#').strip() if first.startswith('#') else ''}")


def list_plugins() -> None:
    """Print the types that installed packages add, without importing them."""
    for plugin in schema.list_plugins():
        print(f"{plugin.name:<36} {plugin}")


def copy_builtin(name: str) -> None:
    """Copy a built-in config to the current folder. Raises `ConfigError` if it is unknown or the file exists."""
    name = name.removesuffix(".yaml")
    if name not in builtin_configs():
        raise ConfigError(f"unknown built-in config {name!r}; expected one of {', '.join(builtin_configs())}")
    target = Path(f"{name}.yaml")
    if target.exists():
        raise ConfigError(f"{target}: already exists; move or delete it first")
    shutil.copyfile(builtin_configs()[name], target)
    print(f"wrote {target}")


def show(path: Path, overrides: Sequence[str], *, explain: bool) -> None:
    """Print the complete config of a run or dataset, as YAML or, with explain, key by key with descriptions."""
    config = _load(path, overrides)
    if not explain:
        print(schema.dump(config), end="")
        return
    console = Console()
    print("\n".join(explain_lines(config, width=console.width if console.is_terminal else None)))


def explain_lines(config: Section, *, width: int | None) -> Iterator[str]:
    """Describe every key of a config: its value as YAML, `(set)` if it differs from the default, and its meaning.

    width: columns of the terminal; the meaning is wrapped below the key. None: one line per key, for pipes.
    """
    rows = [
        (f"{key}: {schema.format_value(value)}{'' if is_default else '  (set)'}", meaning)
        for key, value, is_default, meaning in schema.explain(config)
    ]
    indent = " " * 4
    for head, meaning in rows:
        if width is None:
            yield f"{head}  # {meaning}"
            continue
        yield head
        yield textwrap.fill(
            meaning, max(width, 20), initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
        )


def _load(path: Path, overrides: Sequence[str]) -> Section:
    data = schema.read_yaml(path)
    if "sources" in data or "out" in data:
        return schema.load(DataConfig, path, overrides)
    from xlpretrain.config import run_config  # imports torch, which dataset configs and --list do not need

    return run_config.load(path, overrides)
