"""Registries: the section types that a config can name, built in or from installed packages.

A package adds a type by an entry point of the group `xlpretrain.plugins`, named after the registry's kind and the type:

    [project.entry-points."xlpretrain.plugins"]
    "optimizer.muon" = "my_package.muon:MuonConfig"

It is only imported when a config names that type. Built-in types take precedence over plug-ins of the same name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from xlpretrain.errors import ConfigError

GROUP = "xlpretrain.plugins"

S = TypeVar("S", bound=BaseModel)


class PluginError(ConfigError):
    """A plug-in that cannot be used. The message begins with the type's name."""


@dataclass(frozen=True)
class Plugin:
    """An entry point of an installed package. name: the kind and the type, such as `optimizer.muon`."""

    name: str
    package: str
    version: str

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


_origins: dict[type, Plugin] = {}
"""Plug-in of each imported type."""


class Registry(Mapping[str, type[S]], Generic[S]):
    """Section types of one kind by name, built-in ones first. The first one is the default.

    Looking up a name imports the package that provides it, and raises `PluginError` if that fails.
    """

    def __init__(self, kind: str, base: type[Any], builtin: Mapping[str, type[S]]):
        """kind: prefix of the plug-ins' names. base: base class of all types."""
        self.kind, self.builtin = kind, dict(builtin)
        self.base: Any = base
        self._loaded: dict[str, type[S]] = {}

    def __getitem__(self, name: str) -> type[S]:
        if name in self.builtin:
            return self.builtin[name]
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        yield from self.builtin
        prefix = f"{self.kind}."
        for name in _found():
            if name.startswith(prefix) and name.removeprefix(prefix) not in self.builtin:
                yield name.removeprefix(prefix)

    def __contains__(self, name: object) -> bool:
        return name in self.builtin or f"{self.kind}.{name}" in _found()

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _load(self, name: str) -> type[S]:
        candidates = _found().get(f"{self.kind}.{name}")
        if candidates is None:
            raise KeyError(name)
        plugins = [_describe(point) for point in candidates]
        if len(plugins) > 1:
            packages = " and ".join(str(plugin) for plugin in plugins)
            raise PluginError(f"{name}: provided by {packages}; uninstall all but one")
        (point,), (plugin,) = candidates, plugins
        try:
            section = point.load()
        except Exception as error:  # the package's own code: anything
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise PluginError(
                f"{name}: the plug-in {plugin} cannot be imported ({point.value}: {reason}); fix or uninstall it"
            ) from error
        if problem := self._find_problem(section, name):
            raise PluginError(f"{name}: the plug-in {plugin} cannot be used: {point.value} {problem}")
        _origins[section] = plugin
        return section  # type: ignore[no-any-return]  # it was checked

    def _find_problem(self, section: Any, name: str) -> str | None:
        if not isinstance(section, type) or not issubclass(section, self.base):
            return f"must be a subclass of {self.base.__module__}.{self.base.__qualname__}, got {section!r}"
        field = getattr(section, "model_fields", {}).get("type")
        if field is None or field.default != name:
            return f'must declare `type: Literal["{name}"] = "{name}"`'
        if abstract := sorted(getattr(section, "__abstractmethods__", ())):
            return f"does not define {', '.join(abstract)}"
        return None


def list_plugins() -> list[Plugin]:
    """List the plug-ins of all installed packages, by name, without importing them."""
    return [_describe(point) for name in sorted(_found()) for point in _found()[name]]


def plugins_of(value: BaseModel) -> dict[str, str]:
    """Plug-ins that a config uses: names such as `optimizer.muon`, and their packages with versions."""
    found: dict[str, str] = {}
    if (plugin := _origins.get(type(value))) is not None:
        found[plugin.name] = str(plugin)
    for name in type(value).model_fields:
        item = getattr(value, name)
        for part in item if isinstance(item, tuple) else (item,):
            if isinstance(part, BaseModel):
                found |= plugins_of(part)
    return found


def missing_plugins(used: Mapping[str, str]) -> list[str]:
    """Describe the plug-ins in `used` (from `plugins_of`, perhaps of another machine) that are not installed here."""
    return [f"{name} of {package}" for name, package in used.items() if name not in _found()]


def _describe(point: EntryPoint) -> Plugin:
    package = point.dist
    return Plugin(point.name, *((package.name, package.version) if package is not None else ("(unknown)", "")))


@cache
def _found() -> Mapping[str, tuple[EntryPoint, ...]]:
    """Entry points by name, without duplicates of packages that are on the path twice."""
    found: dict[str, dict[tuple[str, str], EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        package = point.dist.name if point.dist is not None else ""
        found.setdefault(point.name, {}).setdefault((package, point.value), point)
    return {name: tuple(point for _, point in sorted(points.items())) for name, points in found.items()}
