"""Writing text: the memory stands in for the whole context."""

from __future__ import annotations

import pytest
import torch

from xlpretrain.generate import sample_text
from xlpretrain.models import TransformerXLConfig
from xlpretrain.models.backbone import BackboneInput
from xlpretrain.objectives import CausalLM
from xlpretrain.objectives.objective import PretrainingModel

PROMPT = [3, 1, 4, 1, 5]


def _model() -> PretrainingModel:
    torch.manual_seed(0)
    backbone = TransformerXLConfig(
        num_layers=2, num_heads=2, d_model=12, d_ff=20, mem_len=8, tie_embeddings=False
    ).build(30)
    model = PretrainingModel(backbone, CausalLM(seq_len=4).head(backbone))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.copy_(torch.randn_like(parameter) * 0.8)
    return model


def test_greedy_text_is_that_of_reading_everything_anew_for_each_token():
    model = _model()
    written = sample_text(model, PROMPT, num_tokens=12, mem_len=20, temperature=0.0)
    model.eval()
    context = list(PROMPT)
    for token in written:
        inputs = BackboneInput(torch.tensor([context]), torch.tensor([0]))
        with torch.no_grad():
            hidden, _ = model.backbone(inputs, model.backbone.empty_memory(1, 0))
            assert int(model.head.output.log_probs(hidden.tokens[0])[-1].argmax()) == token
        context.append(token)
    assert len(set(written)) > 2


def test_without_memory_only_the_last_token_counts():
    alone, remembering = (sample_text(_model(), [3], num_tokens=12, mem_len=m, temperature=0.0) for m in (0, 20))
    model = _model().eval()
    inputs = BackboneInput(torch.tensor([[3], *([token] for token in alone[:-1])]), torch.zeros(12, dtype=torch.int64))
    with torch.no_grad():
        hidden, _ = model.backbone(inputs, model.backbone.empty_memory(12, 0))
        assert model.head.output.log_probs(hidden.tokens[:, 0]).argmax(-1).tolist() == alone
    assert remembering != alone


def test_draws_repeat_with_their_seed_and_leave_the_global_generator_alone():
    model = _model()
    before = torch.get_rng_state()
    texts = [sample_text(model, PROMPT, num_tokens=10, mem_len=8, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training


def test_top_one_is_greedy_at_any_temperature():
    greedy = sample_text(_model(), PROMPT, num_tokens=10, mem_len=8, temperature=0.0)
    assert sample_text(_model(), PROMPT, num_tokens=10, mem_len=8, temperature=5.0, top_k=1) == greedy


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="the prompt is empty"):
        sample_text(_model(), [], num_tokens=1, mem_len=8)
