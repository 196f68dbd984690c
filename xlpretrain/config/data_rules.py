"""Rules between a run and its data: derived keys, lengths, and the samples it trains on."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from xlpretrain import schema
from xlpretrain.config.run_config import RunConfig
from xlpretrain.config.run_stages import RunStages, resolve_stages
from xlpretrain.data.config import CorpusDataConfig
from xlpretrain.data.mixture import Mixture, MixtureSamples, SampleFactory
from xlpretrain.data.samples import CorpusSamples, TrainSamples
from xlpretrain.data.stages.samples import StageData, StagedSamples
from xlpretrain.errors import ConfigError
from xlpretrain.models.pretraining_model import PretrainingModel
from xlpretrain.objectives.base import Objective, StreamGroup
from xlpretrain.objectives.mixed.samples import GroupedSamples
from xlpretrain.schema import Problem


def make_training_samples(config: RunConfig, train: Mixture) -> TrainSamples:
    """Training samples of a run's streams, of a resolved config if it has stages. Raises `DataError`."""
    groups = config.stream_groups
    samples: list[TrainSamples]
    if config.stages:
        stages = RunStages.of(config)
        samples = [_staged_samples(stages, number, train) for number in range(len(groups))]
    else:
        samples = [train.samples(_factory(config, group), seed=group.seed(config.seed)) for group in groups]
    return samples[0] if len(samples) == 1 else GroupedSamples(samples, [group.streams for group in groups])


def _factory(config: RunConfig, group: StreamGroup) -> SampleFactory:
    return partial(
        group.objective.training_samples,
        mem_len=group.mem_len,
        num_streams=len(group.streams),
        shuffle_blocks=config.data.shuffle_blocks,
    )


def _staged_samples(stages: RunStages, number: int, train: Mixture) -> StagedSamples:
    """The samples of a group of streams in all stages; those with the same objective share theirs."""
    made: list[tuple[Objective, list[CorpusSamples]]] = []
    found = []
    for first, config in zip(stages.firsts, stages.configs, strict=True):
        assert isinstance(config.data, CorpusDataConfig), "checked"
        group = config.stream_groups[number]
        parts = next((parts for objective, parts in made if objective == group.objective), None)
        if parts is None:
            parts = train.parts(_factory(config, group), seed=group.seed(config.seed))
            made.append((group.objective, parts))
        weights = [corpus.weight for corpus in config.data.train]
        found.append(StageData(first, parts, weights, len(group.streams), group.objective.new_tokens))
    return StagedSamples([] if train.is_one_dataset else [corpus.name for corpus in train.corpora], found)


def flops_per_step(config: RunConfig, model: PretrainingModel) -> float:
    """Matrix-product FLOPs of forward and backward of a step of a run's model."""
    found = 0.0
    for group in config.stream_groups:
        objective = group.objective
        per_token = model.flops_per_token(objective.seq_len, group.mem_len, objective.num_predictions)
        found += len(group.streams) * objective.seq_len * per_token
    return found


def resolve(config: RunConfig, train: Mixture, *, begun: RunConfig | None = None) -> RunConfig:
    """Resolve a config: length in steps, end of the schedule, kind of pairs, and absolute data paths.

    begun: config of the started run, if any: if not set, the end of the schedule and the kind of sentence pairs are
        taken from it, and `micro_batch_size` if it is auto.
    """
    steps, stages = config.max_steps, config.stages
    if stages:
        steps, stages = resolve_stages(
            config, begun, steps_per_epoch=lambda each: make_training_samples(each, train).steps_per_epoch
        )
    elif config.max_tokens is not None:
        steps = -(-config.max_tokens // config.tokens_per_step)
    elif config.max_epochs is not None:
        steps = max(1, round(config.max_epochs * make_training_samples(config, train).steps_per_epoch))
    assert steps is not None, "RunConfig.problems() requires a length"
    total = config.schedule.total_steps or (begun.schedule.total_steps if begun else None) or steps
    resolved = config.model_copy(
        update={
            "max_steps": steps,
            "max_tokens": None,
            "max_epochs": None,
            "stages": stages,
            "micro_batch_size": begun.micro_batch_size
            if begun is not None and config.micro_batch_size == "auto"
            else config.micro_batch_size,
            "schedule": config.schedule.model_copy(update={"total_steps": total}),
            "objective": config.objective.resolved(begun.objective if begun else None),
            "init_from": config.init_from.absolute() if config.init_from else None,
            "data": config.data.absolute(),
            "eval": config.eval.absolute(),
            "alerts": config.alerts.absolute(),
        }
    )
    if resolved == config:  # already resolved by the launcher
        return config
    # Validate again: the warmup may be longer than the number of steps derived from max_tokens.
    return schema.validate(RunConfig, resolved.model_dump(mode="json"), config.name)


def validate_data(config: RunConfig, train: Mixture, world_size: int) -> None:
    """Check that the data fits this run on this many ranks. Raises `ConfigError`."""
    config.eval_objective(config.eval)
    found: list[Problem] = []
    for manifest in train.manifests:
        found += config.objective.data_problems(manifest)
        found += config.model.data_problems(num_segments=config.objective.num_segments(manifest))
    found = list(dict.fromkeys(found))
    if config.optimizer.uses_names:
        names = config.parameter_names(train.vocabulary.size)
        found += [(f"optimizer.{path}", what) for path, what in config.optimizer.name_problems(names)]
    if config.data.type == "corpus":
        found += _length_problems(config, train)
    smallest = config.smallest_batch
    if smallest < world_size:
        ranks = f"the number of ranks{' in all stages' if config.stages else ''}, {world_size}"
        found.append(("global_batch_size", f"must be at least {ranks}, got {smallest}"))
    if found:
        raise ConfigError(schema.format_problems(config.name, found))


def _length_problems(config: RunConfig, train: Mixture) -> Iterator[Problem]:
    """Yield a problem if the data is too short for one step or, given max_epochs, for all steps."""
    single = train.is_one_dataset
    needed = max(each.tokens_per_step for each in RunStages.of(config).configs) if single else 1
    for index, corpus in enumerate(train.corpora):
        data = corpus.manifest
        if data.num_blocks * data.block_tokens < needed:
            yield (
                "data.train" if single else f"data.train.{index}",
                f"too small for one step: needs {needed:,} tokens, but has {data.num_blocks} full blocks of"
                f" {data.block_tokens:,}; build it from more text, or with a smaller block_tokens",
            )
            return
    if single or config.stages:
        return
    mixtures = [group for group in make_training_samples(config, train).groups if isinstance(group, MixtureSamples)]
    ends = [mixture.num_steps for mixture in mixtures if mixture.num_steps is not None]
    if ends and min(ends) < (config.max_steps or 0):
        yield (
            "max_steps",
            f"must be at most {min(ends)}, when all corpora of data.train reach their max_epochs, got"
            f" {config.max_steps}; lower it, or raise or remove max_epochs of a corpus",
        )
