"""Set up a `Run` on each rank: data, folder, model, engine, and the checkpoint to resume from."""

from __future__ import annotations

import platform
import secrets
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from xlpretrain import distributed
from xlpretrain.checkpoint.reader import load_weights, restore
from xlpretrain.checkpoint.saver import Saver
from xlpretrain.checkpoint.train_state import TrainState
from xlpretrain.config import data_rules, origin, run_config
from xlpretrain.config.data_rules import flops_per_step
from xlpretrain.config.resume_rules import Changes
from xlpretrain.config.run_config import RunConfig
from xlpretrain.config.run_stages import RunStages
from xlpretrain.data.loader import Collate, Loader
from xlpretrain.data.mixture import Mixture, MixtureSamples, effective_shares
from xlpretrain.data.samples import TrainSamples
from xlpretrain.data.splits import DataSplits
from xlpretrain.engine import Engine
from xlpretrain.engine.transfers.batch_copies import copied_ahead
from xlpretrain.engine.transfers.place_memory import fresh_memory, place_memory
from xlpretrain.evaluation.held_out import EvaluatedModel
from xlpretrain.models.pretraining_model import Batch
from xlpretrain.objectives.target_clusters import model_collator
from xlpretrain.planning.fitting.automatic_size import with_micro_batch_size
from xlpretrain.run_dir import lease, outcome
from xlpretrain.run_dir.layout import RunDir, Status
from xlpretrain.run_dir.lease import Lease, Process
from xlpretrain.run_dir.stop import StopRequest
from xlpretrain.run_dir.watchdog import Watchdog
from xlpretrain.schema import dump
from xlpretrain.train.callbacks import build_callbacks
from xlpretrain.train.callbacks.base import CallbackContext
from xlpretrain.train.callbacks.probe import Probe
from xlpretrain.train.dispatch import Callbacks
from xlpretrain.train.recorder import Recorder
from xlpretrain.train.run import Run
from xlpretrain.train.stages.change import enter_stage, unskipped
from xlpretrain.train.throughput import peak_flops


def resolve_run(
    config: RunConfig, *, world_size: int, allow_recipe_change: bool
) -> tuple[RunConfig, DataSplits, Changes]:
    """Check everything that can be checked before work starts, without writing anything.

    Returns the resolved config, its data, and the config changes to an existing run. Raises `XLPretrainError`.
    """
    folder = config.folder
    folder.refuse_if_read_only()
    begun = run_config.load(folder.config) if folder.exists() else None
    data = origin.open_data(config, folder)
    config.objective.check_data(data.train.manifests, data.valid)
    config = data_rules.resolve(config, data.train, begun=begun)
    data_rules.validate_data(config, data.train, world_size)
    Probe.from_config(config, data)
    for tracker in config.trackers:
        tracker.check()
    if begun is not None:
        return config, data, origin.check_resume(begun, config, data, allow_recipe_change=allow_recipe_change)
    folder.refuse_others()
    origin.check_init(config, data)
    return config, data, {}


def set_up_run(
    config: RunConfig,
    *,
    device: torch.device,
    allow_recipe_change: bool = False,
    take_over: bool = False,
    launch_id: str = "",
    watchdog: Watchdog | None = None,
) -> Run:
    """Start or resume a run, ready to train. The caller must close its lease. Every rank must call it.

    take_over, launch_id: see `lease.refuse_if_held`. watchdog: one that is already started (default: none).

    Raises `XLPretrainError` on every rank.
    """
    world_size = distributed.world_size()
    config, data, changes = resolve_run(config, world_size=world_size, allow_recipe_change=allow_recipe_change)
    if config.micro_batch_size == "auto":
        largest = with_micro_batch_size(
            RunStages.of(config).largest, vocab_size=data.train.vocabulary.size, device=device
        )
        config = config.model_copy(update={"micro_batch_size": largest.micro_batch_size})
    watchdog = watchdog or Watchdog()  # not started
    place = config.folder.lease
    mine = distributed.run_on_rank_0(partial(lease.acquire, place, launch_id=launch_id, take_over=take_over))
    stacks = config.folder.logs / f"hang-{mine.number:08d}-rank-{distributed.rank():05d}.txt"
    watchdog.guard(config.watchdog, peers=distributed.gather_objects(Process.this()), lease=mine, stacks=stacks)
    if distributed.rank() == 0:
        mine.start_heartbeat()
    try:
        return _build(config, data, changes, device=device, launch_id=launch_id, mine=mine, watchdog=watchdog)
    except BaseException:
        mine.close()
        raise


def _build(
    config: RunConfig,
    data: DataSplits,
    changes: Changes,
    *,
    device: torch.device,
    launch_id: str,
    mine: Lease,
    watchdog: Watchdog,
) -> Run:
    folder, world_size = config.folder, distributed.world_size()
    previous = distributed.run_on_rank_0(folder.read_status)
    run_id = distributed.run_on_rank_0(partial(_begin, config, folder, data, changes, fence=mine.check))
    max_steps = config.max_steps or 0
    status = Status("running", max_steps=max_steps, launch_id=launch_id, world_size=world_size)
    recorder = Recorder(config, folder, rank=distributed.rank(), run_id=run_id, status=status, lease=mine)
    if not launch_id:  # else the launcher reports a hang
        watchdog.on_hang = partial(recorder.alert, "stall")
    _print_changes(recorder, config, changes)
    stages, rank = RunStages.of(config), distributed.rank()
    begins = stages.at(distributed.run_on_rank_0(partial(outcome.newest_step, folder)) if config.stages else 0)
    micro_batches = begins.micro_batches(rank, world_size)
    engine, stage_flops = _build_engine(config, data, stages, num_micro_batches=len(micro_batches), device=device)
    _print_groups(recorder, engine, config)
    if tiles := engine.layout.get("attention_tiles"):
        recorder.print(f"fastest fused attention: {tiles}")
    if device.type == "cuda" and world_size == 1 and config.engine.type == "deepspeed":
        recorder.print("one process has nothing to shard with: engine.type plain does the same work with less overhead")
    samples = data_rules.make_training_samples(config, data.train)
    _print_mixture(recorder, data.train, samples)
    probe = Probe.from_config(config, data)
    _print_data_notes(recorder, config, data)
    if probe is not None:
        _print_data_notes(recorder, probe.config, probe.data)
    groups = config.objective.stream_groups(stages.num_streams, config.model.mem_len)
    streams = [group.streams_of(rank, world_size) for group in groups]
    state, stream_states = TrainState(), dict[str, Tensor]()
    memory = None
    restored = restore(folder.checkpoints, engine, streams=streams, owner=mine.number)
    if restored is not None:
        state, memory, stream_states = restored.state, restored.memory, restored.stream_states
        recorder.print(f"resuming from step {state.step} of {max_steps}")
        memory = [_with_new_streams(some, len(theirs)) for some, theirs in zip(memory, streams, strict=True)]
        differences = restored.differences
        if state.step in stages.firsts[1:]:  # the checkpoint may be of the end of the stage before
            differences = [each for each in differences if not each.startswith("micro_batches:")]
        for difference in differences:
            recorder.print(f"not the checkpoint's layout, so results match only within rounding: {difference}")
    elif config.init_from is not None:
        fresh = load_weights(config.init_from, engine, config.init_weights)
        recorder.print(f"weights from {config.init_from}" + (f"; new: {', '.join(fresh)}" if fresh else ""))

    def collator(of: RunConfig) -> Collate[Batch]:
        backbone = engine.model.backbone
        return copied_ahead(model_collator(of.objective, data.tokenizer, seed=of.seed, backbone=backbone), device)

    samples = samples.with_windows(state.skipped_windows)
    loader = Loader(
        unskipped(samples, state.skipped_windows, stages, stages.index(state.step)),
        collator(stages.at(state.step)),
        micro_batches,
        skip_damage=config.data.on_damage == "skip",
    )
    context_streams = list(distributed.join_ranges(streams)) if config.stages else None
    context = CallbackContext(
        config=config,
        rank=rank,
        world_size=world_size,
        streams=distributed.join_ranges(streams) if context_streams is None else context_streams,
        max_steps=max_steps,
        device=device,
        run_folder=folder.path,
        corpora=samples.corpora,
        model=EvaluatedModel.of_engine(engine),
        print=recorder.print,
        alert=lambda event, message, step: recorder.alert(event, message, step=step),
    )
    callbacks = Callbacks(
        build_callbacks(
            context,
            data=data,
            engine=engine,
            probe=probe,
            damage=loader.damage,
            plot=recorder.plot,
            fence=mine.check,
            hosts=distributed.gather_objects(platform.node()),
            show_straggler=recorder.show_straggler,
        )
    )
    known = {name: of for name, of in stream_states.items() if len(of) == sum(map(len, streams))}
    for name in stream_states.keys() - known.keys():
        recorder.print(f"dropped the saved state of streams of callback {name!r}, since the run has more streams now")
    for name in callbacks.load(state.callbacks, known):
        recorder.print(f"dropped the saved state of callback {name!r}, which is not in the config")
    saver = Saver(
        folder.checkpoints,
        config.checkpoint,
        step=state.step,
        saved_at=state.step if restored is not None else None,
        owner=mine.number,
        fence=mine.check,
        before_commit=recorder.sync,
    )
    on_host = config.engine.memory_device == "host"
    held = memory or [
        fresh_memory(engine, len(some), group.mem_len, on_host=on_host)
        for some, group in zip(streams, groups, strict=True)
    ]
    memories = (
        []
        if config.stages
        else place_memory(engine, held, ranges=streams, micro_batches=micro_batches, on_host=on_host)
    )
    run = Run(
        config=config,
        folder=folder,
        lease=mine,
        watchdog=watchdog,
        engine=engine,
        loader=loader,
        samples=samples,
        stream_ranges=streams,
        state=state,
        memory=memories,
        stop=StopRequest(stop_file=folder.stop_file, time_budget_s=config.stop.time_budget_s),
        recorder=recorder,
        peak_flops=distributed.all_reduce_sum([peak_flops(device, held[0].dtype)])[0],
        flops_per_token=stage_flops[0],
        saver=saver,
        callbacks=callbacks,
        stages=stages,
        stage_flops=stage_flops,
        collators=collator,
        context_streams=context_streams,
    )
    if config.stages:
        enter_stage(run, run.even_division, [some.cpu() for some in held], callbacks.stream_states(run.streams))
    saver.reserve(engine, memory=run.memory_of_streams(), stream_states=callbacks.stream_states(run.streams))
    distributed.run_on_rank_0(partial(recorder.resume_at, state, previous))
    return run


def _print_changes(recorder: Recorder, config: RunConfig, changes: Changes) -> None:
    if config.schedule.factor((config.max_steps or 0) - 1) == 0:
        recorder.print(
            f"the schedule ends at step {config.schedule.total_steps} with a rate of 0, so later steps change nothing;"
            " schedule.total_steps may be changed with --allow-recipe-change"
        )
    for key, (before, now) in changes.items():
        recorder.print(f"changed since the last attempt: {key}: {before!r} -> {now!r}")


def _print_groups(recorder: Recorder, engine: Engine, config: RunConfig) -> None:
    """Print the optimizer's parameter groups, unless they are the usual two (matrices; biases and norms)."""
    if frozen := config.optimizer.frozen_names(engine.shapes):
        size = sum(engine.shapes[name].numel() for name in frozen)
        recorder.print(f"frozen: {len(frozen)} tensors, {size:,} parameters")
    if len(engine.groups) > 2 or any(group.lr_factor != 1 for group in engine.groups):
        for group in engine.groups:
            recorder.print(f"optimizer group {group}")


def _print_mixture(recorder: Recorder, train: Mixture, samples: TrainSamples) -> None:
    if isinstance(samples.groups[0], MixtureSamples):
        for corpus, share in effective_shares(train):
            recorder.print(f"{corpus.name}: {share:.4%} of the samples, from {corpus.manifest.num_tokens:,} tokens")
    exhausted = [found for group in samples.groups if isinstance(group, MixtureSamples) for found in group.exhausted_at]
    for step, name in exhausted:
        recorder.print(f"{name}: read max_epochs times by step {step}; then its share goes to the other corpora")


def _print_data_notes(recorder: Recorder, config: RunConfig, data: DataSplits) -> None:
    for split in [*data.train.manifests, *([] if data.valid is None else [data.valid])]:
        for note in config.objective.data_notes(split):
            recorder.print(note)


def _build_engine(
    config: RunConfig, data: DataSplits, stages: RunStages, *, num_micro_batches: int, device: torch.device
) -> tuple[Engine, list[float]]:
    """Build the fresh model in its engine; also return its FLOPs per new token of each stage, counted before ZeRO-3
    shards it."""
    torch.manual_seed(config.seed)
    model = config.build_model(data.train.vocabulary.size)
    flops = [flops_per_step(stage, model) / stage.tokens_per_step for stage in stages.configs]
    engine = config.engine.build(
        model,
        config.optimizer,
        num_micro_batches=num_micro_batches,
        weights=config.objective.weights,
        device=device,
    )
    return engine, flops


def _with_new_streams(memory: Tensor, num_streams: int) -> Tensor:
    """Memory [L, S, M, D] with zeros for streams that the checkpoint does not know, which a fork with a larger batch
    adds at the end."""
    missing = num_streams - memory.shape[1]
    if not missing:
        return memory
    return torch.cat([memory, memory.new_zeros(len(memory), missing, *memory.shape[2:])], dim=1)


def _begin(config: RunConfig, folder: RunDir, data: DataSplits, changes: Changes, *, fence: Callable[[], None]) -> str:
    """Create the run folder or update the existing one. Returns the run's id, which never changes."""
    provenance = {**({} if folder.exists() else origin.begun_here()), **origin.record(config, data)}
    provenance.setdefault("id", provenance.get("wandb_id") or secrets.token_hex(4))  # wandb_id: its former key
    if changes:
        folder.record_changes(changes, step=outcome.newest_step(folder), fence=fence)
    folder.keep_tokenizer(data.tokenizer.file_name, data.tokenizer.model)
    folder.create(config=dump(config), provenance=provenance, fence=fence)
    return str(provenance["id"])
