"""The config of a run at each step: one stage without `stages`, else those and the steps of their ramps."""

from __future__ import annotations

import bisect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from xlpretrain import schema
from xlpretrain.config.run_config import RunConfig
from xlpretrain.config.stages import StageConfig, UntilConfig, merged, ramp_values
from xlpretrain.errors import ConfigError

_LONGEST = 2**50
"""Steps, more than any run has."""


@dataclass(frozen=True)
class RunStages:
    """The stages of a run, with a stage of its own for each value of a ramp.

    firsts: first step of each. configs: the run's config in each, with `stages` empty; a run without stages has its own
    config.
    """

    firsts: list[int]
    configs: list[RunConfig]

    @classmethod
    def of(cls, config: RunConfig) -> RunStages:
        """The stages of a resolved config, or of one without stages."""
        if not config.stages:
            return cls([0], [config])
        parts = _Parts(config)
        ends = [_step_of(stage) for stage in config.stages[:-1]]
        found = [piece for i in range(len(ends) + 1) for piece in parts.pieces(i, [0, *ends][i], [*ends, None][i])]
        return cls([first for first, _ in found], [each for _, each in found])

    def index(self, step: int) -> int:
        """The number of the stage that trains `step`, in logarithmic time."""
        return bisect.bisect_right(self.firsts, step) - 1

    def at(self, step: int) -> RunConfig:
        """The config of a step."""
        return self.configs[self.index(step)]

    def end(self, step: int, max_steps: int) -> int:
        """The end of the stage that trains `step`."""
        return min([*self.firsts, max_steps][self.index(step) + 1 :], default=max_steps) if step < max_steps else step

    def tokens(self, step: int) -> int:
        """New tokens of the first `step` steps."""
        return sum(length * config.tokens_per_step for length, config in self._lengths(step))

    @property
    def num_streams(self) -> int:
        """The number of streams of the run: the largest batch of any stage."""
        return max(config.global_batch_size for config in self.configs)

    @property
    def largest(self) -> RunConfig:
        """The config of the stage whose micro-batches take most memory: the longest samples, then the largest batch."""
        return max(self.configs, key=lambda config: (config.objective.seq_len, config.global_batch_size))

    def _lengths(self, step: int) -> Iterator[tuple[int, RunConfig]]:
        for first, end, config in zip(self.firsts, [*self.firsts[1:], step], self.configs, strict=True):
            yield max(min(end, step) - first, 0), config


def resolve_stages(
    config: RunConfig, begun: RunConfig | None, *, steps_per_epoch: Callable[[RunConfig], float]
) -> tuple[int, tuple[StageConfig, ...]]:
    """The number of steps of a run with stages, and its stages with all ends in steps. Raises `ConfigError`.

    begun: config of the started run, whose steps are those of fractions. steps_per_epoch: of a config without stages.
    """
    kept = begun.stages if begun is not None and len(begun.stages) == len(config.stages) else ()
    stages = tuple(
        stage.model_copy(update={"until": kept[i].until})
        if kept and stage.until is not None and stage.until.fraction is not None
        else stage
        for i, stage in enumerate(config.stages)
    )
    parts = _Parts(config.model_copy(update={"stages": stages}))
    if config.max_steps is not None:
        steps = config.max_steps
    elif config.max_tokens is not None:
        steps = _least(lambda n: parts.total(n, lambda c: c.tokens_per_step) >= (config.max_tokens or 0))
    else:
        per_step = _remembered(lambda c: 1 / steps_per_epoch(c))
        # Rounded to the nearest step, as without stages.
        steps = _least(lambda n: parts.total(n, per_step) >= (config.max_epochs or 0) - per_step(parts.last) / 2)
    ends = parts.ends(steps)
    for i, (before, end) in enumerate(zip([0, *ends], [*ends, steps], strict=True)):
        if end <= before:
            what = f"begins at step {before:,} and ends at step {end:,}" + (
                f", the end of the run; raise max_steps from {steps:,}" if i == len(ends) else ""
            )
            raise ConfigError(schema.format_problems(config.name, [(f"stages.{i}", f"has no steps: it {what}")]))
    found = [
        stage.model_copy(update={"until": UntilConfig(step=end)}) for stage, end in zip(stages, ends, strict=False)
    ]
    return steps, (*found, stages[-1])


def resolved_without_data(config: RunConfig) -> RunConfig:
    """A config whose stages end at steps, unless its length is in passes over the data."""
    if not config.stages or config.max_epochs is not None:
        return config
    steps, stages = resolve_stages(config, None, steps_per_epoch=lambda each: 1)
    return config.model_copy(update={"max_steps": steps, "max_tokens": None, "stages": stages})


@dataclass
class _Parts:
    """Configs of the stages of a run, made once for each set of changes."""

    config: RunConfig
    _data: dict[str, Any] = field(default_factory=dict)
    _made: dict[str, RunConfig] = field(default_factory=dict)

    def made(self, changes: Mapping[str, Any]) -> RunConfig:
        """The run's config with changes. Raises `ConfigError`."""
        key = json.dumps(changes, sort_keys=True)
        if key not in self._made:
            self._data = self._data or self.config.model_dump(mode="json")
            self._made[key] = schema.validate(RunConfig, merged(self._data, changes), self.config.name)
        return self._made[key]

    @property
    def last(self) -> RunConfig:
        return self.made(self.config.stages[-1].changes())

    def pieces(self, i: int, first: int, end: int | None) -> list[tuple[int, RunConfig]]:
        """Stage `i` of [first, end), divided where the values of its ramps change."""
        stage = self.config.stages[i]
        steps = 1 if end is None else max(end - first, 1)
        of_key = {
            key: ramp_values(ramp, start=self.config.ramp_start(i, key), steps=steps)
            for key, ramp in stage.ramp.items()
        }
        turns = sorted({0, *(at for values in of_key.values() for at, _ in values)})
        return [
            (
                first + turn,
                self.made(stage.changes() | {key: _value_at(values, turn) for key, values in of_key.items()}),
            )
            for turn in turns
        ]

    def total(self, steps: int, of: Callable[[RunConfig], float]) -> float:
        """The sum of a quantity of each step over a run of so many steps."""
        ends = self.ends(steps)
        return sum(self._sum(i, [0, *ends][i], [*ends, steps][i], of) for i in range(len(ends) + 1))

    def ends(self, steps: int) -> list[int]:
        """The end of each stage but the last, in a run of so many steps."""
        found: list[int] = []
        tokens = 0.0
        for i, stage in enumerate(self.config.stages[:-1]):
            first, until = (found or [0])[-1], stage.until
            assert until is not None, "checked"
            if until.tokens is not None:
                end = self._end_by_tokens(i, first, until.tokens - tokens)
            else:
                end = until.step if until.step is not None else round((until.fraction or 0) * steps)
                if until.fraction is not None:
                    end = max(min(end, steps - 1), 1)  # of a short trial, each stage has a step where possible
            tokens += self._tokens(i, first, end)
            found.append(end)
        return found

    def _end_by_tokens(self, i: int, first: int, tokens: float) -> int:
        return _least(lambda end: self._tokens(i, first, end) >= tokens, first)

    def _tokens(self, i: int, first: int, end: int) -> float:
        return self._sum(i, first, end, lambda config: config.tokens_per_step)

    def _sum(self, i: int, first: int, end: int, of: Callable[[RunConfig], float]) -> float:
        if end <= first:
            return 0
        pieces = self.pieces(i, first, end)
        bounds = [*(at for at, _ in pieces), end]
        return sum((stop - start) * of(config) for (start, config), stop in zip(pieces, bounds[1:], strict=True))


def _value_at(values: list[tuple[int, float]], turn: int) -> float:
    return values[bisect.bisect_right([at for at, _ in values], turn) - 1][1]


def _step_of(stage: StageConfig) -> int:
    assert stage.until is not None and stage.until.step is not None, "the config was resolved"
    return stage.until.step


def _least(enough: Callable[[int], bool], low: int = 0) -> int:
    """The least number above `low` for which `enough` holds."""
    step = 1
    while not enough(low + step) and low + step < _LONGEST:
        step *= 2
    return bisect.bisect_left(range(low + 1, low + step + 1), True, key=enough) + low + 1


def _remembered(of: Callable[[RunConfig], float]) -> Callable[[RunConfig], float]:
    """The same function, called once for each config."""
    found: dict[int, tuple[RunConfig, float]] = {}

    def call(config: RunConfig) -> float:
        if id(config) not in found:
            found[id(config)] = config, of(config)
        return found[id(config)][1]

    return call
