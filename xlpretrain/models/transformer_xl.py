"""Transformer-XL (Dai et al. 2019, arXiv:1901.02860): a causal decoder whose layers remember their last inputs.

Deviations from the authors' PyTorch code, none of which changes the function it computes: batch first; the memory
has one fixed size and a count of positions that are the row's own, where theirs grows from nothing; the last
layer's output, which nothing attends, is not remembered.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, cast

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from xlpretrain.errors import ConfigError
from xlpretrain.models.attention import RelativeAttention, visible_keys
from xlpretrain.models.backbone import Backbone, BackboneConfig, BackboneInput, Hidden
from xlpretrain.models.embedding import TokenEmbedding, VocabularySoftmax
from xlpretrain.models.layers import DecoderLayer, FeedForward, encode_distances
from xlpretrain.schema import Problem

Rate = Annotated[float, Field(ge=0, lt=1)]


class TransformerXLConfig(BackboneConfig):
    """The keys of a Transformer-XL; the defaults are the authors' 12-layer enwik8 model."""

    type: Literal["transformer_xl"] = "transformer_xl"
    """Which model this is."""
    num_layers: PositiveInt = 12
    """Layers, each with its own weights and memory."""
    num_heads: PositiveInt = 8
    """Attention heads of a layer."""
    d_model: PositiveInt = 512
    """Width of the hidden states; even."""
    d_head: PositiveInt | None = None
    """Width of a head; d_model / num_heads unless set."""
    d_ff: PositiveInt = 2048
    """Inner width of the feed-forward layers."""
    d_embed: PositiveInt | None = None
    """Width of the token vectors (of the most frequent cluster's, with div_val); d_model unless set."""
    mem_len: NonNegativeInt = 512
    """Positions of the past that every layer attends beside its row; 0: none. Evaluation may use another length."""
    dropout: Rate = 0.1
    """Dropout of embeddings, positions, attention output, feed-forward (inside and out) and final output."""
    attention_dropout: Rate = 0.0
    """Dropout of attention weights."""
    clamp_len: Annotated[int, Field(ge=-1)] | None = None
    """Distances beyond this many tokens count as this many; null or -1: no limit."""
    same_length: bool = False
    """Whether every token attends equally many positions, mem_len with itself; else those late in a row see more."""
    pre_norm: bool = False
    """Whether the norm comes before attention and feed-forward (x + f(norm(x))) instead of after (norm(x + f(x)))."""
    untie_r: bool = False
    """Whether each layer has its own two attention biases; else all layers share them."""
    tie_embeddings: bool = True
    """Whether the output layer uses the embedding's vectors."""
    adaptive_cutoffs: tuple[PositiveInt, ...] = ()
    """Token ids at which the less frequent clusters of an adaptive softmax begin; empty: a full softmax."""
    div_val: PositiveInt = 1
    """Each further cluster's vectors are narrower by this factor; 1: all are d_embed wide."""
    tie_projections: tuple[bool, ...] | None = None
    """Per cluster, whether the output layer uses the embedding's projection; all but the first unless set."""
    initial_memory: Literal["none", "zeros"] = "none"
    """What a stream without a past attends: nothing (the PyTorch original) or zeros (TensorFlow, transformers)."""
    layer_norm_eps: PositiveFloat = 1e-5
    """Added to the variance in a layer norm (1e-12 in the TensorFlow original)."""
    init_std: PositiveFloat = 0.02
    """Standard deviation of fresh weights (0.005 in the authors' large WikiText-103 and lm1b models)."""
    proj_init_std: PositiveFloat = 0.01
    """Standard deviation of fresh projections between token vectors and d_model."""

    provides: ClassVar[frozenset[str]] = frozenset({"memory", "causal"})

    def problems(self) -> Iterator[Problem]:
        """What is wrong between keys."""
        if self.d_head is None and self.d_model % self.num_heads:
            yield "num_heads", f"must divide d_model ({self.d_model}) unless d_head is set, got {self.num_heads}"
        if self.d_model % 2:
            yield "d_model", f"must be even (half sines, half cosines), got {self.d_model}"
        if self.clamp_len == 0:
            yield "clamp_len", "must be positive, or null for no limit, got 0"
        if self.same_length and self.mem_len == 0:
            yield "same_length", "needs a memory to look back into, but mem_len is 0; set mem_len or drop same_length"
        cutoffs = self.adaptive_cutoffs
        if list(cutoffs) != sorted(set(cutoffs)):
            yield "adaptive_cutoffs", f"must increase, got {list(cutoffs)}"
        if self.div_val > 1 and not cutoffs:
            yield "div_val", f"needs adaptive_cutoffs; without them there is one cluster (got {self.div_val})"
        if self.div_val ** len(cutoffs) > self.embed_size:
            yield (
                "div_val",
                f"leaves the last cluster no width: d_embed {self.embed_size} // {self.div_val}**{len(cutoffs)} is 0",
            )
        if self.tie_projections is not None and len(self.tie_projections) != len(cutoffs) + 1:
            yield (
                "tie_projections",
                f"needs one value per cluster ({len(cutoffs) + 1}), got {len(self.tie_projections)}",
            )

    @property
    def head_size(self) -> int:
        """Width of a head."""
        return self.d_head or self.d_model // self.num_heads

    @property
    def embed_size(self) -> int:
        """Width of the (widest) token vectors."""
        return self.d_embed or self.d_model

    @property
    def tied_projections(self) -> tuple[bool, ...]:
        """Per cluster, whether its projection is the embedding's."""
        if self.tie_projections is not None:
            return self.tie_projections
        return (False, *(True for _ in self.adaptive_cutoffs))

    def build(self, vocab_size: int) -> TransformerXL:
        """The model with freshly drawn weights. Raises `ConfigError` if the cutoffs do not fit the vocabulary."""
        if self.adaptive_cutoffs and self.adaptive_cutoffs[-1] >= vocab_size:
            raise ConfigError(
                f"model.adaptive_cutoffs: the last one must lie within the vocabulary of {vocab_size}, "
                f"got {list(self.adaptive_cutoffs)}"
            )
        return TransformerXL(self, vocab_size)


class TransformerXL(Backbone):
    """The decoder. `clamp_len` and `same_length` are attributes: evaluation may look further back than training did."""

    provides = TransformerXLConfig.provides

    def __init__(self, config: TransformerXLConfig, vocab_size: int):
        super().__init__()
        self.config = config
        self.d_model = config.d_model
        self.clamp_len = config.clamp_len if config.clamp_len != -1 else None
        self.same_length = config.same_length
        self.embedding = TokenEmbedding(
            vocab_size,
            d_model=config.d_model,
            d_embed=config.embed_size,
            cutoffs=config.adaptive_cutoffs,
            div_val=config.div_val,
            init_std=config.init_std,
            proj_init_std=config.proj_init_std,
        )
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(_build_layer(config) for _ in range(config.num_layers))
        # One pair for all layers, or one each (`untie_r`).
        shape = (config.num_layers if config.untie_r else 1, config.num_heads, config.head_size)
        self.content_bias = nn.Parameter(torch.randn(shape) * config.init_std)
        self.position_bias = nn.Parameter(torch.randn(shape) * config.init_std)
        self.layers.apply(self._draw)

    def forward(self, inputs: BackboneInput, mems: Float[Tensor, "L B M D"]) -> tuple[Hidden, Float[Tensor, "L B M D"]]:
        """Hidden states of the new tokens, and each layer's last M inputs, detached."""
        num_rows, num_tokens = inputs.tokens.shape
        mem_len = mems.shape[2]
        hidden = self.dropout(self.embedding(inputs.tokens) * self.d_model**0.5)
        distances = encode_distances(
            mem_len + num_tokens, self.d_model, clamp_len=self.clamp_len, device=hidden.device, dtype=hidden.dtype
        )
        distances = self.dropout(distances)
        # What a row does not remember is another row's: zeros, seen (initial_memory zeros) or not.
        strange = torch.arange(mem_len, device=mems.device) < mem_len - inputs.remembered[:, None]
        mems = mems.masked_fill(strange[..., None], 0)
        mask = self._mask(inputs.remembered, num_tokens=num_tokens, mem_len=mem_len, dtype=hidden.dtype)

        next_mems = []
        for index, layer in enumerate(self.layers):
            next_mems.append(_remember(mems[index], hidden))
            bias = index if self.config.untie_r else 0
            arguments = (hidden, mems[index], distances, mask, self.content_bias[bias], self.position_bias[bias])
            if self.activation_checkpointing and torch.is_grad_enabled():
                hidden = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                hidden = layer(*arguments)
        assert hidden.shape == (num_rows, num_tokens, self.d_model)
        return Hidden(self.dropout(hidden)), torch.stack(next_mems)

    def empty_memory(self, num_rows: int, mem_len: int) -> Float[Tensor, "L B M D"]:
        """Zeros, in the dtype and on the device of the weights."""
        return self.content_bias.new_zeros(len(self.layers), num_rows, mem_len, self.d_model, requires_grad=False)

    def flops_per_token(self, seq_len: int, mem_len: int, num_predictions: int = 0) -> float:
        """6 per weight of a matrix product, and attention over all keys (PaLM, arXiv:2204.02311, appendix B)."""
        layer = cast(DecoderLayer, self.layers[0])
        return self.embedding.flops_per_token() + len(self.layers) * layer.flops_per_token(seq_len, mem_len)

    def output_layer(self) -> VocabularySoftmax:
        """A full or adaptive softmax, tied as the config says."""
        config = self.config
        return VocabularySoftmax(
            self.embedding,
            cutoffs=config.adaptive_cutoffs,
            tied=config.tie_embeddings,
            tied_projections=config.tied_projections,
            init_std=config.init_std,
            proj_init_std=config.proj_init_std,
        )

    def _mask(self, remembered: Tensor, *, num_tokens: int, mem_len: int, dtype: torch.dtype) -> Tensor:
        if self.config.initial_memory == "zeros":
            remembered = torch.full_like(remembered, mem_len)
        visible = visible_keys(remembered, num_queries=num_tokens, mem_len=mem_len, same_length=self.same_length)
        return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)

    def _draw(self, module: nn.Module) -> None:
        """Linear weights from N(0, init_std), norms' from N(1, init_std), biases 0, as the originals."""
        if isinstance(module, nn.Linear | nn.LayerNorm):
            mean = 1.0 if isinstance(module, nn.LayerNorm) else 0.0
            nn.init.normal_(module.weight, mean=mean, std=self.config.init_std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _build_layer(config: TransformerXLConfig) -> DecoderLayer:
    attention = RelativeAttention(
        d_model=config.d_model, num_heads=config.num_heads, d_head=config.head_size, dropout=config.attention_dropout
    )
    feed_forward = FeedForward(d_model=config.d_model, d_ff=config.d_ff, dropout=config.dropout)
    return DecoderLayer(
        attention,
        feed_forward,
        d_model=config.d_model,
        eps=config.layer_norm_eps,
        dropout=config.dropout,
        pre_norm=config.pre_norm,
    )


def _remember(memory: Float[Tensor, "B M D"], hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B M D"]:
    """The last M positions of memory and hidden states, detached."""
    mem_len, num_tokens = memory.shape[1], hidden.shape[1]
    if num_tokens >= mem_len:
        return hidden.detach()[:, num_tokens - mem_len :]
    return torch.cat([memory[:, num_tokens:], hidden.detach()], dim=1)
