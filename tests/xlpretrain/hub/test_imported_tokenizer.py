"""An imported folder reads text with the ids that `AutoTokenizer` gives there, or it is refused."""

from __future__ import annotations

import json
import shutil
import tarfile
import warnings
from functools import lru_cache
from pathlib import Path

import pytest
import tokenizers
from hard_lines import NUM_LINES, SEED, digests, hard_lines, where_they_differ
from published_tokenizers import train_as_published
from repository import TESTS

import xlpretrain
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.data.tokenizers.base import SPECIAL_TOKENS, Tokenizer
from xlpretrain.data.tokenizers.open import load_tokenizer
from xlpretrain.errors import DataError
from xlpretrain.finetune.results import finetune_config
from xlpretrain.hub.export import export
from xlpretrain.hub.import_model import import_model
from xlpretrain.hub.tokenizers.folder_tokenizer import read_folder

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

FIXTURES = TESTS / "fixtures" / "transformers_4"
OF_4: dict[str, str] = json.loads((FIXTURES / "ids.json").read_text())
LINES = hard_lines(NUM_LINES, seed=SEED)
CLASSES = {"albert": "AlbertTokenizer", "xlnet": "XLNetTokenizer"}


@pytest.fixture(scope="module")
def of_4(tmp_path_factory) -> Path:
    """Folders as transformers 4.57 wrote them, by the name of the case."""
    to = tmp_path_factory.mktemp("transformers_4")
    with tarfile.open(FIXTURES / "folders.tar.xz") as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.3 and older have none
        tar.extractall(to)
    return to


@lru_cache
def published(kind: str) -> bytes:
    """With all rules of SentencePiece's."""
    return train_as_published(kind).SerializeToString()


def read(folder: Path) -> Tokenizer:
    """By what its config.json says."""
    found = read_folder(folder, json.loads((folder / "config.json").read_text())["model_type"])
    assert found is not None
    return found[0]


def ids_in_file(tokenizer: Tokenizer, lines: list[str] = LINES) -> list[list[int]]:
    """What the tokenizer's file says, as transformers reads it, after a check that the tokenizer says the same.

    Except for a symbol that a line spells out: as a piece of the model it becomes the symbol there, and never here.
    """
    own = tokenizers.Tokenizer.from_str(tokenizer.model.decode())
    own.encode_special_tokens = True
    own.no_truncation()
    own.no_padding()
    theirs = [found.ids for found in own.encode_batch(lines, add_special_tokens=False)]
    pieces = own.get_vocab()
    symbols = {piece: pieces[piece] for spellings in SPECIAL_TOKENS.values() for piece in spellings if piece in pieces}
    unknown = next(piece for piece in SPECIAL_TOKENS["unk"] if piece in pieces)
    own_ids = set(symbols.values()) - {symbols[unknown]}
    for line, ours, ids in zip(lines, tokenizer.encode_batch(lines), theirs, strict=True):
        spells_symbol = not own_ids.isdisjoint(ids) or unknown.lower() in line.lower() or "<s>" in line.lower()
        spells_symbol |= "</s>" in line.lower() or "<eop>" in line.lower()
        assert own_ids.isdisjoint(ours), line
        assert spells_symbol or ours == ids, line
    return theirs


def differing(folder: Path, tokenizer: Tokenizer, lines: list[str] = LINES) -> list[str]:
    """The lines to which the installed transformers gives other ids than the file of the tokenizer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        auto = transformers.AutoTokenizer.from_pretrained(folder, split_special_tokens=True)
    theirs = auto(lines, add_special_tokens=False)["input_ids"]
    ours = ids_in_file(tokenizer, lines)
    return [line for line, a, b in zip(lines, ours, theirs, strict=True) if a != b]


@pytest.mark.parametrize("case", OF_4)
def test_a_folder_of_transformers_4_has_the_ids_that_it_has_there(case, of_4):
    found = digests(ids_in_file(read(of_4 / case)))
    assert where_they_differ(found, OF_4[case]) == []
    assert found == OF_4[case]


OF_5 = {
    "albert": ("albert", {}),
    "albert, cased": ("albert", {"do_lower_case": False, "keep_accents": True, "add_prefix_space": False}),
    "xlnet": ("xlnet", {}),
    "xlnet, uncased": ("xlnet", {"do_lower_case": True, "keep_accents": True}),
}


@pytest.mark.parametrize("case", OF_5)
def test_a_folder_of_transformers_5_has_the_ids_that_it_has_there(case, tmp_path):
    kind, options = OF_5[case]
    folder = tmp_path / "saved"
    folder.mkdir()
    (tmp_path / "spiece.model").write_bytes(published(kind))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = getattr(transformers, CLASSES[kind]).from_pretrained(tmp_path, **options)
        made.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": kind, "transformers_version": "5.0.0"}))
    saved = (folder / "tokenizer.json").read_bytes()
    assert read(folder).model == saved
    assert differing(folder, read(folder)) == []
    options = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**options, "do_lower_case": not options["do_lower_case"]})
    )
    assert read(folder).model != saved
    assert differing(folder, read(folder), LINES[:1000]) == []


@pytest.mark.parametrize("kind", CLASSES)
def test_files_that_were_put_beside_a_model_of_transformers_5_are_read_as_there(kind, of_4, tmp_path):
    """A SentencePiece model alone, and a tokenizer.json of version 4: what is not in them is version 5's."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "transformers_version": "5.1.0"}))
    (tmp_path / "spiece.model").write_bytes(published(kind))
    alone = read(tmp_path)
    assert differing(tmp_path, alone) == []
    raw = load_tokenizer(tmp_path / "spiece.model")
    assert sum(a != b for a, b in zip(raw.encode_batch(LINES), alone.encode_batch(LINES), strict=True)) > 1000
    (tmp_path / "spiece.model").unlink()
    shutil.copy(of_4 / f"{kind}, fast" / "tokenizer.json", tmp_path)
    assert differing(tmp_path, read(tmp_path)) == []


def test_the_options_of_a_bert_rule_over_its_file(tmp_path):
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(chr, range(33, 383)), "##e", "##é", "##l"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    folder = tmp_path / "saved"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.BertTokenizer.from_pretrained(tmp_path).save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    saved = (folder / "tokenizer.json").read_bytes()
    assert read(folder).model == saved
    assert differing(folder, read(folder), LINES[:1000]) == []
    for change in ({"do_lower_case": False}, {"strip_accents": False}, {"tokenize_chinese_chars": False}):
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        assert read(folder).model != saved
        assert differing(folder, read(folder), LINES[:1000]) == []


@pytest.fixture
def model(of_4, tmp_path) -> Path:
    """An ALBERT of transformers, with the files of a tokenizer as version 4 saves them."""
    shutil.copytree(of_4 / "albert, slow", tmp_path / "albert")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sizes = {"embedding_size": 8, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = transformers.AlbertConfig(vocab_size=900, intermediate_size=24, **sizes)
        transformers.AlbertForPreTraining(config).save_pretrained(tmp_path / "albert")
    return tmp_path / "albert"


def test_an_imported_model_has_its_ids_wherever_it_meets_text(model, tmp_path, build_small):
    """It builds data, evaluates, scores, is exported and comes back with the ids of the folder that it came from."""
    folder, notes = import_model(model, name="albert", runs_dir=tmp_path / "runs")
    assert notes[0].startswith("tokenizer: spiece.model as AlbertTokenizer of transformers 4 (do_lower_case=True")
    run = xlpretrain.load(folder.path)
    assert digests(ids_in_file(run.tokenizer)) == OF_4["albert, slow"]
    texts = ["Hello World, it's Café déjà.  ", "It was 3.0, or 1,000,000, ``once''.\n"]
    tokens = run.tokenizer.encode_batch([text.strip() for text in texts])
    assert all(run.tokenizer.encode(text)[:-1] == ids for text, ids in zip(texts, tokens, strict=True))
    path = {"tokenizer": {"path": str(folder.path / "tokenizer")}, "clean": {"exact_duplicates": False}}
    dataset = build_small(["".join(texts)] * 40, **path)
    manifest = TokenDataset.open(dataset / "train")
    built = manifest.tokens(0, sum(map(len, tokens)) + 1).tolist()
    assert built == [*tokens[0], *tokens[1], run.tokenizer.vocabulary.eod]
    again, _ = import_model(model, name="again", runs_dir=tmp_path / "runs", data=dataset / "train")
    loaded = xlpretrain.load(again.path)
    assert loaded.tokenizer.sha256 == manifest.tokenizer_sha256
    assert loaded.log_likelihoods(texts)[0].num_tokens == len(tokens[0]) + 1  # the space at the end is one there
    assert not any(run.tokenizer.word_starts()[run.tokenizer.encode("tokenizer")][1:])
    export(folder, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == run.tokenizer.model
    assert differing(tmp_path / "out", run.tokenizer) == []
    v = run.tokenizer.vocabulary
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out")("Hello")["input_ids"] == [
        v.cls,
        *run.tokenizer.encode("Hello"),
        v.sep,
    ]
    (tmp_path / "labelled.csv").write_text("text,label\nHello World,a\nCafé 3.0,b\n", encoding="utf-8")
    files = {"train": tmp_path / "labelled.csv", "valid": tmp_path / "labelled.csv"}
    tuned = finetune_config(folder, **files, name="tuned", runs_dir=tmp_path / "runs")
    assert tuned.data.open().tokenizer.sha256 == run.tokenizer.sha256
    back, _ = import_model(tmp_path / "out", name="back", runs_dir=tmp_path / "runs", data=dataset / "train")
    assert xlpretrain.load(back.path).tokenizer.sha256 == run.tokenizer.sha256


def configure(folder: Path, **options: object) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **options}))


def test_what_is_not_known_is_refused_and_a_file_that_is_named_is_taken_as_it_is(model, tmp_path):
    def refused(told: str) -> None:
        with pytest.raises(DataError, match=told):
            import_model(model, name="no", runs_dir=tmp_path / "runs")
        assert not (tmp_path / "runs").exists()

    with pytest.raises(DataError, match=r"a third-party model, .* import it \(`xlpretrain import"):
        load_tokenizer(model)
    configure(model, tokenizer_class="CamembertTokenizer")
    refused(r"spiece\.model with CamembertTokenizer of transformers 4 \(do_lower_case=True, .* is not supported")
    configure(model, tokenizer_class="AlbertTokenizer", auto_map={"AutoTokenizer": ["own.Tokenizer", None]})
    refused("AlbertTokenizer with custom code")
    configure(model, auto_map=None, added_tokens_decoder={"7": {"content": "[MASK]"}})
    refused("the ids in added_tokens_decoder do not match the vocabulary")
    (model / "tokenizer_config.json").write_text("[]")
    refused(r"tokenizer_config\.json: expected an object, got list")
    given = model / "spiece.model"
    folder, _ = import_model(model, name="given", runs_dir=tmp_path / "runs", tokenizer=given)
    assert xlpretrain.load(folder.path).tokenizer.model == given.read_bytes()


def test_tokens_that_were_added_to_a_vocabulary_are_found(of_4, tmp_path):
    folder = tmp_path / "more"
    shutil.copytree(of_4 / "albert, slow", folder)
    options = json.loads((folder / "tokenizer_config.json").read_text())
    new = {"content": "Qux", "special": False, "normalized": False}
    configure(folder, added_tokens_decoder={**options["added_tokens_decoder"], "900": new})
    tokenizer = read(folder)
    assert tokenizer.vocabulary.size == 901
    assert 900 in tokenizer.encode("a Qux b")
    assert 900 not in tokenizer.encode("a qux b")


def test_a_model_that_is_not_unigram_is_refused(of_4, tmp_path):
    folder = tmp_path / "bpe"
    shutil.copytree(of_4 / "albert, slow", folder)
    (folder / "spiece.model").write_bytes(train_as_published("albert", model_type="bpe").SerializeToString())
    with pytest.raises(DataError, match=r"not a unigram model, which AlbertTokenizer of transformers 4 .* requires"):
        read(folder)
