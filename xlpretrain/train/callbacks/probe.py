"""A short fine-tune of a copy of the model during training, to measure progress on a downstream task.

It does not affect the run: the copy has its own engine, torch's generator state is restored, and the run's weights are
only read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xlpretrain import distributed, schema
from xlpretrain.config.data_rules import make_training_samples
from xlpretrain.config.run_config import RunConfig
from xlpretrain.data.loader import Loader
from xlpretrain.data.order import hash_ints
from xlpretrain.data.splits import DataSplits
from xlpretrain.engine import Engine
from xlpretrain.engine.train_step import train_step
from xlpretrain.engine.transfers.batch_copies import copied_ahead
from xlpretrain.evaluation.held_out import EvalTask, EvaluatedModel, Pause, evaluate, paused
from xlpretrain.finetune.config import task_config
from xlpretrain.tracking.metrics_file import Metrics
from xlpretrain.train.callbacks.base import Callback, CallbackContext


@dataclass(frozen=True)
class Probe:
    """A small classifier run. config: as made by `task_config`, but shorter."""

    config: RunConfig
    data: DataSplits

    @classmethod
    def from_config(cls, run: RunConfig, data: DataSplits) -> Probe | None:
        """The validated probe defined by a run's `eval.probe`, or None. Raises `ConfigError` and `DataError`."""
        probe = run.eval.probe
        if probe is None:
            return None
        content = task_config(
            run,
            tokenizer=data.tokenizer,
            kept_at=run.folder.tokenizer / data.tokenizer.file_name,
            train=probe.train,
            valid=probe.valid,
            text=probe.text,
            label=probe.label,
        )
        length = {"max_steps": probe.steps, "schedule": {"type": "linear", "warmup_steps": probe.steps // 10}}
        content |= {**length, "engine": {"type": "plain", "precision": "fp32"}, "seed": run.seed}
        content["schedule"]["total_steps"] = probe.steps
        config = schema.validate(RunConfig, content, f"{run.name}, its probe")
        return cls(config, config.data.open(kept=data.tokenizer))

    def run(self, weights_of: Engine, *, pause: Pause) -> Metrics:
        """Train a classifier from an engine's current weights and return its accuracy and loss.

        Every rank must call it. pause: called before each step and each evaluation batch; an exception from it ends
        the probe.
        """
        weights, device = gather_full_weights(weights_of), weights_of.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            engine = self._engine(weights, device)
            self._train(engine, pause)
            assert self.data.valid is not None, "`of` names it"
            task = EvalTask.of_run(self.config, self.data.valid, self.data.tokenizer)
            found = evaluate(EvaluatedModel.of_engine(engine), task, pause=pause, task_metrics=False)
        return {"valid/probe_accuracy": found.main.accuracy, "valid/probe_loss": found.loss}

    def _engine(self, weights: dict[str, Tensor], device: torch.device) -> Engine:
        torch.manual_seed(self.config.seed)
        model = self.config.build_model(self.data.train.vocabulary.size)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in weights:  # the classifier is new
                    parameter.copy_(weights[name].view_as(parameter))
        return self.config.engine.build(
            model,
            self.config.optimizer,
            num_micro_batches=1,
            weights=self.config.objective.weights,
            device=device,
        )

    def _train(self, engine: Engine, pause: Pause) -> None:
        config, rank = self.config, distributed.rank()
        streams = distributed.streams_of(rank, distributed.world_size(), config.global_batch_size)
        samples = make_training_samples(config, self.data.train)
        collate = copied_ahead(config.objective.collator(self.data.tokenizer, seed=config.seed), engine.device)
        loader = Loader(samples, collate, [streams])
        memory = [engine.model.backbone.empty_memory(len(streams), 0)]
        assert config.max_steps is not None, "`from_config` sets it"
        for step, batches in enumerate(paused(loader.steps(start=0, stop=config.max_steps), pause)):
            train_step(
                engine,
                batches,
                memory,
                counts=dict.fromkeys(config.objective.terms, config.global_batch_size),  # each sample has its label
                lr=config.optimizer.lr * config.schedule.factor(step),
                seed=hash_ints(config.seed, step, rank),
            )


class ProbeCallback(Callback):
    """A section that runs a probe every `eval.probe.every_steps` and at the end."""

    def __init__(self, context: CallbackContext, probe: Probe, engine: Engine, *, every_steps: int):
        self._context, self._probe, self._engine, self._every_steps = context, probe, engine, every_steps

    def is_due(self, step: int) -> bool:
        """True at multiples of `eval.probe.every_steps`."""
        return self._context.is_due(step, self._every_steps)

    def section(self, pause: Pause) -> Metrics:
        """Fine-tune a copy of the current weights."""
        return self._probe.run(self._engine, pause=pause)


def gather_full_weights(engine: Engine) -> dict[str, Tensor]:
    """Gather every parameter's fp32 weights from all ranks, flat, on the CPU. Every rank must call it."""
    pieces = [(r.name, r.start, r.stop, r.tensor.cpu()) for r in engine.state_ranges() if r.kind == "weight"]
    found = {name: torch.empty(shape.numel()) for name, shape in engine.shapes.items()}
    for of_rank in distributed.gather_objects(pieces):
        for name, start, stop, values in of_rank:
            found[name][start:stop] = values
    return found
