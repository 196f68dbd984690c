"""XLNet, ALBERT and BERT give the logits, losses, gradients and loss curves of transformers 5 from the same weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlpretrain.hub.weight_map import read, weight_rules, write
from xlpretrain.models.backbone import BackboneInput
from xlpretrain.models.encoder import AlbertConfig, BertConfig
from xlpretrain.models.pretraining_model import Batch, PretrainingModel
from xlpretrain.models.xlnet import XLNetConfig
from xlpretrain.objectives.masked_lm import MaskedLM
from xlpretrain.objectives.permutation_lm import PermutationLM

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

VOCAB, ROWS, TOKENS, PREDICTIONS = 31, 4, 9, 3
SIZES = {"num_layers": 3, "num_heads": 2, "d_model": 12, "d_ff": 20, "dropout": 0.0, "attention_dropout": 0.0}
ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu": "gelu", "relu": "relu"}


def _pair(config, theirs, objective) -> tuple[PretrainingModel, nn.Module]:
    """The same weights, large enough for every one of them to matter, in both."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    backbone = config.build(VOCAB)
    model = PretrainingModel(backbone, objective.head(backbone))
    model.load_state_dict(read(weight_rules(config), theirs.state_dict()))
    return model, theirs


def _xlnet(keep=None, bi_data=False, **keys) -> tuple[PretrainingModel, nn.Module]:
    config = XLNetConfig(**{**SIZES, "mem_len": 6, **keys})
    theirs = transformers.XLNetConfig(
        vocab_size=VOCAB,
        d_model=config.d_model,
        n_layer=config.num_layers,
        n_head=config.num_heads,
        d_inner=config.d_ff,
        ff_activation=ACTIVATIONS[config.activation],
        dropout=0.0,
        mem_len=config.mem_len,
        reuse_len=keep,
        bi_data=bi_data,
        clamp_len=config.clamp_len or -1,
        use_mems_train=config.mem_len > 0,
    )
    return _pair(config, transformers.XLNetLMHeadModel(theirs), PermutationLM())


def _encoder_keys(config) -> dict:
    return {
        "vocab_size": VOCAB,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.d_ff,
        "hidden_act": ACTIVATIONS[config.activation],
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": config.max_positions,
        "type_vocab_size": config.num_segments,
    }


def _albert(**keys) -> tuple[PretrainingModel, nn.Module]:
    config = AlbertConfig(**{**SIZES, "d_embed": 6, "max_positions": 12, **keys})
    theirs = transformers.AlbertConfig(
        **_encoder_keys(config),
        embedding_size=config.resolved_d_embed,
        num_hidden_groups=config.num_layer_groups,
        inner_group_num=config.layers_per_group,
        classifier_dropout_prob=0.0,
    )
    return _pair(config, transformers.AlbertForPreTraining(theirs), MaskedLM(sentence_task="sop"))


def _bert(**keys) -> tuple[PretrainingModel, nn.Module]:
    config = BertConfig(**{**SIZES, "max_positions": 12, **keys})
    return _pair(
        config,
        transformers.BertForPreTraining(transformers.BertConfig(**_encoder_keys(config))),
        MaskedLM(sentence_task="nsp"),
    )


def _assert_close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    """Relative to the largest of theirs."""
    difference = (ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-3)
    assert float(difference.detach()) < tolerance


def _assert_same_gradients(model: PretrainingModel, theirs: nn.Module) -> None:
    unused = {name: torch.zeros_like(p) for name, p in theirs.named_parameters() if p.grad is None}
    gradients = read(weight_rules(model.backbone.config), {n: p.grad for n, p in theirs.named_parameters()} | unused)
    largest = max(float(g.abs().max()) for g in gradients.values())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        difference = (parameter.grad - gradients[name]).abs().max() / gradients[name].abs().max().clamp(
            min=largest / 100
        )
        assert float(difference) < 1e-4, name


def _permuted(*, remembered: int, keep=None, bi_data=False, padded=False) -> BackboneInput:
    """Two halves; five tokens, of which three are predicted, come in a random order, the others before them."""
    order = torch.zeros(ROWS, TOKENS, dtype=torch.int64)
    predict = torch.empty(ROWS, PREDICTIONS, dtype=torch.int64)
    for row in range(ROWS):
        ordered = 1 + torch.randperm(TOKENS - 1 - 2 * padded)[: PREDICTIONS + 2]  # each sees the first token at least
        order[row, ordered] = torch.arange(1, len(ordered) + 1)
        predict[row] = ordered[torch.randperm(len(ordered))[:PREDICTIONS]]
    order[:, TOKENS // 2 :] += 100
    valid = torch.ones(ROWS, TOKENS, dtype=torch.bool)
    valid[::2, TOKENS - 2 :] = not padded
    return BackboneInput(
        tokens=1 + (torch.rand(ROWS, TOKENS) ** 4 * (VOCAB - 1)).long(),  # some are frequent, as in text
        mem_valid_len=torch.full((ROWS,), remembered),
        attention_mask=valid,
        segments=(torch.arange(TOKENS) > torch.randint(2, TOKENS, (ROWS, 1))).long(),
        perm_rank=order,
        target_positions=predict,
        reversed=torch.arange(ROWS) >= ROWS // 2 if bi_data else None,
        reuse_len=keep,
    )


def _theirs_of(inputs: BackboneInput) -> dict[str, Tensor | None]:
    arguments: dict[str, Tensor | None] = {"input_ids": inputs.tokens, "token_type_ids": inputs.segments}
    if inputs.attention_mask is not None:
        arguments["attention_mask"] = inputs.attention_mask.float()
    if inputs.perm_rank is not None:
        same = torch.eye(TOKENS, dtype=torch.bool)
        arguments["perm_mask"] = ((inputs.perm_rank[:, None] > inputs.perm_rank[..., None]) | same).float()
    if inputs.target_positions is not None:
        arguments["target_mapping"] = F.one_hot(inputs.target_positions, TOKENS).float()
    return arguments


XLNETS = {
    "two streams": {"keep": 5},
    "longer memory, all kept": {"mem_len": 23, "activation": "gelu"},
    "clamped": {"keep": 4, "clamp_len": 3},
    "both directions": {"keep": 4, "bi_data": True},
    "both directions, clamped": {"keep": 6, "bi_data": True, "clamp_len": 4, "activation": "gelu"},
    "no memory": {"mem_len": 0},
}


@pytest.mark.parametrize("with_segments", [True, False], ids=["segments", "no segments"])
@pytest.mark.parametrize("streams", ["predictions", "tokens"])
@pytest.mark.parametrize("keys", XLNETS.values(), ids=XLNETS.keys())
def test_xlnet_has_their_logits_losses_and_gradients_row_after_row(keys, streams, with_segments):
    model, theirs = _xlnet(**keys)
    mem_len, keep = model.backbone.config.mem_len, keys.get("keep")
    mems, their_mems = model.backbone.empty_memory(ROWS, mem_len), None
    for segment in range(4):
        inputs = _permuted(
            remembered=min(segment * (keep or TOKENS), mem_len),
            keep=keep,
            bi_data=keys.get("bi_data", False),
            padded=segment == 3,
        )
        if not with_segments:
            inputs = replace(inputs, segments=None)
        if streams == "tokens":
            inputs = replace(inputs, target_positions=None, perm_rank=None)
        hidden, mems = model.backbone(inputs, mems)
        answer = theirs(**_theirs_of(inputs), mems=their_mems)
        their_mems = answer.mems
        states, logits = hidden.predictions, answer.logits
        if states is None:
            states, logits = hidden.tokens[inputs.attention_mask], logits[inputs.attention_mask]
        targets = torch.randint(VOCAB, states.shape[:-1]).flatten()
        states, logits = states.flatten(0, -2), logits.flatten(0, -2)
        ours = model.head.output.log_probs(states)
        assert float(((ours - logits.log_softmax(-1)).abs().max() / logits.abs().max()).detach()) < 1e-5
        loss = model.head.output(states, targets)[0].mean()
        expected = F.cross_entropy(logits, targets)
        _assert_close(loss, expected, 1e-5)
        for ours_of_layer, theirs_of_layer in zip(mems, their_mems or [], strict=False):
            if keep or segment < 3:  # of padding they remember other things
                known = theirs_of_layer.transpose(0, 1)
                _assert_close(ours_of_layer[:, mem_len - known.shape[1] :], known, 1e-5)
    loss.backward()
    expected.backward()
    _assert_same_gradients(model, theirs)


ENCODERS = {
    "albert": (_albert, {}),
    "albert, 2 groups of 3 layers": (_albert, {"num_layer_groups": 2, "activation": "gelu"}),
    "albert, inner groups": (_albert, {"num_layers": 4, "num_layer_groups": 2, "layers_per_group": 2}),
    "albert, 3 segments": (_albert, {"num_segments": 3, "activation": "relu"}),
    "bert": (_bert, {"activation": "gelu"}),
    "bert, tanh": (_bert, {}),
}


def _masked(task: str) -> Batch:
    inputs = _permuted(remembered=0, padded=True)
    tokens = inputs.tokens
    chosen = inputs.attention_mask & (torch.rand(tokens.shape) < 0.3)
    chosen[0, 0] = True
    (at,) = torch.nonzero(chosen.flatten(), as_tuple=True)
    targets = {"mlm": tokens[chosen] * 7 % VOCAB, "mlm_positions": at}
    targets |= {
        task: torch.randint(2, (ROWS - 1,)),
        f"{task}_positions": torch.tensor([0, 1, 3]),
    }  # the third row is not asked
    inputs = BackboneInput(tokens, inputs.mem_valid_len, attention_mask=inputs.attention_mask, segments=inputs.segments)
    return Batch(inputs, targets, {"mlm": len(at), task: ROWS - 1})


def _answer_of(theirs: nn.Module, batch: Batch, task: str):
    """Theirs takes a label for every token and row; -100: none."""
    labels = torch.full((ROWS * TOKENS,), -100).index_copy(0, batch.targets["mlm_positions"], batch.targets["mlm"])
    rows = torch.full((ROWS,), -100).index_copy(0, batch.targets[f"{task}_positions"], batch.targets[task])
    name = {"sop": "sentence_order_label", "nsp": "next_sentence_label"}[task]
    return theirs(**_theirs_of(batch.inputs), labels=labels.view(ROWS, TOKENS), **{name: rows})


def _loss_of(model: PretrainingModel, batch: Batch, mems: Tensor) -> tuple[Tensor, Tensor]:
    loss, mems = model(batch, mems)
    return sum(total / batch.counts[term] for term, total in loss.sums.items()), mems


@pytest.mark.parametrize(("build", "keys"), ENCODERS.values(), ids=ENCODERS.keys())
def test_encoders_have_their_logits_losses_and_gradients(build, keys):
    model, theirs = build(**keys)
    batch = _masked(model.head.task)
    valid = batch.inputs.attention_mask
    mems = model.backbone.empty_memory(ROWS, 0)
    hidden, _ = model.backbone(batch.inputs, mems)
    answer = _answer_of(theirs, batch, model.head.task)
    logits = answer.prediction_logits[valid]
    ours = model.head.output.log_probs(hidden.tokens[valid])
    assert float(((ours - logits.log_softmax(-1)).abs().max() / logits.abs().max()).detach()) < 1e-5
    row_logits = answer.sop_logits if model.head.task == "sop" else answer.seq_relationship_logits
    _assert_close(model.head.sentence(hidden.tokens), row_logits, 1e-5)
    loss, _ = _loss_of(model, batch, mems)
    _assert_close(loss, answer.loss, 1e-5)
    loss.backward()
    answer.loss.backward()
    _assert_same_gradients(model, theirs)


@pytest.mark.parametrize("build", [_xlnet, _albert, _bert], ids=["xlnet", "albert", "bert"])
def test_our_weights_are_theirs_again(build):
    model, theirs = build()
    names = dict(theirs.named_parameters())
    written = write(weight_rules(model.backbone.config), model.state_dict())
    assert written.keys() == names.keys()
    assert all(torch.equal(written[name], names[name]) for name in names)


def _train(model: nn.Module, loss_of: Callable[[int], Tensor], *, num_steps: int = 50) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.01)
    losses = []
    for step in range(num_steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        loss = loss_of(step)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("build", [_albert, _bert], ids=["albert", "bert"])
def test_encoders_train_along_their_loss_curve(build):
    model, theirs = build()
    task, empty = model.head.task, model.backbone.empty_memory(ROWS, 0)
    ours = _train(model, lambda _: _loss_of(model, _masked(task), empty)[0])
    _assert_same_curves(ours, _train(theirs, lambda _: _answer_of(theirs, _masked(task), task).loss))


def test_xlnet_trains_along_their_loss_curve_with_memory():
    model, theirs = _xlnet(keep=4, bi_data=True)
    mems, their_mems = model.backbone.empty_memory(ROWS, 6), None

    def of_ours(step: int) -> Tensor:
        nonlocal mems
        inputs, targets = _predicted(step)
        batch = Batch(
            inputs, {"plm": targets.flatten(), "plm_positions": torch.arange(targets.numel())}, {"plm": targets.numel()}
        )
        loss, mems = _loss_of(model, batch, mems)
        return loss

    def of_theirs(step: int) -> Tensor:
        nonlocal their_mems
        inputs, targets = _predicted(step)
        answer = theirs(**_theirs_of(inputs), mems=their_mems, labels=targets)
        their_mems = answer.mems
        return answer.loss

    _assert_same_curves(_train(model, of_ours), _train(theirs, of_theirs))


def _predicted(step: int) -> tuple[BackboneInput, Tensor]:
    inputs = _permuted(remembered=min(4 * step, 6), keep=4, bi_data=True)
    return inputs, inputs.tokens.gather(1, inputs.target_positions)


def _assert_same_curves(ours: list[float], theirs: list[float]) -> None:
    assert sum(ours[-5:]) < 0.9 * sum(ours[:5])
    difference = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    print(f"largest difference of a loss in {len(ours)} steps: {difference:.1e}")
    assert difference < 1e-3
