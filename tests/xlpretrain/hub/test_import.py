"""Models of others as run folders: the same weights, the same losses, and what does not fit is named."""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from corpus import make_documents
from imported_runs import make_run
from reference_transformer_xl import Reference
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

import xlpretrain
from data_pipelines.sharding.verify import verify
from launcher.cli.main import app
from xlpretrain.config import run_config
from xlpretrain.config.sections import EvalConfig
from xlpretrain.data.tokenizers.open import load_tokenizer
from xlpretrain.data.tokenizers.token_layout import DOCUMENT
from xlpretrain.errors import CheckpointError, ConfigError, DataError, LaunchError, XLPretrainError
from xlpretrain.evaluation.loaded_run import LoadedRun
from xlpretrain.hub.export import export
from xlpretrain.hub.import_model import import_model
from xlpretrain.hub.tokenizers.export import tokenizer_json
from xlpretrain.models import TransformerXLConfig
from xlpretrain.models.backbone import BackboneInput
from xlpretrain.train.setup import resolve_run, set_up_run

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

MODELS = {
    "xlnet": {"type": "xlnet", "attention_dropout": 0.2},
    "xlnet, shared biases": {"type": "xlnet", "untie_r": False},
    "xlnet, mixture": {"type": "xlnet", "num_layer_groups": 1, "pre_norm": True, "d_embed": 8},
    "albert": {"type": "albert", "d_embed": 8},
    "albert, as wide": {"type": "albert", "d_embed": None},
    "bert": {"type": "bert"},
    "bert, shared": {"type": "bert", "num_layer_groups": 1},
    "transformer-xl": {"type": "transformer_xl", "adaptive_cutoffs": [50, 120], "div_val": 2},
}


@pytest.fixture
def bring(tmp_path):
    """Imports into tmp_path/runs."""

    def bring(source: Path, name: str = "back", **options) -> LoadedRun:
        folder, _ = import_model(source, name=name, runs_dir=tmp_path / "runs", **options)
        return xlpretrain.load(folder.path)

    return bring


@pytest.mark.parametrize("keys", MODELS.values(), ids=MODELS.keys())
def test_ours_to_theirs_and_back_is_the_same_in_every_bit(keys, bring, tmp_path, tiny_dataset):
    folder = make_run(tmp_path / "runs", tiny_dataset, keys)
    export(folder, tmp_path / "out")
    ours, back = xlpretrain.load(folder.path), bring(tmp_path / "out", data=tiny_dataset / "valid")
    state = back.model.state_dict()
    assert state.keys() == ours.model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in ours.model.state_dict().items())
    assert back.config.model == ours.config.model
    assert back.config.objective == ours.config.objective
    assert back.tokenizer.sha256 == ours.tokenizer.sha256
    export(back.folder, tmp_path / "again")
    for name in ("model.safetensors", "tokenizer.json", "spiece.model"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


THEIRS = {
    "xlnet": ("XLNetLMHeadModel", {"type": "xlnet", "activation": "relu", "clamp_len": 7, "layer_norm_eps": 1e-6}),
    "albert": ("AlbertForPreTraining", {"type": "albert", "d_embed": 8, "num_layer_groups": 2}),
    "bert": ("BertForPreTraining", {"type": "bert", "num_segments": 3}),
}


@pytest.mark.parametrize("kind", THEIRS)
def test_what_transformers_saves_is_imported(kind, bring, tmp_path, tiny_dataset):
    """By its own config alone: no word of ours, other weights than ours."""
    architecture, keys = THEIRS[kind]
    folder = make_run(tmp_path / "runs", tiny_dataset, keys)
    export(folder, tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = getattr(transformers, architecture).from_pretrained(tmp_path / "out")
        del theirs.config.xlpretrain
        with torch.no_grad():
            theirs.get_input_embeddings().weight += 1
        theirs.save_pretrained(tmp_path / "theirs")
    shutil.copy(tmp_path / "out" / "spiece.model", tmp_path / "theirs")
    back, ours = bring(tmp_path / "theirs"), xlpretrain.load(folder.path)
    unsaid = {"attention_dropout"} if kind == "xlnet" else set()
    assert back.config.model.model_dump(exclude=unsaid) == ours.config.model.model_dump(exclude=unsaid)
    for name, tensor in back.model.state_dict().items():
        expected = ours.model.state_dict()[name]
        assert torch.equal(tensor, expected + 1 if name.endswith("tables.0.weight") else expected)


def kimiyoung(vocab_size: int, cutoffs: list[int], *, div_val: int, d_embed: int, tied: bool) -> dict[str, Tensor]:
    """Random weights under the names of the authors' PyTorch code."""
    torch.manual_seed(3)
    d_model, heads, d_head, d_ff, layers = 12, 2, 5, 20, 2
    edges = [0, *cutoffs, vocab_size]
    sizes = [end - start for start, end in pairwise(edges)]
    state = {"r_w_bias": torch.randn(heads, d_head), "r_r_bias": torch.randn(heads, d_head)}
    for i in range(layers):
        name = f"layers.{i}."
        state[f"{name}dec_attn.qkv_net.weight"] = torch.randn(3 * heads * d_head, d_model) * 0.4
        state[f"{name}dec_attn.r_net.weight"] = torch.randn(heads * d_head, d_model) * 0.4
        state[f"{name}dec_attn.o_net.weight"] = torch.randn(d_model, heads * d_head) * 0.4
        for norm in ("dec_attn.layer_norm", "pos_ff.layer_norm"):
            state |= {f"{name}{norm}.weight": torch.randn(d_model), f"{name}{norm}.bias": torch.randn(d_model)}
        state |= {f"{name}pos_ff.CoreNet.0.weight": torch.randn(d_ff, d_model) * 0.4}
        state |= {f"{name}pos_ff.CoreNet.3.weight": torch.randn(d_model, d_ff) * 0.4}
        state |= {f"{name}pos_ff.CoreNet.{i}.bias": torch.randn(size) for i, size in ((0, d_ff), (3, d_model))}
    state["pos_emb.inv_freq"] = torch.randn(d_model // 2)
    projected = div_val > 1 or d_embed != d_model
    for i, size in enumerate(sizes if div_val > 1 else [vocab_size]):
        table = torch.randn(size, d_embed // div_val**i)
        state[f"word_emb.emb_layers.{i}.weight"] = table
        state[f"crit.out_layers.{i}.weight"] = table if tied else torch.randn_like(table)
        state[f"crit.out_layers.{i}.bias"] = torch.randn(size)
        if projected:
            state[f"word_emb.emb_projs.{i}"] = torch.randn(d_model, table.shape[1]) * 0.4
    for i in range(len(sizes) if projected else 0):
        own = torch.randn(d_model, d_embed // div_val**i) * 0.4
        state[f"crit.out_projs.{i}"] = state[f"word_emb.emb_projs.{i if div_val > 1 else 0}"] if i else own
    if cutoffs:
        state["crit.cluster_weight"], state["crit.cluster_bias"] = torch.randn(2, d_embed), torch.randn(2)
    return state


def authors_log_probs(state: dict[str, Tensor], hidden: Tensor, edges: list[int]) -> Tensor:
    """Their adaptive softmax [N, V], in which tail i has the i-th column of the head from its end."""

    def logits(cluster: int) -> Tensor:
        start, end = edges[cluster], edges[cluster + 1]
        whole = "crit.out_layers.1.weight" not in state
        layer = f"crit.out_layers.{0 if whole else cluster}"
        part = slice(start, end) if whole else slice(None)
        weight, bias = state[f"{layer}.weight"][part], state[f"{layer}.bias"][part]
        if cluster == 0 and len(edges) > 2:
            weight = torch.cat([weight, state["crit.cluster_weight"]])
            bias = torch.cat([bias, state["crit.cluster_bias"]])
        projection = state.get(f"crit.out_projs.{cluster}")
        return F.linear(hidden if projection is None else hidden @ projection, weight, bias)

    head = logits(0).log_softmax(-1)
    tails = [head[:, -i, None] + logits(i).log_softmax(-1) for i in range(1, len(edges) - 1)]
    return torch.cat([head[:, : edges[1]], *tails], dim=-1)


AUTHORS = {
    "full": ([], {"div_val": 1, "d_embed": 12, "tied": True}),
    "full, projected, untied": ([], {"div_val": 1, "d_embed": 8, "tied": False}),
    "adaptive": ([50, 120], {"div_val": 1, "d_embed": 12, "tied": True}),
    "adaptive, narrowing": ([50, 120], {"div_val": 2, "d_embed": 12, "tied": True}),
    "adaptive, projected": ([50, 120], {"div_val": 1, "d_embed": 8, "tied": True}),
}


@pytest.mark.parametrize("case", AUTHORS)
def test_the_authors_weights_give_their_losses_over_ten_segments_with_memory(case, bring, tmp_path, tiny_tokenizer):
    cutoffs, keys = AUTHORS[case]
    state = kimiyoung(300, cutoffs, **keys)
    torch.save(state, tmp_path / "model.pt")
    given = [f"model.adaptive_cutoffs={cutoffs}"] if cutoffs and keys["div_val"] == 1 else []
    given += ["model.pre_norm=false"]
    run = bring(tmp_path / "model.pt", tokenizer=tiny_tokenizer, overrides=["model.mem_len=6", *given])
    config = run.config.model
    assert isinstance(config, TransformerXLConfig)
    assert config.adaptive_cutoffs == tuple(cutoffs)
    assert config.tie_embeddings == keys["tied"]
    reference, output = Reference(run.model.state_dict(), config), run.model.head.output
    mems = run.model.backbone.empty_memory(1, 6)
    tokens = torch.randint(300, (1, 41))
    for segment in range(10):
        inputs, targets = (tokens[:, segment * 4 + shift : segment * 4 + shift + 4] for shift in (0, 1))
        with torch.no_grad():
            hidden, mems = run.model.backbone(BackboneInput(inputs, torch.tensor([min(4 * segment, 6)])), mems)
            theirs = authors_log_probs(state, hidden.tokens[0], [0, *cutoffs, 300])
            losses, _ = output(hidden.tokens[0], targets[0])
            log_probs = output.log_probs(hidden.tokens[0])
        assert float((log_probs - theirs).abs().max() / theirs.abs().max()) < 1e-5
        expected = torch.tensor(reference.losses(inputs[0].tolist(), targets[0].tolist()))
        assert float(((losses - expected) / expected).abs().max()) < 1e-5


def import_by_command(source: Path, tmp_path: Path, *overrides: str):
    """Its exit code and what it printed, on either stream."""
    runner, arguments = CliRunner(), ["import", str(source), "--name", "x", "--runs-dir", str(tmp_path / "runs")]
    done = runner.invoke(app, [*arguments, *overrides])
    if isinstance(done.exception, XLPretrainError):  # as `launcher.cli.main.main` tells it
        return done.exception.exit_code, str(done.exception)
    assert done.exception is None
    return done.exit_code, done.stdout


def test_what_the_authors_weights_cannot_tell_is_asked_for_and_what_was_assumed_is_told(tmp_path):
    """Norms before or after the layers give the same tensors and another model."""
    torch.save(kimiyoung(300, [], div_val=1, d_embed=12, tied=True), tmp_path / "model.pt")
    code, told = import_by_command(tmp_path / "model.pt", tmp_path, "model.mem_len=6")
    assert code == 2
    assert "do not tell model.pre_norm" in told and "give model.pre_norm=..." in told
    assert not (tmp_path / "runs").exists()
    code, told = import_by_command(tmp_path / "model.pt", tmp_path, "model.mem_len=6", "model.pre_norm=true")
    assert code == 0
    assert (
        "does not tell: model.clamp_len=null, model.same_length=false, model.dropout=0.1, model.attention_dropout=0.0\n"
    ) in told
    assert xlpretrain.load(tmp_path / "runs" / "x").config.model.pre_norm


def test_what_a_config_leaves_out_is_told(albert, tmp_path):
    path = albert / "config.json"
    theirs = {**json.loads(path.read_text()), "xlpretrain": None}
    assert import_by_command(albert, tmp_path)[1].count("assumed") == 0
    path.write_text(json.dumps({k: v for k, v in theirs.items() if k not in ("hidden_act", "layer_norm_eps")}))
    (tmp_path / "runs").rename(tmp_path / "before")
    assert (
        'does not tell: model.layer_norm_eps=1e-12, model.activation="gelu_tanh"'
        in import_by_command(albert, tmp_path)[1]
    )


def of_transformers_4(state: dict[str, Tensor], to: Path, **keys: object) -> Path:
    """The authors' weights (without clusters) as a `transfo-xl` folder."""
    config = {"model_type": "transfo-xl", "vocab_size": 300, "cutoffs": [], "pre_lnorm": False, "untie_r": False}
    sizes = {"d_model": 12, "n_layer": 2, "n_head": 2, "d_head": 5, "d_inner": 20, "d_embed": 12, "div_val": 1}
    to.mkdir(exist_ok=True)
    settings = {"mem_len": 6, "same_length": True, "dropout": 0.1, **config, **sizes, **keys}
    (to / "config.json").write_text(json.dumps(settings))
    theirs = {name if name.startswith("crit.") else f"transformer.{name}": t for name, t in state.items()}
    save_file({name: t.clone() for name, t in theirs.items()}, to / "model.safetensors")
    return to


@pytest.mark.parametrize("of_a_folder", [False, True], ids=["file", "folder"])
def test_a_tensor_of_a_transformer_xl_without_a_place_is_refused(of_a_folder, bring, tmp_path):
    state = kimiyoung(300, [], div_val=1, d_embed=12, tied=True)

    def bring_state(name: str, state: dict[str, Tensor]) -> LoadedRun:
        if of_a_folder:
            return bring(of_transformers_4(state, tmp_path / name), name=name)
        torch.save(state, tmp_path / name)
        return bring(tmp_path / name, name=name, overrides=["model.pre_norm=false", "model.mem_len=6"])

    run = bring_state("whole", state)
    assert torch.equal(run.model.backbone.content_bias[0], state["r_w_bias"])
    copy = {f"layers.{i}.dec_attn.r_w_bias": state["r_w_bias"].clone() for i in range(2)}
    assert bring_state("copies", {**state, **copy}).config.model.num_layers == 2
    extra = {"layers.0.dec_attn.extra.weight": torch.zeros(2), "r_emb": torch.zeros(3)}
    for name, tensor in extra.items():
        with pytest.raises(CheckpointError, match=rf"without a place here: (transformer\.)?{re.escape(name)}"):
            bring_state("extra", {**state, name: tensor})
    with pytest.raises(CheckpointError, match=r"layers\.1\.dec_attn\.r_w_bias differs from (transformer\.)?r_w_bias"):
        bring_state("other", {**state, **copy, "layers.1.dec_attn.r_w_bias": torch.zeros(2, 5)})
    if of_a_folder:  # a file's tell by themselves whether they are tied
        with pytest.raises(CheckpointError, match=r"crit\.out_layers\.0\.weight differs from transformer\.word_emb"):
            bring_state("untied", {**state, "crit.out_layers.0.weight": torch.zeros(300, 12)})


@pytest.mark.parametrize("adaptive", [False, True], ids=["full", "adaptive"])
@pytest.mark.parametrize("prefix", ["", "module."], ids=["bare", "wrapped"])
def test_the_body_of_a_transfo_xl_gets_a_new_head(prefix, adaptive, tmp_path):
    """As `TransfoXLModel.save_pretrained` wrote it: without the head's tensors and without `transformer.`."""
    cutoffs, div_val = ([100, 200], 2) if adaptive else ([], 1)
    state = kimiyoung(300, cutoffs, div_val=div_val, d_embed=12, tied=True)
    sizes = {"cutoffs": cutoffs, "div_val": div_val, "tie_projs": [False, *(True for _ in cutoffs)]}
    folder = of_transformers_4(state, tmp_path / "body", **sizes)
    weights = load_file(folder / "model.safetensors")
    body = {n.removeprefix("transformer."): t for n, t in weights.items() if not n.startswith("crit.")}
    save_file({f"{prefix}{name}": tensor for name, tensor in body.items()}, folder / "model.safetensors")
    made, notes = import_model(folder, name="body", runs_dir=tmp_path / "runs")
    assert any(note.startswith("newly initialized, because ") and "head.output.bias" in note for note in notes)
    run = xlpretrain.load(made.path)
    assert torch.equal(run.model.backbone.embedding.tables[0].weight, state["word_emb.emb_layers.0.weight"])
    assert torch.equal(run.model.backbone.layers[1].attention.output.weight, state["layers.1.dec_attn.o_net.weight"])
    assert not run.model.head.output.bias.any()
    told = import_by_command(folder, tmp_path / "other")[1]
    assert "newly initialized, because" in told and "has no LM head: head.output.bias" in told


def test_a_transfo_xl_without_a_word_on_its_norms_is_refused(bring, tmp_path):
    folder = of_transformers_4(kimiyoung(300, [], div_val=1, d_embed=12, tied=True), tmp_path / "old")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "pre_lnorm"}))
    with pytest.raises(ConfigError, match=r"give model\.pre_norm="):
        bring(folder)
    assert not bring(folder, overrides=["model.pre_norm=false"]).config.model.pre_norm


def test_a_pickle_that_wants_to_run_code_is_refused_and_nothing_is_left(bring, tmp_path, tiny_tokenizer):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "hacked"),)

    torch.save({"r_w_bias": Evil()}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"refused: .* a pickle with more than tensors"):
        bring(tmp_path / "model.pt", tokenizer=tiny_tokenizer)
    assert not (tmp_path / "hacked").exists()
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def albert(tmp_path, tiny_dataset) -> Path:
    """An exported ALBERT."""
    export(make_run(tmp_path / "runs", tiny_dataset, {"type": "albert", "d_embed": 8}), tmp_path / "out")
    return tmp_path / "out"


def change(folder: Path, **keys: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "xlpretrain": None, **keys}))


def test_weights_that_are_missing_too_many_or_of_another_shape_are_named(albert, bring, tmp_path):
    weights = load_file(albert / "model.safetensors")
    taken = weights.pop("predictions.dense.weight")
    weights["albert.pooler.extra"] = taken
    save_file(weights, albert / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        bring(albert)
    assert "missing: predictions.dense.weight" in str(error.value)
    assert "without a place here: albert.pooler.extra" in str(error.value)
    assert not (tmp_path / "runs" / "back").exists()


def test_another_shape_is_named(albert, bring):
    change(albert, intermediate_size=25)
    with pytest.raises(CheckpointError, match=r"feed_forward.inner.bias is \(24,\), not \(25,\)"):
        bring(albert)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"model_type": "gpt2"}, "model_type must be one of xlnet, albert, bert"),
        ({"hidden_act": "swish"}, "activation  must be one of gelu_new"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type  must be 'absolute'"),
        ({"num_hidden_groups": 0}, "num_layer_groups"),
    ],
)
def test_an_option_that_does_not_fit_is_named(albert, bring, keys, told):
    change(albert, **keys)
    with pytest.raises(XLPretrainError) as error:
        bring(albert)
    assert told in str(error.value)


def test_another_vocabulary_is_refused(albert, bring, tmp_path, build_small):
    settings = {"tokenizer": {"vocab_size": 22}, "clean": {"exact_duplicates": False}}
    other = build_small(["A text. Of two sentences."] * 400, **settings)
    with pytest.raises(DataError, match="encoded with another tokenizer"):
        bring(albert, data=other / "train")
    with pytest.raises(DataError, match=r"vectors for 300 tokens, and the tokenizer .* has 22 pieces"):
        bring(albert, tokenizer=other / "tokenizer" / "spiece.model")
    for name in ("spiece.model", "tokenizer.json"):
        (albert / name).unlink()
    with pytest.raises(DataError, match=r"no spiece\.model, tokenizer\.json or vocab\.txt"):
        bring(albert)


def test_a_taken_name_and_an_empty_folder_are_refused(albert, bring, tmp_path):
    with pytest.raises(LaunchError, match="already exists; choose another name"):
        bring(albert, name="run")
    (tmp_path / "runs" / "mine").mkdir()
    (tmp_path / "runs" / "link").symlink_to("nowhere")
    for name in ("mine", "link"):
        with pytest.raises(LaunchError, match="already exists; choose another name"):
            bring(albert, name=name)
    assert (tmp_path / "runs" / "link").is_symlink()
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"expected a folder with config\.json"):
        bring(tmp_path / "empty")


def test_the_command_exports_imports_and_begins_a_run_with_it(tmp_path, tiny_dataset):
    folder = make_run(tmp_path / "runs", tiny_dataset, {"type": "transformer_xl"})
    runner, runs = CliRunner(), ["--runs-dir", str(tmp_path / "runs")]
    told = runner.invoke(app, ["export", str(folder.path), "--to", str(tmp_path / "out")], catch_exceptions=False)
    assert "AutoModelForCausalLM.from_pretrained(" in told.stdout
    told = runner.invoke(
        app, ["import", str(tmp_path / "out"), "--name", "back", *runs, "model.mem_len=20"], catch_exceptions=False
    )
    assert "init_from=" in told.stdout
    back = tmp_path / "runs" / "back"
    assert xlpretrain.load(back).config.model.mem_len == 20
    assert "imported, fp32" in runner.invoke(app, ["checkpoints", str(back), "--verify"]).stdout
    new = ["name=new", f"init_from={back}"]
    config, _, _ = resolve_run(run_config.load(folder.config, new), world_size=1, allow_recipe_change=False)
    assert config.init_from == back
    with pytest.raises(ConfigError, match=r"only keys of model and objective may be given, got optimizer\.lr=1"):
        import_model(tmp_path / "out", name="no", runs_dir=tmp_path / "runs", overrides=["optimizer.lr=1"])


def test_weights_of_another_vocabulary_begin_no_run_and_imported_ones_are_not_gone_on_with(
    albert, bring, tmp_path, tiny_dataset, group
):
    back = bring(albert, data=tiny_dataset / "train")
    with pytest.raises(CheckpointError, match="holds weights alone"):
        set_up_run(back.config, device=torch.device("cpu"))
    provenance = {**back.folder.read_provenance(), "tokenizer_sha256": "0" * 64}
    back.folder.provenance.write_text(json.dumps(provenance))
    settings = run_config.load(back.folder.config, ["name=new", f"init_from={back.folder.checkpoints}"])
    with pytest.raises(ConfigError, match="was trained with another tokenizer"):
        resolve_run(settings, world_size=1, allow_recipe_change=False)


def test_old_names_and_copies_of_tied_weights_are_understood(albert, bring, tmp_path):
    """As the ALBERT of its authors lies on the hub: a pooler without a sentence task, TensorFlow's names of norms."""
    weights = load_file(albert / "model.safetensors")
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith("sop_classifier")}
    for kind, old in (("weight", "gamma"), ("bias", "beta")):
        weights[f"predictions.LayerNorm.{old}"] = weights.pop(f"predictions.LayerNorm.{kind}")
    weights["predictions.decoder.weight"] = weights["albert.embeddings.word_embeddings.weight"].clone()
    weights["albert.embeddings.position_ids"] = torch.arange(40)[None]
    (albert / "model.safetensors").unlink()
    torch.save(weights, albert / "pytorch_model.bin")
    change(albert)
    folder, notes = import_model(albert, name="old", runs_dir=tmp_path / "runs")
    assert notes == ["left out, since there is no sentence task: albert.pooler.bias, albert.pooler.weight"]
    run = xlpretrain.load(folder.path)
    assert run.config.objective.terms == ("mlm",)
    assert torch.equal(run.model.head.output.norm.weight, weights["predictions.LayerNorm.gamma"])
    weights["predictions.decoder.weight"] += 1
    torch.save(weights, albert / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"predictions\.decoder\.weight differs from albert"):
        bring(albert)


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory) -> Path:
    """A tokenizer.json as BERT's: lower case, no accents, WordPiece, and no symbol for the end of a document."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

    symbols = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.train_from_iterator(make_documents(50), trainers.WordPieceTrainer(vocab_size=120, special_tokens=symbols))
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    path = tmp_path_factory.mktemp("wordpiece") / "tokenizer.json"
    made.save(str(path))
    return path


def test_bert_brings_its_wordpieces_and_data_is_built_and_scored_with_them(
    wordpiece, bring, build_small, tmp_path, tiny_tokenizer
):
    dataset = build_small(make_documents(60), tokenizer={"path": str(wordpiece)}, splits={"valid": 0.2})
    assert [path.name for path in (dataset / "tokenizer").iterdir()] == ["tokenizer.json"]
    assert list(verify(dataset / "train")) == []
    folder = make_run(tmp_path / "runs", dataset, {"type": "bert"})
    export(folder, tmp_path / "out")
    run, back = xlpretrain.load(folder.path), bring(tmp_path / "out", data=dataset / "valid")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == wordpiece.read_bytes()
    settings = EvalConfig(max_tokens=500, num_streams=2)
    assert back.evaluate(config=settings).main == run.evaluate(config=settings).main
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text, v = "Héllo [SEP] Sted gigo momin!", back.tokenizer.vocabulary
    ids = back.tokenizer.encode(text)
    assert theirs(text, split_special_tokens=True)["input_ids"] == [v.cls, *ids, v.sep]
    assert theirs("Sted [MASK]!")["input_ids"] == [v.cls, *back.tokenizer.encode("Sted"), v.mask, ids[-1], v.sep]
    assert v.sep not in ids
    assert v.eod == v.sep
    starts = back.tokenizer.word_starts()
    assert 0 < starts[ids].sum() < len(ids)
    assert back.tokenizer.decode(ids).startswith("h")
    other = tmp_path / "other.json"
    written = tokenizer_json(load_tokenizer(tiny_tokenizer), DOCUMENT)
    other.write_text(json.dumps({**written, "model": {"type": "WordLevel", "vocab": {}, "unk_token": "?"}}))
    with pytest.raises(DataError, match="its model is WordLevel"):
        load_tokenizer(other)
    other.write_text("{}")
    with pytest.raises(DataError, match=r"not a tokenizer\.json"):
        load_tokenizer(other)
