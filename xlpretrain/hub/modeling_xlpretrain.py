"""A model that was pretrained with xlpretrain, for Hugging Face transformers. It needs nothing but them and torch.

Transformer-XL (arXiv:1901.02860), and what XLNet, ALBERT and BERT become with shared layers, norms before the layers,
or other widths. Every tensor has the name and the shape that it has in xlpretrain.

Shapes: B rows, T tokens, P predictions, Q = T + P queries, M remembered positions, K = M + T keys, N heads, H width of
a head, D d_model, E width of token vectors, V vocabulary, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

Memory = tuple[Tensor, Tensor]
"""The last M inputs of each layer [L, B, M, D], and how many of them, from the newest, are each row's own [B]."""

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}


class XLPretrainConfig(PretrainedConfig):
    """The `model` section of the run's config. `type` is that of the model: transformer_xl, xlnet, albert or bert."""

    model_type = "xlpretrain"
    attribute_map = {"hidden_size": "d_model", "num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"}
    keys_to_ignore_at_inference = ["mems"]

    def __init__(self, vocab_size: int = 32000, type: str = "transformer_xl", sentence_head: bool = False, **keys: Any):
        self.vocab_size, self.type, self.sentence_head = vocab_size, type, sentence_head
        keys.setdefault("tie_word_embeddings", False)  # tied weights are one tensor here, under one name
        super().__init__(**keys)

    @property
    def head_size(self) -> int:
        return self.d_head or self.d_model // self.num_heads

    @property
    def embed_size(self) -> int:
        return self.d_embed or self.d_model

    @property
    def weights_of_layers(self) -> list[int]:
        """For each layer applied, whose weights it has."""
        groups, inner = self.num_layer_groups or self.num_layers, self.layers_per_group
        return [i * groups // self.num_layers * inner + j for i in range(self.num_layers) for j in range(inner)]


class Attention(nn.Module):
    """By content; and, where it is relative, by distance and segment."""

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

    def forward(self, states: Tensor, context: Tensor, seen: Tensor, places: Places | None, biases: list) -> Tensor:
        """states [B, Q, D], context [B, K, D], seen [B, Q, K]."""
        query, key, value = (self._heads(x) for x in (self.query(states), self.key(context), self.value(context)))
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
        return self.output(attended.flatten(-2))

    def _heads(self, projected: Tensor) -> Tensor:
        return projected.view(*projected.shape[:-1], self.num_heads, self.d_head)


@dataclass
class Places:
    """Distances K, K-1, .. encoded [R, D]; the column of each query and key in them, and same segments [B, Q, K]."""

    distances: Tensor
    columns: Tensor
    same_segment: Tensor


class FeedForward(nn.Module):
    def __init__(self, config: XLPretrainConfig):
        super().__init__()
        self.inner, self.outer = nn.Linear(config.d_model, config.d_ff), nn.Linear(config.d_ff, config.d_model)
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = nn.Dropout(config.dropout)
        self.inner_dropout = nn.Dropout(config.dropout if config.type in ("transformer_xl", "xlnet") else 0.0)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.dropout(self.outer(self.inner_dropout(self.activation(self.inner(hidden)))))


class Layer(nn.Module):
    def __init__(self, config: XLPretrainConfig, *, relative: bool):
        super().__init__()
        self.attention = Attention(config, relative=relative)
        self.attention_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.dropout, self.pre_norm = nn.Dropout(config.dropout), config.pre_norm

    def forward(self, hidden: Tensor, memory: Tensor, seen: Tensor, places: Places | None, biases: list) -> Tensor:
        """hidden [B, Q, D]: of the tokens, then of the predictions, which nothing attends. memory [B, M, D]."""
        states = torch.cat([memory, hidden], dim=1)
        if self.pre_norm:
            states = self.attention_norm(states)
        attended = self.attention(states[:, memory.shape[1] :], states[:, : seen.shape[2]], seen, places, biases)
        hidden = hidden + self.dropout(attended)
        if self.pre_norm:
            return hidden + self.feed_forward(self.feed_forward_norm(hidden))
        hidden = self.attention_norm(hidden)
        return self.feed_forward_norm(hidden + self.feed_forward(hidden))


class TokenEmbedding(nn.Module):
    """A table, or with `div_val` one for each cluster, projected to `width` where that differs."""

    def __init__(self, config: XLPretrainConfig, *, width: int):
        super().__init__()
        self.div_val, self.width, self.d_embed = getattr(config, "div_val", 1), width, config.embed_size
        self.edges = [0, *(config.adaptive_cutoffs if self.div_val > 1 else ()), config.vocab_size]
        widths = [self.d_embed // self.div_val**i for i in range(len(self.edges) - 1)]
        sizes = [end - start for start, end in pairwise(self.edges)]
        self.tables = nn.ModuleList(nn.Embedding(size, w) for size, w in zip(sizes, widths, strict=True))
        projected = self.div_val > 1 or self.d_embed != width
        self.projections = nn.ModuleList(nn.Linear(w, width, bias=False) for w in widths if projected)

    def forward(self, tokens: Tensor) -> Tensor:
        if len(self.tables) == 1:
            vectors = self.tables[0](tokens)
            return self.projections[0](vectors) if self.projections else vectors
        result = self.tables[0].weight.new_zeros(*tokens.shape, self.width)
        for table, projection, (start, end) in zip(self.tables, self.projections, pairwise(self.edges), strict=True):
            inside = (tokens >= start) & (tokens < end)
            result[inside] = projection(table(tokens[inside] - start))
        return result


class EncoderEmbedding(nn.Module):
    """The embedding of ALBERT and BERT: tokens, positions and segments."""

    def __init__(self, config: XLPretrainConfig):
        super().__init__()
        width = config.embed_size
        self.tokens = TokenEmbedding(config, width=width)
        self.positions = nn.Embedding(config.max_positions, width)
        self.segments = nn.Embedding(config.num_segments, width)
        self.norm, self.dropout = nn.LayerNorm(width, eps=config.layer_norm_eps), nn.Dropout(config.dropout)
        self.projection = nn.Linear(width, config.d_model) if width != config.d_model else None

    def forward(self, tokens: Tensor, segments: Tensor) -> Tensor:
        positions = self.positions.weight[: tokens.shape[1]]
        hidden = self.dropout(self.norm(self.tokens(tokens) + self.segments(segments) + positions))
        return hidden if self.projection is None else self.projection(hidden)


class Backbone(nn.Module):
    def __init__(self, config: XLPretrainConfig):
        super().__init__()
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
        self, tokens: Tensor, valid=None, segments=None, mems=None, hidden_from=None, predict=None
    ) -> tuple[Tensor, Memory]:
        """Hidden states [B, Q, D] and the next memory. `hidden_from` [B, T, T]: which tokens each may not see."""
        num_rows, num_tokens = tokens.shape
        valid = torch.ones_like(tokens, dtype=torch.bool) if valid is None else valid[:, -num_tokens:].bool()
        segments = torch.zeros_like(tokens) if segments is None else segments
        predict = tokens[:, :0] if predict is None else predict
        states, remembered = self.empty_memory(num_rows) if mems is None else mems
        own = torch.arange(states.shape[2], 0, -1, device=tokens.device) <= remembered[:, None]
        states = states.masked_fill(~own[..., None], 0)
        seen = self._seen(own, valid, hidden_from, predict)
        places = None
        if self.relative:
            hidden = self.embedding(tokens) * (self.config.d_model**0.5 if self.config.type == "transformer_xl" else 1)
            if predict.shape[1]:
                hidden = torch.cat([hidden, self.mask_embedding.expand(num_rows, predict.shape[1], -1)], dim=1)
            hidden, places = self.dropout(hidden), self._places(states.shape[2], segments, predict, hidden.dtype)
        else:
            hidden = self.embedding(tokens, segments)
        new = []
        for memory, index in zip(states, self.config.weights_of_layers, strict=True):
            new.append(torch.cat([memory, hidden[:, :num_tokens].detach()], dim=1)[:, num_tokens:])
            stacks = (getattr(self, name) for name in self.bias_names)
            hidden = self.layers[index](hidden, memory, seen, places, [b[index if len(b) > 1 else 0] for b in stacks])
        remembered = (remembered + valid.sum(1)).clamp(max=states.shape[2])
        return self.dropout(hidden) if self.relative else hidden, (torch.stack(new), remembered)

    def empty_memory(self, num_rows: int) -> Memory:
        config, weight = self.config, self.layers[0].attention.query.weight
        states = weight.new_zeros(len(config.weights_of_layers), num_rows, config.mem_len, config.d_model)
        return states, torch.zeros(num_rows, dtype=torch.int64, device=weight.device)

    def _seen(self, memory: Tensor, valid: Tensor, hidden_from: Tensor | None, predict: Tensor) -> Tensor:
        (num_rows, num_tokens), mem_len = valid.shape, memory.shape[1]
        at = torch.arange(num_tokens, device=valid.device)
        if self.config.type == "transformer_xl":
            seen = (at <= at[:, None]).expand(num_rows, -1, -1)
        else:
            own = torch.eye(num_tokens, dtype=torch.bool, device=valid.device)
            seen = own.new_ones(num_rows, num_tokens, num_tokens) if hidden_from is None else ~hidden_from.bool()
            unseen = seen.gather(1, predict[..., None].expand(-1, -1, num_tokens))
            seen = torch.cat([seen | own, unseen & (at != predict[..., None])], dim=1)
        if getattr(self.config, "initial_memory", "none") == "zeros":
            memory = torch.ones_like(memory)
        seen = torch.cat([memory[:, None].expand(-1, seen.shape[1], -1), seen & valid[:, None]], dim=2)
        if getattr(self.config, "same_length", False):
            keys = torch.arange(seen.shape[2], device=valid.device)
            seen = seen & (keys > keys[mem_len:, None] - mem_len)
        return seen

    def _places(self, mem_len: int, segments: Tensor, predict: Tensor, dtype: torch.dtype) -> Places:
        num_rows, num_tokens = segments.shape
        num_keys, device, width = mem_len + num_tokens, segments.device, self.config.d_model
        distances = torch.arange(num_keys, -num_tokens, -1, device=device, dtype=torch.float32)
        if (self.config.clamp_len or -1) > 0:
            distances = distances.clamp(-self.config.clamp_len, self.config.clamp_len)
        angles = torch.outer(distances, 10000.0 ** (-torch.arange(0, width, 2, device=device).float() / width))
        encoded = self.dropout(torch.cat([angles.sin(), angles.cos()], dim=-1).to(dtype))
        positions = torch.cat([torch.arange(num_tokens, device=device).expand(num_rows, -1), predict], dim=1)
        columns = num_tokens - positions[..., None] + torch.arange(num_keys, device=device)
        of_keys = F.pad(segments, (mem_len, 0))
        return Places(encoded, columns, segments.gather(1, positions)[..., None] == of_keys[:, None])


class Output(nn.Module):
    """A full softmax over the vocabulary, or with cutoffs an adaptive one (arXiv:1609.04309)."""

    def __init__(self, config: XLPretrainConfig, embedding: TokenEmbedding):
        super().__init__()
        self._embedding = (embedding,)  # in a tuple: its tensors have one name
        encoder, width = config.type in ("albert", "bert"), config.embed_size
        cutoffs = getattr(config, "adaptive_cutoffs", None) or ()
        self.edges, self.num_tails = [0, *cutoffs, config.vocab_size], len(cutoffs)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.cluster_weight = nn.Parameter(torch.zeros(len(cutoffs), width)) if cutoffs else None
        self.cluster_bias = nn.Parameter(torch.zeros(len(cutoffs))) if cutoffs else None
        own = embedding.tables if not getattr(config, "tie_embeddings", True) else []
        self.tables = nn.ModuleList(nn.Embedding(*table.weight.shape) for table in own)
        tied = getattr(config, "tie_projections", None) or [False, *([True] * len(cutoffs))]
        untied = [i for i, is_tied in enumerate(tied) if embedding.projections and not is_tied and not encoder]
        self.projections = nn.ModuleDict(
            {str(i): nn.Linear(config.d_model, width // embedding.div_val**i, bias=False) for i in untied}
        )
        self.transform = nn.Linear(config.d_model, width) if encoder else None
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps) if encoder else None
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, hidden: Tensor) -> Tensor:
        """Log-probabilities [.., V] in fp32; without cutoffs, up to a constant."""
        if self.transform is not None:
            hidden = self.norm(self.activation(self.transform(hidden)))
        head = self._logits(0, hidden)
        if not self.num_tails:
            return head
        head, size = head.log_softmax(-1), self.edges[1]
        tails = [self._logits(i + 1, hidden).log_softmax(-1) + head[..., size + i, None] for i in range(self.num_tails)]
        return torch.cat([head[..., :size], *tails], dim=-1)

    def _logits(self, cluster: int, hidden: Tensor) -> Tensor:
        embedding, (start, end) = self._embedding[0], self.edges[cluster : cluster + 2]
        tables, single = self.tables or embedding.tables, len(embedding.tables) == 1
        weight, bias = tables[0].weight[start:end] if single else tables[cluster].weight, self.bias[start:end]
        if cluster == 0 and self.num_tails:
            weight, bias = torch.cat([weight, self.cluster_weight]), torch.cat([bias, self.cluster_bias])
        if str(cluster) in self.projections:
            hidden = self.projections[str(cluster)](hidden)
        elif embedding.projections:
            hidden = hidden @ embedding.projections[0 if single else cluster].weight
        return F.linear(hidden, weight, bias).float()


class Sentence(nn.Module):
    """The first token onto the two answers of a question about sentences."""

    def __init__(self, config: XLPretrainConfig):
        super().__init__()
        self.pooler = nn.ModuleDict({"linear": nn.Linear(config.d_model, config.d_model)})
        self.classifier = nn.Linear(config.d_model, 2)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.classifier(torch.tanh(self.pooler["linear"](hidden[:, 0])))


@dataclass
class XLPretrainOutput(ModelOutput):
    loss: Tensor | None = None
    logits: Tensor | None = None
    sentence_logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    mems: Memory | None = None


class XLPretrainModel(PreTrainedModel):
    """Hidden states. `mems` of one call is for the next: the same rows go on; pad on the left."""

    config_class = XLPretrainConfig

    def __init__(self, config: XLPretrainConfig):
        super().__init__(config)
        self.backbone = Backbone(config)
        self._add_head(config)
        self.post_init()

    def _add_head(self, config: XLPretrainConfig) -> None:
        pass

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, mems=None, **_: Any) -> XLPretrainOutput:
        hidden, mems = self.backbone(input_ids, attention_mask, token_type_ids, mems)
        return XLPretrainOutput(last_hidden_state=hidden, mems=mems)


class XLPretrainForPreTraining(XLPretrainModel):
    """Masked or permutation LM (`perm_mask` [B, T, T], `target_mapping` [B, P, T], as transformers' XLNet)."""

    def _add_head(self, config: XLPretrainConfig) -> None:
        embedding = self.backbone.embedding
        self.head = nn.Module()
        self.head.output = Output(config, getattr(embedding, "tokens", embedding))
        self.head.sentence = Sentence(config) if config.sentence_head else None

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        mems: Memory | None = None,
        perm_mask: Tensor | None = None,
        target_mapping: Tensor | None = None,
        labels: Tensor | None = None,
        **_: Any,
    ) -> XLPretrainOutput:
        predict = None if target_mapping is None else target_mapping.argmax(-1)
        hidden, mems = self.backbone(input_ids, attention_mask, token_type_ids, mems, perm_mask, predict)
        asked = hidden if predict is None else hidden[:, input_ids.shape[1] :]
        logits = self.head.output(asked)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        sentence = self.head.sentence(hidden) if self.head.sentence is not None else None
        return XLPretrainOutput(loss, logits, sentence, hidden, mems)


class XLPretrainForCausalLM(XLPretrainForPreTraining, GenerationMixin):
    """Each token predicts the next; `generate` reads a token at a time against the memory."""

    _is_stateful = True

    def forward(  # no segments; `logits_to_keep`: of the last tokens alone, 0 for all
        self, input_ids, attention_mask=None, mems=None, labels=None, logits_to_keep: int = 0, **_: Any
    ) -> XLPretrainOutput:
        hidden, mems = self.backbone(input_ids, attention_mask, None, mems)
        logits = self.head.output(hidden[:, -logits_to_keep:])
        loss = None if labels is None else F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return XLPretrainOutput(loss, logits, None, hidden, mems)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, past_key_values: Memory | None = None, attention_mask: Tensor | None = None, **_: Any
    ) -> dict[str, Any]:
        if past_key_values is not None:
            input_ids = input_ids[:, -1:]
        return {"input_ids": input_ids, "attention_mask": attention_mask, "mems": past_key_values, "logits_to_keep": 1}

    def _prepare_cache_for_generation(self, *_: Any, **__: Any) -> bool:
        return False  # the memory is the cache

    def _reorder_cache(self, past_key_values: Memory, beam_idx: Tensor) -> Memory:
        return past_key_values[0].index_select(1, beam_idx), past_key_values[1].index_select(0, beam_idx)
