"""Models as `transformers` saves them, again and otherwise: imported with their logits and ids, or refused by name.

Modules: transfo_xl.py, weight_files.py, weight_names.py.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hard_lines import SEED, hard_lines
from safetensors.torch import load_file, save_file
from stock_models import PREFIX, build_stock, write_tokenizer
from torch import Tensor

import xlpretrain
from xlpretrain.errors import CheckpointError, ConfigError, DataError, XLPretrainError
from xlpretrain.evaluation.loaded_run import LoadedRun
from xlpretrain.hub.import_model import import_model
from xlpretrain.models.backbone import BackboneInput

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

LINES = [line for line in hard_lines(400, seed=SEED) if not set("[<") & set(line)]
"""Without spelled-out symbols, which are text here."""
CLASSES = {
    "bert": ("ForPreTraining", "ForMaskedLM", "Model", "ForNextSentencePrediction"),
    "albert": ("ForPreTraining", "ForMaskedLM", "Model"),
    "xlnet": ("LMHeadModel", "Model"),
}
SAVED = [(kind, name) for kind, names in CLASSES.items() for name in names]
WITH_HEAD = {"bert": "ForPreTraining", "albert": "ForPreTraining", "xlnet": "LMHeadModel"}
TIED = {
    "bert": ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    "albert": ("predictions.decoder.weight", "albert.embeddings.word_embeddings.weight"),
    "xlnet": ("lm_loss.weight", "transformer.word_embedding.weight"),
}


def quietly(work: Callable):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return work()


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> dict[str, Path]:
    """For each kind, the files of its tokenizer as its authors hand them out: spiece.model or vocab.txt."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in CLASSES}
    for kind, folder in folders.items():
        write_tokenizer(folder, kind)
    return folders


@pytest.fixture
def saved(tmp_path, tokenizers) -> Callable[..., tuple[Path, torch.nn.Module]]:
    """Makes a folder that transformers saved, loaded and saved again, and the model that is in it."""

    def save(kind: str, name: str, **options: object) -> tuple[Path, torch.nn.Module]:
        model, cls = build_stock(kind, name), getattr(transformers, PREFIX[kind] + name)
        first, again = tmp_path / "first", tmp_path / "again"
        model.save_pretrained(first)
        model = cls.from_pretrained(first)
        model.save_pretrained(again, **options)
        auto = getattr(transformers, f"{PREFIX[kind]}Tokenizer").from_pretrained(tokenizers[kind])
        auto.save_pretrained(first)
        transformers.AutoTokenizer.from_pretrained(first).save_pretrained(again)
        return again, model.eval()

    return lambda *arguments, **options: quietly(lambda: save(*arguments, **options))


def bring(source: Path, tmp_path: Path, *overrides: str) -> tuple[LoadedRun, list[str]]:
    """The imported run and what was told."""
    number = len(list(tmp_path.glob("runs/*")))
    folder, notes = import_model(source, name=f"run{number}", runs_dir=tmp_path / "runs", overrides=overrides)
    return xlpretrain.load(folder.path), notes


def assert_same(run: LoadedRun, theirs: torch.nn.Module, *, tolerance: float = 1e-5) -> None:
    """The hidden states are theirs, and the probabilities of tokens where they have a head for them."""
    tokens = torch.randint(5, 90, (2, 12), generator=torch.Generator().manual_seed(1))
    segments = (torch.arange(12) > 6).long().expand(2, -1)
    inputs = BackboneInput(tokens, torch.zeros(2, dtype=torch.int64), segments=segments)
    xlnet = {"use_mems": False} if theirs.config.model_type == "xlnet" else {}
    with torch.no_grad():
        hidden, _ = run.model.backbone(inputs, run.model.backbone.empty_memory(2, 0))
        expected = theirs.base_model(tokens, token_type_ids=segments, **xlnet).last_hidden_state
        assert float((hidden.tokens - expected).abs().max() / expected.abs().max()) < tolerance
        answer = theirs(tokens, token_type_ids=segments, **xlnet)
        logits = getattr(answer, "prediction_logits", getattr(answer, "logits", None))
        if logits is None or logits.shape[-1] != theirs.config.vocab_size:
            return
        ours = run.model.head.output.log_probs(hidden.tokens.flatten(0, 1))
        expected = logits.flatten(0, 1).log_softmax(-1)
        assert float((ours - expected).abs().max() / expected.abs().max()) < tolerance


def assert_same_ids(run: LoadedRun, folder: Path) -> None:
    auto = quietly(lambda: transformers.AutoTokenizer.from_pretrained(folder, split_special_tokens=True))
    assert run.tokenizer.encode_batch(LINES) == auto(LINES, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(("kind", "name"), SAVED, ids=[PREFIX[kind] + name for kind, name in SAVED])
def test_a_folder_that_was_saved_again_is_imported(kind, name, saved, tmp_path):
    """tokenizer.json alone; whole models, bodies without a head, and models with the head of another task."""
    folder, theirs = saved(kind, name)
    assert {path.name for path in folder.iterdir()} >= {"tokenizer.json", "model.safetensors"}
    assert not (folder / "spiece.model").exists() and not (folder / "vocab.txt").exists()
    run, notes = bring(folder, tmp_path)
    assert_same(run, theirs)
    assert_same_ids(run, folder)
    has_head = name in ("ForPreTraining", "ForMaskedLM", "LMHeadModel")
    assert (
        any(note.startswith("newly initialized, because ") and "head.output.bias" in note for note in notes) != has_head
    )
    tasks = {"ForPreTraining", "ForNextSentencePrediction"}
    assert (getattr(run.model.head, "sentence", None) is not None) == (name in tasks)
    if not has_head:  # the same at every import
        again, _ = bring(folder, tmp_path)
        for name_of, parameter in run.model.named_parameters():
            assert torch.equal(parameter, dict(again.model.named_parameters())[name_of]), name_of


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], *, pickled: bool = False) -> None:
    """Save other weights in place of a folder's."""
    path = folder / "model.safetensors"
    weights = {name: tensor.clone() for name, tensor in change(load_file(path)).items()}
    if pickled:
        path.unlink()
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        save_file(weights, path)


@pytest.mark.parametrize("kind", CLASSES)
def test_the_ways_to_write_the_same_weights_are_understood(kind, saved, tmp_path):
    folder, theirs = saved(kind, WITH_HEAD[kind])
    copy, original = TIED[kind]
    forms: list[tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], bool]] = [
        (lambda found: {**found, copy: found[original]}, True),  # both names of the tied tensor
        (lambda found: {copy if name == original else name: t for name, t in found.items()}, False),  # the other one
        (lambda found: {f"module.{name}": t for name, t in found.items()}, False),
        (lambda found: {f"_orig_mod.{name}": t for name, t in found.items()}, True),
        (lambda found: {**found, f"{original.partition('.')[0]}.embeddings.position_ids": torch.arange(512)}, False),
    ]
    kept = load_file(folder / "model.safetensors")
    for change, pickled in forms:
        rewrite(folder, lambda _, change=change: change(kept), pickled=pickled)
        assert_same(bring(folder, tmp_path)[0], theirs)
        (folder / "pytorch_model.bin").unlink(missing_ok=True)
        save_file(kept, folder / "model.safetensors")
    rewrite(folder, lambda found: {**found, copy: found[original] + 1})
    with pytest.raises(CheckpointError, match=f"{re.escape(copy)} differs from {re.escape(original)}"):
        bring(folder, tmp_path)


@pytest.mark.parametrize("kind", CLASSES)
def test_weights_in_several_files_or_in_half_precision_are_imported(kind, saved, tmp_path):
    folder, theirs = saved(kind, WITH_HEAD[kind], max_shard_size="4KB")
    index = folder / "model.safetensors.index.json"
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert_same(bring(folder, tmp_path)[0], theirs)
    for dtype in (torch.float16, torch.bfloat16):
        quietly(lambda dtype=dtype: theirs.to(dtype).save_pretrained(tmp_path / str(dtype)))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (tmp_path / str(dtype) / name).write_bytes((folder / name).read_bytes())
        assert_same(bring(tmp_path / str(dtype), tmp_path)[0], theirs.float())
    kept = index.read_text()
    index.write_text("{}")
    with pytest.raises(CheckpointError, match=r"index\.json: not a valid index of weights"):
        bring(folder, tmp_path)
    index.write_text(kept)
    lost = sorted(folder.glob("*.safetensors"))[0]
    lost.unlink()
    with pytest.raises(CheckpointError, match=re.escape(lost.name)):
        bring(folder, tmp_path)


def configure(folder: Path, *removed: str, **changed: object) -> None:
    path = folder / "config.json"
    config = {name: value for name, value in json.loads(path.read_text()).items() if name not in removed}
    path.write_text(json.dumps({**config, **changed}))


@pytest.mark.parametrize("kind", CLASSES)
def test_a_config_without_a_model_type_is_concluded_or_refused(kind, saved, tmp_path):
    folder, theirs = saved(kind, WITH_HEAD[kind])
    configure(folder, "model_type")
    run, notes = bring(folder, tmp_path)
    assert_same(run, theirs)
    assert f"assumed, because config.json has no model_type: {kind}, from architectures" in notes
    configure(folder, "architectures")
    run, notes = bring(folder, tmp_path)
    assert_same(run, theirs)
    assert f"assumed, because config.json has no model_type: {kind}, from the names of the weights" in notes
    configure(folder, architectures=["RobertaForMaskedLM"])
    with pytest.raises(ConfigError, match=r'no model_type.*add "model_type", one of xlnet, albert, bert'):
        bring(folder, tmp_path)
    configure(folder, "vocab_size", model_type=kind)
    with pytest.raises(ConfigError, match="vocab_size must be the number of tokens, got None"):
        bring(folder, tmp_path)
    (folder / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="expected a JSON object, got list"):
        bring(folder, tmp_path)


def test_the_body_of_a_bert_is_not_taken_for_one_without_being_told(saved, tmp_path):
    """A RoBERTa has the same names."""
    folder, theirs = saved("bert", "Model")
    configure(folder, "model_type", "architectures")
    with pytest.raises(ConfigError, match="cannot be inferred from architectures or the names of the weights"):
        bring(folder, tmp_path)
    configure(folder, model_type="bert")
    assert_same(bring(folder, tmp_path)[0], theirs)


@pytest.mark.parametrize("options", [{}, {"do_lower_case": False}, {"strip_accents": False}], ids=str)
def test_a_vocabulary_of_words_alone_is_read_as_there(options, saved, tokenizers, tmp_path):
    folder, _ = saved("bert", "ForMaskedLM")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    if options:
        written = {**options, "tokenizer_class": "BertTokenizer", "backend": "tokenizers"}
        (folder / "tokenizer_config.json").write_text(json.dumps(written))
    with pytest.raises(DataError, match=r"no spiece\.model, tokenizer\.json or vocab\.txt"):
        bring(folder, tmp_path)
    (folder / "vocab.txt").write_bytes((tokenizers["bert"] / "vocab.txt").read_bytes())
    run, notes = bring(folder, tmp_path)
    assert_same_ids(run, folder)
    assert notes[0].startswith("tokenizer: vocab.txt as BertTokenizer of transformers 5")
    (folder / "vocab.txt").write_bytes(b"\xff\n")
    with pytest.raises(DataError, match=r"vocab\.txt: cannot be read"):
        bring(folder, tmp_path)


def test_a_vocabulary_of_words_is_none_of_an_albert(saved, tokenizers, tmp_path):
    folder, _ = saved("albert", "ForMaskedLM")
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_bytes((tokenizers["bert"] / "vocab.txt").read_bytes())
    with pytest.raises(DataError, match=r"vocab\.txt with AlbertTokenizer .* is not supported"):
        bring(folder, tmp_path)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_tokenizer_that_was_trained_anew_is_imported(kind, saved, tmp_path):
    folder, theirs = saved(kind, WITH_HEAD[kind])
    auto = transformers.AutoTokenizer.from_pretrained(folder)
    quietly(lambda: auto.train_new_from_iterator(LINES, 200).save_pretrained(folder))
    size = len(transformers.AutoTokenizer.from_pretrained(folder))
    theirs.resize_token_embeddings(size)
    quietly(lambda: theirs.save_pretrained(folder))
    run, _ = bring(folder, tmp_path)
    assert_same(run, theirs)
    assert_same_ids(run, folder)


def test_part_of_a_head_is_refused(saved, tmp_path):
    folder, _ = saved("bert", "ForMaskedLM")
    rewrite(folder, lambda found: {n: t for n, t in found.items() if n != "cls.predictions.bias"})
    with pytest.raises(XLPretrainError, match=r"missing: cls\.predictions\.bias"):
        bring(folder, tmp_path)
