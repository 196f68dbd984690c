"""The layers of a model pretrained with xlpretrain: config, token embedding, attention and backbone.

Transformer-XL (arXiv:1901.02860), and variants of XLNet, ALBERT and BERT with shared layers, pre-norm layers or other
widths. All tensors have the same names and shapes as in xlpretrain.

Shapes: B samples, T tokens, P predictions, Q = T + P queries, M memory positions, K = M + T keys, N heads, H width of a
head, D d_model, E width of token vectors, V vocabulary, L layers applied.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from .visibility_xlpretrain import visibility

Memory = tuple[Tensor, Tensor]
"""The last M inputs of each layer [L, B, M, D], and how many of the newest ones belong to each sample [B]."""

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "silu": F.silu}


class XLPretrainConfig(PretrainedConfig):
    """The run's `model` section. type: transformer_xl, xlnet, albert or bert. attention: plain or fused.
    summary: the vector of a text for its labels: first or last token, or mean. task_dropout: before the classifier."""

    model_type = "xlpretrain"
    attribute_map = {"hidden_size": "d_model", "num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"}
    keys_to_ignore_at_inference = ["mems", "last_hidden_state"]

    def __init__(
        self,
        vocab_size: int = 32000,
        type: str = "transformer_xl",
        sentence_head: bool = False,
        attention: str = "plain",
        summary: str = "mean",
        task_dropout: float = 0.1,
        **keys: Any,
    ):
        self.vocab_size, self.type, self.sentence_head, self.attention = vocab_size, type, sentence_head, attention
        self.summary, self.task_dropout = summary, task_dropout
        keys.setdefault("tie_word_embeddings", False)  # tied weights are a single tensor here
        super().__init__(**keys)

    @property
    def head_size(self) -> int:
        return self.d_head or self.d_model // self.num_heads

    @property
    def embed_size(self) -> int:
        return self.d_embed or self.d_model

    def build_norm(self, width: int) -> nn.Module:
        """The norm of vectors [.., width]."""
        kind = RMSNorm if self.norm["type"] == "rms_norm" else nn.LayerNorm
        return kind(width, eps=self.layer_norm_eps)

    @property
    def weights_of_layers(self) -> list[int]:
        """The index of the weights that each applied layer uses."""
        groups, inner = self.num_layer_groups or self.num_layers, self.layers_per_group
        return [i * groups // self.num_layers * inner + j for i in range(self.num_layers) for j in range(inner)]


class Attention(nn.Module):
    """Attention by content and, if relative, by distance and segment."""

    def __init__(self, config: XLPretrainConfig, *, relative: bool):
        super().__init__()
        self.num_heads, self.d_head, width = config.num_heads, config.head_size, config.num_heads * config.head_size
        self.query = nn.Linear(config.d_model, width, bias=not relative)
        self.key = nn.Linear(config.d_model, width, bias=not relative)
        self.value = nn.Linear(config.d_model, width, bias=not relative)
        self.output = nn.Linear(width, config.d_model, bias=not relative)
        self.distance = nn.Linear(config.d_model, width, bias=False) if relative else None
        if config.type == "xlnet":
            self.segment_embedding = nn.Parameter(torch.zeros(2, config.num_heads, config.head_size))
        self.dropout = nn.Dropout(config.attention_dropout)

    def forward(
        self, states: Tensor, context: Tensor, seen: Tensor, places: Places | None, biases: list
    ) -> tuple[Tensor, Tensor | None]:
        """Attended states [B, Q, D] and weights [B, N, Q, K], from states [B, Q, D], context [B, K, D], seen [B, Q, K].

        The output of fully masked queries is zero. Fused attention has no weights.
        """
        query, key, value = (self._heads(x) for x in (self.query(states), self.key(context), self.value(context)))
        if places is not None and places.view is not None:
            return self.output(self._fused(query, key, value, places, biases).flatten(-2)), None
        if places is None:
            scores = torch.einsum("bqnh,bknh->bnqk", query, key)
        else:
            scores = torch.einsum("bqnh,bknh->bnqk", query + biases[0], key)
            by_distance = self._heads(self.distance(places.distances))
            by_distance = torch.einsum("bqnh,rnh->bnqr", query + biases[1], by_distance)
            columns = places.columns[:, None].expand(-1, self.num_heads, -1, -1)
            scores = scores + by_distance.gather(3, columns)
        if len(biases) > 2:
            same, other = torch.einsum("bqnh,snh->sbnq", query + biases[2], self.segment_embedding)[..., None]
            scores = scores + torch.where(places.same_segment[:, None], same, other)
        hidden = torch.finfo(scores.dtype).min
        scores = (scores * self.d_head**-0.5).masked_fill(~seen[:, None], hidden)
        weights = self.dropout(scores.softmax(-1, dtype=torch.float32).to(value.dtype))
        attended = torch.einsum("bnqk,bknh->bqnh", weights, value) * seen.any(-1)[..., None, None]
        return self.output(attended.flatten(-2)), weights

    def _fused(self, query: Tensor, key: Tensor, value: Tensor, places: Places, biases: list) -> Tensor:
        from .fused_xlpretrain import draw_seed, fused_relative_attention

        segment, dtype = None, value.dtype  # with autocast, biases are wider
        if len(biases) > 2:
            segment = torch.einsum("bqnh,snh->nbqs", query + biases[2], self.segment_embedding).to(dtype)
        return fused_relative_attention(
            (query + biases[0]).to(dtype),
            key,
            value,
            (query + biases[1]).to(dtype),
            self._heads(self.distance(places.distances))[None].to(dtype),
            segment,
            places.view,
            scale=self.d_head**-0.5,
            rate=self.dropout.p,
            seed=draw_seed(query.device) if self.training and self.dropout.p > 0 else None,
        )

    def _heads(self, projected: Tensor) -> Tensor:
        return projected.view(*projected.shape[:-1], self.num_heads, self.d_head)


class Places(NamedTuple):
    """Encoded distances K, K-1, ... [R, D]; the index of each query-key pair in them, and same segments [B, Q, K].
    view: of fused attention, if that is used."""

    distances: Tensor
    columns: Tensor
    same_segment: Tensor
    view: Any = None


class RMSNorm(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class FeedForward(nn.Module):
    """Two linear maps with an activation between them, or a gated linear unit (arXiv:2002.05202), without biases."""

    def __init__(self, config: XLPretrainConfig):
        super().__init__()
        gated = config.feed_forward["type"] == "glu"
        self.gate = nn.Linear(config.d_model, config.d_ff, bias=False) if gated else None
        self.inner = nn.Linear(config.d_model, config.d_ff, bias=not gated)
        self.outer = nn.Linear(config.d_ff, config.d_model, bias=not gated)
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = nn.Dropout(config.dropout)
        self.inner_dropout = nn.Dropout(config.dropout if config.type in ("transformer_xl", "xlnet") else 0.0)

    def forward(self, hidden: Tensor) -> Tensor:
        inner = self.inner(hidden)
        inner = self.activation(inner) if self.gate is None else self.activation(self.gate(hidden)) * inner
        return self.dropout(self.outer(self.inner_dropout(inner)))


class Layer(GradientCheckpointingLayer):
    def __init__(self, config: XLPretrainConfig, *, relative: bool):
        super().__init__()
        self.attention = Attention(config, relative=relative)
        self.attention_norm = config.build_norm(config.d_model)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = config.build_norm(config.d_model)
        self.dropout, self.pre_norm = nn.Dropout(config.dropout), config.pre_norm

    def forward(
        self, hidden: Tensor, memory: Tensor, seen: Tensor, places: Places | None, biases: list
    ) -> tuple[Tensor, Tensor | None]:
        """The layer's output [B, Q, D] and its attention weights [B, N, Q, K], if it has any.

        hidden [B, Q, D]: tokens, then predictions, which are not attended to. memory [B, M, D].
        """
        states = torch.cat([memory, hidden], dim=1)
        if self.pre_norm:
            states = self.attention_norm(states)
        context = states[:, : seen.shape[2]]
        attended, weights = self.attention(states[:, memory.shape[1] :], context, seen, places, biases)
        hidden = hidden + self.dropout(attended)
        if self.pre_norm:
            return hidden + self.feed_forward(self.feed_forward_norm(hidden)), weights
        hidden = self.attention_norm(hidden)
        return self.feed_forward_norm(hidden + self.feed_forward(hidden)), weights


class Projection(nn.Module):
    """Projects token vectors [.., E] to hidden states [.., D], and back with the transpose.

    Not an `nn.Linear`, because `quantize_dynamic` replaces its weight by something that is not a tensor.
    """

    def __init__(self, d_embed: int, d_model: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(d_model, d_embed))

    def forward(self, vectors: Tensor) -> Tensor:
        return F.linear(vectors, self.weight)

    def transposed(self, hidden: Tensor) -> Tensor:
        return hidden @ self.weight


class TokenEmbedding(nn.Module):
    """One table, or with `div_val` one per cluster of tokens; projected to `width` if that differs."""

    def __init__(self, config: XLPretrainConfig, *, width: int):
        super().__init__()
        self.div_val, self.d_embed = getattr(config, "div_val", 1), config.embed_size
        edges = [0, *(config.adaptive_cutoffs if self.div_val > 1 else ()), config.vocab_size]
        widths = [self.d_embed // self.div_val**i for i in range(len(edges) - 1)]
        sizes = [end - start for start, end in pairwise(edges)]
        self.tables = nn.ModuleList(nn.Embedding(size, w) for size, w in zip(sizes, widths, strict=True))
        projected = self.div_val > 1 or self.d_embed != width
        self.projections = nn.ModuleList(Projection(w, width) for w in widths if projected)

    def forward(self, tokens: Tensor) -> Tensor:
        """The vectors [B, T, width] of tokens [B, T]. Computes all clusters for every token, so that no shape depends
        on the tokens. Raises IndexError for a token that is not in the vocabulary."""
        starts = [0, *accumulate(table.num_embeddings for table in self.tables)]
        vectors = self._vectors(0, tokens if len(self.tables) == 1 else tokens.clamp(max=starts[1] - 1))
        for cluster in range(1, len(self.tables)):
            start, end = starts[cluster : cluster + 2]
            is_last = cluster == len(self.tables) - 1
            inside = tokens.clamp(min=start, max=None if is_last else end - 1)
            vectors = torch.where((tokens < start)[..., None], vectors, self._vectors(cluster, inside - start))
        return vectors

    def _vectors(self, cluster: int, tokens: Tensor) -> Tensor:
        vectors = self.tables[cluster](tokens)
        return self.projections[cluster](vectors) if self.projections else vectors


def sinusoids(positions: Tensor, width: int, *, base: float) -> Tensor:
    """Vectors [R, width] of positions [R], in fp32 (arXiv:1706.03762, section 3.5)."""
    exponents = -torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width
    angles = torch.outer(positions.float(), base**exponents)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class EncoderEmbedding(nn.Module):
    """The embedding of ALBERT and BERT: tokens, positions and segments."""

    def __init__(self, config: XLPretrainConfig):
        super().__init__()
        width = config.embed_size
        self.tokens = TokenEmbedding(config, width=width)
        self.positions = nn.Embedding(config.max_positions, width) if config.positions["type"] == "learned" else None
        self.width, self.base = width, config.positions.get("base")
        self.segments = nn.Embedding(config.num_segments, width)
        self.norm, self.dropout = config.build_norm(width), nn.Dropout(config.dropout)
        self.projection = nn.Linear(width, config.d_model) if width != config.d_model else None

    def forward(self, tokens: Tensor, segments: Tensor, valid: Tensor) -> Tensor:
        """The embeddings of tokens [B, T]; padding has no positions, on either side."""
        hidden, at = self.tokens(tokens) + self.segments(segments), (valid.cumsum(1) - 1).clamp(min=0)
        if self.positions is None:
            known = sinusoids(torch.arange(tokens.shape[1], device=tokens.device), self.width, base=self.base)
            hidden = hidden + known.to(hidden.dtype)[at]
        else:
            hidden = hidden + self.positions(at)
        hidden = self.dropout(self.norm(hidden))
        return hidden if self.projection is None else self.projection(hidden)


class BackboneOutput(NamedTuple):
    """hidden [B, Q, D]: tokens, then predictions. mems: the memory for the tokens that follow.

    hidden_states: input of the first layer and output of each layer, if requested. attentions [B, N, Q, K]: weights of
    each layer, if requested.
    """

    hidden: Tensor
    mems: Memory
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


class Backbone(nn.Module):
    def __init__(self, config: XLPretrainConfig):
        super().__init__()
        if config.attention not in ("plain", "fused"):
            raise ValueError(f"attention must be plain or fused, got {config.attention!r}")
        self.config = config
        self.relative, own = config.type in ("transformer_xl", "xlnet"), config.weights_of_layers[-1] + 1
        self.embedding = TokenEmbedding(config, width=config.d_model) if self.relative else EncoderEmbedding(config)
        self.layers = nn.ModuleList(Layer(config, relative=self.relative) for _ in range(own))
        self.dropout, self.bias_names = nn.Dropout(config.dropout), []
        if self.relative:
            self.bias_names = ["content_bias", "position_bias", *(["segment_bias"] if config.type == "xlnet" else [])]
            shape = own if config.untie_r else 1, config.num_heads, config.head_size
            for name in self.bias_names:
                setattr(self, name, nn.Parameter(torch.zeros(shape)))
        if config.type == "xlnet":
            self.mask_embedding = nn.Parameter(torch.zeros(1, config.d_model))

    def forward(
        self,
        tokens: Tensor,
        valid: Tensor | None = None,
        segments: Tensor | None = None,
        mems: Memory | None = None,
        hidden_from: Tensor | None = None,
        predict: Tensor | None = None,
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> BackboneOutput:
        """Hidden states and the next memory.

        Args:
            tokens, segments: [B, T].
            valid: attention mask [B, T], or a longer one that begins with the tokens read before.
            hidden_from: [B, T, T], true where a token must not see another.
            predict: positions that a second stream predicts [B, P].

        Raises RuntimeError if the config asks for fused attention where it cannot run. It is used for relative models,
        except for calls with `hidden_from`, which may hide anything, or with `output_attentions`.
        """
        batch_size, num_tokens = tokens.shape
        valid = torch.ones_like(tokens, dtype=torch.bool) if valid is None else valid[:, -num_tokens:].bool()
        segments = torch.zeros_like(tokens) if segments is None else segments
        predict = tokens[:, :0] if predict is None else predict
        states, remembered = self.empty_memory(batch_size, self.config.mem_len) if mems is None else mems
        own = torch.arange(states.shape[2], 0, -1, device=tokens.device) <= remembered[:, None]
        states = states.masked_fill(~own[..., None], 0)
        seen = self._seen(own, valid, hidden_from, predict)
        places = None
        if self.relative:
            hidden = self.embedding(tokens) * (self.config.d_model**0.5 if self.config.type == "transformer_xl" else 1)
            if predict.shape[1]:
                hidden = torch.cat([hidden, self.mask_embedding.expand(batch_size, predict.shape[1], -1)], dim=1)
            hidden, places = self.dropout(hidden), self._places(states.shape[2], segments, predict, hidden.dtype)
            if self.config.attention == "fused" and hidden_from is None and not output_attentions:
                places = places._replace(view=visibility(self.config, own, valid, segments, predict))
        else:
            hidden = self.embedding(tokens, segments, valid)
        new, all_hidden, all_weights = [], [], []
        for memory, index in zip(states, self.config.weights_of_layers, strict=True):
            new.append(torch.cat([memory, hidden[:, :num_tokens].detach()], dim=1)[:, num_tokens:])
            stacks = (getattr(self, name) for name in self.bias_names)
            biases = [stack[index if len(stack) > 1 else 0] for stack in stacks]
            all_hidden += [hidden] if output_hidden_states else []
            hidden, weights = self.layers[index](hidden, memory, seen, places, biases)
            all_weights += [weights] if output_attentions else []
        hidden = self.dropout(hidden) if self.relative else hidden
        return BackboneOutput(
            hidden,
            (torch.stack(new), (remembered + valid.sum(1)).clamp(max=states.shape[2])),
            (*all_hidden, hidden) if output_hidden_states else None,
            tuple(all_weights) if output_attentions else None,
        )

    def empty_memory(self, batch_size: int, mem_len: int) -> Memory:
        config, weight = self.config, self.layers[0].attention_norm.weight
        states = weight.new_zeros(len(config.weights_of_layers), batch_size, mem_len, config.d_model)
        return states, torch.zeros(batch_size, dtype=torch.int64, device=weight.device)

    def _seen(self, memory: Tensor, valid: Tensor, hidden_from: Tensor | None, predict: Tensor) -> Tensor:
        (batch_size, num_tokens), mem_len = valid.shape, memory.shape[1]
        at = torch.arange(num_tokens, device=valid.device)
        if self.config.type == "transformer_xl" or getattr(self.config, "causal", False):
            seen = (at <= at[:, None]).expand(batch_size, -1, -1)
        else:
            own = torch.eye(num_tokens, dtype=torch.bool, device=valid.device)
            seen = own.new_ones(batch_size, num_tokens, num_tokens) if hidden_from is None else ~hidden_from.bool()
            unseen = seen.gather(1, predict[..., None].expand(-1, -1, num_tokens))
            seen = torch.cat([seen | own, unseen & (at != predict[..., None])], dim=1)
        if getattr(self.config, "initial_memory", "none") == "zeros":
            memory = torch.ones_like(memory)
        seen = torch.cat([memory[:, None].expand(-1, seen.shape[1], -1), seen & valid[:, None]], dim=2)
        if getattr(self.config, "same_length", False) and mem_len > 0:
            keys = torch.arange(seen.shape[2], device=valid.device)
            seen = seen & (keys > keys[mem_len:, None] - mem_len)
        return seen

    def _places(self, mem_len: int, segments: Tensor, predict: Tensor, dtype: torch.dtype) -> Places:
        batch_size, num_tokens = segments.shape
        num_keys, device, width = mem_len + num_tokens, segments.device, self.config.d_model
        distances = torch.arange(num_keys, -num_tokens, -1, device=device, dtype=torch.float32)
        if (self.config.clamp_len or -1) > 0:
            distances = distances.clamp(-self.config.clamp_len, self.config.clamp_len)
        encoded = self.dropout(sinusoids(distances, width, base=self.config.positions["base"]).to(dtype))
        positions = torch.cat([torch.arange(num_tokens, device=device).expand(batch_size, -1), predict], dim=1)
        columns = num_tokens - positions[..., None] + torch.arange(num_keys, device=device)
        of_keys = F.pad(segments, (mem_len, 0))
        return Places(encoded, columns, segments.gather(1, positions)[..., None] == of_keys[:, None])
