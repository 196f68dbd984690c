"""Cleaning, through whole builds: what stays, what goes, and what the report says of it.

Modules: deduplicate.py.
"""

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from built_datasets import write_jsonl
from corpus import make_documents, make_sentence

from data_pipelines.cleaning.clean import CleanConfig, clean
from data_pipelines.cleaning.minhash import minhash_bands
from data_pipelines.cleaning.quality import apply_c4_rules, passes_gopher
from xlpretrain.data.storage.dataset import TokenDataset
from xlpretrain.errors import ConfigError
from xlpretrain.schema import validate

BuildSmall = Callable[..., Path]
PROSE = (
    "The river runs to the south of the town, and most of its people have walked along it with their children. "
    "In the summer there is a market by the old bridge, where farmers sell what they have grown in the year. "
    "Nobody knows who built the bridge, but everybody has something to tell about those who did. "
)


def folded(documents: list[str]) -> list[str]:
    """Documents as they come back from tokens, sorted."""
    return sorted(" ".join(document.split()) for document in documents)


def texts_of(folder: Path) -> list[str]:
    """The documents of a split, decoded, sorted."""
    manifest = TokenDataset.open(folder)
    tokenizer = manifest.open_tokenizer()
    ends = manifest.document_ends(0, manifest.num_tokens)
    return sorted(tokenizer.decode(manifest.tokens(s, e)) for s, e in zip([0, *(ends + 1)], ends, strict=False))


def report_of(out: Path) -> dict:
    """Its report.json."""
    return json.loads((out / "report.json").read_text())


def change_words(document: str, count: int, seed: int) -> str:
    """A near-duplicate: some words of it replaced."""
    rng = random.Random(seed)
    words = document.split(" ")
    for place in rng.sample(range(len(words)), count):
        words[place] = "".join(rng.choices("abdegino", k=7))
    return " ".join(words)


def long_documents(count: int, *, seed: int) -> list[str]:
    """Of about 400 words."""
    rng = random.Random(seed)
    return [" ".join(make_sentence(rng) for _ in range(50)) for _ in range(count)]


def test_one_of_several_equal_documents_stays_unless_all_shall(build_small: BuildSmall):
    documents = make_documents(40, seed=21)
    out = build_small([*documents, *documents[:10], documents[0]], out="a")
    assert texts_of(out / "train") == folded(documents)
    assert report_of(out) == {"cleaned": {"exact duplicates": 11}, "documents_kept": 40, "documents_read": 51}
    kept = build_small([*documents, *documents[:10]], out="b", clean={"exact_duplicates": False})
    assert texts_of(kept / "train") == folded([*documents, *documents[:10]])


def test_no_held_out_document_nor_a_near_duplicate_of_one_is_in_training(build_small: BuildSmall):
    originals = long_documents(150, seed=22)
    planted = [change_words(document, 4, seed) for seed, document in enumerate(originals[:60])]
    others = [change_words(document, 200, seed) for seed, document in enumerate(originals[60:90])]
    settings = {"splits": {"valid": 0.2, "test": 0.1}, "clean": {"minhash_dedup": True}}
    out = build_small([*originals, *planted, *others, *originals[:20]], **settings)
    splits = {name: texts_of(out / name) for name in ("train", "valid", "test")}
    found = [document for documents in splits.values() for document in documents]
    for original, copy in zip(folded_in_order(originals[:60]), folded_in_order(planted), strict=True):
        assert (original in found) + (copy in found) == 1
    assert set(folded([*originals[60:], *others])) <= set(found)
    assert report_of(out)["cleaned"] == {"exact duplicates": 20, "near-duplicates": 60}
    # Held out: those that were chosen by their text alone, but for near-duplicates among themselves.
    free = build_small([*originals, *planted, *others], out="free", splits=settings["splits"])
    for name in ("valid", "test"):
        assert set(splits[name]) <= set(texts_of(free / name))
    held_out = {document for name in ("valid", "test") for document in texts_of(free / name)}
    pairs = dict(zip(folded_in_order(originals[:60]), folded_in_order(planted), strict=True))
    for original, copy in pairs.items():
        if original in held_out or copy in held_out:
            assert not {original, copy} & set(splits["train"])


def folded_in_order(documents: list[str]) -> list[str]:
    """Documents as they come back from tokens."""
    return [" ".join(document.split()) for document in documents]


def test_documents_that_stay_share_no_band(build_small: BuildSmall):
    originals = long_documents(30, seed=23)
    chain = [change_words(originals[0], count, 1) for count in range(1, 150, 5)]
    config = CleanConfig(minhash_dedup=True)
    out = build_small([*originals, *chain], clean={"minhash_dedup": True})
    kept = [minhash_bands(text, config.minhash).tolist() for text in texts_of(out / "train")]
    counts = Counter(key for keys in kept for key in set(keys))
    assert max(counts.values()) == 1
    assert 31 <= len(kept) < 60


def test_each_paragraph_stays_in_one_document(build_small: BuildSmall):
    rng = random.Random(24)
    paragraphs = [make_sentence(rng) + " " + "".join(rng.choices("abdegino", k=9)) + "." for _ in range(60)]
    documents = ["\n\n".join(rng.sample(paragraphs, 4)) for _ in range(80)] + [paragraphs[0]]
    out = build_small(documents, clean={"duplicate_paragraphs": True}, splits={"valid": 0.2})
    whole = " ".join([*texts_of(out / "train"), *texts_of(out / "valid")])
    used = {paragraph for document in documents for paragraph in document.split("\n\n")}
    assert [whole.count(paragraph) for paragraph in used] == [1] * len(used)
    cleaned = report_of(out)["cleaned"]
    assert cleaned["repeated paragraphs"] == sum(len(set(d.split("\n\n"))) for d in documents) - len(used)
    assert cleaned["nothing but repeated paragraphs"] == 81 - report_of(out)["documents_kept"]


def test_training_documents_that_overlap_a_held_out_set_are_left_out(build_small: BuildSmall, tmp_path: Path):
    documents = long_documents(40, seed=25)
    held_out = write_jsonl(tmp_path / "benchmark.jsonl", [d.upper().replace(" ", ", ") for d in documents[:5]])
    short = " ".join(documents[6].split()[:12])
    write_jsonl(tmp_path / "more.jsonl", [short])
    against = [{"type": "jsonl", "path": [str(held_out), str(tmp_path / "more.jsonl")]}]
    out = build_small(documents, clean={"decontaminate": {"against": against}})
    assert texts_of(out / "train") == folded(documents[5:])
    assert report_of(out)["cleaned"]["overlaps the held-out set"] == 5


def test_sources_can_be_held_out_whole_and_copies_of_them_leave_training(build_small: BuildSmall, tmp_path: Path):
    documents = make_documents(30, seed=26)
    train = write_jsonl(tmp_path / "train.jsonl", documents)
    valid = write_jsonl(tmp_path / "valid.jsonl", documents[20:])
    sources = [
        {"type": "jsonl", "path": str(train), "split": "train"},
        {"type": "jsonl", "path": str(valid), "split": "valid"},
    ]
    out = build_small([], sources=sources)
    assert texts_of(out / "train") == folded(documents[:20])
    assert texts_of(out / "valid") == folded(documents[20:])


def test_named_corpora_are_kept_apart_with_one_tokenizer(build_small: BuildSmall, tmp_path: Path):
    documents = make_documents(90, seed=27)
    sources = []
    for number, corpus in enumerate(["web", "books", "web"]):
        path = write_jsonl(tmp_path / f"{number}.jsonl", documents[number::3])
        sources.append({"type": "jsonl", "path": str(path), "subset": corpus})
    out = build_small([], sources=sources, splits={"valid": 0.2})
    assert sorted(path.name for path in out.iterdir()) == ["books", "report.json", "web"]
    web = texts_of(out / "web" / "train") + texts_of(out / "web" / "valid")
    assert sorted(web) == folded(documents[0::3] + documents[2::3])
    books = TokenDataset.open(out / "books" / "train")
    assert books.open_tokenizer().sha256 == TokenDataset.open(out / "web" / "valid").tokenizer_sha256
    assert build_small([], sources=sources, splits={"valid": 0.2}) == out


def test_documents_of_unwanted_length_are_left_out_and_broken_unicode_is_repaired(build_small: BuildSmall):
    documents = ["A plain sentence of some length.", "Short.", "word " * 200, "The word for it is cafÃ© in French."]
    out = build_small(documents, clean={"repair": True, "min_characters": 10, "max_characters": 500})
    assert report_of(out)["cleaned"] == {"repaired": 1, "too short": 1, "too long": 1, "exact duplicates": 0}
    counts: Counter[str] = Counter()
    assert clean(documents[3], CleanConfig(repair=True), counts) == "The word for it is café in French."
    assert clean(PROSE, CleanConfig(repair=True), counts) == PROSE
    assert counts["repaired"] == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PROSE, None),
        ("Too short to be one.", "fewer than 50 words or more than 100,000"),
        ("to be of I " * 50, "words of unusual length"),
        (PROSE.replace("the", "the ###"), "symbols for words"),
        ("\n".join(f"- {line} and with" for line in [PROSE] * 3), "bullet points"),
        ("\n".join(f"{PROSE} line {n}..." for n in range(3)), "lines cut off"),
        (PROSE + "12345 " * 20, "words without letters"),
        ("nothing common here whatsoever " * 20, "no stop words"),
        ("\n".join([PROSE] * 3), "repeated lines"),
        (PROSE + "again again again again " * 20, "repeated words"),
    ],
)
def test_gophers_rules(text: str, reason: str | None):
    assert passes_gopher(text) == reason


def test_c4_keeps_lines_that_are_sentences():
    page = f"Home | About\n{PROSE}\nClick\nPlease enable Javascript to see what is on here.\n\nWe have cookies too."
    text, reason = apply_c4_rules(page)
    assert (text, reason) == (f"{PROSE}\n\nWe have cookies too."[: -len("\n\nWe have cookies too.")].rstrip("\n"), None)
    assert apply_c4_rules(f"{PROSE} function() {{")[1] == "a curly bracket"
    assert apply_c4_rules(f"{PROSE} Lorem ipsum.")[1] == "lorem ipsum"
    assert apply_c4_rules("One sentence that is long enough.")[1] == "fewer than three sentences"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_characters": 10, "max_characters": 9}, "must be at least min_characters"),
        ({"minhash_dedup": True, "exact_duplicates": False}, "requires exact_duplicates"),
        ({"rules": ["c5"]}, "rules"),
        ({"decontaminate": {"against": [{"type": "text", "path": "-"}]}}, "cannot be read from standard input"),
    ],
)
def test_cleaning_that_makes_no_sense_is_refused(settings: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        validate(CleanConfig, settings, "test")
