"""The section `stages`: parts of a run with other values of some keys."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from copy import deepcopy
from fractions import Fraction
from typing import Annotated, Any

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from xlpretrain.schema import Problem, Section

STAGE_KEYS = ("objective", "global_batch_size", "weights of data.train", "optimizer.lr", "micro_batch_size")
"""What stages can change, for messages."""
RAMPS = ("global_batch_size", "objective.seq_len", "objective.mask_rate", "objective.parts.NAME.mask_rate")
"""Keys that a ramp can change; NAME is a part of a mixed objective."""
MAX_VALUES = 1000
"""Largest number of values that a ramp takes."""
_MANY = 2**30
"""Steps for which a ramp takes all of its values."""


class UntilConfig(Section):
    """The end of a stage: exactly one of these, counted from the start of the run."""

    fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the run's steps; turned into a step when the run starts."""
    step: PositiveInt | None = None
    """First step of the next stage."""
    tokens: PositiveInt | None = None
    """New tokens of all steps; turned into a step when the run starts."""

    def problems(self) -> Iterator[Problem]:
        """Not exactly one key."""
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            yield "fraction", f"set exactly one of fraction, step, tokens; got {' and '.join(given) or 'none'}"


class RampConfig(Section):
    """A linear change over a stage, in steps of `multiple_of`."""

    start: PositiveFloat | None = None
    """Value at the start of the stage (default: at the end of the stage before, or the run's)."""
    stop: PositiveFloat
    """Value at the end of the stage."""
    multiple_of: PositiveFloat
    """The values are multiples of this."""


class StageDataConfig(Section):
    """The data of a stage."""

    weights: tuple[PositiveFloat, ...] | None = None
    """Weights of the corpora of data.train, in their order (default: those of data.train)."""


class StageOptimizerConfig(Section):
    """The optimizer of a stage."""

    lr: PositiveFloat | None = None
    """Peak learning rate, which the schedule multiplies (default: optimizer.lr)."""


class StageConfig(Section):
    """A part of the run with other values of some keys; all others are the run's."""

    until: UntilConfig | None = None
    """End of the stage; all but the last one have it. Fractions stay as the run's first attempt has resolved them."""
    objective: dict[str, Any] = Field(default_factory=dict)
    """Keys of the objective, such as seq_len and mask_rate; those that change the model or its losses cannot differ.
    Keys of the parts of a mix by name: {parts: {NAME: {mask_rate: ...}}}."""
    global_batch_size: PositiveInt | None = None
    """Samples per step."""
    micro_batch_size: PositiveInt | None = None
    """Maximum samples per forward pass of a rank."""
    data: StageDataConfig = StageDataConfig()
    optimizer: StageOptimizerConfig = StageOptimizerConfig()
    ramp: dict[str, RampConfig] = Field(default_factory=dict)
    """Keys that change linearly over the stage: global_batch_size, objective.seq_len, objective.mask_rate, and
    objective.parts.NAME.mask_rate."""

    @field_validator("objective")
    @classmethod
    def _check_parts(cls, objective: dict[str, Any]) -> dict[str, Any]:
        parts = objective.get("parts", {})
        if not isinstance(parts, dict) or not all(isinstance(keys, dict) for keys in parts.values()):
            raise ValueError("parts must be keys by part, such as {NAME: {mask_rate: 0.2}}")
        return objective

    def problems(self) -> Iterator[Problem]:
        """Ramps that cannot be, keys that are set twice."""
        for key, ramp in self.ramp.items():
            if not can_ramp(key):
                yield f"ramp.{key}", f"cannot have a ramp; these can: {', '.join(RAMPS)}"
            elif self.value(key) is not None:
                yield f"ramp.{key}", f"the stage also sets {key}; set ramp.{key}.start instead"
            elif not key.endswith(".mask_rate") and not _is_whole(ramp):
                yield f"ramp.{key}", "start, stop and multiple_of must be whole numbers"
        if self.ramp and self.until is None:
            yield "ramp", "needs an end: set until, and add a stage after this one for the rest of the run"

    def value(self, key: str) -> Any:
        """The value that the stage gives a key of `RAMPS`; None if it gives none."""
        return self.changes().get(key)

    def changes(self) -> dict[str, Any]:
        """The changed keys of the run, by dotted path; `data.weights` for those of the corpora."""
        found = {
            "global_batch_size": self.global_batch_size,
            "micro_batch_size": self.micro_batch_size,
            "data.weights": self.data.weights,
            "optimizer.lr": self.optimizer.lr,
        }
        return dotted_objective(self.objective) | {key: value for key, value in found.items() if value is not None}

    @property
    def named_parts(self) -> set[str]:
        """The parts of a mixed objective whose keys the stage changes."""
        keys = (key for key in self.ramp if key.startswith("objective.parts."))
        return {*self.objective.get("parts", {}), *(key.split(".")[2] for key in keys)}


def can_ramp(key: str) -> bool:
    """True for the keys of `RAMPS`."""
    return any(re.fullmatch(name.replace(".", r"\.").replace("NAME", r"[^.]+"), key) for name in RAMPS)


def stage_objective(objective: Mapping[str, Any], *, without: Container[str] = ()) -> dict[str, Any]:
    """The keys of an objective, as data, as a stage sets them: without its type, and those of a mix's parts by name.

    without: dotted keys to leave out.
    """

    def keys(of: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        left_out = ("type", "parts")
        return {k: value for k, value in of.items() if k not in left_out and f"{prefix}.{k}" not in without}

    found = keys(objective, "objective")
    if parts := objective.get("parts"):
        found["parts"] = {
            label: keys(part["objective"], f"objective.parts.{label}")
            for label, part in ((_label(part), part) for part in parts)
        }
    return found


def dotted_objective(objective: Mapping[str, Any]) -> dict[str, Any]:
    """The same keys by dotted path, such as `objective.parts.NAME.mask_rate`."""
    own = {f"objective.{key}": value for key, value in objective.items() if key != "parts"}
    return own | {
        f"objective.parts.{name}.{key}": value
        for name, keys in objective.get("parts", {}).items()
        for key, value in keys.items()
    }


def _label(part: Mapping[str, Any]) -> str:
    return str(part.get("name") or part["objective"]["type"])


def _is_whole(ramp: RampConfig) -> bool:
    return all(value is None or value == int(value) for value in (ramp.start, ramp.stop, ramp.multiple_of))


def stage_problems(stages: Sequence[StageConfig]) -> Iterator[Problem]:
    """Yield a problem for each end that is missing, too many, or before the one of an earlier stage."""
    for i, stage in enumerate(stages[:-1]):
        if stage.until is None:
            yield f"stages.{i}.until", "missing; all stages but the last one need it"
    if stages and stages[-1].until is not None:
        yield f"stages.{len(stages) - 1}.until", "the last stage ends with the run; remove it, or add a stage after it"
    for name in UntilConfig.model_fields:
        ends = [(i, end) for i, stage in enumerate(stages) if (end := getattr(stage.until, name, None)) is not None]
        for (_, before), (i, end) in itertools.pairwise(ends):
            if end <= before:
                yield f"stages.{i}.until.{name}", f"must be after the end of the stage before, {before}, got {end}"


def ramp_values(ramp: RampConfig, *, start: float, steps: int) -> list[tuple[int, float]]:
    """The values of a ramp over `steps` steps, each with the first step (of the stage) at which it holds.

    At step t it is start + (stop - start) * t / steps, rounded to the nearest multiple, halves in the direction of the
    change.
    """
    low, high, unit = (Fraction(repr(float(value))) for value in (start, ramp.stop, ramp.multiple_of))
    first, last = (int(value / unit + Fraction(1, 2)) for value in (low, high))
    direction = 1 if last >= first else -1
    found = [(0, first)]
    for value in range(first, last, direction):
        turn = unit * (value + Fraction(direction, 2))
        at = math.ceil(steps * (turn - low) / (high - low))
        if at >= steps:
            break
        if at <= found[-1][0]:
            found.pop()
        found.append((at, value + direction))
    whole = unit.denominator == 1
    return [(at, int(value * unit) if whole else float(value * unit)) for at, value in found]


def ramp_samples(ramp: RampConfig, *, start: float) -> list[float]:
    """The first, second and last value of a ramp."""
    values = [value for _, value in ramp_values(ramp, start=start, steps=_MANY)]
    return [values[0], values[min(1, len(values) - 1)], values[-1]]


def ramp_length(ramp: RampConfig, *, start: float) -> int:
    """About the number of values that a ramp takes."""
    return int(abs(ramp.stop - start) / ramp.multiple_of) + 1


def merged(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config as data with changed keys (`StageConfig.changes`), and without stages."""
    found: dict[str, Any] = deepcopy({**data, "stages": []})
    for key, value in changes.items():
        if key == "data.weights":
            if isinstance(found["data"]["train"], str):
                found["data"]["train"] = [{"path": found["data"]["train"]}]
            for corpus, weight in zip(found["data"]["train"], value, strict=False):
                corpus["weight"] = weight
            continue
        holder, name = _place(found, key)
        holder[name] = value
    return found


def _place(data: Mapping[str, Any], key: str) -> tuple[Any, str]:
    """The mapping that holds a changed key, and the key's name in it."""
    *sections, name = key.split(".")
    if sections[:2] == ["objective", "parts"]:
        return next(part["objective"] for part in data["objective"]["parts"] if _label(part) == sections[2]), name
    return (data[sections[0]] if sections else data), name
