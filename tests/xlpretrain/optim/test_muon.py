"""Muon equals torch's in every bit on whole matrices, and tells matrices apart wherever they lie.

Modules: muon.py, whole_tensors.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from reference_lamb import Gate
from tiny_model import MEMORY, WEIGHTS, rate, tiny_batch, tiny_model, training
from torch import nn

from xlpretrain import distributed, schema
from xlpretrain.engine.base import LossTermScales
from xlpretrain.engine.config import PlainConfig
from xlpretrain.engine.state_shards import fused_tensors
from xlpretrain.errors import ConfigError
from xlpretrain.optim import AdamWConfig, AnyOptimizer, MuonConfig
from xlpretrain.optim.base import TensorSlice
from xlpretrain.optim.muon import AdamWRule, orthogonalize
from xlpretrain.optim.whole_tensors import owners


class Holder(schema.Section):
    optimizer: AnyOptimizer = AdamWConfig()


@pytest.fixture
def one_process() -> Iterator[None]:
    distributed.init()
    yield
    distributed.shutdown()


def _matrix(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _slices(parameters: list[nn.Parameter]) -> dict[torch.Tensor, list[TensorSlice]]:
    return {p: [TensorSlice(number, 0, p.numel(), 0, tuple(p.shape))] for number, p in enumerate(parameters)}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"nesterov": False, "weight_decay": 0.0, "ns_steps": 3},
        {"adjust_lr_fn": "match_rms_adamw", "momentum": 0.8, "eps": 1e-3, "weight_decay": 0.3},
    ],
)
def test_matrices_are_updated_as_by_torch_in_every_bit(options: dict[str, Any]) -> None:
    shapes = [(48, 33), (33, 48), (64, 64), (1, 7), (7, 1)]
    ours, theirs = ([nn.Parameter(_matrix(*shape)) for shape in shapes] for _ in range(2))
    named = {f"backbone.layers.0.{number}": parameter for number, parameter in enumerate(ours)}
    optimizer = MuonConfig(lr=0.02, **{"weight_decay": 0.1, **options}).build(named)
    optimizer.set_parameter_slices(_slices(ours), num_tensors=len(ours), group=None)
    optimizer.state.update({parameter: {"momentum_buffer": torch.zeros_like(parameter)} for parameter in ours})
    expected = torch.optim.Muon(theirs, lr=0.02, **{"weight_decay": 0.1, **options})
    for step in range(5):
        for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            a.grad = _matrix(*a.shape, seed=10 * step + number)
            b.grad = a.grad.clone()
        optimizer.step()
        expected.step()
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b)
            assert torch.equal(optimizer.state[a]["momentum_buffer"], expected.state[b]["momentum_buffer"])


def test_a_run_under_plain_is_one_of_torchs_muon_and_adamw_in_every_bit(one_process: None) -> None:
    optimizer = MuonConfig(lr=3e-3, grad_clip=0.0, matrices=("*.mix.*",), adamw=AdamWRule(lr=1.5e-3))
    run = training(PlainConfig(precision="fp32"), num_streams=5, num_micro_batches=1, optimizer=optimizer)
    twin, scales = tiny_model(), LossTermScales(WEIGHTS)
    others = {name: p for name, p in twin.named_parameters() if name != "backbone.mix.weight"}
    muon = torch.optim.Muon([twin.backbone.mix.weight], weight_decay=0.01)
    adamw = AdamWConfig(lr=1.0).build(others)
    mems = twin.backbone.empty_memory(5, MEMORY)
    for step in range(6):
        run.steps(step, step + 1)
        batch = tiny_batch(step, range(5))
        scales.start(batch.counts)
        loss, mems = twin(batch, mems)
        scales.total(loss).backward()
        for given, factor in ((muon, 1.0), (adamw, 0.5)):
            for group in given.param_groups:
                group["lr"] = rate(step) * factor
            given.step()
            given.zero_grad()
    for (name, ours), theirs in zip(run.engine.model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (16, 16)])
def test_orthogonalized_matrices_have_singular_values_near_one_and_the_same_singular_vectors(
    shape: tuple[int, int],
) -> None:
    matrix = _matrix(*shape).double()
    found = orthogonalize(matrix, steps=5, eps=1e-7)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    assert s.max() / s.min() > 3
    values = u.T @ found @ v.T
    assert torch.allclose(values, values.diag().diag(), atol=1e-9)
    assert values.diag().min() > 0.6 and values.diag().max() < 1.3
    assert torch.allclose(orthogonalize(1e6 * matrix.float(), steps=5, eps=1e-7).double(), found, atol=1e-4)
    assert orthogonalize(torch.zeros(3, 2), steps=5, eps=1e-7).count_nonzero() == 0


def test_fused_matrices_are_orthogonalized_one_by_one() -> None:
    weight = _matrix(9, 4) * torch.tensor([[1.0], [9], [0.1]] * 3)
    fused, separate = Gate(weight, fused=True), Gate(weight, fused=False)
    for gate in (fused, separate):
        named = {name: parameter for name, parameter in gate.named_parameters() if name != "scale"}
        slices = {
            named[name]: [TensorSlice(s.first + i, i * s.size, s.size, 0, s.shape) for i in range(s.count)]
            for name, s in fused_tensors(gate).items()
            if name in named
        }
        optimizer = MuonConfig(lr=0.1, matrices=("weights.*",)).build(named)
        optimizer.set_parameter_slices(slices, num_tensors=4, group=None)
        optimizer.state.update({parameter: {"momentum_buffer": torch.zeros_like(parameter)} for parameter in slices})
        gate(_matrix(5, 4, seed=1)).square().sum().backward()
        optimizer.step()
    assert torch.equal(fused.weights[0], torch.cat(list(separate.weights)))
    step = (fused.weights[0] - weight).detach()
    assert torch.linalg.svdvals(step).max() > 1.2 * torch.linalg.svdvals(step[:3]).max()  # together they are not


def test_padding_is_neither_read_nor_written() -> None:
    matrix = nn.Parameter(_matrix(4, 3))
    flat = nn.Parameter(torch.cat([torch.tensor([math.inf]), matrix.detach().view(-1), torch.tensor([math.nan])]))
    slices = {matrix: [TensorSlice(0, 0, 12, 0, (4, 3))], flat: [TensorSlice(0, 1, 12, 0, (4, 3))]}
    optimizer = MuonConfig().build({"backbone.layers.0.weight": matrix})
    for master in (matrix, flat):
        optimizer.param_groups[0]["params"] = [master]
        optimizer.set_parameter_slices({master: slices[master]}, num_tensors=1, group=None)
        optimizer.state[master] = {"momentum_buffer": torch.zeros_like(master)}
        gradient = _matrix(4, 3, seed=1)
        master.grad = gradient if master is matrix else torch.cat([torch.ones(1), gradient.view(-1), torch.ones(1)])
        optimizer.step()
    assert torch.equal(flat[1:-1].view(4, 3), matrix)
    assert flat[0].isinf() and flat[-1].isnan()


def test_matrices_of_layers_have_momentum_and_everything_else_has_moments() -> None:
    shapes = {
        "backbone.embedding.weight": (7, 4),
        "backbone.layers.0.query.weight": (4, 4),
        "backbone.layers.0.norm.weight": (4,),
        "backbone.layers.0.segments": (2, 2, 4),
        "head.weight": (7, 4),
    }
    config = MuonConfig(lr=0.02, adamw=AdamWRule(lr=0.005), layer_decay=0.5)
    optimizer = config.build({name: nn.Parameter(torch.ones(shape)) for name, shape in shapes.items()})
    found = {n: (g["state_keys"][0], g["lr_factor"]) for g in optimizer.param_groups for n in g["names"]}
    assert found == {
        "backbone.embedding.weight": ("exp_avg", 0.0625),
        "backbone.layers.0.query.weight": ("momentum_buffer", 0.5),
        "backbone.layers.0.norm.weight": ("exp_avg", 0.125),
        "backbone.layers.0.segments": ("exp_avg", 0.125),
        "head.weight": ("exp_avg", 0.25),
    }


def test_owners_share_the_work_evenly_and_are_the_same_everywhere() -> None:
    sizes = {0: 5, 1: 9, 2: 4, 3: 1, 4: 9}
    assert owners(sizes, 2) == owners(dict(reversed(sizes.items())), 2) == {1: 0, 4: 1, 0: 0, 2: 1, 3: 1}
    assert set(owners(sizes, 7).values()) == {0, 1, 2, 3, 4}


def test_it_does_not_step_before_it_knows_where_tensors_lie() -> None:
    with pytest.raises(RuntimeError, match="set_parameter_slices"):
        MuonConfig().build({"backbone.layers.0.weight": nn.Parameter(torch.ones(2, 2))}).step()


@pytest.mark.parametrize(
    ("patterns", "problem"),
    [
        (["backbone.layer.*"], r"matrices.0 +'backbone.layer.\*' matches no parameter; close names: backbone.layers"),
        (["*.bias"], r"matrices +\*\.bias matches no matrix that is trained; use type adamw, or other patterns"),
    ],
)
def test_patterns_without_a_matrix_are_refused(patterns: list[str], problem: str) -> None:
    config = schema.validate(Holder, {"optimizer": {"type": "muon", "matrices": patterns}}, "test").optimizer
    names = {"backbone.layers.0.weight": (2, 2), "backbone.layers.0.bias": (2,)}
    with pytest.raises(ConfigError, match=problem):
        config.build({name: nn.Parameter(torch.ones(shape)) for name, shape in names.items()})


@pytest.mark.parametrize(
    "wrong",
    [{"momentum": 1.0}, {"ns_steps": 0}, {"adjust_lr_fn": "none"}, {"orthogonalize_in": "fp16"}, {"adamw.lr": 0.0}],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    key, value = next(iter(wrong.items()))
    given = {"adamw": {"lr": value}} if key == "adamw.lr" else wrong
    with pytest.raises(ConfigError, match=f"optimizer.{key}"):
        schema.validate(Holder, {"optimizer": {"type": "muon", **given}}, "test")
    holder = Holder(optimizer=MuonConfig())
    assert schema.validate(Holder, holder.model_dump(mode="json"), "again") == holder
