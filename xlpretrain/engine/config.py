"""The config section `engine`, and the DeepSpeed options that it accepts. Importing this does not import DeepSpeed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from xlpretrain import distributed
from xlpretrain.engine import determinism
from xlpretrain.engine.base import Engine
from xlpretrain.engine.compiled import ModuleKinds, compile_regions
from xlpretrain.errors import ConfigError
from xlpretrain.models.backbone import OutputLayer
from xlpretrain.models.kernels.fused.choice import choose_attention, set_tiles
from xlpretrain.models.kernels.fused.layer.choice import choose_whole_layers
from xlpretrain.models.pretraining_model import PretrainingModel
from xlpretrain.models.stack import Layer
from xlpretrain.optim import OptimizerConfig
from xlpretrain.schema import Problem, Registry, Section, TaggedUnion, format_problems

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
"""DeepSpeed options that affect its performance, but not its results or the layout of state."""


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
"""DeepSpeed options that are set by other config keys, and which."""


def options_on_gpus(stage: int, *, num_ranks: int) -> dict[str, Any]:
    """Options of DeepSpeed's `zero_optimization` on GPUs, where its own defaults cost time or memory.

    They were chosen from DeepSpeed's source and by counting operations, not by measuring (docs/decisions/0046).
    """
    if stage not in (1, 2):
        return {}
    return {
        # Reduce a bucket as it is. Both ways all-reduce; DeepSpeed's own copies each gradient into another one first.
        "reduce_scatter": False,
        # Buffers of 5e8 elements hold most models whole: then nothing is reduced before the backward pass has ended.
        "reduce_bucket_size": 50_000_000,
        # Reduce a bucket while the next one fills. With one rank it would only make the host wait for the GPU.
        "overlap_comm": num_ranks > 1,
    }


class EngineConfig(Section, ABC):
    """The keys common to all engines."""

    type: str
    precision: Literal["fp32", "bf16"] = "bf16"
    """Data type of the weights in forward and backward; the optimizer always works on fp32 master weights."""
    grad_dtype: Literal["fp32", "bf16"] = "fp32"
    """Data type in which gradients are accumulated over micro-batches and reduced over ranks."""
    activation_checkpointing: bool = False
    """Recompute each layer in the backward pass: less memory, about a third more compute."""
    memory_device: Literal["device", "host"] = "device"
    """Where the streams' memory is between micro-batches: on the device, two copies during a step; or in the host's
    memory, page-locked beside a GPU, with copies of one micro-batch at a time. The results are the same."""
    compile: bool = False
    """Compile the layers and the loss with torch.compile, for training; evaluations run uncompiled. The first step
    takes longer."""

    deterministic: bool = False
    """Train with the same bits in every run on the same GPUs, at some cost in speed; an operation for which torch has
    no deterministic algorithm is an error. On CPUs training is deterministic either way, unless compiled."""

    attention: Literal["fused", "sdpa", "plain"] | None = None
    """Implementation of attention: fused (kernels of our own, for Transformer-XL and XLNet on an NVIDIA GPU; not yet
    measured), sdpa (torch's scaled_dot_product_attention), plain (a formula, for comparisons), or null: sdpa on GPUs,
    our own on CPUs."""
    autotune_attention: bool = False
    """Time the sizes of tiles of `attention: fused` at start, which takes minutes of compiling once, and use the
    fastest. Sizes change results within rounding, and may differ from run to run; they are recorded in checkpoints."""
    matmul_precision: Literal["highest", "high"] = "highest"
    """Precision of products of fp32 matrices on GPUs: highest (fp32) or high (TF32: 10 bits of mantissa, several times
    as fast). With engine.precision bf16 few products are in fp32. CPUs always use fp32."""

    layout_keys: ClassVar[tuple[str, ...]] = ("precision", "grad_dtype", "activation_checkpointing", "compile")
    """Keys that must be equal for a resume to be bit-identical."""

    @property
    def compiled_modules(self) -> ModuleKinds:
        """The modules that `compile` compiles."""
        return (Layer, OutputLayer)

    def problems(self) -> Iterator[Problem]:
        """Yield contradictions between keys."""
        if self.precision == "fp32" and self.grad_dtype != "fp32":
            yield "grad_dtype", f"must be fp32 if engine.precision is fp32, got {self.grad_dtype}"
        if self.autotune_attention and self.attention != "fused":
            yield "autotune_attention", f"needs engine.attention fused, got {self.attention or 'null'}"
        elif self.autotune_attention and self.deterministic:
            yield (
                "autotune_attention",
                "must be false if engine.deterministic is true: times differ from run to run, and so may the sizes of"
                " tiles that they choose, and the bits of results; drop one of the two",
            )

    @property
    def slices_parameters(self) -> bool:
        """True if the optimizer gets slices of parameters instead of whole ones."""
        return False

    @property
    def slices_weights(self) -> bool:
        """True if a module's weights are whole only while it is called."""
        return False

    def prepare_process(self) -> None:
        """Set what must be set before CUDA starts. Raises `ConfigError` if the environment contradicts the config."""
        if self.deterministic:
            determinism.set_workspaces()

    def set_matmul_precision(self, device: torch.device) -> None:
        """Apply `matmul_precision` to this process, on GPUs alone: on CPUs torch would also change its products."""
        if device.type == "cuda":
            torch.set_float32_matmul_precision(self.matmul_precision)

    def build(
        self,
        model: PretrainingModel,
        optimizer: OptimizerConfig,
        *,
        num_micro_batches: int,
        weights: Mapping[str, float],
        device: torch.device,
    ) -> Engine:
        """Build the engine for a fresh fp32 model on the CPU, and take ownership of the model. Every rank must call it.

        All ranks get rank 0's weights. The process group must be initialized (`distributed.start`).

        Args:
            num_micro_batches: number of `backward` calls in a step.
            weights: the weight of each loss term.

        Raises:
            ConfigError: the optimizer needs whole parameters, but this engine has only slices of them; the
                environment contradicts `deterministic`; or `attention` cannot run here.
        """
        if self.slices_parameters and optimizer.parameter_view == "parameters":
            problem = (
                f"{optimizer.type} needs whole parameters, but {self._named()} has only slices of them; use adamw,"
                " lamb or muon, or engine.type plain, or engine.zero_stage 0 with engine.precision fp32"
            )
            raise ConfigError(format_problems("engine", [("optimizer.type", problem)]))
        if self.deterministic:
            determinism.use_deterministic_algorithms()
        self.set_matmul_precision(device)
        if self.activation_checkpointing:
            model.backbone.activation_checkpointing = True
        place: dict[str, Any] = {"device": device, "dtype": DTYPES[self.precision]}
        add_up = distributed.all_reduce_sum if self.autotune_attention else None
        tiles = set_tiles(model, **place, add_up=add_up) if self.attention == "fused" else None
        attention = choose_attention(model, self.attention, **place)
        if attention == "fused" and not (self.compile or self.slices_weights):
            choose_whole_layers(model, **place)
        engine = self.make_engine(model, optimizer, num_micro_batches=num_micro_batches, weights=weights, device=device)
        settings = {key: getattr(self, key) for key in self.layout_keys}
        engine.layout = {"engine": self.type, **settings, "micro_batches": num_micro_batches}
        if attention is not None:
            engine.layout["attention"] = attention
        if tiles:
            engine.layout["attention_tiles"] = tiles
        if self.compile:
            compile_regions(model, self.compiled_modules)
        return engine

    @abstractmethod
    def make_engine(
        self,
        model: PretrainingModel,
        optimizer: OptimizerConfig,
        *,
        num_micro_batches: int,
        weights: Mapping[str, float],
        device: torch.device,
    ) -> Engine:
        """Make the engine; the part of `build` that differs between engines. Every rank calls it."""

    def _named(self) -> str:
        return f"engine.type {self.type}"


class DeepSpeedConfig(EngineConfig):
    """DeepSpeed ZeRO, which shards training state over the ranks."""

    type: Literal["deepspeed"] = "deepspeed"
    """Kind of engine: deepspeed (ZeRO) or plain (torch only, everything replicated)."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """State that ZeRO shards over the ranks: nothing (0), optimizer state (1), also gradients (2), also weights (3).
    With bf16 and fp32 gradients, stage 1 runs as stage 2: there DeepSpeed's stage 1 has another layout and keeps an
    unsharded fp32 gradient."""
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """Options passed to DeepSpeed unchanged, such as {zero_optimization: {reduce_bucket_size: 5.0e+7}}. On GPUs, stages
    1 and 2 have other defaults than DeepSpeed's: reduce_scatter false, reduce_bucket_size 5.0e+7, and overlap_comm true
    if there are several processes."""

    layout_keys: ClassVar[tuple[str, ...]] = ("zero_stage", *EngineConfig.layout_keys)

    def problems(self) -> Iterator[Problem]:
        """Yield contradictions between keys, and options that are not passed to DeepSpeed."""
        yield from super().problems()
        if self.precision == "bf16" and self.zero_stage == 0:
            yield (
                "zero_stage",
                "0 does not support bf16: DeepSpeed's bf16 optimizer takes an extra step at initialization, so every "
                "update would be wrong; use 1 to 3, precision fp32, or type plain",
            )
        for path in _leaves(self.deepspeed):
            if reason := _refusal(path):
                yield f"deepspeed.{path}", reason

    @property
    def slices_parameters(self) -> bool:
        """True for every stage that shards something."""
        return self.zero_stage > 0

    @property
    def slices_weights(self) -> bool:
        """Stage 3 gathers the weights of a module when it is called."""
        return self.zero_stage == 3

    def make_engine(
        self,
        model: PretrainingModel,
        optimizer: OptimizerConfig,
        *,
        num_micro_batches: int,
        weights: Mapping[str, float],
        device: torch.device,
    ) -> Engine:
        from xlpretrain.engine.zero import ZeroEngine  # takes seconds to import

        return ZeroEngine(
            model,
            optimizer,
            stage=self.actual_stage,
            options=self.options(
                grad_clip=optimizer.grad_clip, num_micro_batches=num_micro_batches, on_gpus=device.type == "cuda"
            ),
            num_micro_batches=num_micro_batches,
            weights=weights,
            device=device,
            whole=self.compiled_modules if self.compile and _has_own_layers(model) else (),
        )

    @property
    def compiled_modules(self) -> ModuleKinds:
        """Stage 3 has only parts of the tied weights that an output layer uses, except while eager code reads them."""
        return (Layer,) if self.zero_stage == 3 else super().compiled_modules

    @property
    def actual_stage(self) -> int:
        """The stage that runs: 2 instead of 1 in bf16 with fp32 gradients, where DeepSpeed's stage 1 differs."""
        other = self.zero_stage == 1 and self.precision == "bf16" and self.grad_dtype == "fp32"
        return 2 if other else self.zero_stage

    def options(self, *, grad_clip: float, num_micro_batches: int, on_gpus: bool = False) -> dict[str, Any]:
        """DeepSpeed's configuration."""
        stage = self.actual_stage
        ours = options_on_gpus(stage, num_ranks=distributed.world_size()) if on_gpus else {}
        options: dict[str, Any] = {
            **self.deepspeed,
            "train_micro_batch_size_per_gpu": 1,  # only used in a product; we count the samples
            "gradient_accumulation_steps": num_micro_batches,
            "zero_optimization": {**ours, **self.deepspeed.get("zero_optimization", {}), "stage": stage},
            # At stage 0 we clip ourselves. DeepSpeed's default is to clip at 1.0.
            "gradient_clipping": grad_clip if stage > 0 else 0.0,
            "zero_allow_untested_optimizer": True,  # `OptimizerConfig.parameter_view` decides instead
            "communication_data_type": self.grad_dtype,
            "data_types": {"grad_accum_dtype": self.grad_dtype},
        }
        if self.precision == "bf16":
            options["bf16"] = {"enabled": True, "check_grad_overflow": True}
        return options

    def _named(self) -> str:
        return f"engine.zero_stage {self.zero_stage}"


class PlainConfig(EngineConfig):
    """Plain torch, with everything replicated on every rank."""

    type: Literal["plain"] = "plain"
    """Kind of engine: deepspeed (ZeRO) or plain (torch only, everything replicated)."""

    ignored_keys: ClassVar[Mapping[str, tuple[Any, ...]]] = {"zero_stage": (0, 1, 2, 3), "deepspeed": ({},)}

    def make_engine(
        self,
        model: PretrainingModel,
        optimizer: OptimizerConfig,
        *,
        num_micro_batches: int,
        weights: Mapping[str, float],
        device: torch.device,
    ) -> Engine:
        from xlpretrain.engine.plain import PlainEngine

        precision, grad_dtype = DTYPES[self.precision], DTYPES[self.grad_dtype]
        return PlainEngine(model, optimizer, precision=precision, grad_dtype=grad_dtype, weights=weights, device=device)


ENGINES: Registry[EngineConfig] = Registry("engine", EngineConfig, {"deepspeed": DeepSpeedConfig, "plain": PlainConfig})

AnyEngine = Annotated[EngineConfig, TaggedUnion(ENGINES)]
"""The config of any engine, selected by its key `type`."""


def _has_own_layers(model: PretrainingModel) -> bool:
    """True if no layer is applied twice: stage 3 reduces the gradients of modules that it gathers whole after one."""
    applied = getattr(model.backbone, "layer_to_weights", ())
    return len(set(applied)) == len(applied)


def _leaves(options: Mapping[str, Any]) -> Iterator[str]:
    for key, value in options.items():
        if key == "zero_optimization" and isinstance(value, dict):
            yield from (f"{key}.{inner}" for inner in value)
        else:
            yield key


def _refusal(path: str) -> str | None:
    if path in RESERVED_KEYS:
        return f"not allowed here: {RESERVED_KEYS[path]}"
    if path not in ALLOWED_KEYS:
        return f"not passed on to DeepSpeed; allowed options: {', '.join(sorted(ALLOWED_KEYS))}"
    return None
