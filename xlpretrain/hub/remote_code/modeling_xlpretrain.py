"""A model pretrained with xlpretrain, for Hugging Face transformers. Requires only transformers and torch.

These are the classes that transformers loads; the layers, and the legend of shapes, are in `backbone_xlpretrain.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.utils import ModelOutput, can_return_tuple

from .backbone_xlpretrain import (
    ACTIVATIONS,
    Attention,
    Backbone,
    BackboneOutput,
    Memory,
    Projection,
    TokenEmbedding,
    XLPretrainConfig,
)


class Output(nn.Module):
    """A full softmax over the vocabulary or, with cutoffs, an adaptive one (arXiv:1609.04309)."""

    def __init__(self, config: XLPretrainConfig, embedding: TokenEmbedding):
        super().__init__()
        self._embedding = (embedding,)  # in a tuple, to not register its tensors twice
        encoder, width = config.type in ("albert", "bert"), config.embed_size
        self.cutoffs = tuple(getattr(config, "adaptive_cutoffs", None) or ())
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.cluster_weight = nn.Parameter(torch.zeros(len(self.cutoffs), width)) if self.cutoffs else None
        self.cluster_bias = nn.Parameter(torch.zeros(len(self.cutoffs))) if self.cutoffs else None
        own = embedding.tables if not getattr(config, "tie_embeddings", True) else []
        self.tables = nn.ModuleList(nn.Embedding(*table.weight.shape) for table in own)
        tied = getattr(config, "tie_projections", None) or [False, *([True] * len(self.cutoffs))]
        untied = [i for i, is_tied in enumerate(tied) if embedding.projections and not is_tied and not encoder]
        self.projections = nn.ModuleDict(
            {str(i): nn.Linear(config.d_model, width // embedding.div_val**i, bias=False) for i in untied}
        )
        self.transform = nn.Linear(config.d_model, width) if encoder else None
        self.norm = config.build_norm(width) if encoder else None
        self.activation = ACTIVATIONS[config.activation]

    @property
    def vectors(self) -> nn.ModuleList:
        """The tables that compute the logits: the head's own or the embedding's."""
        return self.tables or self._embedding[0].tables

    def forward(self, hidden: Tensor) -> Tensor:
        """Log-probabilities [.., V] in fp32; without cutoffs, unnormalized."""
        if self.transform is not None:
            hidden = self.norm(self.activation(self.transform(hidden)))
        head = self._logits(0, hidden)
        if not self.cutoffs:
            return head
        head, size = head.log_softmax(-1), self.cutoffs[0]
        tails = (self._logits(i + 1, hidden).log_softmax(-1) + head[..., size + i, None] for i in range(self.num_tails))
        return torch.cat([head[..., :size], *tails], dim=-1)

    @property
    def num_tails(self) -> int:
        return len(self.cutoffs)

    def _logits(self, cluster: int, hidden: Tensor) -> Tensor:
        embedding, tables, single = self._embedding[0], self.vectors, len(self.vectors) == 1
        start, end = [0, *self.cutoffs, len(self.bias)][cluster : cluster + 2]
        weight, bias = tables[0].weight[start:end] if single else tables[cluster].weight, self.bias[start:end]
        if cluster == 0 and self.cutoffs:
            weight, bias = torch.cat([weight, self.cluster_weight]), torch.cat([bias, self.cluster_bias])
        if str(cluster) in self.projections:
            hidden = self.projections[str(cluster)](hidden)
        elif embedding.projections:
            hidden = embedding.projections[0 if single else cluster].transposed(hidden)
        return F.linear(hidden, weight, bias).float()


class Sentence(nn.Module):
    """Binary classification of a sample from its first token, for sentence tasks."""

    def __init__(self, config: XLPretrainConfig):
        super().__init__()
        self.pooler = nn.ModuleDict({"linear": nn.Linear(config.d_model, config.d_model)})
        self.classifier = nn.Linear(config.d_model, 2)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.classifier(torch.tanh(self.pooler["linear"](hidden[:, 0])))


@dataclass
class XLPretrainOutput(ModelOutput):
    """last_hidden_state and hidden_states [B, Q, D]; attentions [B, N, Q, K], with memory keys first."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    sentence_logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    mems: Memory | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class XLPretrainModel(PreTrainedModel):
    """Hidden states. Pass `mems` of one call to the next to continue the same samples; pad on the left."""

    config_class = XLPretrainConfig
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # `num_items_in_batch`

    def __init__(self, config: XLPretrainConfig):
        super().__init__(config)
        self.backbone = Backbone(config)
        self._add_head(config)
        self.post_init()

    def _add_head(self, config: XLPretrainConfig) -> None:
        self.head = None

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        mems: Memory | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> XLPretrainOutput:
        given = input_ids, attention_mask, token_type_ids, mems
        return self._output(self._read(given, output_hidden_states, output_attentions))

    def _read(self, given: tuple, output_hidden_states: bool | None, output_attentions: bool | None) -> BackboneOutput:
        """Run the backbone; options that are None default to the config."""
        hidden_states, attentions = output_hidden_states, output_attentions
        return self.backbone(
            *given,
            output_hidden_states=self.config.output_hidden_states if hidden_states is None else hidden_states,
            output_attentions=self.config.output_attentions if attentions is None else attentions,
        )

    def _output(self, read: BackboneOutput, **computed: Tensor | None) -> XLPretrainOutput:
        return XLPretrainOutput(
            last_hidden_state=read.hidden,
            mems=read.mems,
            hidden_states=read.hidden_states,
            attentions=read.attentions,
            **computed,
        )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize weights that are not in a checkpoint."""
        super()._init_weights(module)
        if isinstance(module, Attention | Backbone | Output | Projection):
            for parameter in module.parameters(recurse=False):
                std = self.config.init_std if parameter.dim() > 1 else 0.0
                nn.init.normal_(parameter, std=std)

    @property
    def _embedding(self) -> TokenEmbedding:
        return getattr(self.backbone.embedding, "tokens", self.backbone.embedding)

    def get_input_embeddings(self) -> nn.Module:
        """The table of token vectors; with `div_val`, the module with the tables of all clusters."""
        return self._embedding.tables[0] if len(self._embedding.tables) == 1 else self._embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the table. Raises ValueError if its width differs, or if there are several tables."""
        self._replace(self._embedding.tables, value)

    def get_output_embeddings(self) -> nn.Module | None:
        """The table that computes the logits (the input table if tied); with `div_val`, the output layer."""
        output = self._output_layer
        if output is None:
            return None
        return output.vectors[0] if len(self._embedding.tables) == 1 else output

    def set_output_embeddings(self, new_embeddings: nn.Embedding) -> None:
        """Replace the table. Raises ValueError if its width differs, there are several tables, or they are tied."""
        output = self._output_layer
        if output is None or not output.tables:
            raise ValueError("the output embedding is tied to the input: use set_input_embeddings")
        self._replace(output.tables, new_embeddings)

    @property
    def _output_layer(self) -> Output | None:
        """The layer that computes the logits of tokens, if there is one."""
        return getattr(self.head, "output", None)

    def _replace(self, tables: nn.ModuleList, new: nn.Embedding) -> None:
        if len(tables) > 1:
            raise ValueError(f"cannot set the embedding: it has {len(tables)} tables (div_val={self.config.div_val})")
        if new.embedding_dim != tables[0].embedding_dim:
            raise ValueError(f"embedding_dim must be {tables[0].embedding_dim}, got {new.embedding_dim}")
        tables[0] = new

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Module:
        """Resize the vocabulary (the last cluster of an adaptive softmax). Returns the input embedding.

        mean_resizing: sample new vectors around the mean of the old ones, with an average bias; else initialize them
            as in a new model, with a bias of 0.

        Raises ValueError for a size that leaves no token in the last cluster.
        """
        cutoffs, old = tuple(getattr(self.config, "adaptive_cutoffs", None) or ()), self.config.vocab_size
        new = old if new_num_tokens is None else new_num_tokens
        new = -(-new // (pad_to_multiple_of or 1)) * (pad_to_multiple_of or 1)
        smallest = max(cutoffs, default=0) + 1
        if new < smallest:
            raise ValueError(
                f"the vocabulary must have at least {smallest} tokens (adaptive_cutoffs={cutoffs}), got {new}"
            )
        output = self._output_layer
        tables = [self._embedding.tables[-1], *([] if output is None else output.tables[-1:])]
        for table in tables:
            self._get_resized_embeddings(table, table.num_embeddings + new - old, None, mean_resizing)
        if output is not None:
            bias = output.bias
            average = float(bias[smallest - 1 :].mean()) if mean_resizing else 0.0
            bias.data = F.pad(bias.data[:new], (0, max(0, new - old)), value=average)
        self.config.vocab_size = new
        return self.get_input_embeddings()


class XLPretrainForPreTraining(XLPretrainModel):
    """Masked or permutation LM (`perm_mask` [B, T, T] and `target_mapping` [B, P, T] as in transformers' XLNet)."""

    def _add_head(self, config: XLPretrainConfig) -> None:
        self.head = nn.Module()
        self.head.output = Output(config, self._embedding)
        self.head.sentence = Sentence(config) if config.sentence_head else None

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        mems: Memory | None = None,
        perm_mask: Tensor | None = None,
        target_mapping: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> XLPretrainOutput:
        """labels: [B, T], or [B, P] with `target_mapping`; -100 is ignored."""
        predict = None if target_mapping is None else target_mapping.argmax(-1)
        given = input_ids, attention_mask, token_type_ids, mems, perm_mask, predict
        read = self._read(given, output_hidden_states, output_attentions)
        logits = self.head.output(read.hidden if predict is None else read.hidden[:, input_ids.shape[1] :])
        loss = None if labels is None else mean_loss(logits, labels, num_items_in_batch)
        sentence = None if self.head.sentence is None else self.head.sentence(read.hidden)
        return self._output(read, loss=loss, logits=logits, sentence_logits=sentence)


class XLPretrainForCausalLM(XLPretrainForPreTraining, GenerationMixin):
    """Causal LM. `generate` processes one token at a time, with the memory as cache."""

    _is_stateful = True

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        mems: Memory | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> XLPretrainOutput:
        """labels: [B, T], not shifted; padding is ignored.

        logits_to_keep: number of last tokens to compute logits for; 0 for all.
        """
        read = self._read((input_ids, attention_mask, None, mems), output_hidden_states, output_attentions)
        logits, loss = self.head.output(read.hidden[:, -logits_to_keep:]), None
        if labels is not None:
            asked = labels[:, 1:]
            if attention_mask is not None:
                there = attention_mask[:, -input_ids.shape[1] :].bool()
                asked = asked.masked_fill(~(there[:, 1:] & there[:, :-1]), -100)
            loss = mean_loss(logits[:, :-1], asked, num_items_in_batch)
        return self._output(read, loss=loss, logits=logits)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: Memory | None = None,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        if past_key_values is not None:
            input_ids = input_ids[:, -1:]
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "mems": past_key_values,
            "logits_to_keep": 1,
            "output_hidden_states": output_hidden_states,
            "output_attentions": output_attentions,
        }

    def _prepare_cache_for_generation(self, *_: Any, **__: Any) -> bool:
        return False  # `mems` is the cache

    def _reorder_cache(self, past_key_values: Memory, beam_idx: Tensor) -> Memory:
        return past_key_values[0].index_select(1, beam_idx), past_key_values[1].index_select(0, beam_idx)


class XLPretrainForSequenceClassification(XLPretrainModel):
    """A label, several labels, or a number for a text or a pair of texts (`problem_type` of the config)."""

    def _add_head(self, config: XLPretrainConfig) -> None:
        self.head = nn.Module()
        self.head.sentence = nn.ModuleDict(
            {"pooler": nn.ModuleDict({"linear": nn.Linear(config.d_model, config.d_model)})}
        )
        self.head.dropout = nn.Dropout(config.task_dropout)
        self.head.classifier = nn.Linear(config.d_model, config.num_labels)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> XLPretrainOutput:
        """labels: [B], indices or numbers; several labels: [B, C], 0 or 1. logits: [B, C] in fp32."""
        given = input_ids, attention_mask, token_type_ids
        if getattr(self.config, "part_len", None):
            read = self._read_parts(*given)
        else:
            read = self._read((*given, None), output_hidden_states, output_attentions)
        logits, loss = self._classify(read, input_ids, attention_mask), None
        if labels is not None and self.config.problem_type == "multi_label_classification":
            loss = F.binary_cross_entropy_with_logits(logits, labels.float())
        elif labels is not None and self.config.num_labels == 1:
            loss = F.mse_loss(logits[:, 0], labels.float().flatten())
        elif labels is not None:
            loss = mean_loss(logits[:, None], labels[:, None], num_items_in_batch)
        return self._output(read, loss=loss, logits=logits)

    def _read_parts(
        self, input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None
    ) -> BackboneOutput:
        """Read texts in parts of `part_len` tokens, each with the memory of those before it, from their first token on.

        Gives only the hidden states [B, T, D] and the last memory.
        """
        there = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        segments = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        places, start = torch.arange(input_ids.shape[1], device=there.device), there.argmax(1, keepdim=True)
        first_at = (places + start) % len(places)  # moves padding from the left to the right
        tokens, there, segments = (given.gather(1, first_at) for given in (input_ids, there, segments))
        mems, hidden = None, []
        for at in range(0, len(places), self.config.part_len):
            here = slice(at, at + self.config.part_len)
            read = self._read((tokens[:, here], there[:, here], segments[:, here], mems), False, False)
            mems = read.mems
            hidden.append(read.hidden)
        back = ((places - start) % len(places))[..., None].expand(-1, -1, hidden[0].shape[-1])
        return BackboneOutput(torch.cat(hidden, dim=1).gather(1, back), mems, None, None)

    def _classify(self, read: BackboneOutput, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """The outputs [B, C] of each sample, in fp32."""
        there = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        pooled = torch.tanh(self.head.sentence["pooler"]["linear"](self._summary(read.hidden, there)))
        return self.head.classifier(self.head.dropout(pooled)).float()

    def _summary(self, hidden: Tensor, there: Tensor) -> Tensor:
        """One vector per sample [B, D]: of its first or last token, or the mean over its tokens. there: [B, T]."""
        if self.config.summary == "mean":
            weights = there.to(hidden.dtype)[..., None]
            return (hidden * weights).sum(1) / weights.sum(1)
        places = torch.arange(there.shape[1], device=there.device) * there
        at = there.argmax(1) if self.config.summary == "first" else places.argmax(1)
        return hidden[torch.arange(len(hidden), device=hidden.device), at]


class XLPretrainForMultipleChoice(XLPretrainForSequenceClassification):
    """The right one of several texts, each read together with its context."""

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> XLPretrainOutput:
        """All inputs: [B, C, T]. labels: [B], indices of the right choices. logits: [B, C] in fp32."""
        tokens, valid, segments = (
            None if given is None else given.flatten(0, 1) for given in (input_ids, attention_mask, token_type_ids)
        )
        read = self._read((tokens, valid, segments, None), output_hidden_states, output_attentions)
        logits, loss = self._classify(read, tokens, valid).view(input_ids.shape[:2]), None
        if labels is not None:
            loss = mean_loss(logits[:, None], labels[:, None], num_items_in_batch)
        return self._output(read, loss=loss, logits=logits)


class XLPretrainForTokenClassification(XLPretrainModel):
    """A tag for each token; words are tagged by their first token."""

    def _add_head(self, config: XLPretrainConfig) -> None:
        self.head = nn.Module()
        self.head.dropout = nn.Dropout(config.task_dropout)
        self.head.classifier = nn.Linear(config.d_model, config.num_labels)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> XLPretrainOutput:
        """labels: [B, T]; -100 is ignored. logits: [B, T, C] in fp32."""
        given = input_ids, attention_mask, token_type_ids, None
        read = self._read(given, output_hidden_states, output_attentions)
        logits = self.head.classifier(self.head.dropout(read.hidden)).float()
        loss = None if labels is None else mean_loss(logits, labels, num_items_in_batch)
        return self._output(read, loss=loss, logits=logits)


@dataclass
class XLPretrainAnswer(ModelOutput):
    """Logits of the answer's first and last token [B, T], in fp32."""

    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class XLPretrainForQuestionAnswering(XLPretrainModel):
    """The span of a context that answers a question."""

    def _add_head(self, config: XLPretrainConfig) -> None:
        self.head = nn.Module()
        self.head.dropout = nn.Dropout(config.task_dropout)
        self.head.classifier = nn.Linear(config.d_model, 2)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> XLPretrainAnswer:
        """start_positions, end_positions: [B]; positions past the end are ignored."""
        read = self._read((input_ids, attention_mask, token_type_ids, None), output_hidden_states, output_attentions)
        start, end = self.head.classifier(self.head.dropout(read.hidden)).float().unbind(-1)
        if attention_mask is not None:
            padding, lowest = ~attention_mask.bool(), torch.finfo(torch.float32).min
            start, end = start.masked_fill(padding, lowest), end.masked_fill(padding, lowest)
        loss = None
        if start_positions is not None and end_positions is not None:
            asked = ((start, start_positions.flatten()), (end, end_positions.flatten()))
            ignored = (labels.masked_fill(labels >= input_ids.shape[1], -100) for _, labels in asked)
            losses = [
                mean_loss(logits[:, None], labels[:, None], num_items_in_batch)
                for (logits, _), labels in zip(asked, ignored, strict=True)
            ]
            loss = sum(losses) / 2
        return XLPretrainAnswer(loss, start, end, read.hidden_states, read.attentions)


def mean_loss(logits: Tensor, labels: Tensor, num_items: Tensor | int | None) -> Tensor:
    """Mean cross entropy [] of labels other than -100; with `num_items`, their sum divided by it."""
    logits, labels = logits.flatten(0, 1), labels.flatten()
    if num_items is None:
        return F.cross_entropy(logits, labels)
    return F.cross_entropy(logits, labels, reduction="sum") / num_items
