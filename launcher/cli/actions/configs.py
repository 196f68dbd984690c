"""Show, explain, list and copy configs: `xlpretrain config`. Torch-free."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data_pipelines.config import DataConfig
from xlpretrain import schema
from xlpretrain.errors import ConfigError
from xlpretrain.schema import Section

_LAUNCHER = Path(__file__).parents[2]


def builtin_configs() -> dict[str, Path]:
    """The configs that come with xlpretrain, by name: in launcher/ in a wheel, else beside the packages."""
    folder = _LAUNCHER / "configs"
    return {
        path.stem: path for path in sorted((folder if folder.is_dir() else _LAUNCHER.parent / "configs").glob("*.yaml"))
    }


def list_builtin() -> None:
    """Print their names and first comment lines."""
    for name, path in builtin_configs().items():
        first = path.read_text(encoding="utf-8").splitlines()[0]
        print(f"{name:<36} {first.removeprefix('#').strip() if first.startswith('#') else ''}")


def copy_builtin(name: str) -> None:
    """Copy one into the current folder. Raises `ConfigError` for an unknown name or a file that is there."""
    name = name.removesuffix(".yaml")
    if name not in builtin_configs():
        raise ConfigError(f"no shipped config is named {name!r}; there are {', '.join(builtin_configs())}")
    target = Path(f"{name}.yaml")
    if target.exists():
        raise ConfigError(f"{target}: exists already; move it away first")
    shutil.copyfile(builtin_configs()[name], target)
    print(f"wrote {target}")


def show(path: Path, overrides: Sequence[str], *, explain: bool) -> None:
    """Print a run's or a dataset's config, whole: as YAML, or key by key with what each means."""
    config = _load(path, overrides)
    if not explain:
        print(schema.dump(config), end="")
        return
    table = Table("key", "value", "", "meaning", box=None, header_style="bold", pad_edge=False)
    for key, value, is_default, meaning in schema.explain(config):
        table.add_row(key, str(value), "" if is_default else "set", meaning)
    Console(highlight=False).print(table)


def _load(path: Path, overrides: Sequence[str]) -> Section:
    data = schema.read_yaml(path)
    if "sources" in data or "out" in data:
        return schema.load(DataConfig, path, overrides)
    from xlpretrain.config import run_config  # with torch, which a dataset's config and --list do without

    return run_config.load(path, overrides)
