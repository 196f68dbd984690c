"""The causal LM: what the collator makes of samples, and what the head sums."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from xlpretrain import schema
from xlpretrain.data.samples import Sample
from xlpretrain.models import AnyModel, TransformerXLConfig
from xlpretrain.models.pretraining_model import PretrainingModel
from xlpretrain.objectives import AnyObjective, CausalLM
from xlpretrain.objectives.causal_lm import CausalLMCollator

NONE = np.array([], dtype=np.int64)


def _row(tokens, remembered=0):
    return Sample(
        tokens=np.array(tokens, dtype=np.uint16),
        document_ends=NONE,
        sentence_ends=NONE,
        stream=0,
        epoch=0,
        sample_index=0,
        mem_valid_len=remembered,
    )


def _model(**keys):
    torch.manual_seed(0)
    backbone = TransformerXLConfig(num_layers=2, num_heads=2, d_model=8, d_ff=16, mem_len=3, dropout=0.0, **keys).build(
        30
    )
    return PretrainingModel(backbone, CausalLM(seq_len=4).head(backbone))


class _Both(schema.Section):
    model: AnyModel = TransformerXLConfig()
    objective: AnyObjective = CausalLM()


def test_a_dumped_config_reads_back_with_every_key_of_its_type():
    config = schema.validate(
        _Both, {"model": {"num_layers": 3, "adaptive_cutoffs": [3, 5]}, "objective": {"seq_len": 7}}, "x"
    )
    assert config.model.num_layers == 3
    assert config.model_dump()["model"]["num_layers"] == 3
    again = schema.validate(_Both, schema.parse_yaml(schema.dump(config), "x"), "x")
    assert again == config


def test_window_is_one_token_longer_than_the_stride():
    objective = CausalLM(seq_len=4)
    assert (objective.span_len, objective.new_tokens, objective.weights) == (5, 4, {"lm": 1.0})


def test_collator_pads_short_and_empty_rows_without_counting_them():
    collator = CausalLMCollator(seq_len=4, pad=0)
    batch = collator([_row([10, 11, 12, 13, 14], 3), _row([20, 21, 22], 1), _row([23]), _row([])])
    assert batch.inputs.tokens.tolist() == [[10, 11, 12, 13], [20, 21, 22, 0], [23, 0, 0, 0], [0, 0, 0, 0]]
    assert batch.inputs.mem_valid_len.tolist() == [3, 1, 0, 0]
    assert batch.targets["lm"].tolist() == [11, 12, 13, 14, 21, 22]
    assert batch.targets["lm_positions"].tolist() == [0, 1, 2, 3, 4, 5]
    assert batch.counts == {"lm": 6}


def test_collator_is_pure_and_picklable():
    collator = CausalLMCollator(seq_len=4, pad=0)
    samples = [_row([10, 11, 12])]
    first, again = collator(samples), pickle.loads(pickle.dumps(collator))(samples)
    assert torch.equal(first.inputs.tokens, again.inputs.tokens)
    assert torch.equal(first.targets["lm"], again.targets["lm"])
    assert samples[0].tokens.tolist() == [10, 11, 12]


@pytest.mark.parametrize("adaptive", [{}, {"adaptive_cutoffs": (10, 20), "div_val": 2}], ids=["full", "adaptive"])
def test_padded_targets_have_no_loss_and_no_gradient(adaptive):
    model = _model(**adaptive)
    collator = CausalLMCollator(seq_len=4, pad=0)
    mems = model.backbone.empty_memory(2, 3)
    loss, _ = model(collator([_row([10, 11, 12, 13, 14]), _row([20, 21, 22])]), mems)
    scores = loss.scores["lm"]
    assert scores.samples.tolist() == [0, 0, 0, 0, 1, 1]
    assert (scores.nll > 0).all()
    assert scores.correct is None
    torch.testing.assert_close(loss.sums["lm"].detach(), scores.nll.sum())
    # The short sample by itself, without any padding, costs the same and pulls the same way.
    short = CausalLMCollator(seq_len=2, pad=0)([_row([20, 21, 22])])
    whole = collator([_row([20, 21, 22])])
    gradients = []
    for batch in (short, whole):
        model.zero_grad()
        model(batch, mems[:, :1])[0].sums["lm"].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("adaptive", [{}, {"adaptive_cutoffs": (10, 20), "div_val": 2}], ids=["full", "adaptive"])
@pytest.mark.parametrize("samples", [[], [_row([])]], ids=["no rows", "an idle row"])
def test_a_batch_without_targets_costs_nothing_and_has_a_gradient(samples, adaptive):
    model = _model(**adaptive)
    batch = CausalLMCollator(seq_len=4, pad=0)(samples)
    assert batch.inputs.tokens.shape == (len(samples), 4)
    assert batch.counts == {"lm": 0}
    loss, mems = model(batch, model.backbone.empty_memory(len(samples), 3))
    loss.sums["lm"].backward()
    assert loss.sums["lm"].item() == 0.0
    assert mems.shape == (2, len(samples), 3, 8)
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_a_fresh_model_starts_near_the_uniform_loss_and_learns_one_batch():
    model = _model(init_std=0.1)
    batch = CausalLMCollator(seq_len=4, pad=0)([_row([10, 11, 12, 13, 14]), _row([20, 21, 22, 23, 24])])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        loss, _ = model(batch, model.backbone.empty_memory(2, 3))
        losses.append(loss.sums["lm"].item() / batch.counts["lm"])
        optimizer.zero_grad()
        loss.sums["lm"].backward()
        optimizer.step()
    assert losses[0] == pytest.approx(np.log(30), rel=0.1)
    assert losses[-1] < 0.1
