"""DeepSpeed ZeRO behind the engine interface: the only file that imports DeepSpeed or uses its private attributes.

Written against DeepSpeed 0.19.8. Its own checkpoints, schedulers, data loading and optimizers are not used.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Float64
from torch import Tensor, nn

from xlpretrain import distributed
from xlpretrain.engine.base import Engine, LossTermScales
from xlpretrain.engine.clipping import clip_by_global_norm
from xlpretrain.engine.state_shards import ParameterShard, Partition, fused_tensors
from xlpretrain.models.pretraining_model import Batch, Loss, PretrainingModel
from xlpretrain.optim import OptimizerConfig
from xlpretrain.optim.base import LayerwiseOptimizer
from xlpretrain.optim.groups import StateKeys, summarize_groups

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # otherwise DeepSpeed guesses, with a warning
os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed requires it, at stage 3 in every step, even without a launcher
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import deepspeed

deepspeed.utils.logger.setLevel(logging.ERROR)
# With torch 2.13 every DeepSpeed collective emits this warning, on every rank.
warnings.filterwarnings("ignore", category=FutureWarning, message=".*torch.distributed.*deprecated")
# Otherwise the first initialization on CPU compiles an unused C++ extension (50 s; an error without g++).
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

COLLECTIVES = (
    "all_gather",
    "all_gather_coalesced",
    "all_gather_into_tensor",
    "all_reduce",
    "all_reduce_coalesced",
    "broadcast",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
)
"""Methods of DeepSpeed's communication backend that ZeRO calls."""

OPTIMIZER_CLASS = {1: "DeepSpeedZeroOptimizer", 2: "DeepSpeedZeroOptimizer", 3: "DeepSpeedZeroOptimizer_Stage3"}


class _Module(nn.Module):
    """The model with outputs that DeepSpeed can traverse: it finds tensors only in tuples, lists and dicts."""

    def __init__(self, model: PretrainingModel):
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, mems: Tensor) -> tuple[dict[str, Tensor], Loss, Tensor]:
        loss, mems = self.model(batch, mems)
        return dict(loss.sums), loss, mems


class ZeroEngine(Engine):
    """ZeRO 0 to 3 in fp32, 1 to 3 in bf16."""

    libraries = ("deepspeed",)

    def __init__(
        self,
        model: PretrainingModel,
        optimizer: OptimizerConfig,
        *,
        stage: int,
        options: Mapping[str, Any],
        num_micro_batches: int,
        weights: Mapping[str, float],
        device: torch.device,
        whole: Sequence[type[nn.Module]] = (),
    ):
        """Arguments beyond those of `EngineConfig.build`:

        Args:
            stage, options: the stage that runs, and DeepSpeed's configuration (`DeepSpeedConfig`).
            whole: modules whose parameters stage 3 gathers together, so that no hook runs inside of them.
        """
        self.model = model
        self.device = device
        self._scales = LossTermScales(weights)
        self._num_micro_batches = num_micro_batches
        self._backwards = 0
        self._max_norm = optimizer.grad_clip
        self._stage = stage
        self.shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        named = dict(model.named_parameters())
        frozen = optimizer.freeze(named)
        state_keys = optimizer.trained_state_keys(self.shapes)
        self.kinds = optimizer.kinds(self.shapes)
        copies = {name: _copy_of_first_rank(parameter, device) for name, parameter in frozen.items()}
        self._frozen = [(parameter, copies[name]) for name, parameter in frozen.items()]
        names = {named[name]: name for name in state_keys}
        tensors = fused_tensors(model)
        client = optimizer.build(named)
        assert isinstance(client, LayerwiseOptimizer) == (optimizer.parameter_view == "slices"), (
            f"{optimizer.type}.parameter_view does not match the optimizer that it builds"
        )
        self.groups = summarize_groups(client, names, state_keys)
        if stage == 3 and any(isinstance(module, tuple(whole)) for module in model.modules()):
            deepspeed.utils.set_z3_leaf_modules(model, list(whole))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._engine, _, _, _ = deepspeed.initialize(
                model=_Module(model), optimizer=client, config=dict(options), dist_init_required=False
            )
        if device.type == "cpu":
            _time_collectives(deepspeed.comm.comm.cdb)
        self._zero: Any = self._engine.optimizer
        if self._stage == 0:
            layout = _layout_0(names)
            masters: dict[Tensor, StateKeys] = {parameter: state_keys[name] for parameter, name in names.items()}
        else:
            got, expected = type(self._zero).__name__, OPTIMIZER_CLASS[self._stage]
            assert got == expected, f"DeepSpeed built {got}, not {expected}: its partitions are unknown here"
            layout = _layout_3(self._zero, names) if self._stage == 3 else _layout_1_2(self._zero, names)
            masters = {master: self.groups[number].state_keys for master, number in _groups_of_masters(self._zero)}
        if self._stage in (1, 2):
            _leave_check_to_norm(self._zero)
            if device.type != "cpu":
                norm_by_group(self._zero)
        if self._stage == 3:
            for module in model.modules():
                module.register_forward_hook(_reach_into_dataclasses)
        self._state = Partition(
            list(layout),
            self._engine.basic_optimizer,
            masters,
            fused=tensors,
            replicated=self._stage == 0,
            frozen=[ParameterShard(copy, 0, name, 0, copy.numel()) for name, copy in copies.items()],
            average=optimizer.average,
        )
        self._engine.train()

    def set_num_micro_batches(self, number: int) -> None:
        super().set_num_micro_batches(number)
        self._num_micro_batches = number
        self._engine._config.gradient_accumulation_steps = number  # as `set_train_batch_size` does
        if self._stage:
            self._zero.gradient_accumulation_steps = number

    def start_step(self, counts: Mapping[str, int | float]) -> None:
        self._scales.start(counts)
        self._backwards = 0

    def forward(self, batch: Batch, mems: Float[Tensor, "L B M D"]) -> tuple[Loss, Float[Tensor, "L B M D"]]:
        sums, loss, mems = self._engine(batch, mems)
        return dataclasses.replace(loss, sums=sums), mems

    def backward(self, loss: Loss) -> None:
        self._backwards += 1
        assert self._backwards <= self._num_micro_batches, (
            f"more than {self._num_micro_batches} micro-batches in a step"
        )
        self._engine.set_gradient_accumulation_boundary(self._backwards == self._num_micro_batches)
        # DeepSpeed averages over ranks; with scale_wrt_gas=False it does not divide by the accumulation steps.
        self._engine.backward(self._scales.total(loss) * dist.get_world_size(), scale_wrt_gas=False)

    def update(self, lr: float) -> Float64[Tensor, ""]:
        assert self._backwards == self._num_micro_batches, (
            f"{self._backwards} of {self._num_micro_batches} micro-batches"
        )
        self._set_rates(lr)
        if self._stage == 0:
            return torch.tensor(self._step_0(), dtype=torch.float64)
        self._engine.step()
        if self._engine.was_step_applied():  # DeepSpeed has read the norm to decide on it
            self._state.num_updates += 1
            self._state.update_average()
        norm = self._engine.get_global_grad_norm()
        # Its own tensor, since DeepSpeed's may be a buffer that it uses again.
        return norm.detach().double() if isinstance(norm, Tensor) else torch.tensor(norm, dtype=torch.float64)

    def _step_0(self) -> float:
        """Clip and check for NaN here: at stage 0 DeepSpeed has no such check, and clips by an fp32 norm."""
        norm = clip_by_global_norm(
            [master.grad for master in self._state.master_weights if master.grad is not None], self._max_norm
        )
        if norm < float("inf"):
            self._engine.step()
            self._state.num_updates += 1
            self._state.update_average()
        else:
            self._engine.zero_grad()
        return norm

    @torch.no_grad()
    def evaluate(self, batch: Batch, mems: Float[Tensor, "L B M D"]) -> tuple[Loss, Float[Tensor, "L B M D"]]:
        self._engine.eval()
        try:
            sums, loss, mems = self._engine(batch, mems)
        finally:
            self._engine.train()
        return dataclasses.replace(loss, sums=sums), mems

    @torch.no_grad()
    def _copy_to_model(self) -> None:
        zero = self._zero
        for parameter, copy in self._frozen:
            # At stage 3 all ranks get what rank 0 writes; at the others there is nothing to gather.
            with deepspeed.zero.GatheredParameters(parameter, modifier_rank=0):
                parameter.copy_(copy)
        if self._stage in (1, 2):
            zero.update_lp_params()
        elif self._stage == 3:
            for index, master in enumerate(zero.fp32_partitioned_groups_flat):
                zero.fp16_partitioned_groups_flat[index].data.copy_(master.data)
                zero._unflatten_partitioned_parameters(index)
            # Small parameters stay gathered between steps; without this they would keep their old values.
            for parameter in zero.persistent_parameters:
                parameter.partition()
            if zero.persistent_parameters:
                zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


def _copy_of_first_rank(parameter: Tensor, device: torch.device) -> Tensor:
    """Rank 0's values of a parameter in fp32, on the CPU. Every rank must call it."""
    value = parameter.detach().to(device, copy=True)
    dist.broadcast(value, src=0)
    return value.cpu()


class _TimedWork:
    """A collective under way; waiting for it is counted."""

    def __init__(self, work: Any):
        self._work = work

    def wait(self, *arguments: Any, **keywords: Any) -> Any:
        with distributed.waiting():
            return self._work.wait(*arguments, **keywords)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


def _time_collectives(backend: Any) -> None:
    """Count the time that DeepSpeed's collectives take. On GPUs they do not make the host wait, and are left alone."""

    def timed(collective: Any) -> Any:
        @functools.wraps(collective)
        def call(*arguments: Any, **keywords: Any) -> Any:
            with distributed.waiting():
                work = collective(*arguments, **keywords)
            return None if work is None else _TimedWork(work)

        return call

    for name in COLLECTIVES:
        if name not in vars(backend):  # another engine of this process may have wrapped it
            setattr(backend, name, timed(getattr(backend, name)))


def _leave_check_to_norm(zero: Any) -> None:
    """Skip DeepSpeed's check for gradients that are not finite: `step` finds them by the norm, with the same result.

    The check takes 13 operations for each parameter and waits for the device: 2,700 of the 3,182 operations of an
    update of BERT base.
    """
    zero.check_overflow = lambda partition_gradients=True: None


def norm_by_group(zero: Any) -> None:
    """Compute the gradient norm of stages 1 and 2 by parameter group instead of by parameter, if a group is flat.

    In float64 like DeepSpeed's, but without a copy in float64. Not on CPUs, where past runs have the sum in the order
    of parameters.
    """
    by_parameter = zero.get_grad_norm_direct

    def by_group(gradients: Any, parameters: Any, norm_type: float = 2) -> Tensor:
        flat = getattr(gradients, "flat_partition", None)
        if flat is not None:
            gradients, parameters = [torch.linalg.vector_norm(flat, dtype=torch.float64)], parameters[:1]
        norm: Tensor = by_parameter(gradients, parameters, norm_type)
        return norm

    zero.get_grad_norm_direct = by_group


def _layout_0(names: Mapping[nn.Parameter, str]) -> Iterator[ParameterShard]:
    for parameter, name in names.items():
        yield ParameterShard(parameter, 0, name, 0, parameter.numel())


def _layout_1_2(zero: Any, names: Mapping[nn.Parameter, str]) -> Iterator[ParameterShard]:
    """Each group's parameters are concatenated (round-robin if enabled), padded at the end, and split evenly."""
    for group, parameters in enumerate(zero.round_robin_bit16_groups):
        size = zero.partition_size[group]
        low = dist.get_rank(zero.real_dp_process_group[group]) * size
        for parameter, begin in zip(parameters, zero.round_robin_bit16_offsets[group], strict=True):
            start, stop = max(begin, low), min(begin + parameter.numel(), low + size)
            if start < stop:
                master = zero.single_partition_of_fp32_groups[group]
                yield ParameterShard(master, start - low, names[parameter], start - begin, stop - begin)


def _layout_3(zero: Any, names: Mapping[nn.Parameter, str]) -> Iterator[ParameterShard]:
    """Each parameter is split evenly by itself, with the last part padded (initially with uninitialised memory)."""
    for master, parameters in zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True):
        offset = 0
        for parameter in parameters:
            size = parameter.partition_numel()
            low = dist.get_rank(parameter.ds_process_group) * size
            start, stop = low, min(low + size, parameter.ds_numel)
            if start < stop:
                yield ParameterShard(master, offset, names[parameter], start, stop)
            offset += size


def _groups_of_masters(zero: Any) -> Iterator[tuple[Tensor, int]]:
    """Each master with its group's index: at stage 3 a group has several masters (sub-groups), otherwise one."""
    if hasattr(zero, "sub_group_to_group_id"):
        for number, master in enumerate(zero.fp32_partitioned_groups_flat):
            yield master, zero.sub_group_to_group_id[number]
    else:
        for number, master in enumerate(zero.single_partition_of_fp32_groups):
            yield master, number


def _reach_into_dataclasses(module: Any, inputs: Any, output: Any) -> Any:
    """Forward hook for stage 3, which gathers a module's weights when the backward pass reaches the module's outputs.

    DeepSpeed finds outputs only in tuples and dicts. Without this hook, weights that a module with a dataclass output
    uses directly (a tied embedding in the head) would not be gathered in the backward pass.
    """

    def apply(value: Any) -> Any:
        if isinstance(value, Tensor):
            return module.pre_bwd_fn.apply(value) if value.requires_grad else value
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return dataclasses.replace(
                value, **{f.name: apply(getattr(value, f.name)) for f in dataclasses.fields(value)}
            )
        if isinstance(value, Mapping):
            return {key: apply(item) for key, item in value.items()}
        return value

    def visit(value: Any) -> Any:
        return apply(value) if dataclasses.is_dataclass(value) else value

    return tuple(visit(item) for item in output) if type(output) is tuple else visit(output)
