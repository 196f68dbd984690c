"""Token embeddings, and output layers that map hidden states to a distribution over tokens.

Adaptive embedding (arXiv:1809.10853) and adaptive softmax (arXiv:1609.04309) split a vocabulary sorted by frequency
into clusters; rarer clusters get narrower vectors. Shapes: N positions, V vocabulary, D d_model, E width of a
cluster's vectors, C tokens of the first cluster (the head).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from xlpretrain.models.backbone import OutputLayer
from xlpretrain.models.kernels.chunked_loss import chunked_loss
from xlpretrain.models.parts.clusters import TargetClusters

_ROWS_OF_LOG_PROBS = 256


class TokenEmbedding(nn.Module):
    """One table of token vectors, or one per cluster, projected to d_model if the width differs.

    With `div_val` 1 there is one table for the whole vocabulary, whatever the cutoffs. With `div_val` above 1, cluster
    i has vectors of width d_embed // div_val**i, and every cluster has a projection, even if it is square.
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
        """The unscaled vectors of the tokens."""
        if len(self.tables) == 1:
            vectors: Tensor = self.table(0)(tokens)
            return self._project(0, vectors) if self.projections else vectors
        # Every cluster is computed, even without tokens: under ZeRO-3 all ranks must use the same parameters.
        if tokens.device.type != "cpu" or torch.compiler.is_compiling():
            return torch.stack([self._if_in(cluster, tokens) for cluster in range(len(self.tables))]).sum(dim=0)
        flat = tokens.flatten()
        result = torch.zeros(len(flat), self.d_model, dtype=self.table(0).weight.dtype)
        for cluster, (start, end) in enumerate(pairwise(self.edges)):
            (where,) = torch.nonzero((flat >= start) & (flat < end), as_tuple=True)
            vectors = self.table(cluster)(flat[where] - start)
            result = result.index_copy(0, where, self._project(cluster, vectors).to(result.dtype))  # autocast
        return result.view(*tokens.shape, self.d_model)

    def table(self, cluster: int) -> nn.Embedding:
        """The table of a cluster, or the only one."""
        return cast(nn.Embedding, self.tables[cluster if len(self.tables) > 1 else 0])

    def projection(self, cluster: int) -> nn.Linear:
        """The projection of a cluster's vectors to d_model, or the only one; only if `projections` is not empty."""
        return cast(nn.Linear, self.projections[cluster if len(self.projections) > 1 else 0])

    def flops_per_token(self) -> float:
        """FLOPs of forward and backward of the widest projection; the lookup has none."""
        return 6.0 * max((weight.numel() for weight in self.projections.parameters()), default=0)

    def _project(self, cluster: int, vectors: Tensor) -> Tensor:
        projected: Tensor = self.projection(cluster)(vectors)
        return projected

    def _if_in(self, cluster: int, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """The vectors of the tokens in a cluster, zeros for others: no shape depends on the tokens' values, for which
        the host would have to wait."""
        start, end = self.edges[cluster : cluster + 2]
        index = tokens - start
        within = index.clamp(0, end - start - 1)
        return self._project(cluster, self.table(cluster)(within).masked_fill((within != index)[..., None], 0))


class VocabularySoftmax(OutputLayer):
    """Projection of hidden states onto the vocabulary: a full softmax, or with cutoffs an adaptive one.

    The adaptive softmax gives p(token) = p(cluster) p(token | cluster); the first cluster's tokens share one softmax
    with the other clusters, which are numbered upwards (as in the TensorFlow original and transformers 4.x; the PyTorch
    original numbers them downwards). Losses are in the order of the targets (the original PyTorch code groups them by
    cluster).

    If tied, it uses the tables and projections of the embedding, which remain registered only there. Projections are
    tied per cluster; with `div_val` 1 all tied clusters share the single projection.
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
        # In a tuple, so that its parameters are not registered under a second name.
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

    def forward(
        self, hidden: Float[Tensor, "N D"], targets: Int[Tensor, " N"], clusters: TargetClusters | None = None
    ) -> tuple[Float[Tensor, " N"], Bool[Tensor, " N"] | None]:
        """Call `token_losses`; accuracy only in evaluation mode."""
        return self.token_losses(hidden, targets, accuracy=not self.training, clusters=clusters)

    def token_losses(
        self,
        hidden: Float[Tensor, "N D"],
        targets: Int[Tensor, " N"],
        *,
        accuracy: bool,
        clusters: TargetClusters | None = None,
    ) -> tuple[Float[Tensor, " N"], Bool[Tensor, " N"] | None]:
        """-log p(target) in fp32 nats, in the order of the targets; with `accuracy`, also the correct ones.

        clusters: the targets' clusters, for an adaptive softmax; if None, they are found here, for which the host waits
        for the device.
        """
        if self.num_tails:
            found = clusters or TargetClusters.find(targets.cpu(), self.edges).map(lambda t: t.to(targets.device))
            nll = self._adaptive_nll(hidden, found)
        else:
            nll = self._nll(0, hidden, self._weights()[0], targets)
        if not accuracy:
            return nll, None
        # V numbers per position, so in chunks
        scores = self.log_probs if self.num_tails else partial(self._logits, 0, weights=self._weights()[0])
        likeliest = [scores(rows).argmax(dim=-1) for rows in torch.split(hidden, _ROWS_OF_LOG_PROBS)]
        return nll, torch.cat(likeliest) == targets

    def log_probs(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """log p of every token, fp32."""
        head_size = self.edges[1]
        head, *tails = (
            F.log_softmax(self._logits(cluster, hidden, weights), dim=-1)
            for cluster, weights in enumerate(self._weights())
        )
        tails = [head[:, head_size + tail, None] + log_probs for tail, log_probs in enumerate(tails)]
        return torch.cat([head[:, :head_size], *tails], dim=-1)

    def flops_per_token(self) -> float:
        """FLOPs of forward and backward of the head and the most expensive tail."""
        embedding = self._embedding[0]
        costs = []
        for cluster, (start, end) in enumerate(pairwise(self.edges)):
            width = embedding.d_embed // embedding.div_val**cluster
            rows = end - start + (self.num_tails if cluster == 0 else 0)
            costs.append(6.0 * width * (rows + (embedding.d_model if embedding.projections else 0)))
        return float(costs[0] + max(costs[1:], default=0.0))

    def _adaptive_nll(self, hidden: Float[Tensor, "N D"], clusters: TargetClusters) -> Float[Tensor, " N"]:
        """Every tail is computed, even without targets: under ZeRO-3 all ranks must use the same parameters."""
        sizes = list(clusters.sizes)
        states = torch.split(hidden.index_select(0, clusters.positions), sizes)
        head, *tails = self._weights()
        nll = self._nll(0, hidden, head, clusters.head)
        of_tails = [
            self._nll(tail + 1, *inputs)
            for tail, inputs in enumerate(zip(states, tails, torch.split(clusters.within, sizes), strict=True))
        ]
        return nll.index_add(0, clusters.positions, torch.cat(of_tails))

    def _nll(self, cluster: int, hidden: Tensor, weights: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        """-log p within a cluster, fp32."""
        return chunked_loss(self._project(cluster, hidden), *weights, targets)

    def _logits(self, cluster: int, hidden: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
        """fp32 logits of one cluster's tokens; the first cluster's are followed by those of the other clusters."""
        return F.linear(self._project(cluster, hidden), *weights).float()

    def _weights(self) -> list[tuple[Tensor, Tensor]]:
        """For each cluster, the vectors and biases that give its logits."""
        tables = cast(Iterable[nn.Embedding], self.tables or self._embedding[0].tables)
        weights = [table.weight for table in tables]
        if self.cluster_weight is None or self.cluster_bias is None:
            return [(weights[0], self.bias)]
        sizes = [end - start for start, end in pairwise(self.edges)]
        # Their gradients are joined by `torch.split`; slices would each give one of the whole table.
        (first, *others) = torch.split(weights[0], sizes) if len(weights) == 1 else weights
        (first_bias, *other_biases) = torch.split(self.bias, sizes)
        head = torch.cat([first, self.cluster_weight]), torch.cat([first_bias, self.cluster_bias])
        return [head, *zip(others, other_biases, strict=True)]

    def _project(self, cluster: int, hidden: Tensor) -> Tensor:
        """Project hidden states to the width of a cluster's vectors."""
        embedding = self._embedding[0]
        if not embedding.projections:
            return hidden
        if str(cluster) in self.projections:
            projected: Tensor = self.projections[str(cluster)](hidden)
            return projected
        return hidden @ embedding.projection(cluster).weight


def _draw(modules: nn.Module, std: float) -> None:
    """Initialize every weight from N(0, std)."""
    for weight in modules.parameters():
        nn.init.normal_(weight, std=std)
