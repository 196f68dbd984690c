"""A model pretrained with xlpretrain, for Hugging Face transformers. Requires only transformers and torch.

These are the classes that transformers loads. Their heads are in `heads_xlpretrain.py`; the layers, and the legend of
shapes, in `backbone_xlpretrain.py`.
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
    Attention,
    Backbone,
    BackboneOutput,
    Memory,
    Projection,
    TokenEmbedding,
    XLPretrainConfig,
)
from .heads_xlpretrain import Output, Sentence, TaskHead, mean_loss


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
    _no_split_modules = ["Layer"]

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
        there = None if attention_mask is None else attention_mask[:, -input_ids.shape[1] :]
        sentence = None if self.head.sentence is None else self.head.sentence(read.hidden, there)
        return self._output(read, loss=loss, logits=logits, sentence_logits=sentence)


class XLPretrainForCausalLM(XLPretrainForPreTraining, GenerationMixin):
    """Causal LM. `generate` reads one token at a time, with the memory as cache, or an encoder all of them again."""

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
        if not self.backbone.relative:  # an encoder, which has no memory
            input_ids = input_ids[:, -self.config.max_positions :]
        elif past_key_values is not None:
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


class _XLPretrainForTask(XLPretrainModel):
    """A task with `labels`. Samples do not continue each other: there is no memory, except between parts of a text."""

    _pooled = False
    """True for one vector of outputs per sample, False for one per token."""

    def _add_head(self, config: XLPretrainConfig) -> None:
        self.head = TaskHead(config, self._num_outputs(config), pooled=self._pooled)

    def _num_outputs(self, config: XLPretrainConfig) -> int:
        return config.num_labels

    def _apply_head(self, given: tuple, hidden_states: bool | None, attentions: bool | None) -> tuple[Tensor, dict]:
        """The head's outputs and the keyword arguments for what the layers computed.

        given: tokens [B, T], attention mask and segments, or None.
        """
        if getattr(self.config, "part_len", None):
            hidden = self._read_parts(*given)
            return self.head(hidden, given[1]), {"last_hidden_state": hidden}
        read = self._read((*given, self.backbone.empty_memory(len(given[0]), 0)), hidden_states, attentions)
        layers = {name: getattr(read, name) for name in ("hidden_states", "attentions")}
        return self.head(read.hidden, given[1]), {"last_hidden_state": read.hidden, **layers}

    def _read_parts(self, tokens: Tensor, valid: Tensor | None, segments: Tensor | None) -> Tensor:
        """The hidden states [B, T, D] of texts read in parts of `part_len` tokens, each with the memory of those before
        it, from their first token on."""
        there = torch.ones_like(tokens) if valid is None else valid
        segments = torch.zeros_like(tokens) if segments is None else segments
        places, start = torch.arange(tokens.shape[1], device=there.device), there.argmax(1, keepdim=True)
        first_at = (places + start) % len(places)  # moves padding from the left to the right
        tokens, there, segments = (given.gather(1, first_at) for given in (tokens, there, segments))
        mems, hidden = None, []
        for at in range(0, len(places), self.config.part_len):
            here = slice(at, at + self.config.part_len)
            read = self._read((tokens[:, here], there[:, here], segments[:, here], mems), False, False)
            mems = read.mems
            hidden.append(read.hidden)
        back = ((places - start) % len(places))[..., None].expand(-1, -1, hidden[0].shape[-1])
        return torch.cat(hidden, dim=1).gather(1, back)

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
        """Logits in fp32; their shape, and the labels, are described by the class."""
        shape, given = input_ids.shape, (input_ids, attention_mask, token_type_ids)
        flat = tuple(None if part is None else part.flatten(0, -2) for part in given)
        logits, layers = self._apply_head(flat, output_hidden_states, output_attentions)
        logits, loss = logits.view(shape[:2]) if len(shape) == 3 else logits, None
        if labels is not None:
            loss = mean_loss(logits, labels, num_items_in_batch, self._problem(labels))
        return XLPretrainOutput(loss=loss, logits=logits, **layers)

    def _problem(self, labels: Tensor) -> str | None:
        return None


class XLPretrainForSequenceClassification(_XLPretrainForTask):
    """A label, several labels or numbers for a text or a pair of texts. logits: [B, C].

    labels: [B], indices; [B] or [B, C], numbers, if `config.problem_type` is regression or there is one label; [B, C],
    0 or 1, if it is multi_label_classification or they are floating-point numbers.
    """

    _pooled = True

    def _problem(self, labels: Tensor) -> str | None:
        found = "multi_label_classification" if labels.is_floating_point() else "single_label_classification"
        return self.config.problem_type or ("regression" if self.config.num_labels == 1 else found)


class XLPretrainForMultipleChoice(_XLPretrainForTask):
    """The right one of several texts, each read together with its context. logits: [B, C].

    All inputs: [B, C, T]. labels: [B], indices of the right choices.
    """

    _pooled = True

    def _num_outputs(self, config: XLPretrainConfig) -> int:
        return 1


class XLPretrainForTokenClassification(_XLPretrainForTask):
    """A tag for each token; words are tagged by their first token. logits: [B, T, C].

    labels: [B, T]; -100 is ignored.
    """


@dataclass
class XLPretrainAnswer(ModelOutput):
    """Logits of the answer's first and last token [B, T], in fp32."""

    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class XLPretrainForQuestionAnswering(_XLPretrainForTask):
    """The span of a context that answers a question."""

    def _num_outputs(self, config: XLPretrainConfig) -> int:
        return 2

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
        given = input_ids, attention_mask, token_type_ids
        logits, layers = self._apply_head(given, output_hidden_states, output_attentions)
        if attention_mask is not None:
            logits = logits.masked_fill(~attention_mask.bool()[..., None], torch.finfo(torch.float32).min)
        (start, end), loss = logits.unbind(-1), None
        if start_positions is not None and end_positions is not None:
            asked = (labels.masked_fill(labels >= start.shape[1], -100) for labels in (start_positions, end_positions))
            losses = (mean_loss(of, labels, num_items_in_batch) for of, labels in zip((start, end), asked, strict=True))
            loss = sum(losses) / 2
        return XLPretrainAnswer(loss, start, end, **layers)
