"""Transformer-XL from transformers 4 (`TransfoXLLMHeadModel`) and from the authors' PyTorch code (kimiyoung).

Both have the same tensor names, except for a prefix. They differ in the order of the adaptive softmax's clusters, which
is descending in the authors' code and ascending in transformers and here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xlpretrain import schema
from xlpretrain.errors import CheckpointError, ConfigError
from xlpretrain.hub.external.weight_files import check_weights
from xlpretrain.models.transformer_xl import TransformerXLConfig

_Json = dict[str, Any]

KEYS = {
    "d_model": "d_model",
    "n_layer": "num_layers",
    "n_head": "num_heads",
    "d_head": "d_head",
    "d_inner": "d_ff",
    "d_embed": "d_embed",
    "mem_len": "mem_len",
    "same_length": "same_length",
    "div_val": "div_val",
    "untie_r": "untie_r",
    "pre_lnorm": "pre_norm",
    "dropout": "dropout",
    "dropatt": "attention_dropout",
    "layer_norm_epsilon": "layer_norm_eps",
    "init_std": "init_std",
    "proj_init_std": "proj_init_std",
}
_DEFAULTS: _Json = {  # of transformers 4.35; only missing where an older version had no such key
    "pre_lnorm": False,
    "layer_norm_epsilon": 1e-5,
    "init_std": 0.02,
    "proj_init_std": 0.01,
    "dropatt": 0.0,
    "untie_r": True,
    "tie_word_embeddings": True,
    "clamp_len": -1,
    "cutoffs": [],
}
OTHER_KEYS = {"clamp_len": "clamp_len", "cutoffs": "adaptive_cutoffs", "tie_word_embeddings": "tie_embeddings"}
"""Their keys and ours, for keys with different values."""
UNRECORDED = ("pre_norm", "mem_len", "clamp_len", "same_length", "dropout", "attention_dropout")
"""Our keys that the authors' weights do not record."""
_MUST_BE: _Json = {"attn_type": 0, "sample_softmax": -1, "ext_len": 0}
_ATTENTION = {"query": 0, "key": 1, "value": 2}


def read_config(theirs: Mapping[str, Any], source: str) -> _Json:
    """The model section of a TransfoXL `config.json`, not validated. Raises `ConfigError` for unsupported values."""
    found = [
        (key, f"must be {value!r}, got {theirs[key]!r}, which is not supported")
        for key, value in _MUST_BE.items()
        if theirs.get(key, value) != value and not (key == "sample_softmax" and theirs[key] < 0)
    ]
    given = {**_DEFAULTS, **theirs}
    found += [(key, "required, but missing") for key in KEYS if key not in given]
    if found:
        raise ConfigError(schema.format_problems(source, found))
    clamp_len, cutoffs = given["clamp_len"], [c for c in given["cutoffs"] if c < given["vocab_size"]]
    return {
        "type": "transformer_xl",
        **{ours: given[key] for key, ours in KEYS.items()},
        "clamp_len": clamp_len if clamp_len > 0 else None,
        "adaptive_cutoffs": cutoffs,
        "tie_embeddings": given["tie_word_embeddings"],
        "tie_projections": _tied_projections(given.get("tie_projs"), len(cutoffs)),
        "initial_memory": "zeros",
    }


def infer_config(theirs: Mapping[str, Tensor], source: str) -> _Json:
    """Infer the model section from the authors' weights, not validated; unknown keys have our defaults.

    Raises `CheckpointError` if the weights are not of such a model.
    """
    try:
        heads, d_head = theirs["r_w_bias"].shape[-2:]
        d_model = theirs["layers.0.dec_attn.o_net.weight"].shape[0]
        d_ff = theirs["layers.0.pos_ff.CoreNet.0.weight"].shape[0]
        first = theirs["word_emb.emb_layers.0.weight"]
    except KeyError as error:
        raise CheckpointError(f"{source}: not a Transformer-XL of the authors' PyTorch code: no {error}") from None
    layers = {int(match[1]) for name in theirs if (match := re.match(r"layers\.(\d+)\.", name))}
    tables = [theirs[name] for name in sorted(theirs, key=_natural) if "emb_layers" in name]
    num_tails = len(theirs.get("crit.cluster_weight", ()))
    cutoffs = torch.tensor([len(table) for table in tables]).cumsum(0).tolist()[:-1]
    outputs = [theirs[name] for name in sorted(theirs, key=_natural) if re.match(r"crit\.out_layers.*weight", name)]
    ours: _Json = {
        "type": "transformer_xl",
        "num_layers": len(layers),
        "num_heads": heads,
        "d_head": d_head,
        "d_model": d_model,
        "d_ff": d_ff,
        "d_embed": first.shape[1],
        "adaptive_cutoffs": cutoffs,
        "div_val": first.shape[1] // tables[1].shape[1] if len(tables) > 1 else 1,
        "untie_r": False,
        "tie_embeddings": all(torch.equal(a, b) for a, b in zip(tables, outputs, strict=False)),
        "initial_memory": "none",
    }
    projections = [f"crit.out_projs.{i}" in theirs for i in range(num_tails + 1)]
    if any(projections):
        ours["tie_projections"] = [
            is_there and torch.equal(theirs[f"crit.out_projs.{i}"], theirs[f"word_emb.emb_projs.{i if cutoffs else 0}"])
            for i, is_there in enumerate(projections)
        ]
    return ours


def _natural(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def _tied_projections(given: Any, num_tails: int) -> list[bool] | None:
    return None if given is None else [bool(tied) for tied in given][: num_tails + 1]


def translate(
    theirs: Mapping[str, Tensor], config: TransformerXLConfig, source: Path, *, downwards: bool = False
) -> dict[str, Tensor]:
    """Convert the weights of transformers' model, or with `downwards` (and no prefix) of the authors', to our names.

    Raises KeyError with the name of a missing tensor, and `CheckpointError` for unexpected tensors.
    """
    prefix, left = "" if downwards else "transformer.", dict(theirs)
    ours: dict[str, Tensor] = {}
    for i in range(config.num_layers):
        old, new = f"{prefix}layers.{i}.", f"backbone.layers.{i}."
        chunks = left.pop(f"{old}dec_attn.qkv_net.weight").chunk(3)
        ours |= {f"{new}attention.{part}.weight": chunks[place] for part, place in _ATTENTION.items()}
        ours[f"{new}attention.distance.weight"] = left.pop(f"{old}dec_attn.r_net.weight")
        ours[f"{new}attention.output.weight"] = left.pop(f"{old}dec_attn.o_net.weight")
        for kind in ("weight", "bias"):
            ours[f"{new}attention_norm.{kind}"] = left.pop(f"{old}dec_attn.layer_norm.{kind}")
            ours[f"{new}feed_forward_norm.{kind}"] = left.pop(f"{old}pos_ff.layer_norm.{kind}")
            ours[f"{new}feed_forward.inner.{kind}"] = left.pop(f"{old}pos_ff.CoreNet.0.{kind}")
            ours[f"{new}feed_forward.outer.{kind}"] = left.pop(f"{old}pos_ff.CoreNet.3.{kind}")
    for part, name in (("content_bias", "r_w_bias"), ("position_bias", "r_r_bias")):
        layers = [f"{prefix}layers.{i}.dec_attn.{name}" for i in range(config.num_layers)]
        if not config.untie_r:  # one tensor, which some files repeat for each layer
            first, *copies = [key for key in (f"{prefix}{name}", *layers) if key in left] or layers
            _take_copies(left, first, copies, source)
            layers = [first]
        ours[f"backbone.{part}"] = torch.stack([left.pop(key) for key in layers])
    ours |= _take_softmax(left, config, prefix, source, downwards=downwards)
    check_weights({name: tensor.shape for name, tensor in left.items()}, {}, source)
    return {name: tensor.contiguous() for name, tensor in ours.items()}


def _take_softmax(
    left: dict[str, Tensor], config: TransformerXLConfig, prefix: str, source: Path, *, downwards: bool
) -> dict[str, Tensor]:
    """Take the embedding and output layer out of `left`."""
    ours: dict[str, Tensor] = {}
    tables, projections = f"{prefix}word_emb.emb_layers.", f"{prefix}word_emb.emb_projs."
    biases = {}
    for name in sorted(left):
        if match := re.fullmatch(r"crit\.out_layers\.(\d+)\.(weight|bias)", name):
            number, kind = int(match[1]), match[2]
            if kind == "bias":
                biases[number] = left.pop(name)
            elif config.tie_embeddings:
                _take_copies(left, f"{tables}{number}.weight", [name], source)
            else:
                ours[f"head.output.tables.{number}.weight"] = left.pop(name)
        elif match := re.fullmatch(r"crit\.out_projs\.(\d+)", name):
            number = int(match[1])
            if number < len(config.tied_projections) and config.tied_projections[number]:
                own = f"{projections}{number}"
                _take_copies(left, own if own in left else f"{projections}0", [name], source)
            else:
                ours[f"head.output.projections.{number}.weight"] = left.pop(name).T
    for theirs, name in ((tables, "tables"), (projections, "projections")):
        for key in [key for key in left if key.startswith(theirs)]:
            number = int(_natural(key)[-1])
            ours[f"backbone.embedding.{name}.{number}.weight"] = left.pop(key)
    if not biases:  # saved without a head
        return ours
    ours["head.output.bias"] = torch.cat([biases[number] for number in sorted(biases)])
    if config.adaptive_cutoffs:
        for kind in ("weight", "bias"):
            clusters = left.pop(f"crit.cluster_{kind}")
            ours[f"head.output.cluster_{kind}"] = clusters.flip(0) if downwards else clusters
    return ours


def _take_copies(left: dict[str, Tensor], original: str, copies: Sequence[str], source: Path) -> None:
    """Drop copies of a tensor. Raises `CheckpointError` if they differ."""
    for copy in copies:
        if not torch.equal(left.pop(copy), left[original]):
            raise CheckpointError(f"{source}: {copy} differs from {original}; xlpretrain requires them to be tied")
