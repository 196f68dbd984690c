"""Engines, which step a model: DeepSpeed's ZeRO, or torch alone. Importing this does not import DeepSpeed."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from xlpretrain.engine.base import Engine
from xlpretrain.engine.config import DTYPES, EngineConfig
from xlpretrain.engine.state_shards import ReadRange, StateShard
from xlpretrain.errors import ConfigError
from xlpretrain.models.pretraining_model import PretrainingModel
from xlpretrain.optim import OptimizerConfig
from xlpretrain.schema import format_problems

__all__ = ["Engine", "EngineConfig", "ReadRange", "StateShard", "build_engine"]


def build_engine(
    config: EngineConfig,
    model: PretrainingModel,
    optimizer: OptimizerConfig,
    *,
    num_micro_batches: int,
    weights: Mapping[str, float],
    device: torch.device,
) -> Engine:
    """The engine for a freshly built fp32 model on the CPU, which it takes over. Every rank must call it.

    Every rank ends up with rank 0's weights. The process group must be up (`distributed.start`).

    Args:
        num_micro_batches: how many `backward` calls make up a step.
        weights: the weight of each loss term.

    Raises:
        ConfigError: the optimizer is not right on the slices of parameters that ZeRO would hand it.
    """
    if config.type == "deepspeed" and config.zero_stage > 0 and optimizer.parameter_view == "parameters":
        problem = (
            f"{optimizer.type} needs whole parameters, and engine.zero_stage {config.zero_stage} has only slices of"
            " them; use adamw or lamb, or engine.type plain, or engine.zero_stage 0 with engine.precision fp32"
        )
        raise ConfigError(format_problems("engine", [("optimizer.type", problem)]))
    if config.activation_checkpointing:
        model.backbone.activation_checkpointing = True
    precision, grad_dtype = DTYPES[config.precision], DTYPES[config.grad_dtype]
    engine: Engine
    if config.type == "plain":
        from xlpretrain.engine.plain import PlainEngine

        engine = PlainEngine(
            model, optimizer, precision=precision, grad_dtype=grad_dtype, weights=weights, device=device
        )
    else:
        from xlpretrain.engine.zero import ZeroEngine  # takes seconds to import

        engine = ZeroEngine(
            config, model, optimizer, num_micro_batches=num_micro_batches, weights=weights, device=device
        )
    engine.layout = {
        "engine": config.type,
        **({"zero_stage": config.zero_stage} if config.type == "deepspeed" else {}),
        **config.model_dump(include={"precision", "grad_dtype", "activation_checkpointing", "compile"}),
        "micro_batches": num_micro_batches,
    }
    if config.compile:
        # In place, so names stay; the backbone alone, since a batch carries counts that would compile anew for each.
        model.backbone.compile()
    return engine
