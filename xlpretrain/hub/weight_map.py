"""Converts weights to the names and shapes of transformers, and back.

Each of our tensors corresponds to one or more of theirs. Gradients convert by the same rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xlpretrain.errors import CheckpointError
from xlpretrain.models.encoder import AlbertConfig, EncoderConfig
from xlpretrain.models.stack import StackConfig
from xlpretrain.models.xlnet import XLNetConfig


@dataclass(frozen=True)
class WeightRule:
    """One of our tensors, the corresponding tensors of transformers, and the conversions in both directions."""

    ours: str
    theirs: tuple[str, ...]
    read: Callable[[Sequence[Tensor]], Tensor] = lambda theirs: theirs[0]
    write: Callable[[Tensor], Sequence[Tensor]] = lambda ours: [ours]


def read(rules: Iterator[WeightRule], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert their tensors to ours."""
    return {rule.ours: rule.read([theirs[name] for name in rule.theirs]).clone() for rule in rules}


def write(rules: Iterator[WeightRule], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert our tensors to theirs; shared tensors are repeated for each layer that has its own name there."""
    found: dict[str, Tensor] = {}
    for rule in rules:
        found.update(zip(rule.theirs, (t.clone() for t in rule.write(ours[rule.ours])), strict=True))
    return found


def weight_rules(config: StackConfig, *, sentence: bool = True) -> Iterator[WeightRule]:
    """The rules for a `PretrainingModel` that a class of transformers implements (masked or permutation LM).

    sentence: True if the head has a sentence task.
    """
    match config:
        case XLNetConfig():
            yield from _xlnet(config)
        case EncoderConfig():
            albert = is_albert(config)
            yield from _albert(config) if albert else _bert(config)
            if sentence:
                pooler, classifier = _SENTENCE[albert]
                yield from pair_rules("head.sentence.pooler.linear", pooler)
                yield from pair_rules("head.sentence.classifier", classifier)
        case _:
            raise ValueError(f"transformers 5 has no {config.type}")


def is_albert(config: EncoderConfig) -> bool:
    """True if an encoder needs transformers' ALBERT: with shared layers or a different embedding width."""
    shared = config.num_distinct_layers < len(config.layer_to_weights) or config.layers_per_group > 1
    return isinstance(config, AlbertConfig) or shared or config.resolved_d_embed != config.d_model


_SENTENCE = {True: ("albert.pooler", "sop_classifier.classifier"), False: ("bert.pooler.dense", "cls.seq_relationship")}


def _xlnet(config: XLNetConfig) -> Iterator[WeightRule]:
    layers = [f"transformer.layer.{i}." for i in range(config.num_layers)]
    for i, theirs in enumerate(layers):
        ours = f"backbone.layers.{i}."
        for part, name in (("query", "q"), ("key", "k"), ("value", "v"), ("distance", "r")):
            yield WeightRule(  # theirs: D x N x H, ours: (N H) x D
                f"{ours}attention.{part}.weight",
                (f"{theirs}rel_attn.{name}",),
                lambda theirs: theirs[0].flatten(1).T,
                lambda ours: [ours.T.reshape(config.d_model, config.num_heads, config.resolved_d_head)],
            )
        yield WeightRule(
            f"{ours}attention.output.weight",
            (f"{theirs}rel_attn.o",),
            lambda theirs: theirs[0].flatten(1),
            lambda ours: [ours.view(config.d_model, config.num_heads, config.resolved_d_head)],
        )
        yield WeightRule(f"{ours}attention.segment_embedding", (f"{theirs}rel_attn.seg_embed",))
        yield from pair_rules(f"{ours}attention_norm", f"{theirs}rel_attn.layer_norm")
        yield from pair_rules(f"{ours}feed_forward.inner", f"{theirs}ff.layer_1")
        yield from pair_rules(f"{ours}feed_forward.outer", f"{theirs}ff.layer_2")
        yield from pair_rules(f"{ours}feed_forward_norm", f"{theirs}ff.layer_norm")
    for part, name in (("content", "r_w_bias"), ("position", "r_r_bias"), ("segment", "r_s_bias")):
        names = tuple(f"{layer}rel_attn.{name}" for layer in layers)
        read = _read_own if config.untie_r else _read_shared
        yield WeightRule(f"backbone.{part}_bias", names, read, lambda ours: ours.expand(len(layers), -1, -1).unbind())
    yield WeightRule(
        "backbone.mask_embedding", ("transformer.mask_emb",), lambda theirs: theirs[0][0], lambda ours: [ours[None]]
    )
    yield WeightRule("backbone.embedding.tables.0.weight", ("transformer.word_embedding.weight",))
    yield WeightRule("head.output.bias", ("lm_loss.bias",))


def _albert(config: EncoderConfig) -> Iterator[WeightRule]:
    for i in range(config.num_distinct_layers):
        group, inner = divmod(i, config.layers_per_group)
        theirs = f"albert.encoder.albert_layer_groups.{group}.albert_layers.{inner}."
        ours = f"backbone.layers.{i}."
        for part in ("query", "key", "value"):
            yield from pair_rules(f"{ours}attention.{part}", f"{theirs}attention.{part}")
        yield from pair_rules(f"{ours}attention.output", f"{theirs}attention.dense")
        yield from pair_rules(f"{ours}attention_norm", f"{theirs}attention.LayerNorm")
        yield from pair_rules(f"{ours}feed_forward.inner", f"{theirs}ffn")
        yield from pair_rules(f"{ours}feed_forward.outer", f"{theirs}ffn_output")
        yield from pair_rules(f"{ours}feed_forward_norm", f"{theirs}full_layer_layer_norm")
    yield from _embeddings("albert.embeddings.")
    if config.resolved_d_embed != config.d_model:  # theirs always exists
        yield from pair_rules("backbone.embedding.projection", "albert.encoder.embedding_hidden_mapping_in")
    yield from pair_rules("head.output.transform", "predictions.dense")
    yield from pair_rules("head.output.norm", "predictions.LayerNorm")
    yield WeightRule("head.output.bias", ("predictions.bias",))


def _bert(config: EncoderConfig) -> Iterator[WeightRule]:
    for i in range(config.num_layers):
        theirs, ours = f"bert.encoder.layer.{i}.", f"backbone.layers.{i}."
        for part in ("query", "key", "value"):
            yield from pair_rules(f"{ours}attention.{part}", f"{theirs}attention.self.{part}")
        yield from pair_rules(f"{ours}attention.output", f"{theirs}attention.output.dense")
        yield from pair_rules(f"{ours}attention_norm", f"{theirs}attention.output.LayerNorm")
        yield from pair_rules(f"{ours}feed_forward.inner", f"{theirs}intermediate.dense")
        yield from pair_rules(f"{ours}feed_forward.outer", f"{theirs}output.dense")
        yield from pair_rules(f"{ours}feed_forward_norm", f"{theirs}output.LayerNorm")
    yield from _embeddings("bert.embeddings.")
    yield from pair_rules("head.output.transform", "cls.predictions.transform.dense")
    yield from pair_rules("head.output.norm", "cls.predictions.transform.LayerNorm")
    yield WeightRule("head.output.bias", ("cls.predictions.bias",))


def _embeddings(theirs: str) -> Iterator[WeightRule]:
    yield WeightRule("backbone.embedding.tokens.tables.0.weight", (f"{theirs}word_embeddings.weight",))
    yield WeightRule("backbone.embedding.positions.weight", (f"{theirs}position_embeddings.weight",))
    yield WeightRule("backbone.embedding.segments.weight", (f"{theirs}token_type_embeddings.weight",))
    yield from pair_rules("backbone.embedding.norm", f"{theirs}LayerNorm")


def _read_own(theirs: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(theirs))


def _read_shared(theirs: Sequence[Tensor]) -> Tensor:
    """The weights shared by all layers. Raises `CheckpointError` if the layers differ."""
    if any(not torch.equal(other, theirs[0]) for other in theirs[1:]):
        raise CheckpointError(
            "the attention biases differ between layers, but config.json declares them shared"
            " (xlpretrain.model.untie_r: false); remove `xlpretrain` from config.json to import them as they are"
        )
    return theirs[0][None]


def pair_rules(ours: str, theirs: str) -> Iterator[WeightRule]:
    """Rules for a weight and a bias."""
    for kind in ("weight", "bias"):
        yield WeightRule(f"{ours}.{kind}", (f"{theirs}.{kind}",))
