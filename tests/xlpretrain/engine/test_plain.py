"""Updates that the device decides on: tried with CPU tensors, and counted on the meta device.

Modules: plain.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from reference_lamb import gated_model
from tiny_model import Training, training, whole_state
from two_rules import TWO_RULES

from benchmarks.cases import MODELS, Case, case
from benchmarks.ours import make_batch, pretraining_model
from xlpretrain import distributed
from xlpretrain.engine import PlainConfig
from xlpretrain.engine.plain import PlainEngine
from xlpretrain.engine.train_step import train_step
from xlpretrain.optim import AdamWConfig, LambConfig, OptimizerConfig
from xlpretrain.planning.device_work import counted

META = torch.device("meta")
OPTIMIZERS = {
    "adamw": AdamWConfig(grad_clip=0.5),
    "adamw unclipped": AdamWConfig(grad_clip=0.0),
    "bert's adamw": AdamWConfig(grad_clip=0.5, bias_correction=False),
    "lamb": LambConfig(grad_clip=0.5),
    "lamb, bounded and corrected": LambConfig(grad_clip=0.5, bias_correction=True, max_trust_ratio=1.5),
}


@pytest.fixture(scope="module", autouse=True)
def group() -> Iterator[None]:
    distributed.init()
    yield
    distributed.shutdown()


def _run(config: PlainConfig, optimizer: OptimizerConfig, *, on_device: bool) -> Training:
    """A run whose engine decides as on a device, though its tensors are on the CPU."""
    run = training(config, num_streams=5, num_micro_batches=2, optimizer=optimizer, model=gated_model(fused=True))
    assert isinstance(run.engine, PlainEngine)
    run.engine._decides_on_device = on_device
    return run


@pytest.mark.parametrize("config", [PlainConfig(precision="fp32"), PlainConfig(), PlainConfig(grad_dtype="bf16")])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_device_and_host_make_the_same_updates_and_skip_the_same(name: str, config: PlainConfig) -> None:
    host, device = (_run(config, OPTIMIZERS[name], on_device=on_device) for on_device in (False, True))
    for run in (host, device):
        run.steps(0, 2)
    before = whole_state(device.engine)
    counters = [state["step"].item() for state in device.engine._state.optimizer.state.values()]
    run_norms = [run.steps(2, 3, poisoned=2)[0][1] for run in (host, device)]
    assert str(run_norms) == "[nan, nan]"
    after = whole_state(device.engine)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert counters == [state["step"].item() for state in device.engine._state.optimizer.state.values()]
    assert device.engine.num_updates == host.engine.num_updates == 2

    tolerance = 1e-5 if config.precision == "fp32" else 2e-2
    for (loss, norm), (expected, expected_norm) in zip(device.steps(3, 6), host.steps(3, 6), strict=True):
        assert (loss, norm) == pytest.approx((expected, expected_norm), rel=tolerance)
    assert device.engine.num_updates == host.engine.num_updates == 5
    found, right = whole_state(device.engine), whole_state(host.engine)
    for key, values in right.items():
        assert float((found[key] - values).norm()) <= 10 * tolerance * float(values.norm()) + 1e-6, key


def test_a_loaded_state_counts_its_updates_on() -> None:
    run = _run(PlainConfig(precision="fp32"), OPTIMIZERS["adamw"], on_device=True)
    state = {(r.kind, r.name): r.tensor.clone() for r in run.engine.state_ranges()}
    run.engine.load_state(lambda kind, name, start, stop: state[kind, name][start:stop], updates=7)
    run.steps(0, 2)
    assert run.engine.num_updates == 9


def test_an_optimizer_that_cannot_skip_is_asked_only_to_make_updates() -> None:
    """On a device the host then reads the norm."""
    with META:
        model, objective = pretraining_model(replace(_base("bert", "fp32"), num_layers=2))
    engine = PlainConfig(precision="fp32").build(
        model, TWO_RULES.model_copy(update={"groups": ()}), num_micro_batches=1, weights=objective.weights, device=META
    )
    with pytest.raises(RuntimeError, match="meta"):
        engine.update(1e-3)


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("adamw", "bf16"),
        ("lamb", "bf16"),
        *(pytest.param(name, "fp32", marks=pytest.mark.full) for name in OPTIMIZERS),
        *(pytest.param(name, "bf16", marks=pytest.mark.full) for name in OPTIMIZERS if name not in ("adamw", "lamb")),
    ],
)
def test_an_update_of_bert_base_is_at_most_30_operations(name: str, precision: str) -> None:
    with META:
        model, objective = pretraining_model(_base("bert", precision))
    engine = PlainConfig(precision=precision).build(
        model, OPTIMIZERS[name], num_micro_batches=2, weights=objective.weights, device=META
    )
    engine.update(1e-3)
    with counted() as operations:
        engine.update(1e-3)
    assert operations.total <= (30 if "lamb" in name else 20), operations.counts
    assert operations.from_cpu == []


@pytest.mark.parametrize(
    ("model", "name", "precision"),
    [
        *((model, "adamw", "bf16") for model in MODELS),
        *(pytest.param(model, "adamw", "fp32", marks=pytest.mark.full) for model in MODELS),
        *(pytest.param(model, "lamb", "bf16", marks=pytest.mark.full) for model in MODELS),
        *(pytest.param(model, "lamb", "fp32", marks=pytest.mark.full) for model in MODELS),
    ],
)
def test_a_whole_step_neither_waits_nor_touches_a_cpu_tensor(model: str, name: str, precision: str) -> None:
    """Base shapes, but of two layers: layers are alike. A wait raises on the meta device."""
    of = replace(_base(model, precision), num_layers=2)
    with META:
        built, objective = pretraining_model(of)
    engine = PlainConfig(precision=precision).build(
        built, OPTIMIZERS[name], num_micro_batches=2, weights=objective.weights, device=META
    )
    batch = make_batch(of, objective).to(META)
    memory = [engine.model.backbone.empty_memory(of.rows, of.mem_len) for _ in range(2)]
    counts = {term: 2 * count for term, count in batch.counts.items()}
    with counted() as operations:
        train_step(engine, [batch, batch], memory, counts=counts, lr=1e-3, seed=1)
    assert operations.from_cpu == []
    assert operations.counts["_fused_adamw_"] == 2
    assert operations.counts["where"] >= 2


def _base(model: str, precision: str) -> Case:
    return case(model, "base", rows=32, precision=precision, threads=1)
