"""Parameter groups: sets of parameters that share a learning rate, a weight decay and state keys.

Torch-free, except for the parameters passed in.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from xlpretrain.errors import ConfigError
from xlpretrain.schema import Problem, Section

if TYPE_CHECKING:
    import torch
    from torch import nn

StateKeys = tuple[str, ...]
"""Names of an optimizer's fp32 state tensors for a parameter."""

OTHERS = "(others)"
"""Label of the group of parameters that no pattern matches."""

_EMBEDDING = "backbone.embedding."
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


class GroupConfig(Section):
    """A group of parameters with its own learning rate or weight decay."""

    match: Annotated[str, Field(min_length=1)]
    """Shell pattern (`*`, `?`, `[...]`) for whole parameter names, such as backbone.embedding.* or *.bias; `*` also
    matches dots."""
    lr_factor: Annotated[float, Field(ge=0)] = 1.0
    """Learning rate of the group as a multiple of the scheduled one. With 0 its weights stay, but their gradients and
    optimizer state are computed; optimizer.frozen saves both."""
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    """Weight decay of the group's matrices (null: optimizer.weight_decay)."""


def first_matches(groups: Sequence[GroupConfig], names: Iterable[str]) -> dict[str, int]:
    """Map each name to the index of the first group whose pattern matches it; names without a match are omitted."""
    found = {}
    for name in names:
        for index, group in enumerate(groups):
            if fnmatchcase(name, group.match):
                found[name] = index
                break
    return found


def matching(patterns: Iterable[str], names: Iterable[str]) -> set[str]:
    """The names that at least one of the shell patterns matches."""
    wanted = tuple(patterns)
    return {name for name in names if any(fnmatchcase(name, pattern) for pattern in wanted)}


def unmatched_problems(key: str, patterns: Sequence[str], names: Sequence[str]) -> Iterator[Problem]:
    """Yield a problem for each pattern in the list at `key` that matches none of a model's parameter names."""
    for index, pattern in enumerate(patterns):
        if not matching([pattern], names):
            yield f"{key}.{index}", f"{pattern!r} matches no parameter; {_close_names(pattern, names)}"


def pattern_problems(
    groups: Sequence[GroupConfig], names: Sequence[str], *, frozen: Set[str] = frozenset()
) -> Iterator[Problem]:
    """Yield a problem for each pattern that applies to none of a model's parameter names, or to frozen ones alone."""
    used = set(first_matches(groups, [name for name in names if name not in frozen]).values())
    for index, group in enumerate(groups):
        if index in used:
            continue
        matched = [name for name in names if fnmatchcase(name, group.match)]
        if matched and frozen >= set(matched):
            what = f"every parameter that {group.match!r} matches is frozen ({matched[0]}); remove the group"
            yield f"groups.{index}.match", what
        elif matched := [name for name in matched if name not in frozen]:
            earlier = next(g.match for g in groups if fnmatchcase(matched[0], g.match))
            what = f"every parameter that {group.match!r} matches is in an earlier group ({matched[0]}: {earlier!r})"
            yield f"groups.{index}.match", f"{what}; put the narrower pattern first"
        else:
            yield f"groups.{index}.match", f"{group.match!r} matches no parameter; {_close_names(group.match, names)}"


def _close_names(pattern: str, names: Sequence[str]) -> str:
    literal = pattern.strip("*")
    close = [name for name in names if literal and literal in name][:3]
    close = close or difflib.get_close_matches(pattern, names, n=3, cutoff=0.4)
    if not close:  # a short pattern: compare its parts
        parts = {part for name in names for part in name.split(".")}
        similar = {match for part in pattern.split(".") for match in difflib.get_close_matches(part, parts)}
        close = [name for name in names if similar & set(name.split("."))][:3]
    return f"close names: {', '.join(close)}" if close else f"this model has {', '.join(names[:3])}, ..."


def layer_factors(names: Sequence[str], decay: float) -> dict[str, float]:
    """Learning-rate factors of layer-wise decay (Clark et al., "ELECTRA", 2020, arXiv:2003.10555, appendix B).

    The factor is decay ** n, with n = 0 for heads and other parameters outside of layers, 1 for the top layer (the
    parameters under the highest `layers.N.`), and so on down to the embedding (`backbone.embedding.`), which is below
    layer 0. A layer that is applied several times counts once. Empty if there are no layers.
    """
    layers = {name: int(match[1]) for name in names if (match := _LAYER.search(name))}
    if not layers:
        return {}
    num_layers = max(layers.values()) + 1
    depths = {name: num_layers - layer for name, layer in layers.items()}
    depths |= {name: num_layers + 1 for name in names if name.startswith(_EMBEDDING)}
    return {name: decay ** depths.get(name, 0) for name in names}


@dataclass(frozen=True)
class GroupSummary:
    """Summary of one group of a built optimizer, for printing and checks."""

    label: str
    num_tensors: int
    num_elements: int
    lr_factor: float
    weight_decay: float
    state_keys: StateKeys

    def __str__(self) -> str:
        tensors = "1 tensor" if self.num_tensors == 1 else f"{self.num_tensors} tensors"
        return (
            f"{self.label}: {tensors}, {self.num_elements:,} parameters, learning rate x {self.lr_factor:.4g},"
            f" weight decay {self.weight_decay:g}, state {', '.join(self.state_keys) or 'none'}"
        )


def summarize_groups(
    optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str], state_keys: Mapping[str, StateKeys]
) -> list[GroupSummary]:
    """Summarize the groups of an optimizer that was just built over the parameters `names`.

    Raises:
        ConfigError: a group is empty or its parameters differ in their state keys (ZeRO concatenates a group's
            parameters into one tensor, so they share their state), or the groups do not contain each parameter exactly
            once.
    """
    found: list[GroupSummary] = []
    unplaced = dict(names)
    for group in optimizer.param_groups:
        members = [unplaced.pop(parameter, None) for parameter in group["params"]]
        kinds = {state_keys[name] for name in members if name is not None}
        if None in members or len(kinds) != 1:
            why = "is empty" if not members else f"has parameters with different state: {sorted(kinds)}"
            why = "holds a parameter twice, or one of another model" if None in members else why
            raise _broken(optimizer, f"group {len(found)} {why}")
        found.append(_summary(group, kinds.pop()))
    if unplaced:
        raise _broken(optimizer, f"no group holds {', '.join(list(unplaced.values())[:3])}")
    return found


def _summary(group: Mapping[str, Any], state_keys: StateKeys) -> GroupSummary:
    return GroupSummary(
        group.get("label", OTHERS),
        len(group["params"]),
        sum(parameter.numel() for parameter in group["params"]),
        group.get("lr_factor", 1.0),
        group.get("weight_decay", 0.0),
        state_keys,
    )


def _broken(optimizer: object, what: str) -> ConfigError:
    return ConfigError(f"optimizer.type: {type(optimizer).__name__}: {what}; build it from `parameter_groups`")
