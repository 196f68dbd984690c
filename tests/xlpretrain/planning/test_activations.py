"""Activations that are counted on stand-ins are those of real tensors.

Modules: full_batches.py.
"""

from __future__ import annotations

import pytest
import torch
from planned_runs import VOCAB, planned_config

from xlpretrain.engine.config import DTYPES
from xlpretrain.planning.activations import PassCounter, _pass_memory
from xlpretrain.planning.full_batches import full_batch

MODELS = ["transformer_xl", "xlnet", "albert", "bert"]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_stand_ins_take_what_real_tensors_take(model: str, checkpointing: bool):
    config = planned_config(model, engine={"activation_checkpointing": checkpointing})
    counted = PassCounter(config, vocab_size=VOCAB, device="cpu").at(3)
    real = config.build_model(VOCAB).to(DTYPES[config.engine.precision]).train()
    real.backbone.activation_checkpointing = checkpointing
    batch = full_batch(config, real.backbone, vocab_size=VOCAB, num_samples=3)
    torch.manual_seed(0)
    found = _pass_memory(real, batch, mem_len=config.model.mem_len, device="cpu")
    # More only for tensors of the batch that an operation takes together with a stand-in, and keeps as one.
    assert found.kept <= counted.kept <= 1.05 * found.kept
    assert counted.peak() == pytest.approx(found.peak(), rel=0.1)
    assert counted.next_memory == found.next_memory
    assert counted.done == found.done


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_sizes_that_are_not_counted_follow_from_two_that_are(device: str):
    config = planned_config("xlnet")
    extended = PassCounter(config, vocab_size=VOCAB, device=device).at(9)
    counter = PassCounter(config, vocab_size=VOCAB, device=device)
    assert extended.kept == pytest.approx(counter._count(9).kept, rel=0.02)
    assert extended.peak(4) == pytest.approx(counter._count(9).peak(4), rel=0.02)


def test_checkpointing_keeps_less_and_needs_more_for_a_moment():
    wide = {"type": "bert", "num_layers": 6, "d_model": 64, "num_heads": 4, "d_ff": 256}
    plain, checkpointed = (
        PassCounter(
            planned_config("bert", model=wide, engine={"activation_checkpointing": on}), vocab_size=VOCAB, device="cuda"
        ).at(4)
        for on in (False, True)
    )
    assert checkpointed.kept < plain.kept / 5
    assert checkpointed.peak() - checkpointed.kept > plain.peak() - plain.kept
    assert checkpointed.peak() < plain.peak() / 2


@pytest.mark.parametrize("model", MODELS)
def test_full_batches_are_full_and_as_the_models_take_them(model: str):
    config = planned_config(model)
    backbone = config.build_model(VOCAB).backbone
    batch = full_batch(config, backbone, vocab_size=VOCAB, num_samples=4)
    assert batch.inputs.tokens.shape == (4, config.objective.seq_len)
    valid = batch.inputs.attention_mask
    assert valid is None or bool(valid.all())
    assert int(batch.inputs.mem_valid_len.min()) == config.model.mem_len
    assert min(batch.counts.values()) >= 4
