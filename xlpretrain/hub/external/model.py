"""The reader of third-party folders and files: which model is stored there, and its weights under our names."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
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
from xlpretrain.hub.transformers_config import find_untold, read_config, validate_model, write_config
from xlpretrain.hub.weight_map import read, weight_rules
from xlpretrain.models.encoder import EncoderConfig
from xlpretrain.models.pretraining_model import PretrainingModel
from xlpretrain.models.stack import StackConfig
from xlpretrain.models.transformer_xl import TransformerXLConfig

_Json = dict[str, Any]
_STOCK = ("xlnet", "albert", "bert")
_TIED = {  # copies of other tensors, by the names of those
    "lm_loss.weight": "transformer.word_embedding.weight",
    "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
    "predictions.decoder.bias": "predictions.bias",
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
_SENTENCE = {"albert": ("albert.pooler.", "sop_classifier."), "bert": ("bert.pooler.", "cls.seq_relationship.")}
_NOT_WEIGHTS = ("embeddings.position_ids", "pos_emb.inv_freq")


@dataclass(frozen=True)
class ExternalModel:
    """A model of others. kind: the model_type of its config.json, or transfo-xl.

    folder: None for a file. model, objective: sections of a run's config, not checked yet. weights: under their names.
    untold: keys of the model section that the source does not tell.
    """

    source: Path
    folder: Path | None
    kind: str
    model: _Json
    objective: _Json
    vocab_size: int
    weights: Mapping[str, Tensor]
    untold: tuple[str, ...] = ()

    needed: ClassVar[frozenset[str]] = frozenset({"pre_norm"})
    """Keys without which it is not known which model it is: they change what it computes, and no tensor's shape."""

    @property
    def sentence(self) -> bool:
        """True if there are weights of a sentence task."""
        if self.kind == "xlpretrain":
            return any(name.startswith("head.sentence.") for name in self.weights)
        parts = _SENTENCE.get(self.kind, ())
        return bool(parts) and all(any(name.startswith(part) for name in self.weights) for part in parts)


def read_external_model(source: Path) -> ExternalModel:
    """The model in a folder that transformers wrote, or in a file of the authors' Transformer-XL.

    Raises `XLPretrainError`.
    """
    if source.is_file():
        weights = _weights((name.removeprefix("module."), tensor) for name, tensor in read_file(source).items())
        model = transfo_xl.infer_config(weights, str(source))
        size = len(weights["crit.out_layers.0.bias"]) if model["div_val"] == 1 else 0
        size = size or sum(len(t) for name, t in weights.items() if "out_layers" in name and name.endswith("bias"))
        return ExternalModel(source, None, "transfo-xl", model, {"type": "causal_lm"}, size, weights, transfo_xl.UNTOLD)
    try:
        theirs = json.loads((source / "config.json").read_text(encoding="utf-8"))
        kind, size = str(theirs.get("model_type")), int(theirs["vocab_size"])
    except OSError:
        raise CheckpointError(f"{source}: no model there; expected a folder with a config.json, or a file") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{source / 'config.json'}: cannot be used: {error!r}") from None
    if kind not in (*_STOCK, "transfo-xl", "xlpretrain"):
        known = ", ".join((*_STOCK, "transfo-xl", "xlpretrain"))
        raise ConfigError(f"{source / 'config.json'}: model_type must be one of {known}, got {kind!r}")
    weights = _weights((_modern(name), tensor) for name, tensor in read_weights(source).items())
    found = ExternalModel(source, source, kind, {}, {}, size, weights)
    model = _model_section(theirs, source, kind, sentence=found.sentence)
    objective = (theirs.get("xlpretrain") or {}).get("objective") or _objective(model, sentence=found.sentence)
    untold = () if (theirs.get("xlpretrain") or {}).get("model") else find_untold(theirs, kind)
    return ExternalModel(source, source, kind, model, objective, size, weights, untold)


def load_weights(foreign: ExternalModel, model: PretrainingModel, config: RunConfig) -> list[str]:
    """Put the weights into a freshly built model. Returns what was left out; raises `CheckpointError`."""
    ours, notes = dict(foreign.weights), list[str]()
    assert isinstance(config.model, StackConfig)
    if foreign.kind in _STOCK:
        ours, notes = _from_stock(foreign, config.model, sentence=getattr(model.head, "sentence", None) is not None)
    elif isinstance(config.model, TransformerXLConfig) and foreign.kind == "transfo-xl":
        num_tails = len(foreign.weights.get("crit.cluster_weight", ()))
        if num_tails != len(config.model.adaptive_cutoffs):
            raise CheckpointError(
                f"{foreign.source}: its softmax has {num_tails} clusters beside the first, and model.adaptive_cutoffs"
                f" is {list(config.model.adaptive_cutoffs)}; give them, as model.adaptive_cutoffs=[20000,40000,200000]"
            )
        try:
            ours = transfo_xl.translate(foreign.weights, config.model, foreign.source, downwards=foreign.folder is None)
        except KeyError as error:
            raise CheckpointError(f"{foreign.source}: its weights lack {error}") from None
    expected = {name: parameter.shape for name, parameter in model.named_parameters()}
    check_weights({name: tensor.shape for name, tensor in ours.items()}, expected, foreign.source)
    model.load_state_dict(ours)
    return notes


def _weights(found: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in found if not name.endswith(_NOT_WEIGHTS)}


def _modern(name: str) -> str:
    """Old checkpoints have TensorFlow's names for norms."""
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        if name.endswith(f"LayerNorm{old}"):
            return name.removesuffix(old) + new
    return name


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
    for copy, original in _TIED.items():
        if copy in theirs and original in theirs and not torch.equal(theirs.pop(copy), theirs[original]):
            raise CheckpointError(f"{source}: {copy} differs from {original}, which are one tensor here")
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
    expected = {name: theirs[name].shape if name in theirs else torch.Size() for rule in rules for name in rule.theirs}
    check_weights({name: tensor.shape for name, tensor in theirs.items()}, expected, source)
    return read(iter(rules), theirs), notes
