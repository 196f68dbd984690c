"""Transformer-XL (Dai et al. 2019, arXiv:1901.02860): a causal decoder in which each layer has a memory of its inputs.

Differences from the authors' PyTorch code, none of which changes the computed function: batch first; the memory has a
fixed size and a count of positions that belong to the sample, while theirs starts empty and grows; the last layer's
output is not kept in memory, since nothing attends to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from jaxtyping import Float
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from xlpretrain.errors import ConfigError
from xlpretrain.models.backbone import BackboneInput, Hidden
from xlpretrain.models.embedding import TokenEmbedding, VocabularySoftmax
from xlpretrain.models.parts.feed_forward import Activation
from xlpretrain.models.relative_positions import RelativePositions, clamped_distances, whole_eights
from xlpretrain.models.stack import Rate, RelativeConfig, StackedBackbone, draw
from xlpretrain.schema import Problem


class TransformerXLConfig(RelativeConfig):
    """Config of a Transformer-XL; the defaults are the authors' 12-layer enwik8 model."""

    type: Literal["transformer_xl"] = "transformer_xl"
    """Kind of model."""
    num_heads: PositiveInt = 8
    """Attention heads of a layer."""
    d_model: PositiveInt = 512
    """Width of the hidden states; must be even."""
    d_ff: PositiveInt = 2048
    """Inner width of the feed-forward layers."""
    d_embed: PositiveInt | None = None
    """Width of the token vectors (with div_val, those of the most frequent cluster); null: d_model."""
    mem_len: NonNegativeInt = 512
    """Memory length: past positions that each layer attends, besides the sample; 0: none. Evaluation may use another.
    """
    dropout: Rate = 0.1
    """Dropout of embeddings, positions, attention output, feed-forward (inside and out) and final output."""
    attention_dropout: Rate = 0.0
    """Dropout of attention weights."""
    activation: Activation = "relu"
    """Activation of the feed-forward layers: relu, gelu (exact), gelu_tanh, or silu."""
    same_length: bool = False
    """Let every token attend the same number of positions, mem_len including itself; otherwise tokens late in a sample
    attend more."""
    untie_r: bool = False
    """Give each distinct layer its own attention biases; otherwise all layers share them."""
    tie_embeddings: bool = True
    """Use the embedding's token vectors in the output layer."""
    adaptive_cutoffs: tuple[PositiveInt, ...] = ()
    """Token ids at which the less frequent clusters of an adaptive softmax start; empty: a full softmax."""
    div_val: PositiveInt = 1
    """Factor by which the vectors of each further cluster are narrower; 1: all have width d_embed."""
    tie_projections: tuple[bool, ...] | None = None
    """For each cluster, true if the output layer uses the embedding's projection; null: all but the first."""
    layer_norm_eps: PositiveFloat = 1e-5
    """Added to the variance, or the mean square, in a norm (1e-12 in the TensorFlow original)."""
    init_std: PositiveFloat = 0.02
    """Standard deviation of initial weights (0.005 in the authors' large WikiText-103 and lm1b models)."""
    proj_init_std: PositiveFloat = 0.01
    """Standard deviation of initial projections between token vectors and d_model."""

    provides: ClassVar[frozenset[str]] = frozenset({"memory", "causal"})

    def problems(self) -> Iterator[Problem]:
        """Yield contradictions between keys."""
        yield from super().problems()
        if self.same_length and self.mem_len == 0:
            yield "same_length", "needs a memory to look back into, but mem_len is 0; set mem_len or drop same_length"
        cutoffs = self.adaptive_cutoffs
        if list(cutoffs) != sorted(set(cutoffs)):
            yield "adaptive_cutoffs", f"must increase, got {list(cutoffs)}"
        if self.div_val > 1 and not cutoffs:
            yield "div_val", f"needs adaptive_cutoffs; without them there is one cluster (got {self.div_val})"
        if self.div_val ** len(cutoffs) > self.resolved_d_embed:
            yield (
                "div_val",
                f"leaves the last cluster no width: d_embed {self.resolved_d_embed} // {self.div_val}**{len(cutoffs)}"
                " is 0",
            )
        if self.tie_projections is not None and len(self.tie_projections) != len(cutoffs) + 1:
            yield (
                "tie_projections",
                f"needs one value per cluster ({len(cutoffs) + 1}), got {len(self.tie_projections)}",
            )

    @property
    def tied_projections(self) -> tuple[bool, ...]:
        """For each cluster, True if the output layer uses the embedding's projection."""
        if self.tie_projections is not None:
            return self.tie_projections
        return (False, *(True for _ in self.adaptive_cutoffs))

    def build(self, vocab_size: int) -> TransformerXL:
        """Build the model with fresh weights. Raises `ConfigError` if a cutoff is outside the vocabulary."""
        if self.adaptive_cutoffs and self.adaptive_cutoffs[-1] >= vocab_size:
            raise ConfigError(
                f"model.adaptive_cutoffs: the last one must lie within the vocabulary of {vocab_size}, "
                f"got {list(self.adaptive_cutoffs)}"
            )
        return TransformerXL(self, vocab_size)


class TransformerXL(StackedBackbone):
    """The decoder. `clamp_len` and `same_length` are attributes, so that evaluation can use a longer memory."""

    provides = TransformerXLConfig.provides

    embedding: TokenEmbedding

    def __init__(self, config: TransformerXLConfig, vocab_size: int):
        embedding = TokenEmbedding(
            vocab_size,
            d_model=config.d_model,
            d_embed=config.resolved_d_embed,
            cutoffs=config.adaptive_cutoffs,
            div_val=config.div_val,
            init_std=config.init_std,
            proj_init_std=config.proj_init_std,
        )
        super().__init__(config, embedding, config.attention(bidirectional=False), inner_dropout=config.dropout)
        self.config = config
        if config.adaptive_cutoffs:
            self.cluster_edges = (0, *config.adaptive_cutoffs, vocab_size)
        self.positions = config.positions.build(config.d_model, max_positions=None)
        self.clamp_len = config.longest_distance
        self.same_length = config.same_length
        self.content_bias = config.init_biases()
        self.position_bias = config.init_biases()
        self.layers.apply(self._draw)

    def forward(self, inputs: BackboneInput, mems: Float[Tensor, "L B M D"]) -> tuple[Hidden, Float[Tensor, "L B M D"]]:
        """Hidden states of the new tokens, and each layer's last M inputs, detached."""
        mem_len, num_keys = mems.shape[2], mems.shape[2] + inputs.tokens.shape[1]
        hidden = self.dropout(self.embedding(inputs.tokens) * self.d_model**0.5)
        last = num_keys + 1 - whole_eights(num_keys + 1, hidden.device)
        distances = clamped_distances(num_keys, last, clamp_len=self.clamp_len, device=hidden.device)
        encoded = self.positions(distances).to(hidden.dtype)
        mask = self.mask(
            inputs,
            hidden,
            may_be_blind=inputs.attention_mask is not None,
            mem_len=mem_len,
            causal=True,
            same_length=self.same_length,
            initial_zeros=self.config.initial_memory == "zeros",
        )
        hidden, mems = self.apply_layers(
            hidden,
            mems,
            inputs,
            mask,
            RelativePositions(self.dropout(encoded[None])),
            biases=(self.content_bias, self.position_bias),
        )
        return Hidden(self.dropout(hidden)), mems

    def flops_per_token(self, seq_len: int, mem_len: int, num_predictions: int = 0) -> float:
        """FLOPs of the embedding's projections and of all layers."""
        return self.embedding.flops_per_token() + self.layer_flops_per_token(seq_len, mem_len, num_predictions)

    def output_layer(self) -> VocabularySoftmax:
        """A full or adaptive softmax, tied according to the config."""
        config = self.config
        return VocabularySoftmax(
            self.embedding,
            cutoffs=config.adaptive_cutoffs,
            tied=config.tie_embeddings,
            tied_projections=config.tied_projections,
            init_std=config.init_std,
            proj_init_std=config.proj_init_std,
        )

    def _draw(self, module: nn.Module) -> None:
        """Initialize as the originals do, including norm weights from N(1, init_std)."""
        draw(module, self.config.init_std)
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            nn.init.normal_(module.weight, mean=1.0, std=self.config.init_std)
