"""Micro-batches for models with an adaptive softmax, whose targets' clusters are found where the batch is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from xlpretrain.data.samples import Sample
from xlpretrain.data.tokenizers.base import Tokenizer
from xlpretrain.models.backbone import Backbone
from xlpretrain.models.parts.clusters import TargetClusters
from xlpretrain.models.pretraining_model import Batch
from xlpretrain.objectives.base import Collator, Objective


def model_collator(objective: Objective, tokenizer: Tokenizer, *, seed: int, backbone: Backbone | None) -> Collator:
    """The collator of an objective for a model, with the targets' clusters where it predicts tokens.

    seed: of the collator. backbone: see `with_target_clusters`.
    """
    collate = objective.collator(tokenizer, seed=seed)
    return with_target_clusters(collate, backbone) if objective.predicts_tokens else collate


def with_target_clusters(collate: Collator, backbone: Backbone | None) -> Collator:
    """A collator for the batches of a model: with an adaptive softmax it finds the targets' clusters too.

    backbone: the model's; None if it is unknown.
    """
    if backbone is None or not backbone.cluster_edges:
        return collate
    return ClusteringCollator(collate, backbone.cluster_edges)


@dataclass(frozen=True)
class ClusteringCollator:
    """A collator whose batches have the `clusters` of each term that predicts tokens.

    edges: first token of each cluster, and the size of the vocabulary.
    """

    collate: Collator
    edges: tuple[int, ...]

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Make a batch from any number of samples, including none."""
        batch = self.collate(samples)
        terms = [term for term in batch.counts if f"{term}_positions" in batch.targets]
        return replace(batch, clusters={term: TargetClusters.find(batch.targets[term], self.edges) for term in terms})
