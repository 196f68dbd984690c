"""Transformer-XL: memory, causality, precision, recomputation, configs."""

from __future__ import annotations

import pytest
import torch
from dropouts import note_rates
from repository import ROOT

from xlpretrain import schema
from xlpretrain.errors import ConfigError
from xlpretrain.models import AnyModel, TransformerXLConfig
from xlpretrain.models.backbone import BackboneInput
from xlpretrain.models.pretraining_model import Batch, PretrainingModel
from xlpretrain.objectives import CausalLM

CONFIGS = ROOT / "configs"
SIZES = {"num_layers": 3, "num_heads": 2, "d_model": 12, "d_ff": 20, "dropout": 0.0}
VARIANTS = {
    "plain": {},
    "pre-norm, untied biases": {"pre_norm": True, "untie_r": True},
    "clamped": {"clamp_len": 3},
    "same length": {"same_length": True},
    "adaptive": {"adaptive_cutoffs": (7, 12), "div_val": 2},
    "zeros": {"initial_memory": "zeros"},
}


def _model(**keys) -> PretrainingModel:
    torch.manual_seed(0)
    backbone = TransformerXLConfig(**{**SIZES, "mem_len": 6, **keys}).build(20)
    model = PretrainingModel(backbone, CausalLM(seq_len=4).head(backbone))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return model


def _batch(tokens, remembered) -> Batch:
    targets = tokens[:, 1:]
    return Batch(
        BackboneInput(tokens[:, :-1], torch.tensor(remembered)),
        {"lm": targets.flatten(), "lm_positions": torch.arange(targets.numel())},
        {"lm": targets.numel()},
    )


def _nll(loss, batch_size) -> torch.Tensor:
    return loss.scores["lm"].nll.view(batch_size, -1)


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def keys(request):
    return request.param


def test_with_pre_norm_the_memory_adds_to_the_gradient_of_the_norm():
    found = []
    for implementation in ("plain", "sdpa"):
        model = _model(pre_norm=True)
        for layer in model.backbone.layers:
            layer.attention.implementation = implementation
        mems = torch.randn(model.backbone.empty_memory(2, 6).shape, generator=torch.Generator().manual_seed(1))
        loss, _ = model(_batch(torch.arange(10).view(2, 5), [6, 6]), mems)
        loss.sums["lm"].backward()
        found.append([parameter.grad for parameter in model.backbone.layers.parameters()])
    for plain, other in zip(*found, strict=True):
        assert torch.allclose(plain, other, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))


# Not with zeros: they are attended before the first token, and forgotten as the memory fills.
@pytest.mark.parametrize("keys", [VARIANTS[name] for name in VARIANTS if name != "zeros"])
@pytest.mark.parametrize("mem_len", [4, 7])
def test_two_segments_with_memory_have_the_loss_of_one_pass(keys, mem_len):
    model = _model(**keys).eval()
    tokens, nothing = torch.randint(20, (3, 9)), model.backbone.empty_memory(3, mem_len)
    once, _ = model(_batch(tokens, [0, 0, 0]), nothing)
    first, mems = model(_batch(tokens[:, :5], [0, 0, 0]), nothing)
    assert not mems.requires_grad
    second, _ = model(_batch(tokens[:, 4:], [4, 4, 4]), mems)
    torch.testing.assert_close(torch.cat([_nll(first, 3), _nll(second, 3)], dim=1), _nll(once, 3))


def test_memory_is_the_last_inputs_of_every_layer_without_their_graph():
    model = _model().eval()
    tokens = torch.randint(20, (2, 12))
    mems, seen = model.backbone.empty_memory(2, 6), []
    model.backbone.layers[1].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach()))
    for start in (0, 4, 8):
        inputs = BackboneInput(tokens[:, start : start + 4], torch.full((2,), min(start, 6)))
        _, mems = model.backbone(inputs, mems)
    embedded = model.backbone.embedding(tokens) * 12**0.5
    torch.testing.assert_close(mems[0], embedded.detach()[:, 6:])
    assert torch.equal(mems[1], torch.cat(seen, dim=1)[:, 6:])
    assert not mems.requires_grad


def test_a_row_depends_on_nothing_that_it_does_not_remember(keys):
    model = _model(**keys).eval()
    tokens = torch.randint(20, (2, 5))
    mems = torch.randn(3, 2, 6, 12)
    others = mems.clone()
    others[:, 0] = torch.nan  # the first sample remembers nothing, the second one its newest two
    others[:, 1, :4] = 1e4
    losses = [model(_batch(tokens, [0, 2]), memory)[0] for memory in (mems, others)]
    assert torch.equal(_nll(losses[0], 2), _nll(losses[1], 2))
    changed = mems.clone()
    changed[:, 1, 4] += 1.0
    loss, _ = model(_batch(tokens, [0, 2]), changed)
    assert not torch.equal(_nll(loss, 2)[1], _nll(losses[0], 2)[1])


def test_no_output_depends_on_a_later_token(keys):
    model = _model(**keys)
    embedded = []

    def keep(_module, _arguments, output):
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    model.backbone.embedding.register_forward_hook(keep)
    inputs = BackboneInput(torch.randint(20, (2, 5)), torch.tensor([6, 3]))
    hidden, _ = model.backbone(inputs, torch.randn(3, 2, 6, 12))
    for position in range(5):
        (gradient,) = torch.autograd.grad(hidden.tokens[:, position].sum(), embedded[0], retain_graph=True)
        assert (gradient[:, position + 1 :] == 0).all()
        assert (gradient[:, : position + 1].abs().sum(-1) > 0).all()


def test_zeros_are_attended_where_asked():
    losses = []
    for initial in ("none", "zeros"):
        model = _model(initial_memory=initial).eval()
        loss, _ = model(_batch(torch.arange(5)[None], [0]), model.backbone.empty_memory(1, 6))
        losses.append(_nll(loss, 1))
    assert (losses[0] - losses[1]).abs().min() > 1e-4


def test_recomputing_layers_changes_neither_loss_nor_gradients(keys):
    model = _model(**keys, dropout=0.3, attention_dropout=0.2)
    batch, results = _batch(torch.randint(20, (2, 5)), [6, 0]), []
    mems = torch.randn(3, 2, 6, 12)
    for model.backbone.activation_checkpointing in (False, True):
        torch.manual_seed(3)
        model.zero_grad()
        loss, _ = model(batch, mems)
        loss.sums["lm"].backward()
        results.append([loss.sums["lm"], *(p.grad.clone() for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(("name", "count"), [("dropout", 6), ("attention_dropout", 1)])
def test_dropout_is_where_the_paper_has_it(name, count):
    """Embedding, positions and output; per layer attention output and both ends of the feed-forward; weights apart."""
    model = _model(**{"num_layers": 1, name: 0.5})
    dropped = note_rates(model)
    model(_batch(torch.randint(20, (2, 5)), [0, 0]), model.backbone.empty_memory(2, 6))
    assert (dropped.count(0.5), len(dropped)) == (count, 7)


def test_bf16_weights_give_bf16_memory_and_nearly_the_same_loss(keys):
    model = _model(**keys).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    tokens = torch.randint(20, (4, 5))
    expected, _ = model(_batch(tokens, [0] * 4), model.backbone.empty_memory(4, 6))
    model.to(torch.bfloat16)
    mems = model.backbone.empty_memory(4, 6)
    loss, mems = model(_batch(tokens, [0] * 4), mems)
    assert mems.dtype == torch.bfloat16
    assert loss.sums["lm"].dtype == torch.float32
    torch.testing.assert_close(loss.sums["lm"], expected.sums["lm"], rtol=0.02, atol=0)


def test_fresh_weights_are_drawn_as_in_the_original():
    torch.manual_seed(0)
    backbone = TransformerXLConfig(
        num_layers=1, d_model=256, d_ff=512, num_heads=4, adaptive_cutoffs=(900, 950), div_val=2
    ).build(1000)
    backbone.requires_grad_(False)
    layer = backbone.layers[0]
    for weight in (layer.attention.query.weight, layer.feed_forward.inner.weight, backbone.embedding.tables[0].weight):
        assert (float(weight.mean()), float(weight.std())) == pytest.approx((0.0, 0.02), abs=1e-3)
    for bias in (backbone.content_bias, backbone.position_bias):
        assert float(bias.std()) == pytest.approx(0.02, rel=0.2)
    assert float(backbone.embedding.projections[0].weight.std()) == pytest.approx(0.01, rel=0.05)
    assert float(layer.attention_norm.weight.mean()) == pytest.approx(1.0, abs=0.01)
    assert float(layer.attention_norm.weight.std()) == pytest.approx(0.02, rel=0.2)
    assert not layer.feed_forward.inner.bias.any()


@pytest.mark.parametrize(
    ("name", "vocab_size", "count"),
    [
        ("transformer_xl_enwik8_base", 204, 41_055_436),
        ("transformer_xl_wikitext103_base", 267_735, 151_107_538),
        ("transformer_xl_wikitext103_large", 267_735, 285_205_322),
    ],
)
def test_shipped_configs_have_the_published_number_of_parameters(name, vocab_size, count):
    data = schema.read_yaml(CONFIGS / f"{name}.yaml")
    config = schema.validate(_Model, {"model": data["model"]}, name).model
    with torch.device("meta"):
        backbone = config.build(vocab_size)
        model = PretrainingModel(backbone, CausalLM(**data["objective"]).head(backbone))
    assert sum(p.numel() for _, p in model.named_parameters()) == count


class _Model(schema.Section):
    model: AnyModel


def test_flops_are_six_per_weight_and_token_beside_attention():
    backbone = _model(mem_len=0).backbone
    weights = sum(p.numel() for name, p in backbone.layers.named_parameters() if p.ndim == 2 and "distance" not in name)
    assert backbone.flops_per_token(8, 0) == 6 * weights + 3 * 18 * 12 * 8
    # Memory: 4 more keys to attend, and half as many again to project, without the gradient to what was remembered.
    assert backbone.flops_per_token(8, 4) - backbone.flops_per_token(8, 0) == 3 * (
        18 * 12 * 4 + 4 * 2 * 12 * 12 * 4 / 8
    )


@pytest.mark.parametrize(
    ("keys", "path"),
    [
        ({"num_heads": 5}, "num_heads"),
        ({"d_model": 9, "d_head": 4}, "d_model"),
        ({"clamp_len": 0}, "clamp_len"),
        ({"mem_len": 0, "same_length": True}, "same_length"),
        ({"adaptive_cutoffs": [9, 4]}, "adaptive_cutoffs"),
        ({"div_val": 2}, "div_val"),
        ({"adaptive_cutoffs": [4, 9], "div_val": 4, "d_embed": 8}, "div_val"),
        ({"tie_projections": [True, True]}, "tie_projections"),
    ],
)
def test_keys_that_do_not_go_together_are_refused_by_name(keys, path):
    with pytest.raises(ConfigError, match=rf"1 problem\n  model\.{path} "):
        schema.validate(_Model, {"model": {"d_model": 12, "num_heads": 2, **keys}}, "x")


def test_cutoffs_beyond_the_vocabulary_are_refused():
    with pytest.raises(ConfigError, match="within the vocabulary of 20"):
        TransformerXLConfig(adaptive_cutoffs=(10, 20)).build(20)
