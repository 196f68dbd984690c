"""Rules for resuming: which keys of a started run may change."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from xlpretrain import schema
from xlpretrain.config.run_config import RunConfig, _flatten
from xlpretrain.errors import ConfigError

if TYPE_CHECKING:  # torch takes seconds
    from xlpretrain.config.run_config import RunConfig


_MAY_CHANGE = (
    "max_steps",
    "engine",
    "micro_batch_size",
    "checkpoint",
    "eval",
    "log",
    "trackers",
    "stop",
    "spike",
    "watchdog",
    "data.on_damage",
    "data.cache_dir",
    "data.cache_bytes",
    "data.retry_s",
)


Changes = Mapping[str, tuple[Any, Any]]
"""Keys that an attempt changes: their values in the attempt before, and now."""

_RECIPE = ("optimizer", "schedule")


def check_resume(
    old: RunConfig,
    new: RunConfig,
    *,
    folder: Path,
    allow_recipe_change: bool,
    was: Mapping[str, str] = MappingProxyType({}),
    now: Mapping[str, str] = MappingProxyType({}),
) -> Changes:
    """Return the changes with which a run resumes as `new`.

    Args:
        was, now: digests of what the config's paths led to when the run began, and lead to now, by key. They decide in
            place of the paths; one that `was` lacks is not known, and its path may change.

    Raises:
        ConfigError: naming both values of everything that may not change.
    """
    before, after = _flatten(old.model_dump(mode="json")), _flatten(new.model_dump(mode="json"))
    changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    # Where a run folder lies is not what the run is: it may be moved.
    changed = [key for key in changed if key not in ("runs_dir", "name")]
    allowed = _MAY_CHANGE + (_RECIPE if allow_recipe_change else ())
    same = {key for key in now if was.get(key, now[key]) == now[key] and before.get(key) is not None}
    refused = [key for key in changed if key not in same and not {key, key.split(".")[0]} & set(allowed)]
    refused += [key for key in now if key not in changed and key not in same]
    if refused:
        hint = "only with --allow-recipe-change" if any(k.split(".")[0] in _RECIPE for k in refused) else ""

        def told(value: Any, digest: str | None) -> str:
            return repr(value) if digest is None else f"{value!r} (content {digest[:12]})"

        lines = [
            (
                key,
                f"was {told(before.get(key), was.get(key))} so far, now {told(after.get(key), now.get(key))}",
            )
            for key in refused
        ]
        advice = f"use another name for another run{'; optimizer and schedule may change ' + hint if hint else ''}"
        raise ConfigError(f"{schema.format_problems(str(folder), lines)}\n  {advice}")
    return {key: (before.get(key), after.get(key)) for key in changed}
