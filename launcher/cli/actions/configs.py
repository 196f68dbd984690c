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
_ROOT = _LAUNCHER.parent


def shipped_files() -> dict[str, Path]:
    """The configs and suites that come with xlpretrain and the files for Slurm, by name.

    They are in a wheel, or in the repository.
    """
    inside = _LAUNCHER / "configs"  # where the wheel has them (pyproject.toml)
    configs, slurm = (inside, inside / "slurm") if inside.is_dir() else (_ROOT / "configs", _ROOT / "slurm")
    return {
        **{path.stem: path for path in sorted(configs.glob("*.yaml"))},
        **{path.stem: path for path in sorted((_LAUNCHER / "suite" / "builtin").glob("*.yaml"))},
        "slurm_site": slurm / "clusters" / "example.yaml",
        "pretrain.sbatch": slurm / "pretrain.sbatch",
    }


def list_shipped() -> None:
    """Print the names of the shipped files, with the first comment line of each."""
    for name, path in shipped_files().items():
        lines = path.read_text(encoding="utf-8").splitlines()
        comment = next((line for line in lines if line.startswith("#") and not line.startswith("#!")), "")
        print(f"{name:<36} {comment.removeprefix('#').strip()}")


def list_plugins() -> None:
    """Print the types that installed packages add, without importing them."""
    for plugin in schema.list_plugins():
        print(f"{plugin.name:<36} {plugin}")


def copy_shipped(name: str) -> None:
    """Copy a shipped file into the current folder. Raises `ConfigError` for an unknown name or an existing file."""
    name = name.removesuffix(".yaml")
    if name not in shipped_files():
        raise ConfigError(f"unknown built-in config {name!r}; expected one of {', '.join(shipped_files())}")
    source = shipped_files()[name]
    target = Path(name if name == source.name else f"{name}{source.suffix}")
    if target.exists():
        raise ConfigError(f"{target}: already exists; move or delete it first")
    shutil.copyfile(source, target)
    print(f"wrote {target}")


def show(path: Path, overrides: Sequence[str], *, explain: bool) -> None:
    """Print the complete config of a run, dataset or suite, as YAML or, with explain, key by key with descriptions."""
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
    # The others import torch, which dataset configs and --list do not need.
    if "tasks" in data:
        from launcher.suite.definition import SuiteConfig

        return schema.load(SuiteConfig, path, overrides)
    from xlpretrain.config import run_config

    return run_config.load(path, overrides)
