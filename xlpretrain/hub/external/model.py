"""The reader of third-party folders and files: which model is stored there, and its weights under our names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from xlpretrain.config.run_config import RunConfig
from xlpretrain.data.tokenizers.base import Vocabulary
from xlpretrain.errors import CheckpointError, ConfigError
from xlpretrain.hub.external import transfo_xl
from xlpretrain.hub.external.weight_files import check_weights, read_file, read_weights
from xlpretrain.hub.external.weight_names import BODIES, TIED, complete, find_kind, unwrap
from xlpretrain.hub.transformers_config import find_untold, read_config, validate_model, write_config
from xlpretrain.hub.weight_map import read, weight_rules
from xlpretrain.models.encoder import EncoderConfig
from xlpretrain.models.pretraining_model import PretrainingModel
from xlpretrain.models.stack import StackConfig
from xlpretrain.models.transformer_xl import TransformerXLConfig

_Json = dict[str, Any]
_STOCK = ("xlnet", "albert", "bert")
_SENTENCE = {"albert": ("albert.pooler.", "sop_classifier."), "bert": ("bert.pooler.", "cls.seq_relationship.")}
_TOKEN_HEADS = {"albert": "predictions.", "bert": "cls.predictions.", "xlnet": "lm_loss.", "transfo-xl": "crit."}


@dataclass(frozen=True)
class ExternalModel:
    """A model of others. kind: the model_type of its config.json, or transfo-xl.

    folder: None for a file. model, objective: sections of a run's config, not checked yet. weights: under their names.
    untold: keys of the model section that the source does not tell. notes: what was concluded on the way.
    """

    source: Path
    folder: Path | None
    kind: str
    model: _Json
    objective: _Json
    vocab_size: int
    weights: Mapping[str, Tensor]
    untold: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    needed: ClassVar[frozenset[str]] = frozenset({"pre_norm"})
    """Keys without which it is not known which model it is: they change what it computes, and no tensor's shape."""

    @property
    def sentence(self) -> bool:
        """True if there are weights of a sentence task."""
        if self.kind == "xlpretrain":
            return any(name.startswith("head.sentence.") for name in self.weights)
        parts = _SENTENCE.get(self.kind, ())
        return bool(parts) and all(any(name.startswith(part) for name in self.weights) for part in parts)

    @property
    def lacks_token_head(self) -> bool:
        """True if there are no weights that predict tokens: the model was saved without a head, or with another."""
        head = _TOKEN_HEADS.get(self.kind)
        return head is not None and not any(name.startswith(head) for name in self.weights)


def read_external_model(source: Path) -> ExternalModel:
    """The model in a folder that transformers wrote, or in a file of the authors' Transformer-XL.

    Raises `XLPretrainError`.
    """
    if source.is_file():
        weights = unwrap(read_file(source))
        model = transfo_xl.infer_config(weights, str(source))
        size = len(weights["crit.out_layers.0.bias"]) if model["div_val"] == 1 else 0
        size = size or sum(len(t) for name, t in weights.items() if "out_layers" in name and name.endswith("bias"))
        return ExternalModel(source, None, "transfo-xl", model, {"type": "causal_lm"}, size, weights, transfo_xl.UNTOLD)
    theirs = _read_config(source)
    weights = unwrap(read_weights(source))
    kind, notes = _find_kind(theirs, weights, source)
    theirs, weights = {**theirs, "model_type": kind}, complete(weights, kind)
    vocab_size = theirs.get("vocab_size")
    if not isinstance(vocab_size, int):
        raise ConfigError(f"{source / 'config.json'}: vocab_size must be the number of tokens, got {vocab_size!r}")
    found = ExternalModel(source, source, kind, {}, {}, vocab_size, weights)
    model = _model_section(theirs, source, kind, sentence=found.sentence)
    objective = (theirs.get("xlpretrain") or {}).get("objective") or _objective(model, sentence=found.sentence)
    untold = () if (theirs.get("xlpretrain") or {}).get("model") else find_untold(theirs, kind)
    return ExternalModel(source, source, kind, model, objective, vocab_size, weights, untold, notes)


def _read_config(source: Path) -> _Json:
    path = source / "config.json"
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise CheckpointError(f"{source}: no model there; expected a folder with a config.json, or a file") from None
    except ValueError as error:
        raise ConfigError(f"{path}: cannot be used: {error!r}") from None
    if not isinstance(theirs, dict):
        raise ConfigError(f"{path}: cannot be used: expected an object, got {type(theirs).__name__}")
    return theirs


def _find_kind(theirs: _Json, weights: Mapping[str, Tensor], source: Path) -> tuple[str, tuple[str, ...]]:
    """The model_type, said or concluded, and a note if it was concluded. Raises `ConfigError`."""
    known, path = (*_STOCK, "transfo-xl", "xlpretrain"), source / "config.json"
    kind = theirs.get("model_type")
    if kind is not None:
        if kind not in known:
            raise ConfigError(f"{path}: model_type must be one of {', '.join(known)}, got {kind!r}")
        return str(kind), ()
    classes = [str(name).lower() for name in theirs.get("architectures") or ()]
    kind = next((k for k in known if any(name.startswith(k.replace("-", "")) for name in classes)), None)
    origin = "architectures"
    if kind is None and not classes:
        kind, origin = find_kind(weights), "the names of the weights"
    if kind is None:
        raise ConfigError(
            f"{path}: has no model_type, and neither architectures nor the names of the weights tell it; add"
            f' "model_type": one of {", ".join(known[:-1])}'
        )
    return kind, (f"assumed, since config.json has no model_type: {kind}, by {origin}",)


def load_weights(foreign: ExternalModel, model: PretrainingModel, config: RunConfig) -> list[str]:
    """Put the weights into a freshly built model, whose head stays as it is if there are none for it.

    Returns what was left out and what starts anew. Raises `CheckpointError`.
    """
    ours, notes = dict(foreign.weights), list[str]()
    assert isinstance(config.model, StackConfig)
    if foreign.kind in _STOCK:
        ours, notes = _from_stock(foreign, config.model, sentence=getattr(model.head, "sentence", None) is not None)
    elif isinstance(config.model, TransformerXLConfig) and foreign.kind == "transfo-xl":
        num_tails = len(foreign.weights.get("crit.cluster_weight", ()))
        if not foreign.lacks_token_head and num_tails != len(config.model.adaptive_cutoffs):
            raise CheckpointError(
                f"{foreign.source}: its softmax has {num_tails} clusters beside the first, and model.adaptive_cutoffs"
                f" is {list(config.model.adaptive_cutoffs)}; give them, as model.adaptive_cutoffs=[20000,40000,200000]"
            )
        try:
            ours = transfo_xl.translate(foreign.weights, config.model, foreign.source, downwards=foreign.folder is None)
        except KeyError as error:
            raise CheckpointError(f"{foreign.source}: its weights lack {error}") from None
    if foreign.lacks_token_head:
        fresh = {n: p.detach() for n, p in model.named_parameters() if n.startswith("head.output.") and n not in ours}
        ours |= fresh
        notes.append(f"new, since {foreign.source} has no head that predicts tokens: {', '.join(sorted(fresh))}")
    expected = {name: parameter.shape for name, parameter in model.named_parameters()}
    check_weights({name: tensor.shape for name, tensor in ours.items()}, expected, foreign.source)
    model.load_state_dict(ours)
    return notes


def _model_section(theirs: _Json, source: Path, kind: str, *, sentence: bool) -> _Json:
    path = str(source / "config.json")
    if kind == "transfo-xl":
        return transfo_xl.read_config(theirs, path)
    recorded = (theirs.get("xlpretrain") or {}).get("model")
    if kind == "xlpretrain":
        if not recorded:
            raise ConfigError(f"{path}: no section xlpretrain.model, which tells what the model is")
        return dict(recorded)
    if recorded:  # what their keys cannot say, as long as those are as they were
        written = write_config(validate_model(recorded, path), Vocabulary(*[0] * 7), sentence=sentence)
        irrelevant = ("architectures", "vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")
        if all(theirs.get(key) == value for key, value in written.items() if key not in irrelevant):
            return dict(recorded)
    return read_config(theirs, path).model_dump(mode="json")


def _objective(model: _Json, *, sentence: bool) -> _Json:
    """The objective that such a model was trained with, with samples of the longest size that it takes."""
    match model["type"]:
        case "transformer_xl":
            return {"type": "causal_lm"}
        case "xlnet":
            return {"type": "permutation_lm", **({} if model["mem_len"] else {"reuse_len": 0})}
        case kind:
            task = {"albert": "sop", "bert": "nsp"}[kind] if sentence else "none"
            return {"type": "masked_lm", "seq_len": min(512, model["max_positions"]), "sentence_task": task}


def _from_stock(foreign: ExternalModel, config: StackConfig, *, sentence: bool) -> tuple[dict[str, Tensor], list[str]]:
    """Our tensors, and notes on what was left out: a pooler that no sentence task stands on."""
    theirs, notes, source = dict(foreign.weights), list[str](), foreign.source
    for copy, original in TIED.items():
        if copy in theirs and original in theirs and not torch.equal(theirs.pop(copy), theirs[original]):
            raise CheckpointError(f"{source}: {copy} differs from {original}, which are one tensor here")
    if foreign.lacks_token_head:  # of a classifier, say
        places = (BODIES[foreign.kind], *_SENTENCE.get(foreign.kind, ()))
        other = sorted(name for name in theirs if not name.startswith(places))
        notes += [f"left out, the head of another task: {', '.join(other)}"] if other else []
        theirs = {name: tensor for name, tensor in theirs.items() if name not in other}
    if not sentence:
        left = sorted(n for part in _SENTENCE.get(foreign.kind, ()) for n in theirs if n.startswith(part))
        notes += [f"left out, since there is no sentence task: {', '.join(left)}"] if left else []
        theirs = {name: tensor for name, tensor in theirs.items() if name not in left}
    if isinstance(config, EncoderConfig) and config.resolved_d_embed == config.d_model and foreign.kind == "albert":
        mapping = "albert.encoder.embedding_hidden_mapping_in."
        weight, bias = theirs.pop(f"{mapping}weight", None), theirs.pop(f"{mapping}bias", None)
        if weight is None or bias is None or not torch.equal(weight, torch.eye(len(weight))) or bias.any():
            raise CheckpointError(
                f"{source}: {mapping}weight is not the identity, and there is no such projection here"
            )
    rules = list(weight_rules(config, sentence=sentence))
    if foreign.lacks_token_head:
        rules = [rule for rule in rules if not rule.ours.startswith("head.output.")]
    expected = {name: theirs[name].shape if name in theirs else torch.Size() for rule in rules for name in rule.theirs}
    check_weights({name: tensor.shape for name, tensor in theirs.items()}, expected, source)
    return read(iter(rules), theirs), notes
