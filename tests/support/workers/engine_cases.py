"""Run engines on every rank; rank 0 writes results for `test_engine.py`. Usage: engine_cases.py OUT TIER"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from reference_lamb import albert_model, gated_model
from tiny_model import WEIGHTS, WIDTH, Training, rate, tiny_batch, training, whole_state
from torch.utils._python_dispatch import TorchDispatchMode
from two_rules import TWO_RULES

from xlpretrain import distributed
from xlpretrain.engine.config import DeepSpeedConfig, EngineConfig, PlainConfig, options_on_gpus
from xlpretrain.engine.zero import norm_by_group
from xlpretrain.errors import exit_rank
from xlpretrain.models.pretraining_model import PretrainingModel
from xlpretrain.optim import AdamWConfig, LambConfig, MuonConfig, OptimizerConfig
from xlpretrain.optim.base import TensorSlice
from xlpretrain.optim.muon import AdamWRule

SHARD_ALL = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}

FP32 = {
    "plain fp32": PlainConfig(precision="fp32"),
    **{f"zero {stage} fp32": DeepSpeedConfig(zero_stage=stage, precision="fp32") for stage in (0, 1, 2, 3)},
    "zero 3 fp32, all sharded": DeepSpeedConfig(zero_stage=3, precision="fp32", deepspeed=SHARD_ALL),
}
BF16 = {
    "plain bf16": PlainConfig(),
    **{f"zero {stage} bf16": DeepSpeedConfig(zero_stage=stage) for stage in (1, 2, 3)},
    "zero 3 bf16, all sharded": DeepSpeedConfig(zero_stage=3, deepspeed=SHARD_ALL),
}
ONE_BY_ONE = {"zero_optimization": {"sub_group_size": 1, "stage3_param_persistence_threshold": 0}}
LAMB = LambConfig(grad_clip=0.5)
MUON = MuonConfig(
    lr=3e-3,
    grad_clip=0.5,
    orthogonalize_in="fp32",
    matrices=("backbone.mix.*",),
    adamw=AdamWRule(lr=1.5e-3),
)
FROZEN = ("backbone.embedding.*", "backbone.norm.weight")
FROZEN_NAMES = ("backbone.embedding.weight", "backbone.norm.weight")


def losses(config: EngineConfig, *, steps: int = 20) -> Any:
    """Uneven streams: 3 and 4 per rank, micro-batches of 1 and 2, and a loss term that few samples have."""
    return training(config, num_streams=7, num_micro_batches=2).steps(0, steps)


def uncorrected_adamw(config: EngineConfig) -> Any:
    optimizer = AdamWConfig(grad_clip=0.5, bias_correction=False)
    return training(config, num_streams=7, num_micro_batches=2, optimizer=optimizer).steps(0, 20)


def two_rules(config: EngineConfig, optimizer: OptimizerConfig = TWO_RULES) -> Any:
    """Groups with rates and decays of their own, some with other state."""
    run = training(config, num_streams=7, num_micro_batches=2, optimizer=optimizer)
    found = run.steps(0, 20)
    return {"losses": found, "groups": [str(group) for group in run.engine.groups], "updates": run.engine.num_updates}


def lamb(config: EngineConfig) -> Any:
    """A fused weight; with activation checkpointing, accumulation and clipping."""
    return _lamb_run(config, gated_model(fused=True)).steps(0, 20)


def lamb_on_albert(config: EngineConfig) -> Any:
    return _lamb_run(config, albert_model()).steps(0, 20)


def muon(config: EngineConfig, *, bf16: bool = False, fused: bool = True) -> Any:
    """A fused weight of three matrices, and a matrix of one element, which one of two ranks lacks."""
    optimizer = MUON.model_copy(update={"orthogonalize_in": "bf16"}) if bf16 else MUON
    run = _run_on(config, gated_model(fused=fused), optimizer)
    before = whole_state(run.engine)
    found = run.steps(0, 1)
    after = whole_state(run.engine)
    step = sum(
        after[key] - before[key] for key in after if key[0] == "weight" and key[1].startswith("backbone.mix.weights")
    )
    return {"losses": found + run.steps(1, 20), "singular values": _singular_values(step)}


def _singular_values(step: torch.Tensor) -> list[list[float]]:
    """Those of the three matrices of a fused weight's first update, as multiples of the rate."""
    return [torch.linalg.svdvals(part.view(WIDTH, -1).double() / rate(0)).tolist() for part in step.chunk(3)]


def muon_in_bf16(config: EngineConfig) -> Any:
    return muon(config, bf16=True)


def muon_on_albert(config: EngineConfig) -> Any:
    run = _run_on(config, albert_model(), MUON.model_copy(update={"matrices": ("backbone.layers.*",)}))
    return {"losses": run.steps(0, 20), "groups": [str(group) for group in run.engine.groups]}


def frozen(config: EngineConfig) -> Any:
    """An embedding, tied to the head, and a vector that stay; gone on with by another engine from the state."""
    optimizer = AdamWConfig(grad_clip=0.5, frozen=FROZEN)
    run = training(config, num_streams=7, num_micro_batches=2, optimizer=optimizer)
    before = whole_state(run.engine)
    found = run.steps(0, 10)
    after = whole_state(run.engine)
    other = training(config, num_streams=7, num_micro_batches=2, optimizer=optimizer, seed=1)
    other.engine.load_state(lambda kind, name, start, stop: after[kind, name][start:stop], updates=10)
    other.memory = list(run.memory)
    return {
        "losses": found,
        "moved": sorted(name for (kind, name) in after if not torch.equal(before[kind, name], after[kind, name])),
        "kinds": {name: list(run.engine.kinds[name]) for name in FROZEN_NAMES},
        "has gradient": sorted({name for name, p in run.engine.model.named_parameters() if p.requires_grad}),
        "goes on": other.steps(10, 12),
        "uninterrupted": run.steps(10, 12),
    }


def lamb_that_takes_three_tensors_for_one(config: EngineConfig) -> Any:
    model = gated_model(fused=True)
    model.backbone.mix.weights[0].num_fused = 1
    return _lamb_run(config, model).steps(0, 20)


def lamb_on_flat_slices(config: EngineConfig) -> Any:
    """LAMB that treats ZeRO's flat shards as parameters."""
    run = _lamb_run(config, gated_model(fused=True))
    optimizer, masters = run.engine._state.optimizer, run.engine._state.master_weights
    whole = {master: [TensorSlice(number, 0, master.numel())] for number, master in enumerate(masters)}
    optimizer.set_parameter_slices(whole, num_tensors=len(masters), group=None)
    return run.steps(0, 20)


def _lamb_run(config: EngineConfig, model: PretrainingModel) -> Training:
    return _run_on(config, model, LAMB)


def _run_on(config: EngineConfig, model: PretrainingModel, optimizer: OptimizerConfig) -> Training:
    config = config.model_copy(update={"activation_checkpointing": True})
    return training(config, num_streams=7, num_micro_batches=2, optimizer=optimizer, model=model)


def rows_of_none(config: EngineConfig) -> Any:
    """Rank 0 of two has one stream for two micro-batches."""
    return training(config, num_streams=3, num_micro_batches=2 if distributed.world_size() == 2 else 3).steps(0, 4)


def no_number(config: EngineConfig, optimizer: OptimizerConfig | None = None, *, on_device: bool = False) -> Any:
    """A step with a NaN loss, compared with a run without that step. on_device: the engine decides as on a GPU."""
    run, twin = (training(config, num_streams=7, num_micro_batches=2, optimizer=optimizer) for _ in range(2))
    if on_device:
        run.engine._decides_on_device = twin.engine._decides_on_device = True
    assert run.steps(0, 2) == twin.steps(0, 2)
    before, updates = whole_state(run.engine), run.engine.num_updates
    ((_, norm),) = run.steps(2, 3, poisoned=2)
    after = whole_state(run.engine)
    return {
        "norm is finite": math.isfinite(norm),
        "unchanged": all(torch.equal(before[key], after[key]) for key in before)
        and run.engine.num_updates == updates == 2,
        "goes on": run.steps(3, 5),
        "goes on without it": twin.steps(3, 5),
        "updates": run.engine.num_updates,
    }


def no_number_on_a_device(config: EngineConfig) -> Any:
    return no_number(config, LAMB if config.precision == "fp32" else None, on_device=True)


def no_number_with_lamb(config: EngineConfig) -> Any:
    return no_number(config, LAMB)


def gradient(config: EngineConfig) -> Any:
    """The gradient of one step over 32 micro-batches per rank, from the first moment after one update."""
    run = training(
        config,
        num_streams=64,
        num_micro_batches=64 // distributed.world_size(),
        optimizer=AdamWConfig(grad_clip=0.0),
    )
    ((_, norm),) = run.steps(0, 1)
    state = whole_state(run.engine)
    moments = torch.cat([values for (kind, _), values in state.items() if kind == "exp_avg"]).double() / 0.1
    return {"norm": norm, "gradient": moments.tolist()}


def evaluation(config: EngineConfig) -> Any:
    """The loss on samples that only the last rank has, before and after training, without disturbing training."""
    run, twin = (training(config, num_streams=7, num_micro_batches=2) for _ in range(2))
    found = [_evaluate(run)]
    run.steps(0, 2), twin.steps(0, 2)
    found.append(_evaluate(run))
    assert run.engine.model.training
    return {"losses": found, "goes on": run.steps(2, 3), "goes on without it": twin.steps(2, 3)}


def _evaluate(run: Training) -> float:
    last = distributed.rank() == distributed.world_size() - 1
    batch = tiny_batch(1000, range(5) if last else range(0))
    loss, _ = run.engine.evaluate(batch, run.engine.model.backbone.empty_memory(5 if last else 0, 2))
    assert not loss.sums["lm"].requires_grad
    return sum(distributed.all_reduce_sum([float(loss.sums[term]) for term in WEIGHTS]))


def activation_checkpointing(config: EngineConfig) -> Any:
    with_it = config.model_copy(update={"activation_checkpointing": True})
    return {"without": losses(config, steps=3), "with": losses(with_it, steps=3)}


class _Operations(TorchDispatchMode):
    """Counts all operations, views too."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


def on_gpus(config: EngineConfig) -> Any:
    """With the options and the norm that GPUs have, and the operations of an update."""
    assert isinstance(config, DeepSpeedConfig)
    options = {"zero_optimization": options_on_gpus(config.actual_stage, num_ranks=2)}
    run = training(config.model_copy(update={"deepspeed": options}), num_streams=7, num_micro_batches=2)
    norm_by_group(run.engine._zero)
    found = {"without": losses(config, steps=5), "with": run.steps(0, 5), "names": sorted(run.engine.shapes)}
    update = run.engine.update
    operations = _Operations()

    def counted(lr: float) -> Any:
        with operations:
            return update(lr)

    run.engine.update = counted
    run.steps(5, 6)
    return {**found, "operations": operations.count}


def compiled(config: EngineConfig) -> Any:
    both = config.model_copy(update={"compile": True, "activation_checkpointing": True})
    run = training(both, num_streams=7, num_micro_batches=2)
    return {"without": losses(config, steps=5), "with": run.steps(0, 5), "names": sorted(run.engine.shapes)}


def _pick(*names: str) -> dict[str, EngineConfig]:
    return {name: (FP32 | BF16)[name] for name in names}


ALL = FP32 | BF16
ONE_OF_EACH = _pick(*(name for name in ALL if name not in ("zero 3 fp32", "zero 3 bf16, all sharded")))
MANY_SUB_GROUPS = {"zero 3 fp32, one by one": DeepSpeedConfig(zero_stage=3, precision="fp32", deepspeed=ONE_BY_ONE)}
DEFAULT = {
    "losses": (losses, {name: FP32[name] for name in FP32 if name in ONE_OF_EACH}),
    "lamb": (lamb, _pick("zero 1 fp32") | MANY_SUB_GROUPS),
    "lamb_on_albert": (lamb_on_albert, _pick("zero 1 fp32", "zero 2 fp32", "zero 3 fp32")),
    "lamb_on_flat_slices": (lamb_on_flat_slices, _pick("zero 1 fp32")),
    "lamb_that_takes_three_tensors_for_one": (lamb_that_takes_three_tensors_for_one, _pick("zero 2 fp32")),
    "uncorrected_adamw": (uncorrected_adamw, _pick("zero 2 fp32")),
    "two_rules": (two_rules, _pick("zero 1 fp32", "zero 2 bf16") | MANY_SUB_GROUPS),
    "frozen": (frozen, _pick("zero 1 fp32", "zero 3 bf16, all sharded")),
    "muon": (muon, _pick("zero 2 fp32") | MANY_SUB_GROUPS),
    "muon_on_albert": (muon_on_albert, _pick("zero 3 fp32")),
    "rows_of_none": (rows_of_none, _pick("zero 2 fp32", "zero 3 bf16, all sharded")),
    "no_number": (no_number, {name: config for name, config in ONE_OF_EACH.items() if "all sharded" not in name}),
    "no_number_with_lamb": (no_number_with_lamb, _pick("zero 3 fp32")),
    "no_number_on_a_device": (no_number_on_a_device, _pick("plain fp32", "plain bf16")),
    "gradient": (gradient, _pick("zero 0 fp32", "plain bf16", "zero 1 bf16", "zero 2 bf16", "zero 3 bf16")),
    "evaluation": (evaluation, _pick("zero 1 bf16", "zero 3 fp32, all sharded")),
    "activation_checkpointing": (activation_checkpointing, _pick("zero 2 fp32")),
    "on_gpus": (on_gpus, _pick("zero 1 bf16")),
}
FULL = {
    **{case: (measure, ALL) for case, (measure, _) in DEFAULT.items()},
    "no_number_on_a_device": DEFAULT["no_number_on_a_device"],
    "losses": (losses, FP32),
    "lamb_on_albert": (lamb_on_albert, FP32),
    "lamb": (lamb, ALL | MANY_SUB_GROUPS),
    "lamb_on_flat_slices": (lamb_on_flat_slices, _pick("zero 1 fp32", "zero 2 fp32")),
    "lamb_that_takes_three_tensors_for_one": (lamb_that_takes_three_tensors_for_one, FP32),
    "uncorrected_adamw": (uncorrected_adamw, FP32),
    "on_gpus": (on_gpus, _pick("zero 1 fp32", "zero 2 fp32", "zero 1 bf16")),
    "two_rules": (two_rules, ALL | MANY_SUB_GROUPS),
    "muon": (muon, FP32 | MANY_SUB_GROUPS),
    "muon_on_albert": (muon_on_albert, FP32),
}
MUON_CASES = {
    "muon": (muon, FP32 | MANY_SUB_GROUPS),
    "muon_in_bf16": (muon_in_bf16, ALL),
    "muon_on_albert": (muon_on_albert, FP32),
}
TIERS: dict[str, dict[str, tuple[Any, dict[str, EngineConfig]]]] = {
    "default": DEFAULT,
    "full": FULL,
    "muon": MUON_CASES,
    "compiled": {
        "compiled": (compiled, _pick("plain fp32", "zero 1 bf16", "zero 2 fp32", "zero 3 fp32", "zero 3 bf16"))
    },
}


def main(out: str, tier: str) -> None:
    distributed.init()
    found: dict[str, Any] = {}
    for case, (measure, configs) in TIERS[tier].items():
        found[case] = {name: measure(config) for name, config in configs.items()}
    if distributed.rank() == 0:
        Path(out).write_text(json.dumps(found))
    distributed.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
    exit_rank(0)
