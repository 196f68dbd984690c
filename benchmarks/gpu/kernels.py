"""Part `kernels`: every implementation of attention in a stack of layers: error against float64, then time and memory.

The compiled plain formula is beside them: what torch makes of it without a kernel of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.cases import Case, case
from benchmarks.gpu.device import device, median_ms, times_s
from benchmarks.gpu.record import Record
from benchmarks.gpu.reference import errors, exact, gradients, implementations, use_attention
from benchmarks.ours import make_batch, pretraining_model
from xlpretrain.engine.config import DTYPES
from xlpretrain.models.backbone import BackboneInput
from xlpretrain.models.pretraining_model import Batch, PretrainingModel

GRADIENT = {"fp32": 1e-5, "bf16": 3e-2}
LAYERS = 2
SHAPES = (
    ("transformer_xl", "base"),
    ("xlnet", "base"),
    ("bert", "base"),
    ("transformer_xl", "large"),
    ("xlnet", "large"),
)


def run(record: Record, *, toy: bool) -> None:
    """Check the errors of the base models at full length, time all, and last the compiled plain formula."""
    torch.set_num_threads(min(8, torch.get_num_threads()))
    torch.backends.cuda.matmul.allow_tf32 = False
    for of in cases(toy, rows=1):
        if of.shape == "base":
            for precision in ("fp32", "bf16"):
                check_errors(record, replace(of.without_dropout(), precision=precision))
    timed, repeats = list(cases(toy, rows=2 if toy else 32)), 2 if toy else 10
    for of in timed:
        measure(record, of, repeats=repeats)
    for of in timed[:2]:
        measure(record, of, repeats=repeats, compiled=True)


def cases(toy: bool, *, rows: int) -> Iterator[Case]:
    """Two layers of each model at its published size, relative attention first."""
    for model, shape in SHAPES[:3] if toy else SHAPES:
        of = case(model, "tiny" if toy else shape, rows=rows, precision="bf16", threads=8)
        yield replace(of, num_layers=LAYERS, shape=shape, rows=max(1, rows // 2) if shape == "large" else rows)


def check_errors(record: Record, of: Case) -> None:
    """Check loss and gradients of each implementation against float64 on the CPU."""
    model, batch, mems = _prepared(of)
    right = exact(model, batch, mems)
    model.to(device())
    found = {}
    for name in implementations():
        use_attention(model, name)
        label = f"{of.model} {of.shape}, {of.precision}, {name}"
        try:
            seen = errors(gradients(model, batch.to(device()), mems.to(device())), right)
        except Exception as error:
            record.check(label, False, f"{type(error).__name__}: {error}"[:300])
            continue
        found[name] = seen.gradient
        record.check(label, seen.gradient <= GRADIENT[of.precision], f"gradient {seen.gradient:.1e}, {seen.worst_name}")
    record.row(
        f"Error of the gradient against float64, relative to its norm ({LAYERS} layers, one sample)",
        model=f"{of.model} {of.shape} {of.seq_len} + {of.mem_len}",
        precision=of.precision,
        **found,
    )


def measure(record: Record, of: Case, *, repeats: int, compiled: bool = False) -> None:
    """Time the forward and backward passes of the layers with each implementation in turn, or of the compiled plain."""
    model, batch, mems = _prepared(of)
    model, mems = model.to(device()), mems.to(device())
    inputs = batch.to(device()).inputs.with_memory_of(of.mem_len)
    calls: dict[str, Callable[[], object]] = {}
    if compiled:
        calls["plain, compiled"] = _compiled(of, inputs, mems)
    else:
        calls = {name: _step_of(model, name, inputs, mems) for name in implementations()}
    memory = {}
    for name, call in list(calls.items()):
        try:
            memory[name] = _peak_bytes(call)
        except Exception as error:
            record.note(f"{of.model} {of.shape}: {name} does not run: {type(error).__name__}: {str(error)[:200]}")
            del calls[name]
    times = times_s(calls, repeats=repeats)
    for name in calls:
        record.row(
            f"Time of {LAYERS} layers, forward and backward, {of.precision}, dropout on",
            model=f"{of.model} {of.shape} {of.rows} x {of.seq_len} + {of.mem_len}",
            attention=name,
            ms=median_ms(times[name]),
            GiB=memory[name] / 2**30 if memory[name] else "",
        )
    torch._dynamo.reset()


def _prepared(of: Case) -> tuple[PretrainingModel, Batch, Tensor]:
    model, objective = pretraining_model(of)
    model = model.to(DTYPES[of.precision]).train()
    empty = model.backbone.empty_memory(of.rows, of.mem_len)
    mems = torch.randn(empty.shape, generator=torch.Generator().manual_seed(1)).to(empty.dtype)
    return model, make_batch(of, objective), mems


def _step_of(model: PretrainingModel, name: str, inputs: BackboneInput, mems: Tensor) -> Callable[[], None]:
    queries = inputs.tokens if inputs.target_positions is None else inputs.target_positions
    shape = (*queries.shape, mems.shape[-1])
    towards = torch.randn(shape, device=device()).to(mems.dtype)  # the sum of a norm's outputs has no gradient

    def step() -> None:
        use_attention(model, name)
        hidden, _ = model.backbone(inputs, mems)
        (hidden.tokens if hidden.predictions is None else hidden.predictions).backward(towards)

    return step


def _compiled(of: Case, inputs: BackboneInput, mems: Tensor) -> Callable[[], None]:
    model, *_ = _prepared(of)
    model.to(device())
    # On a CPU without generated code, which takes too long for a rehearsal.
    model.backbone.compile(backend="inductor" if torch.cuda.is_available() else "aot_eager")
    return _step_of(model, "plain", inputs, mems)


def _peak_bytes(call: Callable[[], object]) -> int:
    call()
    if not torch.cuda.is_available():
        return 0
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before
