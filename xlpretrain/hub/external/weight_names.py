"""Normalizes tensor names of third-party files to those of the class for pretraining.

The names of a saved model vary: `DistributedDataParallel` and `torch.compile` add a prefix, a model without a head
(`BertModel`) has none, and a tied tensor has either of its two names.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

BODIES = {"albert": "albert.", "bert": "bert.", "xlnet": "transformer.", "transfo-xl": "transformer."}
"""Prefix of all weights except those of heads, by model_type."""
_PARTS_OF_BODIES = {
    "albert": ("embeddings", "encoder", "pooler"),
    "bert": ("embeddings", "encoder", "pooler"),
    "xlnet": ("mask_emb", "word_embedding", "layer"),
    "transfo-xl": ("word_emb", "layers", "r_w_bias", "r_r_bias", "pos_emb"),
}
TIED = {
    "lm_loss.weight": "transformer.word_embedding.weight",
    "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
    "predictions.decoder.bias": "predictions.bias",
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
"""Alternative names of tied tensors, and their usual names."""
_WRAPPERS = ("module.", "_orig_mod.")
_NOT_WEIGHTS = ("embeddings.position_ids", "embeddings.token_type_ids", "pos_emb.inv_freq")
_TELLING = {"albert_layer_groups.": "albert", ".rel_attn.": "xlnet", ".dec_attn.": "transfo-xl"}


def unwrap(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove buffers and prefixes of wrappers, and rename norms to their current names."""
    weights = dict(found)
    while wrapper := next((w for w in _WRAPPERS if weights and all(name.startswith(w) for name in weights)), None):
        weights = {name.removeprefix(wrapper): tensor for name, tensor in weights.items()}
    return {_modern(name): tensor for name, tensor in weights.items() if not name.endswith(_NOT_WEIGHTS)}


def find_kind(weights: Mapping[str, Tensor]) -> str | None:
    """The model_type implied by the names that `unwrap` returns; None if ambiguous.

    A `BertModel` without its head looks like a RoBERTa.
    """
    for part, kind in _TELLING.items():
        if any(part in name for name in weights):
            return kind
    return "bert" if any(name.startswith("bert.encoder.layer.") for name in weights) else None


def complete(weights: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Rename weights as in the class for pretraining."""
    body, parts = BODIES.get(kind, ""), _PARTS_OF_BODIES.get(kind, ())
    bare = not any(name.startswith(body) for name in weights)
    renamed = {body + name if bare and name.split(".")[0] in parts else name: t for name, t in weights.items()}
    for copy, original in TIED.items():
        if copy in renamed and original not in renamed:
            renamed[original] = renamed.pop(copy)
    return renamed


def _modern(name: str) -> str:
    """Rename the norms of old checkpoints, which have TensorFlow's names."""
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        if name.endswith(f"LayerNorm{old}"):
            return name.removesuffix(old) + new
    return name
