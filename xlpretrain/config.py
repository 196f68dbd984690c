"""The configuration of a run: every section together, what must hold between them, and what a resume may change."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import Field

from xlpretrain import schema
from xlpretrain.checkpoint import CheckpointConfig
from xlpretrain.data.mixture import MixedRows, Mixture
from xlpretrain.data.paths import AnyData
from xlpretrain.data.stream import Rows
from xlpretrain.engine import EngineConfig
from xlpretrain.errors import ConfigError
from xlpretrain.evaluate import EvalConfig
from xlpretrain.models import AnyModel
from xlpretrain.objectives import AnyObjective
from xlpretrain.objectives.objective import Objective, PretrainingModel
from xlpretrain.optimizers import AdamWConfig, AnyOptimizer
from xlpretrain.run_folder import NAME, RunFolder
from xlpretrain.schedules import AnySchedule, Cosine
from xlpretrain.schema import Problem, Section
from xlpretrain.spikes import SpikeConfig
from xlpretrain.stopping import StopConfig
from xlpretrain.trackers import LogConfig, WandbConfig
from xlpretrain.watchdog import WatchdogConfig

_SECRET = re.compile(r"(api_?key|token|secret|password)$", re.IGNORECASE)
_MAY_CHANGE = (
    "max_steps",
    "engine",
    "micro_batch_size",
    "checkpoint",
    "eval",
    "log",
    "wandb",
    "stop",
    "spike",
    "watchdog",
    "data.on_damage",
    "data.cache_dir",
    "data.cache_bytes",
    "data.patience_s",
)
_RECIPE = ("optimizer", "schedule")


class RunConfig(Section):
    """A run, whole. Everything has a default but the data, the model, the objective and the length."""

    name: str = Field("run", pattern=NAME)
    """The run's folder in runs_dir, and its name in Weights & Biases."""
    runs_dir: Path = Path("runs")
    """Where run folders lie."""
    seed: int = Field(1, ge=0, lt=2**63)
    """The seed of the weights, the data order and dropout."""
    data: AnyData
    model: AnyModel
    objective: AnyObjective
    optimizer: AnyOptimizer = AdamWConfig()
    schedule: AnySchedule = Cosine()
    engine: EngineConfig = EngineConfig()
    init_from: Path | None = None
    """A run folder or a checkpoint whose weights to begin with; optimizer and step start anew."""
    global_batch_size: int = Field(16, gt=0)
    """Rows in one step, which is the number of streams: fixed for the life of a run."""
    micro_batch_size: int = Field(8, gt=0)
    """The most rows that one rank puts through the model at once; accumulation follows from it."""
    max_steps: int | None = Field(None, gt=0)
    """Steps to train for. Give this, or max_tokens, or max_epochs."""
    max_tokens: int | None = Field(None, gt=0)
    """Tokens to train on."""
    max_epochs: float | None = Field(None, gt=0)
    """Passes over the training split."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    eval: EvalConfig = EvalConfig()
    log: LogConfig = LogConfig()
    wandb: WandbConfig = WandbConfig()
    stop: StopConfig = StopConfig()
    spike: SpikeConfig = SpikeConfig()
    watchdog: WatchdogConfig = WatchdogConfig()

    def problems(self) -> Iterator[Problem]:
        """What does not fit together, before any data is looked at."""
        lengths = [name for name in ("max_steps", "max_tokens", "max_epochs") if getattr(self, name) is not None]
        if len(lengths) != 1:
            yield (
                "max_steps",
                f"give exactly one of max_steps, max_tokens, max_epochs; got {' and '.join(lengths) or 'none'}",
            )
        if (self.data.type == "labelled") is self.objective.predicts_tokens:
            wanted = "corpus" if self.objective.predicts_tokens else "labelled"
            yield "data.type", f"must be {wanted} with objective {self.objective.type}, got {self.data.type}"
        lacking = sorted(self.objective.needs - self.model.provides)
        if lacking:
            yield "objective.type", f"{self.objective.type} needs {', '.join(lacking)}, which {self.model.type} lacks"
        yield from self.objective.run_problems(mem_len=self.model.mem_len, global_batch_size=self.global_batch_size)
        yield from self.model.run_problems(seq_len=self.objective.seq_len)

    def evaluated_mem_len(self, settings: EvalConfig) -> int:
        """Positions remembered in an evaluation."""
        return self.model.mem_len if settings.mem_len is None else settings.mem_len

    def evaluated_objective(self, settings: EvalConfig) -> Objective:
        """The objective with the row length of an evaluation. Raises `ConfigError` if its settings do not fit."""
        objective, source = self.objective, f"{self.name}, its evaluation"
        if settings.seq_len is not None:
            data = self.model_dump(mode="json")
            data["objective"]["seq_len"] = settings.seq_len
            objective = schema.validate(RunConfig, data, source).objective
        mem_len = self.evaluated_mem_len(settings)
        found = list(objective.run_problems(mem_len=mem_len, global_batch_size=self.global_batch_size))
        if mem_len and "memory" not in self.model.provides:
            found.append(("eval.mem_len", f"must be 0, since {self.model.type} has no memory, got {mem_len}"))
        if found:
            raise ConfigError(schema.report(source, found))
        return objective

    @property
    def folder(self) -> RunFolder:
        """Where the run lies."""
        return RunFolder(self.runs_dir / self.name)

    def build_model(self, vocab_size: int) -> PretrainingModel:
        """Backbone and head with freshly drawn weights, from torch's global generator, in fp32."""
        backbone = self.model.build(vocab_size)
        return PretrainingModel(backbone, self.objective.head(backbone))

    @property
    def tokens_per_step(self) -> int:
        """New tokens in one step, over all ranks."""
        return self.global_batch_size * self.objective.stride


def load(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """A run's configuration from YAML and `key=value` overrides. Raises `ConfigError` with every mistake."""
    data = schema.apply_overrides(schema.read_yaml(path), overrides)
    refuse_secrets(data, str(path))
    return schema.validate(RunConfig, data, str(path))


def training_rows(config: RunConfig, train: Mixture) -> Rows:
    """What the streams of a run read. Raises `DataError`."""
    make = partial(
        config.objective.training_rows,
        mem_len=config.model.mem_len,
        num_streams=config.global_batch_size,
        shuffle_blocks=config.data.shuffle_blocks,
    )
    return train.rows(make, seed=config.seed)


def resolve(config: RunConfig, train: Mixture, *, begun: RunConfig | None = None) -> RunConfig:
    """The same run with its length in steps, its schedule's end fixed, and absolute data paths.

    begun: the run as it was when it began, if it did: an end of the schedule that is not given stays what it was.
    """
    steps = config.max_steps
    if config.max_tokens is not None:
        steps = -(-config.max_tokens // config.tokens_per_step)
    elif config.max_epochs is not None:
        steps = max(1, round(config.max_epochs * training_rows(config, train).steps_per_epoch))
    assert steps is not None, "RunConfig.problems() asks for a length"
    total = config.schedule.total_steps or (begun.schedule.total_steps if begun else None) or steps
    resolved = config.model_copy(
        update={
            "max_steps": steps,
            "max_tokens": None,
            "max_epochs": None,
            "schedule": config.schedule.model_copy(update={"total_steps": total}),
            "init_from": config.init_from.absolute() if config.init_from else None,
            "data": config.data.absolute(),
            "eval": config.eval.absolute(),
        }
    )
    # Once more through the checks: a warm-up may be longer than the steps that max_tokens comes to.
    return schema.validate(RunConfig, resolved.model_dump(mode="json"), config.name)


def check_data(config: RunConfig, train: Mixture, world_size: int) -> None:
    """Whether the data can feed this run on this many ranks. Raises `ConfigError`."""
    config.evaluated_objective(config.eval)
    found: list[Problem] = []
    for manifest in train.manifests:
        found += config.objective.data_problems(manifest)
        found += config.model.data_problems(num_segments=config.objective.num_segments(manifest))
    found = list(dict.fromkeys(found))
    if config.data.type == "corpus":
        found += _length_problems(config, train)
    if config.global_batch_size < world_size:
        found.append(
            (
                "global_batch_size",
                f"{config.global_batch_size} streams cannot feed {world_size} ranks; use at least {world_size}",
            )
        )
    if found:
        raise ConfigError(schema.report(config.name, found))


def _length_problems(config: RunConfig, train: Mixture) -> Iterator[Problem]:
    """Whether there is enough to read for one step, and as far as max_epochs lets it, for all."""
    single = train.is_one_dataset
    for index, corpus in enumerate(train.corpora):
        data, needed = corpus.manifest, config.tokens_per_step if single else 1
        if data.num_blocks * data.block_tokens < needed:
            yield (
                "data.train" if single else f"data.train.{index}",
                f"too small for one step: {needed:,} tokens are needed, and it has"
                f" {data.num_blocks} whole blocks of {data.block_tokens:,}; build it from more text, or with a"
                " smaller block_tokens",
            )
            return
    rows = None if single else training_rows(config, train)
    if isinstance(rows, MixedRows) and rows.num_steps is not None and rows.num_steps < (config.max_steps or 0):
        yield (
            "max_steps",
            f"after {rows.num_steps} steps every corpus of data.train has been read max_epochs times, got"
            f" {config.max_steps}; lower it, or raise max_epochs of a corpus (leave it out: no end)",
        )


def check_resume(
    old: RunConfig,
    new: RunConfig,
    *,
    folder: Path,
    allow_recipe_change: bool,
    was: Mapping[str, str] = MappingProxyType({}),
    now: Mapping[str, str] = MappingProxyType({}),
) -> list[str]:
    """Return the changes with which a run goes on as `new`, one line each.

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
                f"was {told(before.get(key), was.get(key))} when the run began,"
                f" now {told(after.get(key), now.get(key))}",
            )
            for key in refused
        ]
        advice = f"use another name for another run{'; optimizer and schedule may change ' + hint if hint else ''}"
        raise ConfigError(f"{schema.report(str(folder), lines)}\n  {advice}")
    return [f"{key}: {before.get(key)!r} -> {after.get(key)!r}" for key in changed]


def refuse_secrets(data: dict[str, Any], source: str) -> None:
    """Raise `ConfigError` if a key looks like a credential: configs are copied into runs, logs and W&B."""
    found = [
        (key, "looks like a secret; give it by the environment (WANDB_API_KEY)")
        for key in _flatten(data)
        if _SECRET.search(key)
    ]
    if found:
        raise ConfigError(schema.report(source, found))


def _flatten(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys and their values; items of a list of sections have their numbers as keys."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            value = {str(number): item for number, item in enumerate(value)}
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
