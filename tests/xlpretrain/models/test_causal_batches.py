"""Causal batches of models that are otherwise bidirectional: the encoders and XLNet."""

from __future__ import annotations

import pytest
import torch

from xlpretrain.models import AlbertConfig, BertConfig, XLNetConfig
from xlpretrain.models.attention import Attention
from xlpretrain.models.backbone import Backbone, BackboneInput

VOCAB, ROWS, TOKENS = 23, 2, 9
SIZES = {"num_layers": 2, "num_heads": 2, "d_model": 12, "d_ff": 20, "dropout": 0.0, "attention_dropout": 0.0}
CONFIGS = {
    "bert": BertConfig(**SIZES, max_positions=16),
    "bert, pre-norm": BertConfig(**SIZES, max_positions=16, pre_norm=True),
    "albert": AlbertConfig(**SIZES, d_embed=6, max_positions=16),
    "xlnet": XLNetConfig(**SIZES, mem_len=0),
}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def backbone(request: pytest.FixtureRequest) -> Backbone:
    torch.manual_seed(0)
    return request.param.build(VOCAB).eval()


def read(backbone: Backbone, tokens: torch.Tensor, *, valid: torch.Tensor | None = None, causal: bool = True):
    inputs = BackboneInput(tokens, torch.zeros(len(tokens), dtype=torch.int64), attention_mask=valid, causal=causal)
    return backbone(inputs, backbone.empty_memory(len(tokens), 0))[0].tokens


@pytest.mark.parametrize("implementation", ["plain", "sdpa", None])
def test_a_state_does_not_depend_on_later_tokens(backbone: Backbone, implementation: str | None):
    for module in backbone.modules():
        if isinstance(module, Attention):
            module.implementation = implementation
    tokens = torch.randint(VOCAB, (ROWS, TOKENS), generator=torch.Generator().manual_seed(1))
    whole = read(backbone, tokens)
    for length in range(1, TOKENS):
        changed = tokens.clone()
        changed[:, length:] = (changed[:, length:] + 1) % VOCAB
        again = read(backbone, changed)
        torch.testing.assert_close(again[:, :length], whole[:, :length], atol=1e-6, rtol=0)
        assert not torch.allclose(again[:, length:], whole[:, length:], atol=1e-3)
        torch.testing.assert_close(read(backbone, tokens[:, :length]), whole[:, :length], atol=1e-5, rtol=0)
    assert not torch.allclose(read(backbone, tokens, causal=False)[:, :-1], whole[:, :-1], atol=1e-3)


def test_the_gradient_with_respect_to_later_tokens_is_0(backbone: Backbone):
    vectors: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        vectors.append(output.detach().requires_grad_())
        return vectors[-1]

    embedding = getattr(backbone.embedding, "tokens", backbone.embedding)
    embedding.register_forward_hook(keep)
    tokens = torch.randint(VOCAB, (ROWS, TOKENS), generator=torch.Generator().manual_seed(1))
    state = read(backbone, tokens)[:, 4]
    (state * torch.arange(state.shape[1])).sum().backward()  # a norm's plain sum is constant
    gradient = vectors[0].grad
    assert gradient is not None and not gradient[:, 5:].any()
    assert (gradient[:, :5].abs().sum(-1) > 0).all()


def test_padding_is_seen_by_no_token(backbone: Backbone):
    tokens = torch.randint(VOCAB, (ROWS, TOKENS), generator=torch.Generator().manual_seed(1))
    valid = torch.ones(ROWS, TOKENS, dtype=torch.bool)
    valid[0, 6:] = False
    padded = read(backbone, tokens, valid=valid)
    torch.testing.assert_close(padded[0, :6], read(backbone, tokens[:1, :6])[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(padded[1], read(backbone, tokens)[1], atol=1e-5, rtol=0)
    assert padded.isfinite().all()
