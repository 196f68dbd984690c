"""The heads of a model pretrained with xlpretrain: logits of tokens, sentence tasks, tasks of fine-tuned models.

Shapes as in `backbone_xlpretrain.py`; C outputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backbone_xlpretrain import ACTIVATIONS, TokenEmbedding, XLPretrainConfig


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

    def forward(self, hidden: Tensor, valid: Tensor | None = None) -> Tensor:
        """The logits [B, 2]. valid: attention mask [B, T]; None without padding."""
        return self.classifier(torch.tanh(self.pooler["linear"](summarize(hidden, valid, "first"))))


class TaskHead(nn.Module):
    """The outputs of a task for each token or, through a pooler, for each sample."""

    def __init__(self, config: XLPretrainConfig, num_outputs: int, *, pooled: bool):
        super().__init__()
        width, self.summary = config.d_model, config.summary if pooled else None
        if pooled:
            self.sentence = nn.ModuleDict({"pooler": nn.ModuleDict({"linear": nn.Linear(width, width)})})
        self.dropout = nn.Dropout(config.task_dropout)
        self.classifier = nn.Linear(width, num_outputs)

    def forward(self, hidden: Tensor, valid: Tensor | None) -> Tensor:
        """The outputs [B, T, C] or, with a pooler, [B, C], in fp32. valid: attention mask [B, T]."""
        if self.summary is not None:
            hidden = torch.tanh(self.sentence["pooler"]["linear"](summarize(hidden, valid, self.summary)))
        return self.classifier(self.dropout(hidden)).float()


def summarize(hidden: Tensor, valid: Tensor | None, summary: str) -> Tensor:
    """One vector per sample [B, D]: that of its first or last token, or the mean over its tokens, wherever padding is.

    valid: attention mask [B, T], or None without padding; hidden [B, Q, D] may continue after the tokens.
    """
    there = hidden.new_ones(hidden.shape[:2], dtype=torch.int64) if valid is None else valid.long()
    if summary == "mean":
        weights = there.to(hidden.dtype)[..., None]
        return (hidden * weights).sum(1) / weights.sum(1)
    places = torch.arange(there.shape[1], device=there.device) * there
    at = there.argmax(1) if summary == "first" else places.argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), at]


def mean_loss(logits: Tensor, labels: Tensor, num_items: Tensor | int | None, problem: str | None = None) -> Tensor:
    """The mean loss []; with `num_items`, the sum of the losses divided by it.

    problem: as in transformers: regression (squared error), multi_label_classification (cross-entropy of each output),
        else cross-entropy of labels other than -100.
    """
    reduction = "mean" if num_items is None else "sum"
    if problem == "regression":
        loss = F.mse_loss(logits, labels.to(logits.dtype).view_as(logits), reduction=reduction)
    elif problem == "multi_label_classification":
        loss = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction=reduction)
    else:
        loss = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction=reduction)
    return loss if num_items is None else loss / num_items
