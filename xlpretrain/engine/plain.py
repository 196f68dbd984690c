"""Plain torch on any number of ranks: replicated state, one gradient all-reduce per step. The reference for `zero`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
import torch.distributed as dist
from jaxtyping import Float, Float64
from torch import Tensor

from xlpretrain import distributed
from xlpretrain.engine.base import Engine, LossTermScales
from xlpretrain.engine.clipping import clip_by_global_norm, clip_on_device
from xlpretrain.engine.state_shards import ParameterShard, Partition, fused_tensors
from xlpretrain.models.pretraining_model import Batch, Loss, PretrainingModel
from xlpretrain.optim import OptimizerConfig
from xlpretrain.optim.groups import summarize_groups


class PlainEngine(Engine):
    """Weights in `precision`, master weights and optimizer state in fp32, gradients summed in `grad_dtype`."""

    def __init__(
        self,
        model: PretrainingModel,
        optimizer: OptimizerConfig,
        *,
        precision: torch.dtype,
        grad_dtype: torch.dtype,
        weights: Mapping[str, float],
        device: torch.device,
    ):
        self.model = model.to(device).train()
        self.device = device
        self._scales = LossTermScales(weights)
        self._max_norm = optimizer.grad_clip
        named = dict(model.named_parameters())
        frozen = optimizer.freeze(named)
        self.shapes = {name: parameter.shape for name, parameter in named.items()}
        state_keys = optimizer.trained_state_keys(self.shapes)
        self.kinds = optimizer.kinds(self.shapes)
        if dist.get_world_size() > 1:
            for parameter in named.values():
                dist.broadcast(parameter.data, src=0)
        masters = dict(named)
        if precision != torch.float32:
            masters = {name: torch.nn.Parameter(p.detach().clone()) for name, p in named.items()}
            for parameter in named.values():
                parameter.data = parameter.data.to(precision)
        self._frozen = [(parameter, masters[name]) for name, parameter in frozen.items()]
        self._parameters = [named[name] for name in state_keys]
        self._masters = [masters[name] for name in state_keys]

        self._flat = torch.zeros(sum(p.numel() for p in self._parameters), dtype=grad_dtype, device=device)
        self._gradients = self._views(self._flat)
        self._unwritten: set[int] = set()
        for index, parameter in enumerate(self._parameters):
            parameter.register_post_accumulate_grad_hook(partial(self._take, index))  # type: ignore[no-untyped-call]
        self._optimizer = optimizer.build(masters)
        # torch's convention for optimizers that take `found_inf`, and with 1 change nothing.
        takes_found_inf = getattr(self._optimizer, "_step_supports_amp_scaling", False)
        self._decides_on_device = device.type != "cpu" and takes_found_inf
        self.groups = summarize_groups(self._optimizer, {masters[name]: name for name in state_keys}, state_keys)
        shards = {name: ParameterShard(master, 0, name, 0, master.numel()) for name, master in masters.items()}
        self._state = Partition(
            [shards[name] for name in state_keys],
            self._optimizer,
            {masters[name]: keys for name, keys in state_keys.items()},
            fused=fused_tensors(model),
            replicated=True,
            frozen=[shards[name] for name in frozen],
            average=optimizer.average,
        )

    def start_step(self, counts: Mapping[str, int | float]) -> None:
        self._scales.start(counts)
        self._unwritten = set(range(len(self._parameters)))

    def forward(self, batch: Batch, mems: Float[Tensor, "L B M D"]) -> tuple[Loss, Float[Tensor, "L B M D"]]:
        loss, mems = self.model(batch, mems)
        return loss, mems

    def backward(self, loss: Loss) -> None:
        self._scales.total(loss).backward()  # type: ignore[no-untyped-call]

    def _take(self, index: int, parameter: Tensor) -> None:
        """Accumulate a gradient as soon as it is computed, so that few are held in the weights' data type."""
        if parameter.grad is None:
            return
        if index in self._unwritten:
            self._unwritten.remove(index)
            self._gradients[index].copy_(parameter.grad)
        else:
            on_cpu = self.device.type == "cpu"  # where a sum of mixed types takes five times as long
            self._gradients[index].add_(parameter.grad.to(self._flat.dtype) if on_cpu else parameter.grad)
        parameter.grad = None

    def update(self, lr: float) -> Float64[Tensor, ""]:
        for index in self._unwritten:
            self._gradients[index].zero_()
        if dist.get_world_size() > 1:
            with distributed.waiting():
                dist.all_reduce(self._flat)
        flat = self._flat.float()
        gradients = self._views(flat)
        self._set_rates(lr)
        for master, gradient in zip(self._masters, gradients, strict=True):
            master.grad = gradient
        norm = self._step_on_device(flat) if self._decides_on_device else self._step_on_host(gradients)
        for master in self._masters:
            master.grad = None
        return norm

    def _step_on_host(self, gradients: list[Tensor]) -> Float64[Tensor, ""]:
        norm = clip_by_global_norm(gradients, self._max_norm)
        if norm < float("inf"):
            self._optimizer.step()
            self._state.num_updates += 1
            self._state.update_average()
            self._copy_masters()
        return torch.tensor(norm, dtype=torch.float64)

    def _step_on_device(self, flat: Float[Tensor, " N"]) -> Float64[Tensor, ""]:
        """Clip and update without reading the norm: the optimizer itself changes nothing if it is not finite."""
        clipped = clip_on_device(flat, self._max_norm)
        self._optimizer.found_inf = clipped.found_inf  # type: ignore[attr-defined]
        self._optimizer.step()
        self._optimizer.found_inf = None  # type: ignore[attr-defined]
        self._state.num_updates = self._state.num_updates + clipped.is_finite
        self._state.update_average(clipped.is_finite)
        self._copy_masters()
        return clipped.norm

    def _views(self, flat: Float[Tensor, " N"]) -> list[Tensor]:
        """Views of a flat tensor in the parameters' shapes."""
        parts = torch.split(flat, [parameter.numel() for parameter in self._parameters])
        return [part.view_as(parameter) for part, parameter in zip(parts, self._parameters, strict=True)]

    @torch.no_grad()
    def evaluate(self, batch: Batch, mems: Float[Tensor, "L B M D"]) -> tuple[Loss, Float[Tensor, "L B M D"]]:
        self.model.eval()
        try:
            loss, mems = self.model(batch, mems)
        finally:
            self.model.train()
        return loss, mems

    @torch.no_grad()
    def _copy_to_model(self) -> None:
        self._copy_masters()
        for parameter, master in self._frozen:
            parameter.copy_(master)  # of itself in fp32

    @torch.no_grad()
    def _copy_masters(self) -> None:
        if self._parameters[0] is not self._masters[0]:
            torch._foreach_copy_(tuple(self._parameters), tuple(self._masters))
