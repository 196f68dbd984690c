"""What holds for every model: sizes, parameters, padding, sharing, recomputation, cost; and that it learns."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from dropouts import note_rates
from repository import ROOT
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from torchrun import torchrun

from xlpretrain import schema
from xlpretrain.errors import ConfigError
from xlpretrain.models import MODELS, AlbertConfig, AnyModel, BertConfig, TransformerXLConfig, XLNetConfig
from xlpretrain.models.backbone import Backbone, BackboneInput, Hidden, OutputLayer
from xlpretrain.models.parts.feed_forward import GLUConfig
from xlpretrain.models.parts.norm import RMSNormConfig
from xlpretrain.models.parts.positions import SinusoidalConfig
from xlpretrain.models.pretraining_model import Batch, Head, Loss, PretrainingModel
from xlpretrain.models.stack import Pooler
from xlpretrain.planning.device_work import counted

CONFIGS = ROOT / "configs"
VOCAB, ROWS, TOKENS, PREDICTIONS = 23, 3, 7, 2
SIZES = {"num_layers": 3, "num_heads": 2, "d_model": 12, "d_ff": 20, "dropout": 0.0, "attention_dropout": 0.0}
OTHER_PARTS = {"feed_forward": GLUConfig(), "norm": RMSNormConfig()}
MODEL_KEYS = {
    "transformer_xl": TransformerXLConfig(**SIZES, mem_len=5),
    "xlnet": XLNetConfig(**SIZES, mem_len=5),
    "albert": AlbertConfig(**SIZES, d_embed=6, max_positions=16),
    "bert": BertConfig(**SIZES, max_positions=16),
    "xlnet, narrow and shared": XLNetConfig(**SIZES, mem_len=5, d_embed=6, num_layer_groups=2, layers_per_group=2),
    "transformer_xl, shared": TransformerXLConfig(**SIZES, mem_len=5, num_layer_groups=1, untie_r=True),
    "bert, pre-norm": BertConfig(**SIZES, max_positions=16, pre_norm=True, d_embed=8),
    "transformer_xl, other parts": TransformerXLConfig(**SIZES, mem_len=5, activation="silu", **OTHER_PARTS),
    "bert, other parts": BertConfig(**SIZES, max_positions=16, positions=SinusoidalConfig(), **OTHER_PARTS),
}
LEARNERS = [*MODELS, "transformer_xl, other parts", "bert, other parts"]


@pytest.fixture(params=MODEL_KEYS.values(), ids=MODEL_KEYS.keys())
def config(request):
    return request.param


def _build(config) -> tuple[Backbone, OutputLayer]:
    torch.manual_seed(0)
    backbone = config.build(VOCAB)
    return backbone, backbone.output_layer()


def _inputs(config, *, rows: int = ROWS, tokens: int = TOKENS, remembered: int = 0) -> BackboneInput:
    """With all that the model can make use of."""
    inputs = BackboneInput(torch.randint(VOCAB, (rows, tokens)), torch.full((rows,), remembered))
    if "bidirectional" in config.provides:
        inputs = replace(inputs, segments=torch.randint(2, (rows, tokens)))
    if "two_stream" in config.provides:
        order = torch.arange(tokens).expand(rows, tokens)
        predict = torch.arange(tokens - PREDICTIONS, tokens).expand(rows, -1)
        inputs = replace(inputs, perm_rank=order, target_positions=predict, reversed=torch.arange(rows) % 2 == 1)
    return inputs


def _states(hidden: Hidden) -> Tensor:
    return hidden.tokens if hidden.predictions is None else hidden.predictions


def _loss(backbone: Backbone, output: OutputLayer, inputs: BackboneInput, mems: Tensor) -> Tensor:
    """Of the token that follows each in the vocabulary, whatever the model's own objective is."""
    hidden, _ = backbone(inputs, mems)
    targets = inputs.tokens if inputs.target_positions is None else inputs.tokens.gather(1, inputs.target_positions)
    nll, _ = output(_states(hidden).flatten(0, 1), (targets.flatten() + 1) % VOCAB)
    return nll.sum() / max(1, targets.numel())


def _parameters(backbone: Backbone, output: OutputLayer) -> dict[str, torch.nn.Parameter]:
    return dict(torch.nn.ModuleDict({"backbone": backbone, "output": output}).named_parameters())


@pytest.mark.parametrize("mem_len", [0, 5])
@pytest.mark.parametrize(("rows", "tokens"), [(ROWS, TOKENS), (2, 2), (0, TOKENS)], ids=["some", "few", "none"])
@pytest.mark.parametrize("bare", [False, True], ids=["all inputs", "tokens only"])
def test_every_parameter_takes_part_in_every_pass(config, rows, tokens, mem_len, bare):
    """ZeRO 2 and 3 wait for all of them, on all ranks."""
    backbone, output = _build(config)
    inputs = _inputs(config, rows=rows, tokens=tokens, remembered=mem_len)
    if bare:
        inputs = BackboneInput(inputs.tokens, inputs.mem_valid_len)
    mems = backbone.empty_memory(rows, mem_len)
    hidden, next_mems = backbone(inputs, mems)
    assert next_mems.shape == mems.shape
    _loss(backbone, output, inputs, mems).backward()
    assert [name for name, p in _parameters(backbone, output).items() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in _parameters(backbone, output).values())
    assert _states(hidden).isfinite().all()


def test_one_token_without_a_memory(config):
    backbone, _ = _build(config)
    hidden, _ = backbone(
        BackboneInput(torch.zeros(1, 1, dtype=torch.int64), torch.tensor([0])), backbone.empty_memory(1, 0)
    )
    assert hidden.tokens.shape == (1, 1, 12)
    assert hidden.tokens.isfinite().all()


def test_fresh_weights_know_nothing(config):
    backbone, output = _build(config)
    loss = _loss(backbone, output, _inputs(config), backbone.empty_memory(ROWS, 0))
    assert float(loss.detach()) == pytest.approx(math.log(VOCAB), rel=0.02)


@pytest.mark.parametrize("name", LEARNERS)
def test_one_batch_is_learnt_by_heart(name):
    config = MODEL_KEYS[name]
    backbone, output = _build(config)
    inputs, mems = _inputs(config), backbone.empty_memory(ROWS, config.mem_len)
    optimizer = torch.optim.Adam(_parameters(backbone, output).values(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        loss = _loss(backbone, output, inputs, mems)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1


def test_padding_changes_nothing(config):
    """More of it, and other tokens in it: of all but the padding itself."""
    backbone, _ = _build(config)
    torch.manual_seed(1)
    inputs, mems = _inputs(config, remembered=5), backbone.empty_memory(ROWS, 5)
    mems = torch.randn_like(mems)
    expected, _ = backbone(inputs, mems)
    for padding in (1, 4):
        padded = {"tokens": torch.randint(VOCAB, (ROWS, padding))}
        if inputs.segments is not None:
            padded["segments"] = torch.randint(2, (ROWS, padding))
        if inputs.perm_rank is not None:
            padded["perm_rank"] = torch.zeros(ROWS, padding, dtype=torch.int64)
        longer = {name: torch.cat([getattr(inputs, name), more], dim=1) for name, more in padded.items()}
        valid = (torch.arange(TOKENS + padding) < TOKENS).expand(ROWS, -1)
        hidden, _ = backbone(replace(inputs, **longer, attention_mask=valid), mems)
        torch.testing.assert_close(hidden.tokens[:, :TOKENS], expected.tokens)
        if expected.predictions is not None:
            torch.testing.assert_close(hidden.predictions, expected.predictions)


def test_recomputing_layers_changes_neither_loss_nor_gradients(config):
    backbone, output = _build(config.model_copy(update={"dropout": 0.3, "attention_dropout": 0.2}))
    inputs, mems, results = _inputs(config), torch.randn_like(backbone.empty_memory(ROWS, 5)), []
    for backbone.activation_checkpointing in (False, True):
        torch.manual_seed(3)
        backbone.zero_grad()
        loss = _loss(backbone, output, inputs, mems)
        loss.backward()
        results.append([loss, *(p.grad.clone() for p in backbone.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_shared_layers_are_one_set_of_weights_whose_gradients_add_up(name):
    shared_config = MODEL_KEYS[name].model_copy(update={"num_layers": 4, "num_layer_groups": 2, "layers_per_group": 1})
    own_config = shared_config.model_copy(update={"num_layer_groups": None})
    (shared, shared_output), (own, own_output) = _build(shared_config), _build(own_config)
    assert (len(shared.layers), len(own.layers)) == (2, 4)
    state = {**own.state_dict(), **shared.state_dict()}
    twins = {i: i // 2 for i in range(4)}
    for name_of in own.state_dict():
        if name_of.startswith("layers."):
            _, index, rest = name_of.split(".", 2)
            state[name_of] = shared.state_dict()[f"layers.{twins[int(index)]}.{rest}"]
        elif name_of.endswith("_bias"):  # of attention; with untied ones, two there and four here
            biases = shared.state_dict()[name_of]
            state[name_of] = biases.repeat_interleave(2, dim=0) if len(biases) == 2 else biases
    own.load_state_dict(state)
    own_output.load_state_dict(shared_output.state_dict())
    inputs, mems = _inputs(own_config), torch.randn_like(own.empty_memory(ROWS, 5))
    losses = [_loss(b, o, inputs, mems) for b, o in ((shared, shared_output), (own, own_output))]
    assert torch.equal(losses[0], losses[1])
    for loss in losses:
        loss.backward()
    for index in range(2):
        copies = [own.layers[i].named_parameters() for i in range(4) if twins[i] == index]
        for (rest, parameter), *others in zip(shared.layers[index].named_parameters(), *copies, strict=True):
            torch.testing.assert_close(parameter.grad, sum(p.grad for _, p in others), msg=rest)


def test_inner_layers_of_a_group_have_their_own_weights_and_memories():
    config = AlbertConfig(num_layers=5, num_layer_groups=2, layers_per_group=3)
    assert config.layer_to_weights == [0, 1, 2] * 3 + [3, 4, 5] * 2  # layer l is group floor(2 l / 5)
    assert len(MODEL_KEYS["xlnet, narrow and shared"].build(VOCAB).empty_memory(1, 4)) == 6


def test_flops_are_those_of_the_matrix_products(config):
    """Counted by torch, with rows and width enough for what is left out (what all rows share) to be little."""
    backbone, _ = _build(config.model_copy(update={"d_model": 64, "d_ff": 128}))
    rows, tokens, mem_len = 64, 12, 5 if config.mem_len else 0
    inputs, mems = _inputs(config, rows=rows, tokens=tokens), backbone.empty_memory(rows, mem_len)
    num_predictions = 0 if inputs.target_positions is None else PREDICTIONS
    with FlopCounterMode(display=False) as counter:
        hidden, _ = backbone(inputs, mems)
        (hidden.tokens.sum() + _states(hidden).sum()).backward()
    expected = rows * tokens * backbone.flops_per_token(tokens, mem_len, num_predictions)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)


COUNTS = {
    "xlnet_base": (32_000, 116_750_336),
    "xlnet_large": (32_000, 360_300_800),
    "albert_base": (30_000, 11_683_584),
    "albert_large": (30_000, 17_683_968),
    "albert_xlarge": (30_000, 58_724_864),
    "albert_xxlarge": (30_000, 222_595_584),
    "bert_base": (30_522, 109_482_240),
    "bert_large": (30_522, 335_141_888),
}


@pytest.mark.parametrize("name", COUNTS)
def test_shipped_configs_have_the_published_number_of_parameters(name):
    """XLNet's with the bias of its output layer; those of ALBERT and BERT are encoders with the pooler."""
    data = schema.read_yaml(CONFIGS / f"{name}.yaml")
    config = schema.validate(_Model, {"model": data["model"]}, name).model
    vocab_size, count = COUNTS[name]
    with torch.device("meta"):
        backbone = config.build(vocab_size)
        rest = backbone.output_layer() if isinstance(config, XLNetConfig) else Pooler(backbone.d_model, init_std=0.02)
    assert sum(p.numel() for module in (backbone, rest) for p in module.parameters()) == count


class _Model(schema.Section):
    model: AnyModel


@pytest.mark.parametrize("name", ["albert", "bert"])
def test_rows_longer_than_there_are_positions_are_refused(name):
    config = MODEL_KEYS[name]
    assert list(config.run_problems(seq_len=16)) == []
    assert list(config.run_problems(seq_len=17)) == [
        ("objective.seq_len", "must be at most model.max_positions (16), got 17")
    ]
    backbone, _ = _build(config)
    with pytest.raises(ConfigError, match=r"samples of 17 tokens: this model has model\.max_positions 16"):
        backbone(_inputs(config, tokens=17), backbone.empty_memory(ROWS, 0))


@pytest.mark.parametrize("name", ["albert", "bert"])
def test_encoder_weights_are_drawn_within_two_standard_deviations(name):
    backbone, output = _build(MODEL_KEYS[name].model_copy(update={"d_model": 64, "d_ff": 256}))
    weights = [p for n, p in _parameters(backbone, output).items() if p.ndim > 1]
    values = torch.cat([w.detach().flatten() for w in weights])
    assert float(values.abs().max()) <= 0.04
    assert float(values.std()) == pytest.approx(0.02 * 0.8796, rel=0.02)  # of a normal one cut off at 2 sigma
    assert not backbone.layers[0].attention.query.bias.any()


def test_dropout_of_an_encoder_is_where_the_papers_have_it():
    """Embedding; per layer attention weights, and outputs of attention and feed-forward; none within the latter."""
    backbone, _ = _build(BertConfig(**{**SIZES, "num_layers": 1, "dropout": 0.5, "attention_dropout": 0.25}))
    dropped = note_rates(backbone)
    backbone(BackboneInput(torch.zeros(1, 4, dtype=torch.int64), torch.tensor([0])), backbone.empty_memory(1, 0))
    assert sorted(p for p in dropped if p) == [0.25, 0.5, 0.5, 0.5]


@pytest.mark.full
def test_every_zero_stage_gives_the_losses_of_the_plain_engine(tmp_path):
    """On one rank and on two; with two streams, shared layers, recomputation, and micro-batches without rows."""
    found = []
    for num_ranks in (1, 2):
        torchrun("model_cases.py", tmp_path / f"{num_ranks}.json", nproc=num_ranks)
        found.append(json.loads((tmp_path / f"{num_ranks}.json").read_text()))
    for model, by_engine in found[0].items():
        for ranks in found:
            for engine, losses in ranks[model].items():
                assert losses == pytest.approx(by_engine["plain"], rel=1e-5), (model, engine)


@pytest.mark.parametrize("name", ["transformer_xl", "xlnet"])
def test_unused_memory_is_zeroed_and_memory_that_is_known_to_be_used_is_not_copied(name):
    config = MODEL_KEYS[name]
    model = PretrainingModel(backbone := _build(config)[0].eval(), _States())
    mems = torch.randn_like(backbone.empty_memory(ROWS, 5))
    mems[:, 0, :2] = math.nan
    inputs = _inputs(config, remembered=5)
    inputs.mem_valid_len[0] = 3
    batch = Batch(inputs, {}, {})
    for given in (batch, batch.to(torch.device("cpu"))):
        loss, kept = model(given, mems)
        assert loss.sums["states"].isfinite() and kept.isfinite().all()
    full = Batch(replace(inputs, mem_valid_len=torch.full((ROWS,), 5)), {}, {})
    results, mems = [], torch.nan_to_num(mems)
    for given in (full, full.to(torch.device("cpu"))):
        with counted() as operations:
            loss, kept = model(given, mems)
        results.append((loss.sums["states"], kept, operations.from_cpu.count("masked_fill")))
    (expected, expected_kept, zeroed), (found, found_kept, not_zeroed) = results
    assert torch.equal(found, expected) and torch.equal(found_kept, expected_kept)
    assert not_zeroed == zeroed - 1


class _States(Head):
    def forward(self, hidden: Hidden, batch: Batch) -> Loss:
        return Loss({"states": _states(hidden).float().sum()})

    def flops_per_token(self) -> float:
        return 0.0
