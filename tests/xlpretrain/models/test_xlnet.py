"""XLNet: both streams equal a slow reference, nothing leaks from what comes later in the order, and what is remembered.

Against transformers: `test_huggingface_parity.py`. What all models have in common: `test_models.py`.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from reference_xlnet import ReferenceXLNet

from xlpretrain import schema
from xlpretrain.errors import ConfigError
from xlpretrain.models import AnyModel, XLNetConfig
from xlpretrain.models.backbone import BackboneInput

SIZES = {"num_layers": 3, "num_heads": 2, "d_model": 12, "d_ff": 20, "dropout": 0.0, "attention_dropout": 0.0}
ROWS, TOKENS, PREDICTIONS, MEMORY = 3, 7, 3, 5
VARIANTS = {
    "plain": {},
    "tied biases": {"untie_r": False, "d_head": 5},
    "clamped": {"clamp_len": 3},
}


def _model(**keys) -> torch.nn.Module:
    torch.manual_seed(0)
    backbone = XLNetConfig(**{**SIZES, "mem_len": MEMORY, **keys}).build(20)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return backbone.eval()


def _inputs(*, reverse: bool = False) -> BackboneInput:
    """Ranks 0 (context) to 4, some of them shared; the last row's first prediction has nothing before it."""
    order = torch.randint(0, 5, (ROWS, TOKENS))
    order[2] = torch.tensor([3, 1, 2, 4, 5, 6, 7])
    predict = torch.stack([torch.randperm(TOKENS)[:PREDICTIONS] for _ in range(ROWS)])
    predict[2, 0] = 1
    valid = torch.ones(ROWS, TOKENS, dtype=torch.bool)
    valid[1, 5:] = False
    return BackboneInput(
        tokens=torch.randint(20, (ROWS, TOKENS)),
        mem_valid_len=torch.tensor([5, 2, 0]),
        attention_mask=valid,
        segments=torch.randint(0, 3, (ROWS, TOKENS)),
        perm_rank=order,
        target_positions=predict,
        reversed=torch.tensor([False, True, True]) if reverse else None,
    )


@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "some backwards"])
@pytest.mark.parametrize("keys", VARIANTS.values(), ids=VARIANTS.keys())
def test_both_streams_equal_the_reference(keys, reverse):
    model, mems = _model(**keys), torch.randn(3, ROWS, MEMORY, 12)
    inputs = _inputs(reverse=reverse)
    with torch.no_grad():
        hidden, _ = model(inputs, mems)
    reference = ReferenceXLNet(model.state_dict(), model.config)
    for row in range(ROWS):
        past = [list(memory[row, MEMORY - int(inputs.mem_valid_len[row]) :].double()) for memory in mems]
        content, query = reference.streams(
            inputs.tokens[row].tolist(),
            inputs.target_positions[row].tolist(),
            past=past,
            order=inputs.perm_rank[row].tolist(),
            segments=inputs.segments[row].tolist(),
            valid=inputs.attention_mask[row].tolist(),
            reverse=reverse and bool(inputs.reversed[row]),
        )
        torch.testing.assert_close(hidden.tokens[row].double(), torch.stack(content), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(hidden.predictions[row].double(), torch.stack(query), rtol=1e-5, atol=1e-5)


def _embedded(model) -> list[torch.Tensor]:
    """What the embedding gives in each pass from now on, as leaves."""
    found: list[torch.Tensor] = []

    def keep(_module, _arguments, output):
        found.append(output.detach().requires_grad_())
        return found[-1]

    model.embedding.register_forward_hook(keep)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_no_stream_depends_on_what_comes_later_in_the_order(seed):
    """Two halves of which the first cannot see the second; each token has a rank of its own but for the context."""
    model = _model()
    embedded = _embedded(model)
    torch.manual_seed(seed)
    order = torch.cat([torch.randperm(4), 4 + torch.randperm(5)])[None]
    order = torch.where(torch.rand(1, 9) < 0.3, torch.tensor([0] * 4 + [4] * 5), order)
    inputs = BackboneInput(
        torch.randint(20, (1, 9)), torch.tensor([3]), perm_rank=order, target_positions=torch.arange(9)[None]
    )
    hidden, _ = model(inputs, torch.randn(3, 1, MEMORY, 12))
    for position in range(9):
        for stream, seen in (
            (hidden.tokens, order[0] <= order[0, position]),
            (hidden.predictions, order[0] < order[0, position]),
        ):
            (gradient,) = torch.autograd.grad(stream[0, position].sum(), embedded[0], retain_graph=True)
            assert torch.equal(gradient[0].abs().sum(-1) > 0, seen)


def test_a_prediction_with_nothing_before_it_sees_nothing():
    model = _model()
    embedded = _embedded(model)
    inputs = BackboneInput(
        torch.randint(20, (1, 4)),
        torch.tensor([0]),
        perm_rank=torch.tensor([[2, 1, 3, 4]]),
        target_positions=torch.tensor([[1]]),
    )
    hidden, _ = model(inputs, torch.randn(3, 1, MEMORY, 12))
    (gradient,) = torch.autograd.grad(hidden.predictions.sum(), embedded[0])
    assert not gradient.any()


def test_predictions_depend_on_nothing_else_that_is_predicted_beside_them():
    model, inputs = _model(), _inputs(reverse=True)
    mems = torch.randn(3, ROWS, MEMORY, 12)
    with torch.no_grad():
        together, _ = model(inputs, mems)
        for i in range(PREDICTIONS):
            alone, _ = model(replace(inputs, target_positions=inputs.target_positions[:, i : i + 1]), mems)
            torch.testing.assert_close(alone.predictions[:, 0], together.predictions[:, i])
            torch.testing.assert_close(alone.tokens, together.tokens)


@pytest.mark.parametrize("keep", [None, 0, 2, 5, 7])
def test_the_memory_is_the_kept_inputs_of_every_layer(keep):
    model, inputs = _model(), replace(_inputs(), reuse_len=keep)
    mems, seen = torch.randn(3, ROWS, MEMORY, 12), []
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach()[:, :TOKENS]))
    _, remembered = model(inputs, mems)
    own = mems.clone()
    own[:, 1, :3] = own[:, 2] = 0  # what the row does not remember is another's
    for layer in range(3):
        kept = seen[layer] if keep is None else seen[layer][:, :keep]
        assert torch.equal(remembered[layer], torch.cat([own[layer], kept], dim=1)[:, -MEMORY:])
    assert not remembered.requires_grad


def test_zeros_are_attended_where_asked():
    inputs = replace(_inputs(), mem_valid_len=torch.zeros(ROWS, dtype=torch.int64))
    states = [
        _model(initial_memory=kind)(inputs, torch.randn(3, ROWS, MEMORY, 12))[0].predictions
        for kind in ("none", "zeros")
    ]
    assert (states[0] - states[1])[:2].abs().amax(-1).min() > 1e-3


def test_no_segments_are_one_segment():
    model, inputs = _model(), replace(_inputs(), segments=None)
    mems = torch.zeros(3, ROWS, MEMORY, 12)
    hidden, _ = model(inputs, mems)
    same, _ = model(replace(inputs, segments=torch.zeros_like(inputs.tokens)), mems)
    torch.testing.assert_close(hidden.predictions, same.predictions)


def test_without_an_order_a_prediction_sees_all_but_its_own_token():
    model = _model()
    embedded = _embedded(model)
    inputs = BackboneInput(torch.randint(20, (1, 5)), torch.tensor([0]), target_positions=torch.tensor([[3]]))
    hidden, _ = model(inputs, model.empty_memory(1, 0))
    (gradient,) = torch.autograd.grad(hidden.predictions.sum(), embedded[0], retain_graph=True)
    # One layer deep it sees all but its own; deeper, the others have seen it: so a two-stream model needs an order.
    assert (gradient[0].abs().sum(-1) > 0).all()
    shallow = _model(num_layers=1)
    embedded = _embedded(shallow)
    hidden, _ = shallow(inputs, shallow.empty_memory(1, 0))
    (gradient,) = torch.autograd.grad(hidden.predictions.sum(), embedded[0])
    assert (gradient[0].abs().sum(-1) > 0).tolist() == [True, True, True, False, True]


@pytest.mark.parametrize(
    ("keys", "path"),
    [
        ({"num_heads": 5}, "num_heads"),
        ({"d_model": 9, "d_head": 4}, "d_model"),
        ({"clamp_len": 0}, "clamp_len"),
        ({"num_layer_groups": 4}, "num_layer_groups"),
    ],
)
def test_keys_that_do_not_go_together_are_refused_by_name(keys, path):
    with pytest.raises(ConfigError, match=rf"1 problem\n  model\.{path} "):
        schema.validate(_Model, {"model": {"type": "xlnet", **SIZES, **keys}}, "x")


class _Model(schema.Section):
    model: AnyModel
