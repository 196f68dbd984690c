"""Token embeddings, and the layers that turn hidden states into a distribution over tokens.

Adaptive embedding (arXiv:1809.10853) and adaptive softmax (arXiv:1609.04309) split a vocabulary sorted by frequency
into clusters; rarer clusters get narrower vectors. Shapes: N positions, V vocabulary, D d_model, E width of a
cluster's vectors, C tokens of the first cluster (the head).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from xlpretrain.models.backbone import OutputLayer
from xlpretrain.models.kernels.chunked_loss import ChunkedLoss

_ROWS_OF_LOG_PROBS = 256


class TokenEmbedding(nn.Module):
    """Tables of vectors, one or one per cluster, each projected to d_model where its width differs.

    With `div_val` 1 there is one table for the whole vocabulary, whatever the cutoffs. With more, cluster i has
    vectors of d_embed // div_val**i, and every cluster a projection, the first one too even where it is square.
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        d_model: int,
        d_embed: int,
        cutoffs: Sequence[int] = (),
        div_val: int = 1,
        init_std: float,
        proj_init_std: float,
    ):
        super().__init__()
        self.vocab_size, self.d_model, self.d_embed, self.div_val = vocab_size, d_model, d_embed, div_val
        self.edges = (0, *(cutoffs if div_val > 1 else ()), vocab_size)
        widths = [d_embed // div_val**i for i in range(len(self.edges) - 1)]
        self.tables = nn.ModuleList(
            nn.Embedding(end - start, width) for (start, end), width in zip(pairwise(self.edges), widths, strict=True)
        )
        projected = div_val > 1 or d_embed != d_model
        self.projections = nn.ModuleList(nn.Linear(width, d_model, bias=False) for width in widths if projected)
        _draw(self.tables, init_std)
        _draw(self.projections, proj_init_std)

    def forward(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """The vectors of the tokens, not scaled."""
        if len(self.tables) == 1:
            vectors: Tensor = self.table(0)(tokens)
            return self._project(0, vectors) if self.projections else vectors
        flat = tokens.flatten()
        result = torch.zeros(len(flat), self.d_model, dtype=self.table(0).weight.dtype, device=flat.device)
        # Every cluster is computed, with no tokens if need be: under ZeRO-3 all ranks must use the same parameters.
        for cluster, (start, end) in enumerate(pairwise(self.edges)):
            (where,) = torch.nonzero((flat >= start) & (flat < end), as_tuple=True)
            vectors = self.table(cluster)(flat[where] - start)
            result = result.index_copy(0, where, self._project(cluster, vectors))
        return result.view(*tokens.shape, self.d_model)

    def table(self, cluster: int) -> nn.Embedding:
        """The vectors of a cluster; of all of them, where there is one table."""
        return cast(nn.Embedding, self.tables[cluster if len(self.tables) > 1 else 0])

    def projection(self, cluster: int) -> nn.Linear:
        """The projection of a cluster's vectors to d_model; only where there is one (`projections`)."""
        return cast(nn.Linear, self.projections[cluster if len(self.projections) > 1 else 0])

    def flops_per_token(self) -> float:
        """Forward and backward of the widest projection; looking up costs none."""
        return 6.0 * max((weight.numel() for weight in self.projections.parameters()), default=0)

    def _project(self, cluster: int, vectors: Tensor) -> Tensor:
        projected: Tensor = self.projection(cluster)(vectors)
        return projected


class VocabularySoftmax(OutputLayer):
    """Hidden states onto the vocabulary: a full softmax, or with cutoffs an adaptive one.

    The adaptive softmax gives p(token) = p(cluster) p(token | cluster); the first cluster's tokens stand in one
    softmax with the other clusters, numbered upwards (as in the TensorFlow original and transformers 4.x; the
    PyTorch original numbers them downwards). Losses come in the order of the targets (the originals' PyTorch code
    groups them by cluster).

    Where tied, it reads the embedding's own tables and projections, which stay registered with the embedding alone.
    Projections are tied cluster by cluster; with `div_val` 1 all clusters that are tied share the one there is.
    """

    def __init__(
        self,
        embedding: TokenEmbedding,
        *,
        cutoffs: Sequence[int] = (),
        tied: bool = True,
        tied_projections: Sequence[bool],
        init_std: float,
        proj_init_std: float,
    ):
        super().__init__()
        # In a tuple, so that no parameter is registered under two names.
        self._embedding = (embedding,)
        self.edges = (0, *cutoffs, embedding.vocab_size)
        self.num_tails = len(cutoffs)
        width = embedding.d_embed
        self.bias = nn.Parameter(torch.zeros(embedding.vocab_size))
        self.cluster_weight = nn.Parameter(torch.randn(self.num_tails, width) * init_std) if cutoffs else None
        self.cluster_bias = nn.Parameter(torch.zeros(self.num_tails)) if cutoffs else None
        self.tables = nn.ModuleList(
            nn.Embedding(*embedding.table(i).weight.shape) for i in range(len(embedding.tables)) if not tied
        )
        self.projections = nn.ModuleDict(
            {
                str(i): nn.Linear(embedding.d_model, width // embedding.div_val**i, bias=False)
                for i, is_tied in enumerate(tied_projections)
                if embedding.projections and not is_tied
            }
        )
        _draw(self.tables, init_std)
        _draw(self.projections, proj_init_std)

    def token_losses(
        self, hidden: Float[Tensor, "N D"], targets: Int[Tensor, " N"], *, accuracy: bool
    ) -> tuple[Float[Tensor, " N"], Bool[Tensor, " N"] | None]:
        """-log p(target) in fp32 nats, in the order of the targets; and whether no token is likelier, if asked."""
        head_size = self.edges[1]
        inside = [(targets >= start) & (targets < end) for start, end in pairwise(self.edges)][1:]
        head_targets = targets
        for tail, member in enumerate(inside):
            head_targets = head_targets.masked_fill(member, head_size + tail)
        nll = self._nll(0, hidden, head_targets)
        # Every tail is computed, for no samples if need be: under ZeRO-3 all ranks must use the same parameters.
        for tail, member in enumerate(inside):
            (where,) = torch.nonzero(member, as_tuple=True)
            within = targets[where] - self.edges[tail + 1]
            nll = nll.index_add(0, where, self._nll(tail + 1, hidden[where], within))
        if not accuracy:
            return nll, None
        scores = self.log_probs if inside else partial(self._logits, 0)  # of every token and position: some at a time
        likeliest = [scores(rows).argmax(dim=-1) for rows in torch.split(hidden, _ROWS_OF_LOG_PROBS)]
        return nll, torch.cat(likeliest) == targets

    def log_probs(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """log p of every token, fp32."""
        head_size = self.edges[1]
        head = F.log_softmax(self._logits(0, hidden), dim=-1)
        tails = [
            head[:, head_size + tail, None] + F.log_softmax(self._logits(tail + 1, hidden), dim=-1)
            for tail in range(self.num_tails)
        ]
        return torch.cat([head[:, :head_size], *tails], dim=-1)

    def flops_per_token(self) -> float:
        """Forward and backward of the head and the dearest tail."""
        embedding = self._embedding[0]
        costs = []
        for cluster, (start, end) in enumerate(pairwise(self.edges)):
            width = embedding.d_embed // embedding.div_val**cluster
            rows = end - start + (self.num_tails if cluster == 0 else 0)
            costs.append(6.0 * width * (rows + (embedding.d_model if embedding.projections else 0)))
        return float(costs[0] + max(costs[1:], default=0.0))

    def _nll(self, cluster: int, hidden: Tensor, targets: Tensor) -> Tensor:
        """-log p within a cluster, fp32."""
        weight, bias = self._weights(cluster)
        nll: Tensor = ChunkedLoss.apply(self._project(cluster, hidden), weight, bias, targets)  # type: ignore[no-untyped-call]
        return nll

    def _logits(self, cluster: int, hidden: Tensor) -> Tensor:
        """fp32 logits of one cluster's tokens; the first cluster's are followed by those of the other clusters."""
        return F.linear(self._project(cluster, hidden), *self._weights(cluster)).float()

    def _weights(self, cluster: int) -> tuple[Tensor, Tensor]:
        """The vectors and biases that give these logits."""
        embedding = self._embedding[0]
        start, end = self.edges[cluster], self.edges[cluster + 1]
        single = len(embedding.tables) == 1
        own = cast(nn.Embedding, self.tables[0 if single else cluster]) if self.tables else None
        weight = (own or embedding.table(cluster)).weight
        weight, bias = weight[start:end] if single else weight, self.bias[start:end]
        if cluster == 0 and self.cluster_weight is not None and self.cluster_bias is not None:
            weight, bias = torch.cat([weight, self.cluster_weight]), torch.cat([bias, self.cluster_bias])
        return weight, bias

    def _project(self, cluster: int, hidden: Tensor) -> Tensor:
        """Hidden states in the width of a cluster's vectors."""
        embedding = self._embedding[0]
        if not embedding.projections:
            return hidden
        if str(cluster) in self.projections:
            projected: Tensor = self.projections[str(cluster)](hidden)
            return projected
        return hidden @ embedding.projection(cluster).weight


def _draw(modules: nn.Module, std: float) -> None:
    """Draws every weight from N(0, std)."""
    for weight in modules.parameters():
        nn.init.normal_(weight, std=std)
