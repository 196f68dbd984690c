"""The planned state of an engine is what its tensors take."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from planned_runs import VOCAB, planned_config

from xlpretrain.planning.counting.training_state import state_memory

MODEL = {"type": "bert", "num_layers": 2, "d_model": 64, "num_heads": 4, "d_ff": 256, "max_positions": 40}
ADAMW, LAMB = {"type": "adamw"}, {"type": "lamb"}
FROZEN = {"type": "muon", "frozen": ["backbone.embedding.*", "backbone.layers.0.*"]}


def tensor_bytes() -> int:
    """Bytes of the distinct storages of all tensors of this process, but for those without any (DeepSpeed has some)."""
    gc.collect()
    found = (thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor) and not thing.is_meta)
    return sum({s._cdata: s.nbytes() for s in (tensor.untyped_storage() for tensor in found)}.values())


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize(
    ("engine", "optimizer"),
    [
        ({"type": "plain", "precision": "bf16"}, LAMB),
        ({"type": "plain", "precision": "fp32"}, ADAMW),
        ({"type": "plain", "precision": "bf16"}, FROZEN),
        pytest.param({"zero_stage": 0, "precision": "fp32"}, ADAMW, marks=pytest.mark.full),
        pytest.param({"zero_stage": 1, "precision": "fp32"}, ADAMW, marks=pytest.mark.full),
        pytest.param({"zero_stage": 1}, ADAMW, marks=pytest.mark.full),
        pytest.param({"zero_stage": 2}, LAMB, marks=pytest.mark.full),
        pytest.param({"zero_stage": 3}, ADAMW, marks=pytest.mark.full),
        pytest.param({"zero_stage": 3}, FROZEN, marks=pytest.mark.full),
    ],
    ids=lambda value: "-".join(str(each) for each in value.values()),
)
def test_held_parts_are_the_bytes_of_an_engines_tensors(engine: dict[str, Any], optimizer: dict[str, Any]):
    if "zero_stage" in engine:  # a bucket that is reserved whole would hide the rest
        engine = {**engine, "deepspeed": {"zero_optimization": {"reduce_bucket_size": 1000}}}
    config = planned_config("bert", model=MODEL, engine=engine, optimizer=optimizer)
    before = tensor_bytes()
    built = config.engine.build(
        config.build_model(VOCAB),
        config.optimizer,
        num_micro_batches=1,
        weights=config.objective.weights,
        device=torch.device("cpu"),
    )
    held = dict(state_memory(config, config.build_model(VOCAB), num_ranks=1, device="cpu").held)
    if engine.get("zero_stage") in (1, 2):
        held.pop("gradients")  # only from a backward pass to the update
        held.pop("ZeRO buckets")
    assert tensor_bytes() - before == pytest.approx(sum(held.values()), rel=0.03)
    assert built.shapes


def test_tied_weights_count_once_and_lamb_needs_a_step():
    config = planned_config("bert", model=MODEL, engine={"type": "plain"}, optimizer=LAMB)
    model = config.build_model(VOCAB)
    total = sum(parameter.numel() for parameter in model.parameters())
    state = state_memory(config, model, num_ranks=3, device="cuda")
    assert state.held == {
        "weights": 2 * total,
        "master weights": 4 * total,
        "gradients": 4 * total,
        "optimizer state": 8 * total,
    }
    matrices = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim > 1)
    assert state.update == 4 * matrices
    assert state.saved == 12 * total // 3


def test_muon_needs_a_matrix_or_if_sliced_a_group_of_them():
    plain, sliced = (
        state_memory(config, config.build_model(VOCAB), num_ranks=2, device="cuda").update
        for config in (
            planned_config("bert", model=MODEL, engine=engine, optimizer={"type": "muon"})
            for engine in ({"type": "plain"}, {"zero_stage": 3})
        )
    )
    largest, matrices = 64 * 256, 2 * (4 * 64 * 64 + 2 * 64 * 256)
    assert plain == (4 + 5 * 2) * largest
    gradient = 4 * matrices  # in fp32, which stage 3 makes
    assert 2 * sliced == gradient + (4 + 3 * 2) * matrices + 4 * 2 * largest
