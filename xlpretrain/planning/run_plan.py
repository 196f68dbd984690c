"""The plan of a run: parameters, memory and time of a step, and the totals of the run, before it starts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from xlpretrain.config import data_rules
from xlpretrain.config.run_config import RunConfig
from xlpretrain.config.run_stages import RunStages, resolved_without_data
from xlpretrain.data.splits import DataSplits
from xlpretrain.errors import ConfigError, DataError
from xlpretrain.file_system.urls import is_url
from xlpretrain.models.pretraining_model import PretrainingModel
from xlpretrain.planning.activations import DeviceKind
from xlpretrain.planning.collectives import exchanges
from xlpretrain.planning.devices import Device
from xlpretrain.planning.memory import MemoryPlan, MemoryPlanner, candidates
from xlpretrain.planning.step_time import StepTime, step_time
from xlpretrain.planning.work import work_of

_PUBLISHED_SIZES = {"bert": 30_522, "albert": 30_000, "xlnet": 32_000}
_WIKITEXT_103, _ANY = 267_735, 32_000
_USABLE = 0.92
"""Share of a device's memory that a rank can use: the rest is for the context, libraries and fragments."""
DISK_RATE = 1e9
"""Bytes per second of the file system, if none is given."""


@dataclass(frozen=True)
class Cluster:
    """The devices of a run: their kind, their number, and how many are in a node."""

    device: Device
    num_devices: int
    per_node: int

    def __post_init__(self) -> None:
        if self.num_devices > self.per_node and self.num_devices % self.per_node:
            raise ConfigError(
                f"--devices: must be a multiple of --per-node, {self.per_node}, if there are several nodes, got"
                f" {self.num_devices}"
            )

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return math.ceil(self.num_devices / self.per_node)


@dataclass(frozen=True)
class Totals:
    """The whole run. None: unknown without the dataset."""

    steps: int | None
    tokens: int | None
    epochs: float | None
    checkpoint_bytes: int
    checkpoint_write_s: float
    disk_bytes: int
    """All checkpoints that are on the disk at once."""
    planned_steps: float | None
    """The same number of tokens in steps of the stage that is planned; `steps` without stages."""

    def hours(self, step: StepTime) -> float | None:
        """Time of all steps, without evaluations and starts."""
        return None if self.planned_steps is None else self.planned_steps * step.seconds / 3600


@dataclass(frozen=True)
class RunPlan:
    """Everything known of a run before it starts."""

    config: RunConfig
    cluster: Cluster
    vocab_size: int
    parameters: Mapping[str, int]
    """Number of parameters of embedding, layers and head."""
    num_micro_batches: int
    memory: MemoryPlan
    largest_micro_batch: int | None
    """The largest `micro_batch_size` whose memory fits the device; None if not even 1 does."""
    step: StepTime
    flops_per_step: float
    """Of matrix products, over all ranks."""
    totals: Totals
    notes: tuple[str, ...]
    """What was assumed, and why."""

    @property
    def memory_limit(self) -> float:
        """Bytes of the device that a rank can use."""
        return _USABLE * self.cluster.device.memory_bytes

    @property
    def whole_share(self) -> int:
        """Samples of a rank in a step, which no micro-batch exceeds."""
        return math.ceil(self.config.global_batch_size / self.cluster.num_devices)

    @property
    def num_parameters(self) -> int:
        """Number of parameters."""
        return sum(self.parameters.values())

    @property
    def tokens_per_second(self) -> float:
        """Speed of all ranks together."""
        return self.config.tokens_per_step / self.step.seconds


def plan_run(
    config: RunConfig, cluster: Cluster, *, vocab_size: int | None = None, disk_rate: float = DISK_RATE
) -> RunPlan:
    """Plan a run. Raises `XLPretrainError` if it cannot run so.

    vocab_size: size of the vocabulary (default: the dataset's; if it is not here, a published one's).
    """
    notes: list[str] = []
    data = open_data(config, notes)
    if data is not None:
        config = data_rules.resolve(config, data.train)
        data_rules.validate_data(config, data.train, cluster.num_devices)
    whole = resolved_without_data(config)
    if whole.stages:
        if whole.max_steps is None:
            raise ConfigError("max_epochs: the stages of a run without its data cannot be planned; set max_steps")
        config = RunStages.of(whole).largest
        notes.append(
            f"stages: planned is the one with the longest samples, {config.objective.seq_len} tokens, and"
            f" {config.global_batch_size} samples a step; the time of the run is that of its tokens in such steps"
        )
    if config.global_batch_size < cluster.num_devices:
        raise ConfigError(
            f"--devices: must be at most global_batch_size, {config.global_batch_size}, so that each has a sample, got"
            f" {cluster.num_devices}"
        )
    vocab_size = vocab_size or _vocab_size(config, data, notes)
    kind: DeviceKind = "cuda" if cluster.device.is_asynchronous else "cpu"
    num_ranks = cluster.num_devices
    planner = MemoryPlanner(config, vocab_size=vocab_size, num_ranks=num_ranks, device=kind)
    usable = _USABLE * cluster.device.memory_bytes
    sizes = candidates(config, num_ranks=num_ranks)
    largest = next((size for size in sizes if planner.at(size).peak <= usable), None)
    if config.micro_batch_size == "auto":
        config = config.model_copy(update={"micro_batch_size": largest or 1})
        trial = "if that passes its trial on the devices" if largest else "though not even that fits"
        notes.append(f"micro_batch_size: auto: {largest or 1}, {trial}")
    assert isinstance(config.micro_batch_size, int), "resolved"
    memory = planner.at(config.micro_batch_size)
    work = work_of(config, vocab_size=vocab_size, num_ranks=num_ranks, device=kind)
    with torch.device("meta"):
        model = config.build_model(vocab_size)
    sent = exchanges(
        config,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_tensors=len(list(model.parameters())),
        num_micro_batches=work.num_micro_batches,
        num_ranks=num_ranks,
        on_gpus=kind == "cuda",
    )
    _note_engine(config, cluster.device, notes)
    step = step_time(
        work,
        cluster.device,
        sent,
        num_ranks=num_ranks,
        per_node=cluster.per_node,
        update_shards=num_ranks if config.engine.slices_parameters else 1,
        product_dtype="tf32"
        if config.engine.precision == "fp32" and config.engine.matmul_precision == "high"
        else None,
    )
    return RunPlan(
        config=config,
        cluster=cluster,
        vocab_size=vocab_size,
        parameters=parameters_by_part(model),
        num_micro_batches=work.num_micro_batches,
        memory=memory,
        largest_micro_batch=largest,
        step=step,
        flops_per_step=data_rules.flops_per_step(config, model),
        totals=_totals(whole, config, data, model, disk_rate),
        notes=tuple(notes),
    )


def open_data(config: RunConfig, notes: list[str]) -> DataSplits | None:
    """Open a run's data if it is on this machine, else add a note."""
    places = config.data.places()
    remote = [place for place in places.values() if is_url(place)]
    if remote:
        notes.append(f"{remote[0]} is not opened for a plan")
        return None
    try:
        return config.data.open()
    except DataError as error:
        missing = [place for place in places.values() if not Path(place).exists()]
        notes.append(f"dataset not found: {missing[0]}" if missing else f"dataset not usable: {error}")
        return None


def parameters_by_part(model: PretrainingModel) -> dict[str, int]:
    """Number of parameters of embedding, layers and head, tied ones once."""
    found: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        part = "head" if name.startswith("head.") else "embedding" if "embedding" in name else "layers"
        found[part] += parameter.numel()
    return {part: found[part] for part in ("embedding", "layers", "head")}


def _vocab_size(config: RunConfig, data: DataSplits | None, notes: list[str]) -> int:
    if data is not None:
        return data.train.vocabulary.size
    cutoffs = getattr(config.model, "adaptive_cutoffs", ())
    size = _WIKITEXT_103 if cutoffs else _PUBLISHED_SIZES.get(config.model.type, _ANY)
    size = max(size, *(int(cutoff) + 1 for cutoff in cutoffs), 0)
    origin = "that of WikiText-103" if cutoffs else f"that of the published {config.model.type}"
    origin = origin if cutoffs or config.model.type in _PUBLISHED_SIZES else "a usual one"
    notes.append(f"vocabulary: {size:,} assumed, {origin}; --vocab-size N gives another")
    return size


def _uses_tf32(config: RunConfig) -> bool:
    return config.engine.precision == "fp32" and config.engine.matmul_precision == "high"


def _note_engine(config: RunConfig, device: Device, notes: list[str]) -> None:
    engine = config.engine
    if engine.precision not in device.peak_flops:
        notes.append(f"{device.name} has no units for {engine.precision}: products are planned at its rate in fp32")
    if engine.compile:
        notes.append("engine.compile: planned as eager code; compiled layers move less memory and take fewer launches")
    if engine.attention == "fused":
        notes.append("engine.attention=fused: planned as sdpa")


def _totals(
    config: RunConfig, planned: RunConfig, data: DataSplits | None, model: PretrainingModel, disk_rate: float
) -> Totals:
    """The totals of a run. planned: the config of the stage whose steps are planned."""
    steps, epochs = config.max_steps, config.max_epochs
    if steps is None and config.max_tokens is not None:
        steps = math.ceil(config.max_tokens / config.tokens_per_step)
    if data is not None and steps is not None:
        epochs = data_rules.make_training_samples(config, data.train).passes(steps)
    tokens = None if steps is None else RunStages.of(config).tokens(steps)
    size = checkpoint_bytes(config, model)
    return Totals(
        steps=steps,
        tokens=tokens,
        epochs=epochs,
        checkpoint_bytes=size,
        checkpoint_write_s=size / disk_rate,
        disk_bytes=size * (config.checkpoint.keep + 1),  # the next one is written before the oldest is removed
        planned_steps=tokens / planned.tokens_per_step if config.stages and tokens is not None else steps,
    )


def checkpoint_bytes(config: RunConfig, model: PretrainingModel) -> int:
    """Size of a checkpoint: fp32 weights and optimizer state, and the streams' memories."""
    state = 0
    kinds = config.optimizer.kinds({name: parameter.shape for name, parameter in model.named_parameters()})
    for name, parameter in model.named_parameters():
        state += 4 * parameter.numel() * len(kinds[name])
    with torch.device("meta"):
        streams = RunStages.of(config).num_streams
        memory = model.backbone.empty_memory(streams, config.model.mem_len)
    return state + int(memory.numel()) * (2 if config.engine.precision == "bf16" else 4)
