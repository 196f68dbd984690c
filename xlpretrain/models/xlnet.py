"""XLNet (Yang et al. 2019, arXiv:1906.08237): bidirectional Transformer-XL layers with a second stream.

The content stream h encodes each token; the query stream g, at the positions to be predicted, starts from a learned
vector and attends the tokens before it in the factorization order, never the token at its own position (section 2.3).
Both are concatenated and go through the same layers, so they share all weights, and g has only as many positions as
there are predictions.

Differences from the authors' TensorFlow code, none of which changes the computed function: batch first; the memory has
a count of positions that belong to the sample; all samples share the dropout of the distance encodings;
`mask_embedding` is initialized like other weights, while theirs gets TensorFlow's default (glorot_uniform).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import NonNegativeInt
from torch import Tensor, nn

from xlpretrain.models.attention import RelativeAttention
from xlpretrain.models.backbone import BackboneInput, Hidden
from xlpretrain.models.embedding import TokenEmbedding, VocabularySoftmax
from xlpretrain.models.relative_positions import (
    RelativePositions,
    clamped_distances,
    directions,
    prediction_columns,
    whole_eights,
)
from xlpretrain.models.stack import RelativeConfig, StackedBackbone, draw


class XLNetConfig(RelativeConfig):
    """Config of an XLNet; the defaults are the authors' base model."""

    type: Literal["xlnet"] = "xlnet"
    """Kind of model."""
    mem_len: NonNegativeInt = 384
    """Memory length: past positions that each layer attends, besides the sample; 0: none. Evaluation may use another.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"memory", "two_stream", "bidirectional", "causal"})

    def build(self, vocab_size: int) -> XLNet:
        """Build the model with freshly initialized weights."""
        return XLNet(self, vocab_size)


class XLNet(StackedBackbone):
    """The encoder. Without a `perm_rank`, a token attends all valid tokens, and a prediction all but its own token.

    In a causal batch, which has no predictions, a token attends those up to itself.
    """

    provides = XLNetConfig.provides

    embedding: TokenEmbedding

    def __init__(self, config: XLNetConfig, vocab_size: int):
        std = config.init_std
        embedding = TokenEmbedding(
            vocab_size, d_model=config.d_model, d_embed=config.resolved_d_embed, init_std=std, proj_init_std=std
        )
        super().__init__(config, embedding, config.attention(bidirectional=True), inner_dropout=config.dropout)
        self.config = config
        self.positions = config.positions.build(config.d_model, max_positions=None)
        self.clamp_len = config.longest_distance
        self.mask_embedding = nn.Parameter(torch.randn(1, config.d_model) * std)
        self.content_bias = config.init_biases()
        self.position_bias = config.init_biases()
        self.segment_bias = config.init_biases()
        self.layers.apply(self._draw)

    def forward(self, inputs: BackboneInput, mems: Float[Tensor, "L B M D"]) -> tuple[Hidden, Float[Tensor, "L B M D"]]:
        """Hidden states of both streams, and each layer's next memory, detached."""
        batch_size, num_tokens = inputs.tokens.shape
        mem_len = mems.shape[2]
        num_predictions = 0 if inputs.target_positions is None else inputs.target_positions.shape[1]
        # Without predictions the stream has length 0: under ZeRO every pass must use every parameter.
        stream = self.mask_embedding.expand(batch_size, num_predictions, -1)
        hidden = self.dropout(torch.cat([self.embedding(inputs.tokens), stream], dim=1))
        mask = self.mask(
            inputs,
            hidden,
            may_be_blind=not inputs.every_query_sees,
            mem_len=mem_len,
            causal=inputs.causal,
            initial_zeros=self.config.initial_memory == "zeros",
        )
        hidden, mems = self.apply_layers(
            hidden,
            mems,
            inputs,
            mask,
            RelativePositions(
                self._distances(inputs, mem_len=mem_len, dtype=hidden.dtype),
                inputs.reversed,
                inputs.target_positions,
                None if self.fused else _same_segment(inputs, mem_len=mem_len, dtype=hidden.dtype),
                None if self.fused else _columns(inputs, num_keys=mem_len + num_tokens),
                _directions(inputs),
            ),
            biases=(self.content_bias, self.position_bias, self.segment_bias),
        )
        hidden = self.dropout(hidden)
        return Hidden(hidden[:, :num_tokens], None if inputs.target_positions is None else hidden[:, num_tokens:]), mems

    def flops_per_token(self, seq_len: int, mem_len: int, num_predictions: int = 0) -> float:
        """FLOPs of all layers, for both streams, and of the embedding's projection."""
        return self.embedding.flops_per_token() + self.layer_flops_per_token(seq_len, mem_len, num_predictions)

    def output_layer(self) -> VocabularySoftmax:
        """A softmax over the tied embedding, with a bias and no transform before it."""
        std = self.config.init_std
        return VocabularySoftmax(self.embedding, tied_projections=(False,), init_std=std, proj_init_std=std)

    def _distances(self, inputs: BackboneInput, *, mem_len: int, dtype: torch.dtype) -> Tensor:
        """Encodings of the distances from M + T to -(T - 1); with `reverse`, those of the opposite sign too."""
        device, num_tokens = inputs.tokens.device, inputs.tokens.shape[1]
        first = mem_len + num_tokens
        last = first + 1 - whole_eights(first + num_tokens, device)
        signs = (1,) if inputs.reversed is None else (1, -1)
        encodings = [
            self.positions(clamped_distances(sign * first, sign * last, clamp_len=self.clamp_len, device=device))
            for sign in signs
        ]
        encoded: Tensor = self.dropout(torch.stack(encodings).to(dtype))
        return encoded

    def _draw(self, module: nn.Module) -> None:
        draw(module, self.config.init_std)
        if isinstance(module, RelativeAttention) and module.segment_embedding is not None:
            nn.init.normal_(module.segment_embedding, std=self.config.init_std)


def _same_segment(inputs: BackboneInput, *, mem_len: int, dtype: torch.dtype) -> Tensor | None:
    """Mask of pairs of query and key (memory, then tokens) in one segment; None: all are."""
    segments = inputs.segments
    if segments is None:
        return None
    queries = (
        segments
        if inputs.target_positions is None
        else torch.cat([segments, segments.gather(1, inputs.target_positions)], dim=1)
    )
    same = queries[..., None] == F.pad(segments, (mem_len, 0))[:, None]
    return same if same.device.type == "cpu" else same.to(dtype)


def _columns(inputs: BackboneInput, *, num_keys: int) -> Tensor | None:
    predict = inputs.target_positions
    if predict is None or predict.device.type == "cpu":
        return None
    return prediction_columns(predict, num_tokens=inputs.tokens.shape[1], num_keys=num_keys)


def _directions(inputs: BackboneInput) -> Tensor | None:
    if inputs.reversed is None or inputs.reversed.device.type == "cpu":
        return None
    return directions(inputs.reversed)
