"""Part `equivalence`: every path that a device takes against float64 on the CPU: losses, gradients, whole updates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import MODELS, Case, case
from benchmarks.gpu import device as of_device
from benchmarks.gpu.record import Record
from benchmarks.gpu.reference import errors, exact, gradients, implementations, use_attention, without_samples
from benchmarks.gpu.tables import clustered, single_process
from benchmarks.ours import make_batch, pretraining_model
from xlpretrain import distributed
from xlpretrain.engine import PlainConfig
from xlpretrain.engine.config import DTYPES
from xlpretrain.models.pretraining_model import Batch, PretrainingModel
from xlpretrain.optim import OPTIMIZERS

LOSS = {"fp32": 2e-6, "bf16": 2e-3}
GRADIENT = {"fp32": 1e-5, "bf16": 3e-2}
UPDATE = {"fp32": 1e-3, "bf16": 1e-1}
"""Admitted errors relative to the norm. bf16 has 8 bits: one rounding is 4e-3."""
STEPS = 3
TABLE = "Errors against float64, relative to the norm (attention as chosen for the device, then each implementation)"


def run(record: Record, *, toy: bool) -> None:
    """Compare all models, precisions, implementations of attention, and optimizers."""
    torch.set_num_threads(min(8, torch.get_num_threads()))
    torch.backends.cuda.matmul.allow_tf32 = False
    for name, model_case, keys in cases(toy):
        for precision in ("fp32", "bf16"):
            compare_gradients(record, name, replace(model_case, precision=precision), keys)
    compare_updates(record, toy)


def cases(toy: bool) -> Iterator[tuple[str, Case, dict[str, Any]]]:
    """All models, and Transformer-XL with an adaptive softmax; dropout off."""
    for model in MODELS:
        small = case(model, "tiny", rows=3, precision="fp32", threads=8).without_dropout()
        if not toy:  # heads of 64, lengths that are no multiple of 64
            sizes = {"d_model": 256, "d_ff": 512, "vocab_size": 5000, "seq_len": 200}
            small = replace(small, rows=5, mem_len=120 if small.mem_len else 0, **sizes)
        yield model, small, {}
        if model == "transformer_xl":
            cuts = (small.vocab_size // 10, small.vocab_size // 2)
            yield f"{model}, adaptive", small, {"adaptive_cutoffs": cuts, "div_val": 2}


def compare_gradients(record: Record, name: str, of: Case, keys: dict[str, Any]) -> None:
    """Compare the loss and the gradients of a case, with each implementation of attention, with and without padding."""
    model, objective = pretraining_model(of, model_keys=keys)
    model = model.to(DTYPES[of.precision]).train()
    batch, mems = clustered(make_batch(of, objective), model), _memory(model, of)
    there = pretraining_model(of, model_keys=keys)[0].to(of_device.device(), DTYPES[of.precision]).train()
    place = of_device.device()
    for what, of_batch in {"": batch, ", padded": _padded(batch)}.items():
        right = exact(model, of_batch, mems)
        found: dict[str, Any] = {}
        for implementation in (None, *implementations()):
            use_attention(there, implementation)
            label = f"{name}{what}, {of.precision}, attention {implementation or 'chosen'}"
            try:
                seen = errors(gradients(there, of_batch.to(place), mems.to(place)), right)
            except Exception as error:  # the other paths are still worth a try
                record.check(label, False, f"{type(error).__name__}: {error}"[:300])
                continue
            fine = seen.loss <= LOSS[of.precision] and seen.gradient <= GRADIENT[of.precision]
            record.check(label, fine, f"loss {seen.loss:.1e}, gradient {seen.gradient:.1e}, {seen.worst_name}")
            if implementation is None:
                found |= {"loss": seen.loss, "gradient": seen.gradient, "its worst": seen.worst}
            else:
                found[f"gradient, {implementation}"] = seen.gradient
        record.row(TABLE, case=f"{name}{what}", precision=of.precision, **found)
    use_attention(there, None)
    check_no_samples(record, f"{name}, {of.precision}", there, batch, mems)


def check_no_samples(record: Record, name: str, model: PretrainingModel, batch: Batch, mems: Tensor) -> None:
    """Check that a micro-batch without samples gives every parameter a gradient of exact zeros."""
    place = of_device.device()
    try:
        found = gradients(model, without_samples(batch).to(place), mems[:, :0].to(place))
    except Exception as error:
        record.check(f"{name}, no samples", False, f"{type(error).__name__}: {error}"[:300])
        return
    wrong = [key for key, gradient in found.gradients.items() if gradient is None or gradient.abs().max() > 0]
    record.check(f"{name}, no samples", not wrong and found.loss == 0, f"not zero: {wrong[:3]}" if wrong else "")


def compare_updates(record: Record, toy: bool) -> None:
    """Compare the weights after a few updates of the plain engine with those of a CPU, for every optimizer."""
    kinds = [(of, optimizer, p) for _, of, keys in cases(toy) if not keys for optimizer in OPTIMIZERS for p in UPDATE]
    right = _in_group("cpu", kinds)
    found = _in_group(of_device.device().type, kinds)
    for (of, optimizer, precision), here, there in zip(kinds, right, found, strict=True):
        off = _distance(there[1], here[1]) / _distance(here[1], here[0])
        record.row("Updates against the CPU's", model=of.model, optimizer=optimizer, precision=precision, error=off)
        record.check(f"{of.model}, {optimizer}, {precision}", off <= UPDATE[precision], f"{off:.1e} of the update")


def _in_group(device: str, kinds: list[tuple[Case, str, str]]) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Weights before and after the updates of each kind, in a process group of the device's backend."""
    if device == "cpu":
        with single_process():
            return [_updates(of, optimizer, precision, torch.device("cpu")) for of, optimizer, precision in kinds]
    place = distributed.init()
    try:
        return [_updates(of, optimizer, precision, place) for of, optimizer, precision in kinds]
    finally:
        distributed.shutdown()


def _updates(
    of: Case, optimizer: str, precision: str, device: torch.device
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Two micro-batches a step, the second without samples."""
    model, objective = pretraining_model(of)
    # With a large eps, since the sign of a gradient that is zero but for rounding would otherwise decide.
    settings = OPTIMIZERS[optimizer](lr=1e-2, eps=1e-3)
    config = PlainConfig(precision=precision)
    engine = config.build(model, settings, num_micro_batches=2, weights=objective.weights, device=device)
    before = {r.name: r.tensor.detach().cpu().double().clone() for r in engine.state_ranges() if r.kind == "weight"}
    batch = make_batch(of, objective)
    pair = [batch.to(device), without_samples(batch).to(device)]
    mems = [model.backbone.empty_memory(rows, of.mem_len).to(device) for rows in (of.rows, 0)]
    for _ in range(STEPS):
        engine.start_step(batch.counts)
        for number, part in enumerate(pair):
            loss, mems[number] = engine.forward(part, mems[number])
            engine.backward(loss)
        engine.update(1e-2)
    after = {r.name: r.tensor.detach().cpu().double() for r in engine.state_ranges() if r.kind == "weight"}
    return before, after


def _memory(model: PretrainingModel, of: Case) -> Tensor:
    empty = model.backbone.empty_memory(of.rows, of.mem_len)
    return torch.randn(empty.shape, generator=torch.Generator().manual_seed(1)).to(empty.dtype)


def _padded(batch: Batch) -> Batch:
    """The same batch with samples of several lengths, or memories that are valid in part."""
    inputs, rows = batch.inputs, torch.arange(len(batch.inputs.tokens))
    if inputs.attention_mask is None:
        return replace(batch, inputs=replace(inputs, mem_valid_len=inputs.mem_valid_len * rows // len(rows)))
    length = inputs.tokens.shape[1]
    valid = torch.arange(length) < length - (rows * length // (2 * len(rows)))[:, None]
    return replace(batch, inputs=replace(inputs, attention_mask=valid))


def _distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return float(torch.stack([(one[name] - other[name]).norm() for name in other]).norm())
