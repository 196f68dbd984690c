"""Exports the model of a run as a folder that transformers can load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor

from xlpretrain.data.examples.config import ExampleDataConfig
from xlpretrain.data.tokenizers.huggingface import HuggingFaceTokenizer
from xlpretrain.errors import LaunchError
from xlpretrain.evaluation.loaded_run import LoadedRun
from xlpretrain.file_system.atomic_dirs import final_place, named, publish_dir, temporary_folder, tidy, unclaimed
from xlpretrain.hub import exported_files
from xlpretrain.hub.model_card import model_card
from xlpretrain.hub.remote_code.fused_code import fused_code
from xlpretrain.hub.task_heads import head_config, reasons_for_own_code, stock_config, stock_rules
from xlpretrain.hub.tokenizers.export import AS_BROUGHT, laid_out_anew, tokenizer_config, tokenizer_json
from xlpretrain.hub.transformers_config import unsupported_features, write_config
from xlpretrain.hub.weight_map import WeightRule, is_albert, weight_rules, write
from xlpretrain.models.backbone import BackboneConfig
from xlpretrain.models.encoder import AlbertConfig, BertConfig, EncoderConfig
from xlpretrain.models.parts.feed_forward import GLUConfig, MLPConfig
from xlpretrain.models.parts.norm import LayerNormConfig, RMSNormConfig
from xlpretrain.models.parts.positions import LearnedConfig, SinusoidalConfig
from xlpretrain.models.pretraining_model import PretrainingModel
from xlpretrain.models.stack import StackConfig
from xlpretrain.models.transformer_xl import TransformerXLConfig
from xlpretrain.models.xlnet import XLNetConfig
from xlpretrain.objectives.base import HubHead
from xlpretrain.objectives.tasks.base import HubTask, Task
from xlpretrain.run_dir.layout import RunDir
from xlpretrain.schema import Section
from xlpretrain.version import __version__

_CODE = Path(__file__).with_name("remote_code")
MODELING = _CODE / "modeling_xlpretrain.py"
HEADS = _CODE / "heads_xlpretrain.py"
BACKBONE = _CODE / "backbone_xlpretrain.py"
VISIBILITY = _CODE / "visibility_xlpretrain.py"
"""Code exported with models that no class of transformers implements; each file imports the next."""
FUSED = "fused_xlpretrain.py"
"""The file of `fused_code`, which is imported only where fused attention is used."""

_WEIGHTS = "The weights are in the checkpoint; read them with xlpretrain.load"
_SENTENCE = {f"sentence.{layer}.{kind}" for layer in ("pooler.linear", "classifier") for kind in ("weight", "bias")}
MODELS: tuple[type[BackboneConfig], ...] = (TransformerXLConfig, XLNetConfig, AlbertConfig, BertConfig)
"""Models implemented by a class of transformers or by the code in `MODELING` and `BACKBONE`."""
PARTS: dict[str, tuple[type[Section], ...]] = {
    "feed_forward": (MLPConfig, GLUConfig),
    "norm": (LayerNormConfig, RMSNormConfig),
    "positions": (LearnedConfig, SinusoidalConfig),
}
"""Parts of layers implemented by the same code, by the model's key."""


def export(
    folder: RunDir,
    to: Path,
    *,
    step: int | None = None,
    force: bool = False,
    weights: str = "trained",
    part: str | None = None,
) -> str:
    """Export a run's model, with its tokenizer and a model card, to the folder `to`; returns the code that loads it.

    The folder is written atomically. Weights are always fp32.

    Args:
        step: checkpoint to export (default: the newest intact one).
        force: overwrite `to` if it is an exported model without other files.
        weights: those that were trained, or their moving average.
        part: of a mixed objective (default: the first that declares a head).

    Raises:
        XLPretrainError: no such run or checkpoint, a tokenizer that transformers does not support, or `to` exists.
    """
    place = _place(to, force=force)
    run = LoadedRun.load(
        folder, device=torch.device("cpu"), step=step, dtype=torch.float32, weights=weights, part=part, use="hub_head"
    )
    refuse_unknown(run)
    try:
        with temporary_folder(place) as temporary:
            loader = _write(run, temporary, name=to.name)
            publish_dir(temporary, place, claims=exported_files.claims if force else None)
    except OSError as error:
        raise LaunchError(f"{to}: cannot be written: {error.strerror or error}") from None
    return loader


def refuse_unknown(run: LoadedRun) -> None:
    """Raise `LaunchError` if there is no code for the model or one of its parts, or if the objective declares no
    head."""
    objective, model = run.config.objective, run.config.model
    if type(model) not in MODELS:
        names = ", ".join(str(kind.model_fields["type"].default) for kind in MODELS)
        raise LaunchError(
            f"{run.folder.path}: model {model.type} cannot be exported; expected one of {names}. {_WEIGHTS}"
        )
    for key, parts in PARTS.items():
        part = getattr(model, key)
        if type(part) not in parts:
            names = ", ".join(str(kind.model_fields["type"].default) for kind in parts)
            raise LaunchError(
                f"{run.folder.path}: model.{key}.type {part.type} cannot be exported, since the exported code has no"
                f" such part; expected one of {names}. {_WEIGHTS}"
            )
    is_task = isinstance(objective, Task)
    for name in ("hub_task" if is_task else "hub_head", "token_layout"):
        if getattr(objective, name) is None:
            raise LaunchError(
                f"{run.folder.path}: objective {objective.type} cannot be exported because its class"
                f" {type(objective).__name__} does not declare `{name}` (docs/extend/objective.md). {_WEIGHTS}"
            )
    if is_task:
        return
    shapes = {name: list(parameter.shape) for name, parameter in run.model.head.named_parameters()}
    others = [name for name in shapes if not name.startswith("output.") and name not in _SENTENCE]
    if others or shapes.get("sentence.classifier.weight", [2])[0] != 2:
        raise LaunchError(
            f"{run.folder.path}: objective {objective.type} cannot be exported: its head has weights that exported"
            f" heads lack ({', '.join(others or ['sentence.classifier, not with 2 answers'])}). {_WEIGHTS}"
        )


def _place(to: Path, *, force: bool) -> Path:
    """The target folder, with links resolved. Raises `LaunchError` if it must not be overwritten."""
    try:
        place = final_place(to)
        tidy(place, claims=exported_files.claims)
        if not place.exists():
            return place
        own = exported_files.claims(place)
        others = unclaimed(place, own) if place.is_dir() else []
    except OSError as error:
        raise LaunchError(f"{error.filename or to}: {error.strerror or error}") from None
    if not force:
        raise LaunchError(f"{to}: already exists; choose another folder, or overwrite it with --force")
    if not own:
        raise LaunchError(f"{to}: already exists and is not an exported model; choose another folder")
    if others:
        raise LaunchError(
            f"{to}: --force removes only unchanged files of an export, and {named(others)} is not one; move it away,"
            " or choose another folder"
        )
    return place


def _write(run: LoadedRun, to: Path, *, name: str) -> str:
    config, tokenizer = run.config, run.tokenizer
    model = config.model
    assert isinstance(model, StackConfig)
    layout = config.objective.declared(config.objective.token_layout, "token_layout")
    complete = isinstance(config.objective, Task)
    described, weights, reasons = _model(run, model)
    if reasons:
        for source in (MODELING, HEADS, BACKBONE, VISIBILITY):
            shutil.copyfile(source, to / source.name)
        (to / FUSED).write_text(fused_code(), encoding="utf-8")
    described |= {"dtype": "float32", "xlpretrain": provenance(run)}
    save_file({name: t.contiguous() for name, t in weights.items()}, to / "model.safetensors", {"format": "pt"})
    max_length = model.max_positions if isinstance(model, EncoderConfig) else None
    if isinstance(tokenizer, HuggingFaceTokenizer):
        made = laid_out_anew(tokenizer, layout, complete=complete)
        (to / (AS_BROUGHT if made else tokenizer.file_name)).write_bytes(tokenizer.model)
    else:
        made = tokenizer_json(tokenizer, layout, complete=complete)
        (to / tokenizer.file_name).write_bytes(tokenizer.model)
    for file, content in {
        "tokenizer_config.json": tokenizer_config(tokenizer, layout, max_length=max_length),
        **({"tokenizer.json": made} if made else {}),
    }.items():
        (to / file).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    if run.folder.plot.is_file():
        shutil.copyfile(run.folder.plot, to / "loss.png")
    loader = _loader(described)
    (to / "README.md").write_text(
        model_card(run, name=name, loader=loader, reasons=reasons, weights=weights), encoding="utf-8"
    )
    exported_files.write_config(to, described)
    return loader


def _model(run: LoadedRun, model: StackConfig) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """The `config.json`, the weights, and the reasons for own code, if any."""
    objective, vocabulary = run.config.objective, run.tokenizer.vocabulary
    if isinstance(objective, Task):
        reasons = reasons_for_own_code(model, objective)
        if not reasons:
            weights = to_transformers(run.model, model, stock_rules(model, objective))
            return stock_config(model, objective, vocabulary), weights, []
        own = OwnHeads(f"XLPretrainFor{objective.hub_task}", ())
        described = remote_code_config(run, heads=own, keys=head_config("XLPretrain", objective))
        return described, dict(run.model.state_dict()), reasons
    head, sentence = objective.hub_head, has_sentence_head(run.model)
    assert head is not None, "see `refuse_unknown`"
    reasons = unsupported_features(model, sentence=sentence, head=head)
    if not reasons:
        weights = to_transformers(run.model, model, weight_rules(model, sentence=sentence))
        return write_config(model, vocabulary, sentence=sentence, causal=head == "causal_lm"), weights, []
    is_decoder = isinstance(model, TransformerXLConfig)  # and nothing else
    keys = {"sentence_head": sentence, **({"causal": True} if head == "causal_lm" and not is_decoder else {})}
    described = remote_code_config(run, heads=_HEADS[head], keys=keys)
    return described, dict(run.model.state_dict()), reasons


def has_sentence_head(model: PretrainingModel) -> bool:
    """True if the model has a head for a sentence task."""
    return getattr(model.head, "sentence", None) is not None


def to_transformers(model: PretrainingModel, config: StackConfig, rules: Iterator[WeightRule]) -> dict[str, Tensor]:
    """The weights under transformers' names. A missing embedding projection becomes the identity for ALBERT."""
    weights = write(rules, model.state_dict())
    if isinstance(config, EncoderConfig) and is_albert(config) and config.resolved_d_embed == config.d_model:
        weights["albert.encoder.embedding_hidden_mapping_in.weight"] = torch.eye(config.d_model)
        weights["albert.encoder.embedding_hidden_mapping_in.bias"] = torch.zeros(config.d_model)
    return weights


def provenance(run: LoadedRun) -> dict[str, Any]:
    """Information about the run for `config.json`. An import restores the sections of its config."""
    config = run.config
    sections = {"model": config.model.model_dump(mode="json"), "objective": config.objective.model_dump(mode="json")}
    if isinstance(config.objective, Task):
        task, data = run.task
        names = data.model_dump(mode="json", exclude={"type", *ExampleDataConfig.model_fields})
        sections |= {"objective": task.model_dump(mode="json"), "data": names}
    return {"version": __version__, "run": config.name, "step": run.step, **sections}


class OwnHeads(NamedTuple):
    """A class in the exported code, and the `AutoModelFor...` classes that load it, besides those of tasks."""

    name: str
    auto_classes: tuple[str, ...]


_HEADS: dict[HubHead, OwnHeads] = {
    "causal_lm": OwnHeads("XLPretrainForCausalLM", ("AutoModelForCausalLM",)),
    "masked_lm": OwnHeads("XLPretrainForPreTraining", ("AutoModelForPreTraining", "AutoModelForMaskedLM")),
    "tokens": OwnHeads("XLPretrainForPreTraining", ("AutoModelForPreTraining",)),
}


def remote_code_config(run: LoadedRun, *, heads: OwnHeads, keys: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of a model exported with its own code. keys: those of its head."""
    config, vocabulary, module = run.config, run.tokenizer.vocabulary, MODELING.stem
    layout = config.objective.declared(config.objective.token_layout, "token_layout")
    return {
        "model_type": "xlpretrain",
        "architectures": [heads.name],
        "auto_map": {
            "AutoConfig": f"{BACKBONE.stem}.XLPretrainConfig",
            "AutoModel": f"{module}.XLPretrainModel",
            **dict.fromkeys(heads.auto_classes, f"{module}.{heads.name}"),
            **{f"AutoModelFor{task}": f"{module}.XLPretrainFor{task}" for task in get_args(HubTask)},
        },
        **config.model.model_dump(mode="json"),
        "vocab_size": vocabulary.size,
        "summary": layout.cls_position or "mean",
        **keys,
        "pad_token_id": vocabulary.pad,
        "bos_token_id": vocabulary.eod if layout.is_plain else vocabulary.cls,
        "eos_token_id": vocabulary.eod if layout.is_plain else vocabulary.sep,
    }


def _loader(described: dict[str, Any]) -> str:
    """The call that loads the folder."""
    (architecture,) = described["architectures"]
    suffixes = ("CausalLM", "MaskedLM", *get_args(HubTask))
    suffix = next((known for known in suffixes if architecture.endswith((known, f"{known}Simple"))), "PreTraining")
    suffix = "CausalLM" if described.get("is_decoder") else suffix
    arguments = "DIR, trust_remote_code=True" if "auto_map" in described else "DIR"
    return f"AutoModelFor{suffix}.from_pretrained({arguments})"
