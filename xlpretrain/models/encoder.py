"""The encoder of ALBERT (Lan et al. 2019, arXiv:1909.11942) and BERT (Devlin et al. 2018, arXiv:1810.04805).

BERT is ALBERT without its two savings: token vectors narrower than the hidden states (section 3.1 there, "factorized
embedding parameterization"), and one set of weights for all layers ("cross-layer parameter sharing"). As in the
originals: post-norm, biases everywhere, the tanh approximation of gelu, and weights drawn from a normal distribution
truncated at two standard deviations (transformers: not truncated). The embedding has a projection only if the width
changes (transformers: always). Poolers and sample classifiers belong to objectives.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import PositiveInt
from torch import Tensor, nn

from xlpretrain.errors import ConfigError
from xlpretrain.models.attention import Attention
from xlpretrain.models.attention_mask import attention_mask, mask_of, no_mask
from xlpretrain.models.backbone import BackboneInput, Hidden
from xlpretrain.models.embedding import TokenEmbedding, VocabularySoftmax
from xlpretrain.models.kernels.dropout import Dropout
from xlpretrain.models.kernels.packing import pack, unpack
from xlpretrain.models.kernels.sdpa import takes_packed
from xlpretrain.models.parts.clusters import TargetClusters
from xlpretrain.models.parts.feed_forward import ACTIVATIONS
from xlpretrain.models.parts.positions import AnyPositions, LearnedConfig
from xlpretrain.models.stack import Rate, StackConfig, StackedBackbone, draw
from xlpretrain.schema import Problem


class EncoderConfig(StackConfig):
    """The keys that ALBERT and BERT share."""

    mem_len: Literal[0] = 0
    """Always 0: an encoder has no memory."""
    max_positions: PositiveInt = 512
    """Number of position vectors: the maximum length of a sample."""
    positions: AnyPositions = LearnedConfig()
    """Position vectors, added to the token vectors: learned or sinusoidal."""
    num_segments: PositiveInt = 2
    """Number of segment vectors."""

    provides: ClassVar[frozenset[str]] = frozenset({"bidirectional", "causal"})

    def problems(self) -> Iterator[Problem]:
        """Yield contradictions between keys."""
        yield from super().problems()
        if self.positions.type == "sinusoidal" and self.resolved_d_embed % 2:
            yield "positions.type", f"sinusoidal needs an even d_embed (half sines), got {self.resolved_d_embed}"

    def run_problems(self, *, seq_len: int) -> Iterator[Problem]:
        """Yield a problem if samples are longer than max_positions."""
        if seq_len > self.max_positions:
            yield "objective.seq_len", f"must be at most model.max_positions ({self.max_positions}), got {seq_len}"

    def data_problems(self, *, num_segments: int) -> Iterator[Problem]:
        """Yield a problem if samples have more segments than num_segments."""
        if num_segments > self.num_segments:
            yield (
                "model.num_segments",
                f"must be at least {num_segments}, for these samples, got {self.num_segments}",
            )

    def build(self, vocab_size: int) -> Encoder:
        """Build the model with freshly initialized weights."""
        return Encoder(self, vocab_size)


class AlbertConfig(EncoderConfig):
    """Config of an ALBERT; the defaults are the authors' base model, version 2."""

    type: Literal["albert"] = "albert"
    """Kind of model."""
    num_layer_groups: PositiveInt | None = 1
    """Groups of consecutive layers that share their weights (1: all do); null: each layer has its own."""
    d_embed: PositiveInt | None = 128
    """Width of the token, position and segment vectors, projected to d_model if it differs; null: d_model."""
    dropout: Rate = 0.0
    """Dropout of embeddings and of the outputs of attention and feed-forward (0.1 in version 1, except xxlarge)."""
    attention_dropout: Rate = 0.0
    """Dropout of attention weights (0.1 in version 1, except xxlarge)."""


class BertConfig(EncoderConfig):
    """Config of a BERT; the defaults are the authors' base model."""

    type: Literal["bert"] = "bert"
    """Kind of model."""


class EncoderEmbedding(nn.Module):
    """The sum of token, position and segment vectors of width E; norm, dropout, and a projection to D if E differs."""

    def __init__(self, config: EncoderConfig, vocab_size: int):
        super().__init__()
        width, std = config.resolved_d_embed, config.init_std
        self.max_positions = config.max_positions
        self.tokens = TokenEmbedding(vocab_size, d_model=width, d_embed=width, init_std=std, proj_init_std=std)
        self.positions = config.positions.build(width, max_positions=config.max_positions)
        self.segments = nn.Embedding(config.num_segments, width)
        self.norm = config.norm.build(width, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.dropout)
        self.projection = nn.Linear(width, config.d_model) if width != config.d_model else None

    def forward(self, tokens: Int[Tensor, "B T"], segments: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """The input of the first layer. Raises `ConfigError` if samples are longer than max_positions."""
        num_tokens, limit = tokens.shape[1], self.max_positions
        if num_tokens > limit:
            raise ConfigError(f"samples of {num_tokens} tokens: this model has model.max_positions {limit}")
        positions = torch.arange(num_tokens, device=tokens.device)
        summed = self.tokens(tokens) + self.segments(segments)
        hidden: Tensor = self.dropout(self.norm(summed + self.positions(positions).to(summed.dtype)))
        return hidden if self.projection is None else self.projection(hidden)

    def flops_per_token(self) -> float:
        """FLOPs of forward and backward of the projection."""
        return 0.0 if self.projection is None else 6.0 * self.projection.weight.numel()


class Encoder(StackedBackbone):
    """Layers in which every token attends all tokens that are not padding or, in a causal batch, those up to itself.

    Its memory has length 0.
    """

    provides = EncoderConfig.provides

    embedding: EncoderEmbedding

    packs: bool | None = None
    """True to compute no padding where the host knows it: see `kernels/packing.py`. None: if the device has a kernel
    for that."""

    def __init__(self, config: EncoderConfig, vocab_size: int):
        attention = partial(
            Attention,
            d_model=config.d_model,
            num_heads=config.num_heads,
            d_head=config.resolved_d_head,
            dropout=config.attention_dropout,
            bias=True,
        )
        super().__init__(config, EncoderEmbedding(config, vocab_size), attention, inner_dropout=0.0)
        self.config = config
        self.apply(partial(draw, std=config.init_std, truncated=True))

    def forward(self, inputs: BackboneInput, mems: Float[Tensor, "L B M D"]) -> tuple[Hidden, Float[Tensor, "L B M D"]]:
        """Hidden states of the tokens, and an empty memory."""
        assert mems.shape[2] == 0 and inputs.target_positions is None, (
            "an encoder has neither memory nor a second stream"
        )
        segments = torch.zeros_like(inputs.tokens) if inputs.segments is None else inputs.segments
        hidden = self.embedding(inputs.tokens, segments)
        valid_at, offsets = inputs.valid_at, inputs.valid_from
        num_valid = 0 if valid_at is None else len(valid_at)
        if inputs.causal:
            may_be_blind = inputs.attention_mask is not None
            mask = mask_of(attention_mask(inputs, mem_len=0, causal=True), hidden.dtype, may_be_blind=may_be_blind)
        elif num_valid == inputs.tokens.numel():
            mask = no_mask(hidden)
        elif num_valid and (takes_packed(hidden) if self.packs is None else self.packs):
            assert valid_at is not None and offsets is not None, "set together"
            return Hidden(self._packed(hidden, mems, inputs, valid_at, offsets)), mems
        else:
            mask = mask_of(attention_mask(inputs, mem_len=0, causal=False), hidden.dtype, may_be_blind=True)
        hidden, mems = self.apply_layers(hidden, mems, inputs, mask)
        return Hidden(hidden), mems

    def _packed(
        self, hidden: Tensor, mems: Tensor, inputs: BackboneInput, valid_at: Tensor, offsets: Tensor
    ) -> Float[Tensor, "B T D"]:
        """The hidden states of the tokens, zero for padding, from layers that see no padding."""
        batch_size, num_tokens = inputs.tokens.shape
        packed = pack(hidden, valid_at)
        mask = no_mask(packed, offsets=offsets, longest=num_tokens)
        one_row = BackboneInput(inputs.tokens.view(1, -1), inputs.mem_valid_len[:1])
        packed, _ = self.apply_layers(packed, mems[:, :1], one_row, mask)
        return unpack(packed, valid_at, batch_size=batch_size, num_tokens=num_tokens)

    def empty_memory(self, batch_size: int, mem_len: int) -> Float[Tensor, "L B M D"]:
        """A memory of length 0, whatever length is requested."""
        return super().empty_memory(batch_size, 0)

    def flops_per_token(self, seq_len: int, mem_len: int, num_predictions: int = 0) -> float:
        """FLOPs of the embedding's projection and of all layers."""
        return self.embedding.flops_per_token() + self.layer_flops_per_token(seq_len, 0, 0)

    def output_layer(self) -> TransformedSoftmax:
        """The head of masked language models, tied to the token vectors."""
        return TransformedSoftmax(self.embedding.tokens, self.config)


class TransformedSoftmax(VocabularySoftmax):
    """softmax(E norm(activation(W h + b)) + c) over the tied token vectors E."""

    def __init__(self, embedding: TokenEmbedding, config: EncoderConfig):
        std, width = config.init_std, embedding.d_embed
        super().__init__(embedding, tied_projections=(), init_std=std, proj_init_std=std)
        self.transform = nn.Linear(config.d_model, width)
        self.activation = ACTIVATIONS[config.activation]
        self.norm = config.norm.build(width, eps=config.layer_norm_eps)
        draw(self.transform, std, truncated=True)

    def token_losses(
        self,
        hidden: Float[Tensor, "N D"],
        targets: Int[Tensor, " N"],
        *,
        accuracy: bool,
        clusters: TargetClusters | None = None,
    ) -> tuple[Float[Tensor, " N"], Bool[Tensor, " N"] | None]:
        """-log p(target) in fp32 nats; with `accuracy`, also the correct ones."""
        return super().token_losses(self._transform(hidden), targets, accuracy=accuracy, clusters=clusters)

    def log_probs(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """log p of every token, fp32."""
        return super().log_probs(self._transform(hidden))

    def flops_per_token(self) -> float:
        """FLOPs of forward and backward of the transform and the projection onto the vocabulary."""
        return 6.0 * self.transform.weight.numel() + super().flops_per_token()

    def _transform(self, hidden: Tensor) -> Tensor:
        transformed: Tensor = self.norm(self.activation(self.transform(hidden)))
        return transformed
