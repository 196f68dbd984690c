"""Rules for resuming and forking: config keys of a started run that may change."""

from __future__ import annotations

import re
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
    "profile",
    "watchdog",
    "alerts",
    "callbacks",
    "data.on_damage",
    "data.cache_dir",
    "data.cache_bytes",
    "data.retry_s",
)


Changes = Mapping[str, tuple[Any, Any]]
"""Changed keys: their values in the previous attempt, and now."""

_RECIPE = ("optimizer", "schedule")
_STAGED = re.compile(r"objective\..*|global_batch_size|data\.train\.\d+\.weight|stages(\..*)?")
"""Keys by which a fork may begin a new stage."""
_FIXED_IN_FORKS = re.compile(r"optimizer\.type|objective\.type|objective\.parts\.\d+\.(share|name|objective\.type)")
_ADVICE_FOR_FORKS = (
    "a fork goes on with its parent's model, tokenizer, data, seed, and types of objective and optimizer; for others,"
    " start a new run from its weights (init_from)"
)


def changes_stage(old: RunConfig, new: RunConfig) -> list[str]:
    """The changed keys that make a fork begin a new stage: what it reads, and how it trains on it."""
    return [key for key in _compare(old, new)[2] if _begins_stage(key)]


def _begins_stage(key: str) -> bool:
    return bool(_STAGED.fullmatch(key)) and not _FIXED_IN_FORKS.fullmatch(key)


def check_resume(
    old: RunConfig,
    new: RunConfig,
    *,
    folder: Path,
    allow_recipe_change: bool,
    forking: bool = False,
    was: Mapping[str, str] = MappingProxyType({}),
    now: Mapping[str, str] = MappingProxyType({}),
) -> Changes:
    """Return the changes with which a run resumes.

    Args:
        forking: the changes are those of a fork, which keeps the type of optimizer.
        was, now: digests by key of the content at the config's paths, at the start of the run and now. They are
            compared in place of the paths; if `was` lacks a key, its path may change.

    Raises:
        ConfigError: with old and new values of all keys that must not change.
    """
    before, after, changed = _compare(old, new)
    # A run folder may be moved.
    changed = [key for key in changed if key not in ("runs_dir", "name")]
    allowed = _MAY_CHANGE + (_RECIPE if allow_recipe_change else ())
    same = {key for key in now if was.get(key, now[key]) == now[key] and before.get(key) is not None}
    refused = [
        key
        for key in changed
        if key not in same and not {key, key.split(".")[0]} & set(allowed) and not (forking and _begins_stage(key))
    ]
    refused += [key for key in changed if forking and _FIXED_IN_FORKS.fullmatch(key) and key not in refused]
    refused += [key for key in now if key not in changed and key not in same]
    if refused:
        hint = "only with --allow-recipe-change" if any(k.split(".")[0] in _RECIPE for k in refused) else ""

        def shown(value: Any, digest: str | None) -> str:
            return repr(value) if digest is None else f"{value!r} (content {digest[:12]})"

        lines = [
            (
                key,
                f"was {shown(before.get(key), was.get(key))}, now {shown(after.get(key), now.get(key))}",
            )
            for key in refused
        ]
        advice = f"use another name for a new run{'; optimizer and schedule may change ' + hint if hint else ''}"
        raise ConfigError(f"{schema.format_problems(str(folder), lines)}\n  {_ADVICE_FOR_FORKS if forking else advice}")
    return {key: (before.get(key), after.get(key)) for key in changed}


def _compare(old: RunConfig, new: RunConfig) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Both configs by dotted keys, and the keys whose values differ."""
    before, after = _flatten(old.model_dump(mode="json")), _flatten(new.model_dump(mode="json"))
    return before, after, [key for key in {**before, **after} if before.get(key) != after.get(key)]
