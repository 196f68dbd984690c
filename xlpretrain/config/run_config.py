"""The config of a run: all sections, and the checks between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from xlpretrain import schema
from xlpretrain.checkpoint.saver import CheckpointConfig
from xlpretrain.config.sections import AnyCallback, EvalConfig, LogConfig, ProfileConfig, SpikeConfig, StopConfig
from xlpretrain.config.stages import (
    MAX_VALUES,
    StageConfig,
    can_ramp,
    merged,
    ramp_length,
    ramp_samples,
    stage_problems,
)
from xlpretrain.data.config import DataConfigUnion
from xlpretrain.engine.config import AnyEngine, DeepSpeedConfig
from xlpretrain.errors import ConfigError
from xlpretrain.file_system.credentials import is_secret_name
from xlpretrain.models import AnyModel
from xlpretrain.models.pretraining_model import PretrainingModel
from xlpretrain.objectives import AnyObjective
from xlpretrain.objectives.base import Objective, StreamGroup
from xlpretrain.optim import AdamWConfig, AnyOptimizer
from xlpretrain.optim.schedules import AnySchedule, Cosine
from xlpretrain.run_dir.alerts import AlertsConfig
from xlpretrain.run_dir.layout import NAME, NAME_RULE, RunDir, is_resolved
from xlpretrain.run_dir.watchdog import WatchdogConfig
from xlpretrain.schema import CountOr, ItemKey, Matching, Problem, Section
from xlpretrain.tracking import AnyTracker, WandbConfig


class RunConfig(Section):
    """Config of a run. Everything has a default except data, model, objective and length."""

    name: Annotated[str, Matching(NAME, NAME_RULE)] = "run"
    """Name of the run: its folder in runs_dir, and its name in Weights & Biases."""
    runs_dir: Path = Path("runs")
    """Folder that holds the run folders."""
    seed: int = Field(1, ge=0, lt=2**63)
    """Random seed of weights, data order and dropout."""
    data: DataConfigUnion
    model: AnyModel
    objective: AnyObjective
    optimizer: AnyOptimizer = AdamWConfig()
    schedule: AnySchedule = Cosine()
    engine: AnyEngine = DeepSpeedConfig()
    init_from: Path | None = None
    """Run folder or checkpoint to load initial weights from. Optimizer state and step start from zero."""
    init_weights: Literal["trained", "average"] = "trained"
    """Weights of init_from to begin with: those that were trained, or their moving average (optimizer.average)."""
    global_batch_size: int = Field(16, gt=0)
    """Samples per step, which is also the number of streams. Changes during a run only by `stages`."""
    micro_batch_size: Annotated[int | Literal["auto"], CountOr("auto")] = 8
    """Maximum samples per forward pass of a rank. Determines the number of gradient accumulation steps. auto: the
    largest that fits into memory, found and tried when the run starts; resuming it keeps the number."""
    max_steps: int | None = Field(None, gt=0)
    """Steps to train for. Set exactly one of max_steps, max_tokens and max_epochs."""
    max_tokens: int | None = Field(None, gt=0)
    """Tokens to train for."""
    max_epochs: float | None = Field(None, gt=0)
    """Passes over the training split."""
    stages: tuple[StageConfig, ...] = ()
    """Parts of the run with other values of some keys: [{until: {...}, objective: {seq_len: ...}}, ..., {}]. The run's
    own keys hold where a stage says nothing, and for evaluations and all later uses of the model."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    eval: EvalConfig = EvalConfig()
    log: LogConfig = LogConfig()
    trackers: Annotated[tuple[AnyTracker, ...], ItemKey("wandb")] = (WandbConfig(),)
    """Trackers that get the metrics, beside metrics.jsonl: any of wandb, tensorboard, mlflow. `wandb: {...}` is a short
    form of the item for W&B."""
    stop: StopConfig = StopConfig()
    spike: SpikeConfig = SpikeConfig()
    profile: ProfileConfig = ProfileConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
    alerts: AlertsConfig = AlertsConfig()
    callbacks: tuple[AnyCallback, ...] = ()
    """Callbacks of installed packages, in the order of their calls: [{type: ..., ...}, ...]."""

    def problems(self) -> Iterator[Problem]:
        """Yield contradictions between keys that can be found without opening data."""
        lengths = [name for name in ("max_steps", "max_tokens", "max_epochs") if getattr(self, name) is not None]
        if len(lengths) != 1:
            yield (
                "max_steps",
                f"set exactly one of max_steps, max_tokens, max_epochs; got {' and '.join(lengths) or 'none'}",
            )
        wanted = self.objective.data_type
        if self.data.type != wanted:
            yield "data.type", f"must be {wanted} with objective {self.objective.type}, got {self.data.type}"
        criteria = dict.fromkeys(("loss", "accuracy", *self.objective.metric_names))
        if self.eval.best not in criteria:
            expected = ", ".join(criteria)
            yield "eval.best", f"must be one of {expected} with objective {self.objective.type}, got {self.eval.best}"
        types = [tracker.type for tracker in self.trackers]
        for number, name in enumerate(types):
            if name in types[:number]:
                yield f"trackers.{number}.type", f"{name} is there twice; give each tracker once"
        yield from self.objective.model_problems(self.model)
        yield from self.objective.run_problems(mem_len=self.model.mem_len, global_batch_size=self.global_batch_size)
        yield from self.model.run_problems(seq_len=self.objective.seq_len)
        yield from self._stage_problems()

    def ramp_start(self, stage: int, key: str) -> float:
        """The value of a key at the start of its ramp in a stage: given, or the one that holds just before."""
        ramp = self.stages[stage].ramp[key]
        if ramp.start is not None:
            return ramp.start
        if stage:
            before = self.stages[stage - 1]
            if key in before.ramp:
                return before.ramp[key].stop
            if (value := before.value(key)) is not None:
                return float(value)
        *sections, name = key.split(".")
        holder: Section = self.objective if sections else self
        if sections[1:]:  # objective.parts.NAME
            holder = self.objective.part(sections[2], "")
        return float(getattr(holder, name, None) or ramp.stop)

    def _stage_problems(self) -> Iterator[Problem]:
        """Yield what is wrong in the stages: the config of each is checked, and the ends of its ramps."""
        if not self.stages:
            return
        found = list(stage_problems(self.stages))
        if self.data.type != "corpus":
            found.append(("stages", f"are for data of type corpus, got {self.data.type}"))
        data = self.model_dump(mode="json")
        labels = [part.label for part in getattr(self.objective, "parts", ())]
        for i, stage in enumerate(self.stages):
            if unknown := stage.named_parts - set(labels):
                what = f"the objective has {'the parts ' + ', '.join(labels) if labels else 'no parts'}"
                found += [(f"stages.{i}.objective.parts.{name}", what) for name in sorted(unknown)]
                continue
            starts = {key: self.ramp_start(i, key) for key in stage.ramp if can_ramp(key)}
            for key, start in list(starts.items()):
                if (length := ramp_length(stage.ramp[key], start=start)) > MAX_VALUES:
                    what = f"would take {length:,} values, at most {MAX_VALUES:,} can be; raise multiple_of"
                    found.append((f"stages.{i}.ramp.{key}", what))
                    del starts[key]
            problems: list[Problem] = []
            of_keys = {key: ramp_samples(stage.ramp[key], start=start) for key, start in starts.items()}
            for i_value in range(3):  # all that a rule about size or divisibility can refuse
                values = {key: values[i_value] for key, values in of_keys.items()}
                problems += _problems_of_stage(self, merged(data, stage.changes() | values))
                if not values:
                    break
            weights, train = stage.data.weights, getattr(self.data, "train", ())
            if weights is not None and len(weights) != len(train):
                problems.append(
                    ("data.weights", f"must be one for each corpus of data.train, {len(train)}, got {len(weights)}")
                )
            found += [(f"stages.{i}.{path}", what) for path, what in dict.fromkeys(problems)]
        if any(getattr(corpus, "max_epochs", None) for corpus in getattr(self.data, "train", ())):
            found.append(("stages", "cannot be combined with max_epochs of a corpus; remove either"))
        yield from found

    def eval_mem_len(self, settings: EvalConfig) -> int:
        """Memory length of an evaluation, in positions."""
        return self.model.mem_len if settings.mem_len is None else settings.mem_len

    def eval_objective(self, settings: EvalConfig) -> Objective:
        """Objective with the sequence length of an evaluation. Raises `ConfigError` if the settings do not fit."""
        objective, source = self.objective, f"{self.name} (evaluation)"
        if settings.seq_len is not None:
            data = self.model_dump(mode="json") | {"objective": self.objective.with_seq_len(settings.seq_len)}
            objective = schema.validate(RunConfig, data, source).objective
        mem_len = self.eval_mem_len(settings)
        found = list(objective.run_problems(mem_len=mem_len, global_batch_size=self.global_batch_size))
        if mem_len and "memory" not in self.model.provides:
            found.append(("eval.mem_len", f"must be 0, since {self.model.type} has no memory, got {mem_len}"))
        for key in ("clamp_len", "same_length"):
            if getattr(settings, key) is not None and key not in type(self.model).model_fields:
                found.append((f"eval.{key}", f"not supported by {self.model.type}, which has no model.{key}"))
        if settings.same_length and mem_len == 0:
            found.append(("eval.same_length", "needs a memory, but eval.mem_len is 0"))
        if found:
            raise ConfigError(schema.format_problems(source, found))
        return objective

    def of_part(self, name: str | None, use: str) -> RunConfig:
        """The config of a part of a mixed objective alone, for a use of the trained model; see `Objective.part`.

        It has no stages. The parameters of its model are among those of this run. Raises `ConfigError`.
        """
        objective = self.objective.part(name, use)
        if objective is self.objective:
            return self
        model = self.model if objective.remembers else self.model.model_copy(update={"mem_len": 0})
        return self.model_copy(update={"objective": objective, "model": model, "stages": ()})

    @property
    def window(self) -> int | None:
        """Number of tokens that a causal model without a memory reads for each new token; None with a memory."""
        return None if "memory" in self.model.provides else self.objective.seq_len

    @property
    def folder(self) -> RunDir:
        """Folder of this run."""
        return RunDir(self.runs_dir / self.name)

    def build_model(self, vocab_size: int) -> PretrainingModel:
        """Build backbone and head with weights initialized from torch's global generator, in fp32.

        Parameters that the optimizer freezes require no gradient.
        """
        backbone = self.model.build(vocab_size)
        model = PretrainingModel(backbone, self.objective.head(backbone))
        self.optimizer.freeze(dict(model.named_parameters()))
        return model

    def parameter_names(self, vocab_size: int) -> list[str]:
        """Names of the model's parameters, tied ones once; no memory is taken for them."""
        with torch.device("meta"):
            return [name for name, _ in self.build_model(vocab_size).named_parameters()]

    @property
    def smallest_batch(self) -> int:
        """The smallest global_batch_size of any stage."""
        found = [stage.global_batch_size or self.global_batch_size for stage in self.stages]
        for i, stage in enumerate(self.stages):
            if (ramp := stage.ramp.get("global_batch_size")) is not None:
                found[i] = int(min(self.ramp_start(i, "global_batch_size"), ramp.stop))
        return min(found, default=self.global_batch_size)

    @property
    def stream_groups(self) -> Sequence[StreamGroup]:
        """The groups of the streams that a step reads."""
        return self.objective.stream_groups(self.global_batch_size, self.model.mem_len)

    @property
    def group_sizes(self) -> list[int]:
        """The number of streams of each group."""
        return [len(group.streams) for group in self.stream_groups]

    def micro_batches(self, rank: int, world_size: int) -> list[range]:
        """The streams of each micro-batch of a rank; every rank has the same number of them. For a resolved config."""
        size = self.micro_batch_size
        assert isinstance(size, int), "resolved"
        return [streams for group in self.stream_groups for streams in group.micro_batches(rank, world_size, size)]

    @property
    def tokens_per_step(self) -> int:
        """New tokens per step, over all ranks, where no stage says otherwise (`RunStages`)."""
        return self.objective.tokens_per_step(self.global_batch_size)


def _problems_of_stage(run: RunConfig, data: dict[str, Any]) -> Iterator[Problem]:
    """Yield what is wrong with the config of a stage. data: as merged with its changes."""
    checked = run.model_copy(update={"stages": ()})
    known = {f"{path} {what}" for path, what in checked.problems()}
    try:
        made = schema.validate(RunConfig, data, "")
    except ConfigError as error:
        lines = (line.strip().partition(" ") for line in str(error).splitlines()[1:])
        yield from ((path, what.strip()) for path, _, what in lines if f"{path} {what.strip()}" not in known)
        return
    for name in ("type", "terms", "weights", "bidirectional_streams"):  # weights of a mix: with its shares
        before, now = getattr(run.objective, name), getattr(made.objective, name)
        if before != now:
            yield (
                "objective",
                f"changes the {name.replace('_', ' ')} of the objective from {before!r} to {now!r}; a stage keeps the"
                " model, its losses and its kind of streams",
            )
    if made.global_batch_size != run.global_batch_size and len(made.stream_groups) > 1:
        yield (
            "global_batch_size",
            f"must be that of the run, {run.global_batch_size}, since each part of a mix keeps its streams, got"
            f" {made.global_batch_size}",
        )


def load(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Load a run's config from YAML and `key=value` overrides. Raises a `ConfigError` that lists every mistake."""
    data = schema.read_section(RunConfig, path, quiet=is_resolved(path))
    data = schema.apply_overrides(data, overrides, RunConfig)
    refuse_secrets(data, str(path))
    try:
        return schema.validate(RunConfig, data, str(path))
    except ConfigError as error:
        raise ConfigError(f"{error}{_describe_missing_plugins(data, path)}") from None


def _describe_missing_plugins(data: dict[str, Any], path: Path) -> str:
    """Message on plug-ins that the run used when it started and that are not installed here, or empty."""
    place = path.parent if is_resolved(path) else Path(str(data.get("runs_dir", "runs")), str(data.get("name", "run")))
    folder = RunDir(place)
    used = folder.read_provenance().get("plugins", {}) if folder.provenance.is_file() else {}
    missing = schema.missing_plugins(used)
    if not missing:
        return ""
    return f"\n  {folder.path} was begun with {' and '.join(missing)}, not installed here; install the package again"


def refuse_secrets(data: dict[str, Any], source: str) -> None:
    """Raise `ConfigError` if a key looks like a credential: configs are copied into runs, logs and W&B."""
    found = [
        (key, "looks like a secret; set it in the environment (WANDB_API_KEY)")
        for key in _flatten(data)
        if is_secret_name(key)
    ]
    if found:
        raise ConfigError(schema.format_problems(source, found))


def _flatten(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten to dotted keys; items of a list of sections have their index as key."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            value = {str(number): item for number, item in enumerate(value)}
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
