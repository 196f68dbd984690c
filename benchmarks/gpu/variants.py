"""Parts `zero`, `compile` and `bits`: the same step with other settings of the engine: what they cost or gain."""

from __future__ import annotations

import gc
import time
from dataclasses import replace
from typing import Any

import torch

from benchmarks.cases import MODELS, Case, case
from benchmarks.gpu.device import device, median_ms, peak, times_s
from benchmarks.gpu.record import Record
from benchmarks.gpu.reference import errors, gradients
from benchmarks.ours import build, build_engine, make_batch, pretraining_model
from xlpretrain import distributed
from xlpretrain.engine import PlainConfig
from xlpretrain.engine.compiled import compile_regions
from xlpretrain.engine.train_step import train_step

ZERO = {
    "plain": {},
    "plain, bf16 gradients": {"grad_dtype": "bf16"},
    "ZeRO-1": {"type": "deepspeed", "zero_stage": 1},
    "ZeRO-2": {"type": "deepspeed", "zero_stage": 2},
    "ZeRO-2, bf16 gradients": {"type": "deepspeed", "zero_stage": 2, "grad_dtype": "bf16"},
    "ZeRO-3": {"type": "deepspeed", "zero_stage": 3},
}
COMPILED = ("bert", "transformer_xl", "albert", "xlnet")
COMPILED_LOSS = 1e-5


def zero(record: Record, *, toy: bool) -> None:
    """Time BERT's step with each ZeRO stage, beside plain."""
    of = _case("bert", toy)
    plain_ms = 0.0
    for name, keys in ZERO.items():
        if toy and "bf16" in name:
            continue
        try:
            step, _ = build(of, engine_keys=keys)
            seconds = times_s({name: step}, repeats=2 if toy else 6, warmup=3)[name]
        except Exception as error:
            record.check(f"{name} runs", False, f"{type(error).__name__}: {error}"[:300])
            continue
        plain_ms = plain_ms or median_ms(seconds)
        record.row(
            f"BERT {of.rows} x {of.seq_len}, bf16, one process",
            engine=name,
            ms=median_ms(seconds),
            **{"plain steps": median_ms(seconds) / plain_ms, "peak, GiB": _peak_gib()},
        )
        del step
        _clear()
    distributed.shutdown()


def compiled(record: Record, *, toy: bool) -> None:
    """Time the first and the later steps with and without engine.compile; check the loss; count recompilations."""
    best = peak("bf16", toy=toy)
    for model in COMPILED[:1] if toy else COMPILED:
        of = _case(model, toy)
        _check_loss(record, replace(of, rows=2, precision="fp32").without_dropout())
        for on in (False, True):
            torch._dynamo.reset()
            step, flops = build(of, engine_keys={"compile": on})
            started = time.monotonic()
            step()
            _wait()
            first = time.monotonic() - started
            step()
            seconds = times_s({"step": step}, repeats=2 if toy else 6, warmup=2)["step"]
            record.row(
                "engine.compile, bf16",
                case=f"{model} {of.rows} x {of.seq_len} + {of.mem_len}",
                compile=on,
                ms=median_ms(seconds),
                **{
                    "first step, s": first,
                    "share of peak": f"{100 * flops / (median_ms(seconds) / 1000) / best:.1f} %",
                    "peak, GiB": _peak_gib(),
                    "graph breaks": sum(torch._dynamo.utils.counters["graph_break"].values()) if on else "",
                    "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"] if on else "",
                },
            )
            torch._dynamo.utils.counters.clear()
            del step
            _clear()
    distributed.shutdown()


def deterministic(record: Record, *, toy: bool) -> None:
    """Check that two trainings of each model are equal in every bit with engine.deterministic; time what it costs."""
    if "deterministic" not in PlainConfig.model_fields:
        record.note("this version has no engine.deterministic")
        return
    PlainConfig(deterministic=True).prepare_process()
    cases = [_case(model, toy) for model in MODELS]
    before = {of.model: _time_ms(of, {}, toy) for of in cases}  # the setting holds for the rest of the process
    for of in cases:
        keys = {"deterministic": True}
        found = [_weights_after(of, keys) for _ in range(2)]
        differing = [name for name in found[0] if not torch.equal(found[0][name], found[1][name])]
        record.check(f"{of.model}: two trainings are equal in every bit", not differing, ", ".join(differing[:3]))
        after = _time_ms(of, keys, toy)
        record.row(
            "engine.deterministic, bf16",
            case=f"{of.model} {of.rows} x {of.seq_len} + {of.mem_len}",
            **{
                "false, ms": before[of.model],
                "true, ms": after,
                "cost": f"{100 * (after / before[of.model] - 1):.1f} %",
            },
        )
    distributed.shutdown()


def _time_ms(of: Case, keys: dict[str, Any], toy: bool) -> float:
    step, _ = build(of, engine_keys=keys)
    found = median_ms(times_s({"step": step}, repeats=2 if toy else 6, warmup=3)["step"])
    del step
    _clear()
    return found


def _weights_after(of: Case, keys: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights and the optimizer's state after five steps with dropout."""
    engine, batch, _ = build_engine(of, engine_keys=keys)
    memory = [engine.model.backbone.empty_memory(of.rows, of.mem_len).to(engine.device)]
    for number in range(5):
        memory = train_step(engine, [batch], memory, counts=batch.counts, lr=1e-3, seed=number).memory
    found = {f"{shard.kind} of {shard.name}": shard.tensor.detach().cpu().clone() for shard in engine.state_ranges()}
    del engine
    _clear()
    return found


def _check_loss(record: Record, of: Case) -> None:
    """Check that compiled layers and the compiled loss give the loss and gradients of the eager one, in fp32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    model, objective = pretraining_model(replace(of, num_layers=2))
    model = model.to(device())
    batch = make_batch(of, objective).to(device())
    mems = model.backbone.empty_memory(of.rows, of.mem_len)
    right = gradients(model, batch, mems)
    compile_regions(model, PlainConfig().compiled_modules)
    seen = errors(gradients(model, batch, mems), right)
    fine = seen.loss <= COMPILED_LOSS and seen.gradient <= 10 * COMPILED_LOSS
    record.check(f"{of.model}, compiled, fp32", fine, f"loss {seen.loss:.1e}, gradient {seen.gradient:.1e} off eager")


def _case(model: str, toy: bool) -> Case:
    return case(model, "tiny" if toy else "base", rows=2 if toy else 32, precision="bf16", threads=1)


def _peak_gib() -> Any:
    if not torch.cuda.is_available():
        return ""
    peak_bytes = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return peak_bytes / 2**30


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _clear() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
