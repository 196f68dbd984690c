"""The section `engine` of a run, and the options of DeepSpeed that pass through it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from pydantic import Field

from xlpretrain.schema import Problem, Section

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


ALLOWED_KEYS = frozenset(
    {
        "zero_optimization.allgather_bucket_size",
        "zero_optimization.contiguous_gradients",
        "zero_optimization.overlap_comm",
        "zero_optimization.reduce_bucket_size",
        "zero_optimization.reduce_scatter",
        "zero_optimization.round_robin_gradients",
        "zero_optimization.stage3_max_live_parameters",
        "zero_optimization.stage3_max_reuse_distance",
        "zero_optimization.stage3_module_granularity_threshold",
        "zero_optimization.stage3_param_persistence_threshold",
        "zero_optimization.stage3_prefetch_bucket_size",
        "zero_optimization.sub_group_size",
        "zero_optimization.use_multi_rank_bucket_allreduce",
        "comms_logger",
        "flops_profiler",
        "memory_breakdown",
        "wall_clock_breakdown",
    }
)
"""DeepSpeed options that change how it works but not what it computes or where state lies."""


RESERVED_KEYS = {
    "activation_checkpointing": "set engine.activation_checkpointing",
    "bf16": "set engine.precision",
    "checkpoint": "checkpoints are xlpretrain's own",
    "communication_data_type": "set engine.grad_dtype",
    "compile": "set engine.compile",
    "data_types": "set engine.grad_dtype",
    "fp16": "set engine.precision; fp16 is not offered",
    "gradient_accumulation_steps": "it follows from global_batch_size, micro_batch_size and the number of processes",
    "gradient_clipping": "set optimizer.grad_clip",
    "optimizer": "set optimizer",
    "scheduler": "set schedule",
    "torch_autocast": "set engine.precision",
    "train_batch_size": "set global_batch_size",
    "train_micro_batch_size_per_gpu": "set micro_batch_size",
    "zero_optimization.stage": "set engine.zero_stage",
}
"""DeepSpeed options that have a key of ours, and which."""


class EngineConfig(Section):
    """The engine that steps the model, what it shards, and its precision."""

    type: Literal["deepspeed", "plain"] = "deepspeed"
    """`deepspeed`: ZeRO. `plain`: torch alone, everything replicated."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """State that ZeRO shards over the ranks: nothing, optimizer state (1), gradients too (2), weights too (3). In bf16
    with fp32 gradients stage 1 runs as stage 2: DeepSpeed's stage 1 has another layout there, and a whole fp32
    gradient."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Type of the weights in forward and backward; the optimizer always works on fp32 masters."""
    grad_dtype: Literal["fp32", "bf16"] = "fp32"
    """Type in which gradients are accumulated over micro-batches and reduced over ranks."""
    activation_checkpointing: bool = False
    """Recompute each layer in the backward pass: less memory, about a third more work."""
    compile: bool = False
    """Compile the backbone with torch.compile; the first steps take longer."""
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """Options handed to DeepSpeed as they are, such as {zero_optimization: {reduce_bucket_size: 5.0e+7}}."""

    def problems(self) -> Iterator[Problem]:
        if self.precision == "fp32" and self.grad_dtype != "fp32":
            yield "grad_dtype", f"must be fp32 where engine.precision is fp32, got {self.grad_dtype}"
        if self.type == "deepspeed" and self.precision == "bf16" and self.zero_stage == 0:
            yield (
                "zero_stage",
                "0 does not go with bf16: DeepSpeed's optimizer for it takes a step of its own at the start, "
                "so every update would be wrong; use 1 to 3, precision fp32, or type plain",
            )
        if self.type == "plain" and self.deepspeed:
            yield "deepspeed", "options for DeepSpeed, but engine.type is plain; remove them"
        for path in _leaves(self.deepspeed):
            if reason := _refusal(path):
                yield f"deepspeed.{path}", reason


def _leaves(options: Mapping[str, Any]) -> Iterator[str]:
    for key, value in options.items():
        if key == "zero_optimization" and isinstance(value, dict):
            yield from (f"{key}.{inner}" for inner in value)
        else:
            yield key


def _refusal(path: str) -> str | None:
    if path in RESERVED_KEYS:
        return f"not here: {RESERVED_KEYS[path]}"
    if path not in ALLOWED_KEYS:
        return f"not passed on to DeepSpeed; these are: {', '.join(sorted(ALLOWED_KEYS))}"
    return None
