"""Converts the `model` section of a run to the `config.json` of transformers' XLNet, ALBERT and BERT, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from xlpretrain import schema
from xlpretrain.data.tokenizers.base import Vocabulary
from xlpretrain.errors import ConfigError
from xlpretrain.hub.external import transfo_xl
from xlpretrain.hub.weight_map import is_albert
from xlpretrain.models import AnyModel
from xlpretrain.models.backbone import BackboneConfig
from xlpretrain.models.encoder import EncoderConfig
from xlpretrain.models.stack import StackConfig
from xlpretrain.models.xlnet import XLNetConfig
from xlpretrain.objectives.base import HubHead
from xlpretrain.schema import Problem, Section

_Json = dict[str, Any]

ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu": "gelu", "relu": "relu", "silu": "silu"}
_OURS = {
    **{theirs: ours for ours, theirs in ACTIVATIONS.items()},
    **dict.fromkeys(("gelu_pytorch_tanh", "gelu_fast"), "gelu_tanh"),
    "swish": "silu",
}

XLNET_KEYS = {
    "d_model": "d_model",
    "n_layer": "num_layers",
    "n_head": "num_heads",
    "d_inner": "d_ff",
    "dropout": "dropout",
    "initializer_range": "init_std",
    "layer_norm_eps": "layer_norm_eps",
}
ENCODER_KEYS = {
    "hidden_size": "d_model",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "d_ff",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "max_position_embeddings": "max_positions",
    "type_vocab_size": "num_segments",
    "initializer_range": "init_std",
    "layer_norm_eps": "layer_norm_eps",
}
ALBERT_KEYS = {
    **ENCODER_KEYS,
    "embedding_size": "d_embed",
    "num_hidden_groups": "num_layer_groups",
    "inner_group_num": "layers_per_group",
}
_MUST_BE: dict[str, _Json] = {  # their defaults; our models support no other values
    "xlnet": {"attn_type": "bi", "same_length": False, "tie_word_embeddings": True},
    "bert": {
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
    },
    "albert": {"position_embedding_type": "absolute", "tie_word_embeddings": True},
}
_DEFAULTS: dict[str, _Json] = {  # for keys missing in a config.json
    "xlnet": {"dropout": 0.1, "initializer_range": 0.02, "layer_norm_eps": 1e-12, "ff_activation": "gelu"},
    "bert": {
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
    },
    "albert": {
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu_new",
        "num_hidden_groups": 1,
        "inner_group_num": 1,
    },
}


def unsupported_features(config: BackboneConfig, *, sentence: bool, head: HubHead = "masked_lm") -> list[str]:
    """Features of the model and head that no class of transformers implements; empty if one does."""
    if not isinstance(config, XLNetConfig | EncoderConfig):
        return [f"transformers has no {config.type}"]
    is_decoder = head == "causal_lm" and isinstance(config, EncoderConfig) and not is_albert(config)
    reasons = {
        f"a different head ({head})": head != "masked_lm" and not is_decoder,
        f"a different feed-forward ({config.feed_forward.type})": config.feed_forward.type != "mlp",
        f"a different norm ({config.norm.type})": config.norm.type != "layer_norm",
        f"different positions ({config.positions.type})": config.positions
        != type(config).model_fields["positions"].default,
        "pre-norm layers": config.pre_norm,
        "a different head width": config.resolved_d_head * config.num_heads != config.d_model,
    }
    if isinstance(config, XLNetConfig):
        reasons |= {
            "shared layers": config.num_distinct_layers < config.num_layers or config.layers_per_group > 1,
            "a different embedding width": config.resolved_d_embed != config.d_model,
            "an initial memory of zeros": config.initial_memory == "zeros" and config.mem_len > 0,
            "a sentence task": sentence,
        }
    return [reason for reason, holds in reasons.items() if holds]


def write_config(config: StackConfig, vocabulary: Vocabulary, *, sentence: bool, causal: bool = False) -> _Json:
    """The `config.json` for the class of transformers that implements the model (see `unsupported_features`).

    causal: as a decoder, for a BERT.
    """
    written: _Json = {
        "vocab_size": vocabulary.size,
        "pad_token_id": vocabulary.pad,
        "bos_token_id": vocabulary.cls,
        "eos_token_id": vocabulary.sep,
        "tie_word_embeddings": True,
    }
    activation = ACTIVATIONS[config.activation]
    if isinstance(config, XLNetConfig):
        return written | {
            "model_type": "xlnet",
            "architectures": ["XLNetLMHeadModel"],
            **{theirs: getattr(config, ours) for theirs, ours in XLNET_KEYS.items()},
            "d_head": config.resolved_d_head,
            "ff_activation": activation,
            "mem_len": config.mem_len or None,
            "clamp_len": config.longest_distance or -1,
            "untie_r": config.untie_r,
            "attn_type": "bi",
            "same_length": False,
            "bi_data": False,
            "use_mems_eval": config.mem_len > 0,
            "use_mems_train": False,
        }
    assert isinstance(config, EncoderConfig)
    albert = is_albert(config)
    keys = ALBERT_KEYS if albert else ENCODER_KEYS
    name, suffix = "Albert" if albert else "Bert", "ForPreTraining" if sentence else "ForMaskedLM"
    if causal:
        suffix = "LMHeadModel"
        written |= {"is_decoder": True, "bos_token_id": vocabulary.eod, "eos_token_id": vocabulary.eod}
    written |= {
        "model_type": name.lower(),
        "architectures": [name + suffix],
        **{theirs: getattr(config, ours) for theirs, ours in keys.items()},
        "hidden_act": activation,
        "position_embedding_type": "absolute",
    }
    if albert:
        written |= {
            "embedding_size": config.resolved_d_embed,
            "num_hidden_groups": config.num_layer_groups or config.num_layers,
            "classifier_dropout_prob": config.dropout,
        }
    return written


def read_config(theirs: Mapping[str, Any], source: str) -> StackConfig:
    """Read the model from a `config.json` of XLNet, ALBERT or BERT. Raises `ConfigError` for unsupported values."""
    kind = theirs.get("model_type")
    if kind not in _MUST_BE:
        raise ConfigError(f"{source}: model_type must be one of {', '.join(_MUST_BE)}, got {kind!r}")
    found = list(_misfits(theirs, str(kind)))
    given = {**_DEFAULTS[str(kind)], **theirs}
    keys = {"xlnet": XLNET_KEYS, "albert": ALBERT_KEYS, "bert": ENCODER_KEYS}[str(kind)]
    found += [(key, "required, but missing") for key in keys if key not in given]
    activation = given["ff_activation" if kind == "xlnet" else "hidden_act"]
    if activation not in _OURS:
        found.append(("activation", f"must be one of {', '.join(_OURS)}, got {activation!r}"))
    if found:
        raise ConfigError(schema.format_problems(source, found))
    ours: _Json = {"type": kind, **{name: given[key] for key, name in keys.items()}, "activation": _OURS[activation]}
    if kind == "xlnet":
        ours |= {
            "attention_dropout": given["dropout"],
            "mem_len": given.get("mem_len") or 0,
            "clamp_len": given.get("clamp_len") if (given.get("clamp_len") or -1) > 0 else None,
        }
    return validate_model(ours, source)


def find_unrecorded(theirs: Mapping[str, Any], kind: str) -> tuple[str, ...]:
    """Our keys that a `config.json` does not set, and for which the defaults of transformers' class are used."""
    keys = {
        "xlnet": XLNET_KEYS | {"ff_activation": "activation", "mem_len": "mem_len", "clamp_len": "clamp_len"},
        "albert": ALBERT_KEYS | {"hidden_act": "activation"},
        "bert": ENCODER_KEYS | {"hidden_act": "activation"},
        "transfo-xl": transfo_xl.KEYS | transfo_xl.OTHER_KEYS,
    }.get(kind, {})
    return tuple(ours for key, ours in keys.items() if key not in theirs)


def validate_model(ours: Mapping[str, Any], source: str) -> StackConfig:
    """Validate a `model` section. Raises `ConfigError`."""
    model = schema.validate(_Model, {"model": ours}, source).model
    assert isinstance(model, StackConfig)
    return model


class _Model(Section):
    model: AnyModel


def _misfits(theirs: Mapping[str, Any], kind: str) -> Iterator[Problem]:
    for key, value in _MUST_BE[kind].items():
        if theirs.get(key, value) != value:
            yield key, f"must be {value!r}, got {theirs[key]!r}, which xlpretrain's {kind} does not support"
    heads = theirs.get("n_head", theirs.get("num_attention_heads"))
    width = theirs.get("d_model", theirs.get("hidden_size"))
    if heads and width and theirs.get("d_head", width // heads) * heads != width:
        yield "d_head", f"must be d_model / n_head, got {theirs['d_head']}"
    if kind == "albert" and theirs.get("embedding_size", 128) == width:
        yield "embedding_size", f"must differ from hidden_size ({width}): equal sizes have no projection in xlpretrain"
