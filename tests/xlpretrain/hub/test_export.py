"""Exported folders give our logits in transformers, from its own classes or from the code that comes with them.

Modules: exported_files.py, model_card.py, transformers_config.py.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from imported_runs import OBJECTIVES, PERMUTATION, make_run
from repository import ROOT
from text_lines import lines

import xlpretrain
from xlpretrain.errors import CheckpointError, ConfigError, LaunchError
from xlpretrain.evaluation.loaded_run import LoadedRun
from xlpretrain.hub.export import export, refuse_unknown
from xlpretrain.hub.import_model import import_model
from xlpretrain.models.backbone import BackboneInput
from xlpretrain.models.encoder import BertConfig
from xlpretrain.objectives.causal_lm import CausalLM

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

ROWS, TOKENS = 3, 10


def load(to: Path, *, auto: str = "AutoModelForPreTraining", remote: bool = False):
    """The model with every weight in its place, and nothing left over."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.jit, and such
        model, told = getattr(transformers, auto).from_pretrained(
            to, trust_remote_code=remote, output_loading_info=True
        )
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), told
    return model.eval()


def exported(tmp_path: Path, dataset: Path, model: dict, objective: dict | None = None) -> tuple[LoadedRun, Path]:
    folder = make_run(tmp_path / "runs", dataset, model, objective=objective)
    export(folder, tmp_path / "out")
    return xlpretrain.load(folder.path), tmp_path / "out"


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Relative to the largest logit; log-probabilities on either side."""
    ours, theirs = ours.detach(), theirs.detach()
    difference = (ours - theirs.log_softmax(-1)).abs().max() / theirs.abs().max()
    assert float(difference) < 1e-5


def padded_pairs(vocab_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, segments, and what is there of them."""
    tokens = torch.randint(vocab_size, (ROWS, TOKENS))
    segments = (torch.arange(TOKENS) > 4).long().expand(ROWS, -1)
    valid = torch.arange(TOKENS) < torch.tensor([TOKENS, TOKENS - 3, TOKENS - 1])[:, None]
    return tokens, segments, valid


ENCODERS = {
    "albert": ({"type": "albert", "d_embed": 8}, "AlbertForPreTraining"),
    "albert, groups": (
        {"type": "albert", "num_layers": 4, "num_layer_groups": 2, "layers_per_group": 2, "activation": "gelu"},
        "AlbertForPreTraining",
    ),
    "albert, as wide": ({"type": "albert", "d_embed": None, "num_segments": 3}, "AlbertForPreTraining"),
    "bert": ({"type": "bert", "activation": "relu"}, "BertForPreTraining"),
    "bert, shared": ({"type": "bert", "num_layer_groups": 1}, "AlbertForPreTraining"),
    "bert, no sentences": ({"type": "bert"}, "BertForMaskedLM"),
    "albert, no sentences": ({"type": "albert", "d_embed": 8}, "AlbertForMaskedLM"),
    "albert, pre-norm": ({"type": "albert", "d_embed": 8, "pre_norm": True}, "XLPretrainForPreTraining"),
    "bert, wide heads": ({"type": "bert", "d_head": 12}, "XLPretrainForPreTraining"),
}


@pytest.mark.parametrize("case", ENCODERS)
def test_encoders_have_our_logits(case, tmp_path, tiny_dataset):
    model, architecture = ENCODERS[case]
    objective = {**OBJECTIVES["albert"], "sentence_task": "none"} if "no sentences" in case else None
    run, out = exported(tmp_path, tiny_dataset, model, objective)
    assert json.loads((out / "config.json").read_text())["architectures"] == [architecture]
    remote = architecture.startswith("XLPretrain")
    auto = "AutoModelForMaskedLM" if architecture.endswith("MaskedLM") else "AutoModelForPreTraining"
    theirs = load(out, auto=auto, remote=remote)
    assert type(theirs).__name__ == architecture
    tokens, segments, valid = padded_pairs(run.tokenizer.vocabulary.size)
    with torch.no_grad():
        inputs = BackboneInput(tokens, torch.zeros(ROWS, dtype=torch.int64), attention_mask=valid, segments=segments)
        hidden, _ = run.model.backbone(inputs, run.model.backbone.empty_memory(ROWS, 0))
        answer = theirs(input_ids=tokens, token_type_ids=segments, attention_mask=valid.long())
        logits = answer.logits if remote or "MaskedLM" in architecture else answer.prediction_logits
        close(run.model.head.output.log_probs(hidden.tokens[valid]), logits[valid])
        if "MaskedLM" not in architecture:
            row_logits = next(answer[k] for k in answer if k.startswith(("sop", "seq_rel", "sentence")))
            torch.testing.assert_close(run.model.head.sentence(hidden.tokens), row_logits, rtol=1e-5, atol=1e-5)


XLNETS = {
    "xlnet": {},
    "shared biases, clamped": {"untie_r": False, "clamp_len": 5, "activation": "gelu"},
    "no memory": {"mem_len": 0},
    "shared layers, pre-norm": {"num_layer_groups": 1, "pre_norm": True, "d_embed": 8},
    "first memory of zeros": {"initial_memory": "zeros", "untie_r": False, "clamp_len": 5},
}


@pytest.mark.parametrize("case", XLNETS)
def test_xlnet_has_our_logits_in_both_streams_row_after_row(case, tmp_path, tiny_dataset):
    keys = {"type": "xlnet", **XLNETS[case]}
    objective = {**PERMUTATION, "reuse_len": 0} if keys.get("mem_len") == 0 else None
    run, out = exported(tmp_path, tiny_dataset, keys, objective)
    described = json.loads((out / "config.json").read_text())
    remote = described["model_type"] == "xlpretrain"
    assert remote == (case in ("shared layers, pre-norm", "first memory of zeros"))
    theirs = load(out, remote=remote)
    mem_len = run.config.model.mem_len
    mems, their_mems = run.model.backbone.empty_memory(ROWS, mem_len), None
    size = run.tokenizer.vocabulary.size
    for row in range(3):
        tokens, segments, _ = padded_pairs(size)
        predict = torch.stack([1 + torch.randperm(TOKENS - 1)[:3] for _ in range(ROWS)])
        order = torch.zeros(ROWS, TOKENS, dtype=torch.int64).scatter(1, predict, torch.tensor([[1, 2, 3]] * ROWS))
        hides = (order[:, None] > order[..., None]) | torch.eye(TOKENS, dtype=torch.bool)
        mapping = torch.nn.functional.one_hot(predict, TOKENS).float()
        remembered = torch.full((ROWS,), min(row * TOKENS, mem_len))
        inputs = BackboneInput(tokens, remembered, segments=segments, perm_rank=order, target_positions=predict)
        with torch.no_grad():
            hidden, mems = run.model.backbone(inputs, mems)
            answer = theirs(
                input_ids=tokens,
                token_type_ids=segments,
                perm_mask=hides.float(),
                target_mapping=mapping,
                mems=their_mems,
            )
        their_mems = answer.mems
        close(run.model.head.output.log_probs(hidden.predictions.flatten(0, 1)), answer.logits.flatten(0, 1))


TRANSFORMER_XLS = {
    "full": {},
    "clamped, same length": {"clamp_len": 5, "same_length": True, "untie_r": True},
    "adaptive": {"adaptive_cutoffs": [50, 120], "div_val": 2},
    "adaptive, untied": {"adaptive_cutoffs": [50, 120], "d_embed": 8, "tie_embeddings": False},
    "adaptive, div 1": {"adaptive_cutoffs": [50, 120], "tie_projections": [True, False, True], "d_embed": 8},
    "pre-norm, zeros": {"pre_norm": True, "initial_memory": "zeros", "d_head": 5, "num_layer_groups": 1},
    "no memory": {"mem_len": 0},
}


@pytest.mark.parametrize("keys", TRANSFORMER_XLS.values(), ids=TRANSFORMER_XLS.keys())
def test_transformer_xl_has_our_log_probabilities_segment_after_segment(keys, tmp_path, tiny_dataset):
    run, out = exported(tmp_path, tiny_dataset, {"type": "transformer_xl", **keys})
    theirs = load(out, auto="AutoModelForCausalLM", remote=True)
    mem_len = run.config.model.mem_len
    mems, their_mems = run.model.backbone.empty_memory(ROWS, mem_len), None
    for segment in range(4):
        tokens = torch.randint(run.tokenizer.vocabulary.size, (ROWS, TOKENS))
        remembered = torch.full((ROWS,), min(segment * TOKENS, mem_len))
        with torch.no_grad():
            hidden, mems = run.model.backbone(BackboneInput(tokens, remembered), mems)
            answer = theirs(input_ids=tokens, mems=their_mems, labels=tokens)
            their_mems = answer.mems
            log_probs = run.model.head.output.log_probs(hidden.tokens.flatten(0, 1))
            close(log_probs, answer.logits.flatten(0, 1))
            nll, _ = run.model.head.output(hidden.tokens[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
            torch.testing.assert_close(answer.loss, nll.mean(), rtol=1e-5, atol=0)


def test_generated_text_is_that_of_reading_everything_anew(tmp_path, tiny_dataset):
    """Greedy, from prompts of two lengths in one batch; the memory covers all of it."""
    run, out = exported(tmp_path, tiny_dataset, {"type": "transformer_xl", "mem_len": 64})
    theirs = load(out, auto="AutoModelForCausalLM", remote=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out, trust_remote_code=True)
    asked = tokenizer(["The light of a station.", "A sting"], padding=True, return_tensors="pt")
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    written = theirs.generate(**asked, **settings)
    pad = run.tokenizer.vocabulary.pad
    for row, prompt in zip(written.tolist(), asked["input_ids"].tolist(), strict=True):
        context = [token for token in prompt if token != pad]
        for token in row[len(prompt) :]:
            inputs = BackboneInput(torch.tensor([context]), torch.tensor([0]))
            with torch.no_grad():
                hidden, _ = run.model.backbone(inputs, run.model.backbone.empty_memory(1, 0))
            assert int(run.model.head.output.log_probs(hidden.tokens[0])[-1].argmax()) == token
            context.append(token)
    assert torch.equal(theirs.generate(**asked, **settings, num_beams=1, use_cache=True), written)
    assert theirs.generate(**asked, max_new_tokens=5, num_beams=3).shape[1] <= asked["input_ids"].shape[1] + 5


def test_the_card_and_the_folder_are_whole_and_replace_only_a_model(tmp_path, tiny_dataset):
    run, out = exported(tmp_path, tiny_dataset, {"type": "bert"})
    assert {path.name for path in out.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "spiece.model",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    card = (out / "README.md").read_text()
    assert 'AutoModelForPreTraining.from_pretrained("out")' in card
    assert "num_heads: 2" in card
    with pytest.raises(LaunchError, match="already exists; choose another folder, or overwrite it with --force"):
        export(run.folder, out)
    stale = {path: path.stat().st_ino for path in out.iterdir()}
    export(run.folder, out, step=0, force=True)
    assert not any(path.stat().st_ino == number for path, number in stale.items())
    (tmp_path / "mine").mkdir()
    with pytest.raises(LaunchError, match="already exists and is not an exported model"):
        export(run.folder, tmp_path / "mine", force=True)
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        export(run.folder, tmp_path / "none", step=7)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out", "runs"]


def test_what_is_derived_from_a_known_objective_or_model_is_another_one(tmp_path, tiny_dataset):
    """It may predict, lay out rows, or compute otherwise: it is neither exported, scored nor written with."""

    class Ahead(CausalLM):
        type: Literal["ahead"] = "ahead"  # type: ignore[assignment]

    class Electra(BertConfig):
        type: Literal["electra"] = "electra"  # type: ignore[assignment]

    def changed(run: LoadedRun, **sections: object) -> LoadedRun:
        return replace(run, config=run.config.model_copy(update=sections))

    causal = xlpretrain.load(make_run(tmp_path / "runs", tiny_dataset, {"type": "transformer_xl"}).path)
    refuse_unknown(causal)
    run = changed(causal, objective=Ahead(**causal.config.objective.model_dump(exclude={"type"})))
    with pytest.raises(LaunchError, match=r"objective ahead cannot be exported, since its class Ahead .* `hub_head`"):
        refuse_unknown(run)
    with pytest.raises(
        ConfigError, match="objective ahead has no likelihood of a text: its class Ahead does not define"
    ):
        run.log_likelihoods(["A text."])
    with pytest.raises(ConfigError, match="its objective was ahead, whose class Ahead does not declare"):
        run.generate("A text.")
    bert = xlpretrain.load(make_run(tmp_path / "runs", tiny_dataset, {"type": "bert"}, name="bert").path)
    refuse_unknown(bert)
    with pytest.raises(LaunchError, match=r"model electra .* expected one of transformer_xl, xlnet, albert, bert"):
        refuse_unknown(changed(bert, model=Electra(**bert.config.model.model_dump(exclude={"type"}))))


@pytest.mark.parametrize("old", [False, True], ids=["with checksums", "as exported before there were checksums"])
def test_an_export_replaces_no_file_that_no_export_wrote(old: bool, tmp_path, tiny_dataset):
    run, out = exported(tmp_path, tiny_dataset, {"type": "bert"})
    described = json.loads((out / "config.json").read_text())
    if old:
        del described["xlpretrain"]["files"]
        (out / "config.json").write_text(json.dumps(described))
    else:
        card = (out / "README.md").read_text()
        for name, text in {
            "README.md": card + "\nMy words.",
            "config.json": json.dumps({**described, "mine": 1}),
        }.items():
            before = (out / name).read_text()
            (out / name).write_text(text)
            with pytest.raises(LaunchError, match=f"{name} is not one; move it away"):
                export(run.folder, out, force=True)
            assert (out / name).read_text() == text
            (out / name).write_text(before)
    (out / ".git").mkdir()
    (out / ".git" / "HEAD").write_text("ref")
    with pytest.raises(
        LaunchError, match=r"--force removes only unchanged files of an export, and \.git/HEAD is not one"
    ):
        export(run.folder, out, force=True)
    shutil.rmtree(out / ".git")
    export(run.folder, out, force=True)
    assert "files" in json.loads((out / "config.json").read_text())["xlpretrain"]


def test_a_model_of_others_is_never_replaced(tmp_path, tiny_dataset):
    run, _ = exported(tmp_path, tiny_dataset, {"type": "bert"})
    theirs = tmp_path / "bert-base-uncased"
    theirs.mkdir()
    (theirs / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(LaunchError, match="already exists and is not an exported model"):
        export(run.folder, theirs, force=True)
    assert (theirs / "config.json").read_text() == '{"model_type": "bert"}'


def test_a_model_goes_where_a_link_leads(tmp_path, tiny_dataset):
    run, out = exported(tmp_path, tiny_dataset, {"type": "bert"})
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "model")
    for force in (False, True):
        export(run.folder, tmp_path / "link", force=force)
        assert [path.name for path in (tmp_path / "disk").iterdir()] == ["model"]
    weights = "model.safetensors"
    assert (tmp_path / "link" / weights).read_bytes() == (out / weights).read_bytes()


def test_load_gives_model_tokenizer_and_step(tmp_path, tiny_dataset):
    folder = make_run(tmp_path / "runs", tiny_dataset, {"type": "transformer_xl"})
    run = xlpretrain.load(str(folder.path), step=0, device="cpu")
    assert not run.model.training
    assert run.step == 0
    assert run.tokenizer.decode(run.tokenizer.encode("light the sting")) == "light the sting"
    with pytest.raises(LaunchError, match="not a run folder"):
        xlpretrain.load(tmp_path)


ALONE = """
import importlib.util, json, sys, torch, transformers
assert not any(map(importlib.util.find_spec, ("xlpretrain", "sentencepiece", "deepspeed")))
folder, auto, texts, out = json.loads(sys.argv[1])
model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True).eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
pair = tokenizer("A light.", "The sting.", return_tensors="pt")
with torch.no_grad():
    answer = model(**pair)
logits = answer.get("logits", answer.get("prediction_logits"))
torch.save({"ids": ids, "pair": dict(pair), "logits": logits}, out)
"""

SHAPES = {
    "base": {"num_layers": 12, "d_model": 768, "num_heads": 12, "d_ff": 3072},
    "small": {"num_layers": 4, "d_model": 64, "num_heads": 4, "d_ff": 128},
}
KINDS = {
    "xlnet": ({"type": "xlnet"}, "AutoModelForPreTraining"),
    "albert": ({"type": "albert", "d_embed": 32}, "AutoModelForPreTraining"),
    "bert": ({"type": "bert"}, "AutoModelForPreTraining"),
    "albert_xl": ({"type": "xlnet", "num_layer_groups": 1, "d_embed": 32, "pre_norm": True}, "AutoModelForPreTraining"),
    "transformer_xl": ({"type": "transformer_xl"}, "AutoModelForCausalLM"),
}


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """The Python of an environment of its own, with transformers and torch alone."""
    folder = tmp_path_factory.mktemp("elsewhere")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    constraints = ROOT / "constraints.txt"
    pip = [folder / "bin" / "pip", "install", "--quiet", "-c", constraints]
    subprocess.run([*pip, "torch", "transformers"], check=True)
    yield folder / "bin" / "python"
    shutil.rmtree(folder)


@pytest.mark.full
@pytest.mark.timeout(1200)  # the first one installs
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_an_environment_without_xlpretrain_has_our_ids_and_logits(kind, shape, tmp_path, tiny_dataset, elsewhere):
    keys, auto = KINDS[kind]
    run, out = exported(tmp_path, tiny_dataset, {**keys, **SHAPES[shape]})
    texts = lines(200)
    asked = json.dumps([str(out), auto, texts, str(tmp_path / "answer.pt")])
    subprocess.run([elsewhere, "-I", "-c", ALONE, asked], check=True, cwd=tmp_path)
    answer = torch.load(tmp_path / "answer.pt")
    mask = run.tokenizer.vocabulary.mask  # the one symbol that transformers finds where a text spells it out
    found = list(zip(answer["ids"], run.tokenizer.encode_batch(texts), strict=True))
    assert all(ids == ours for ids, ours in found if mask not in ids)
    assert sum(mask in ids for ids, _ in found) < 10
    tokens, segments = answer["pair"]["input_ids"], answer["pair"].get("token_type_ids")
    mems = run.model.backbone.empty_memory(1, run.config.model.mem_len)
    with torch.no_grad():
        hidden, _ = run.model.backbone(BackboneInput(tokens, torch.tensor([0]), segments=segments), mems)
        close(run.model.head.output.log_probs(hidden.tokens[0]), answer["logits"][0])
    back, _ = import_model(out, name="back", runs_dir=tmp_path / "runs")
    state = xlpretrain.load(back.path).model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in run.model.state_dict().items())
    for folder in (out, tmp_path / "runs"):
        shutil.rmtree(folder)  # gigabytes
