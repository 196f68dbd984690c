"""Embeddings and output layers: adaptive ones are distributions, in the order of positions, tied where asked."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from xlpretrain.models.embedding import TokenEmbedding, VocabularySoftmax

STD = {"init_std": 0.5, "proj_init_std": 0.5}
VARIANTS = {
    "full": {},
    "full, narrow": {"d_embed": 6},
    "adaptive": {"cutoffs": (5, 9)},
    "adaptive, narrow": {"cutoffs": (5, 9), "d_embed": 6},
    "adaptive, narrowing": {"cutoffs": (5, 9), "div_val": 2},
}


def _build(*, tied=True, tied_projections=None, cutoffs=(), d_embed=8, div_val=1):
    torch.manual_seed(0)
    embedding = TokenEmbedding(17, d_model=8, d_embed=d_embed, cutoffs=cutoffs, div_val=div_val, **STD)
    tied_projections = tied_projections or (False,) + (True,) * len(cutoffs)
    output = VocabularySoftmax(embedding, cutoffs=cutoffs, tied=tied, tied_projections=tied_projections, **STD)
    torch.nn.init.normal_(output.bias)
    return embedding, output


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("keys", VARIANTS.values(), ids=VARIANTS.keys())
def test_losses_are_those_of_a_distribution_in_the_order_of_positions(keys, tied):
    _, output = _build(tied=tied, **keys)
    hidden, targets = torch.randn(40, 8), torch.randint(17, (40,))
    log_probs = output.log_probs(hidden)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(40))
    torch.testing.assert_close(output(hidden, targets)[0], -log_probs.gather(1, targets[:, None])[:, 0])
    assert torch.equal(output.eval()(hidden, targets)[1], log_probs.argmax(dim=-1) == targets)


def test_narrowing_vectors_are_projected_table_by_table():
    embedding, _ = _build(cutoffs=(5, 9), div_val=2)
    assert [tuple(table.weight.shape) for table in embedding.tables] == [(5, 8), (4, 4), (8, 2)]
    tokens = torch.tensor([[0, 16, 5], [8, 9, 4]])
    vectors = embedding(tokens)
    for (row, column), cluster, index in [((0, 1), 2, 7), ((0, 2), 1, 0), ((1, 0), 1, 3), ((1, 2), 0, 4)]:
        expected = embedding.projections[cluster].weight @ embedding.tables[cluster].weight[index]
        torch.testing.assert_close(vectors[row, column], expected)


@pytest.mark.parametrize("tokens", [[[0, 16, 5], [8, 9, 4]], [[1, 2, 3]], [[]]], ids=["all", "first cluster", "none"])
def test_a_device_gives_the_same_vectors_and_gradients(tokens, monkeypatch):
    """There no shape depends on the tokens."""
    embedding, _ = _build(cutoffs=(5, 9), div_val=2)
    tokens = torch.tensor(tokens, dtype=torch.int64)
    towards, found = torch.randn(*tokens.shape, 8), []
    for on_device in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda on_device=on_device: on_device)
        vectors = embedding(tokens)
        found.append([vectors, *torch.autograd.grad((vectors * towards).sum(), list(embedding.parameters()))])
    for expected, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("keys", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_device_gives_the_same_losses_and_gradients(keys, monkeypatch):
    embedding, output = _build(**keys)
    hidden, targets, towards = torch.randn(40, 8, requires_grad=True), torch.randint(17, (40,)), torch.rand(40)
    inputs, found = [hidden, *output.parameters(), *embedding.parameters()], []
    for on_device in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda on_device=on_device: on_device)
        nll, _ = output(hidden, targets)
        found.append([nll, *torch.autograd.grad((nll * towards).sum(), inputs, allow_unused=True)])
    for expected, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_one_width_is_a_plain_lookup():
    embedding, _ = _build(cutoffs=(5, 9))
    tokens = torch.tensor([[3, 16]])
    assert torch.equal(embedding(tokens), F.embedding(tokens, embedding.tables[0].weight))


@pytest.mark.parametrize("keys", VARIANTS.values(), ids=VARIANTS.keys())
def test_tied_parameters_are_registered_once(keys):
    embedding, output = _build(tied_projections=(True,) * (1 + len(keys.get("cutoffs", ()))), **keys)
    assert {name for name, _ in output.named_parameters()} <= {"bias", "cluster_weight", "cluster_bias"}
    hidden = torch.randn(9, 8)
    before = output.log_probs(hidden)
    with torch.no_grad():
        embedding.tables[-1].weight[-1] += 1.0
    assert (output.log_probs(hidden)[:, -1] - before[:, -1]).abs().min() > 1e-4


@pytest.mark.parametrize("targets", [[], [0, 1]], ids=["no targets", "head only"])
def test_every_parameter_gets_a_gradient_whatever_the_targets(targets):
    embedding, output = _build(tied=False, cutoffs=(5, 9), div_val=2)
    vectors = embedding(torch.tensor([targets], dtype=torch.int64))[0]
    output(vectors, torch.tensor(targets, dtype=torch.int64))[0].sum().backward()
    parameters = {**dict(embedding.named_parameters()), **dict(output.named_parameters())}
    assert [name for name, parameter in parameters.items() if parameter.grad is None] == []


def test_losses_are_fp32_where_the_weights_are_bf16():
    _, output = _build(cutoffs=(5, 9), div_val=2)
    output, hidden = output.to(torch.bfloat16), torch.randn(3, 8, dtype=torch.bfloat16)
    output._embedding[0].to(torch.bfloat16)
    assert output(hidden, torch.tensor([0, 6, 16]))[0].dtype == torch.float32


def test_flops_count_the_head_and_the_dearest_tail():
    assert _build()[1].flops_per_token() == 6 * 8 * 17
    assert _build(d_embed=6)[1].flops_per_token() == 6 * 6 * (17 + 8)
    adaptive = _build(cutoffs=(5, 9), div_val=2)[1]
    assert adaptive.flops_per_token() == 6 * (8 * (5 + 2 + 8) + max(4 * (4 + 8), 2 * (8 + 8)))
