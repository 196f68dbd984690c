"""Folders of GLUE, BLiMP and the BabyLM evaluation in the layouts in which they are distributed, with made-up texts."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from corpus import make_sentence

_MNLI = ("index", "promptID", "pairID", "genre", "sentence1_binary_parse", "sentence2_binary_parse")
_MNLI += ("sentence1_parse", "sentence2_parse", "sentence1", "sentence2")
_STSB = ("index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2", "score")
GLUE = {
    "CoLA": (),  # no header: source, label, judgment, sentence
    "SST-2": ("sentence", "label"),
    "MRPC": ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"),
    "STS-B": _STSB,
    "QQP": ("id", "qid1", "qid2", "question1", "question2", "is_duplicate"),
    "MNLI": (*_MNLI, "label1", "gold_label"),
    "QNLI": ("index", "question", "sentence", "label"),
    "RTE": ("index", "sentence1", "sentence2", "label"),
    "WNLI": ("index", "sentence1", "sentence2", "label"),
}
"""The columns of the training files, in the order of gluebenchmark.com's zip files."""
_LABELS = {
    "QNLI": ("entailment", "not_entailment"),
    "RTE": ("entailment", "not_entailment"),
    "MNLI": ("contradiction", "entailment", "neutral"),
}
_TEXTS = ("sentence", "sentence1", "sentence2", "question", "question1", "question2", "#1 String", "#2 String")


def write_glue(folder: Path, *, num_rows: int = 6) -> Path:
    """Write train.tsv and dev.tsv of each task (MNLI: dev_matched.tsv, dev_mismatched.tsv)."""
    rng = random.Random(0)
    for task, columns in GLUE.items():
        (folder / task).mkdir(parents=True)
        valid = ("dev_matched", "dev_mismatched") if task == "MNLI" else ("dev",)
        for name in ("train", *valid):
            own = columns
            if name.startswith("dev_"):  # five annotators' labels
                own = (*columns[:-2], *(f"label{n}" for n in range(1, 6)), "gold_label")
            rows = [_glue_row(task, own, number, rng) for number in range(num_rows)]
            lines = ["\t".join(row) for row in ([own] if own else []) + rows]
            if task == "QQP" and name == "train":
                lines.append("133273\t213221\t213222\tHow is a row cut short?")  # as some are
            (folder / task / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def _glue_row(task: str, columns: Sequence[str], number: int, rng: random.Random) -> list[str]:
    labels = _LABELS.get(task, ("0", "1"))
    label = labels[number % len(labels)]
    text = f'"{make_sentence(rng)}' if number == 1 else make_sentence(rng)  # a quote that never closes
    if task == "CoLA":
        return ["gj04", label, "*" if label == "0" else "", text]
    made = {"score": f"{number % 6}.500", "Quality": label, "is_duplicate": label, "gold_label": label}
    made |= dict.fromkeys(_TEXTS, text) | {f"label{n}": label for n in range(1, 6)} | {"label": label}
    return [made.get(column, str(number)) for column in columns]


def write_pairs(path: Path, count: int, *, seed: int = 0, **keys: Any) -> Path:
    """Write minimal pairs as BLiMP has them: a sentence, and its words in reverse. keys: more keys of each object."""
    rng = random.Random(seed)
    lines = []
    for number in range(count):
        good = make_sentence(rng)
        bad = " ".join(reversed(good.split()))
        pair = {"sentence_good": good, "sentence_bad": bad, **keys, "pairID": str(number)}
        lines.append(json.dumps(pair))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def write_blimp(folder: Path, *, count: int = 4) -> Path:
    """Write three files of BLiMP, of two phenomena."""
    named = {"adjunct_island": "island_effects", "wh_island": "island_effects", "passive_1": "argument_structure"}
    for seed, (uid, term) in enumerate(named.items()):
        keys = {"field": "syntax", "linguistics_term": term, "UID": uid, "simple_LM_method": True}
        write_pairs(folder / "data" / f"{uid}.jsonl", count, seed=seed, **keys)
    return folder


def write_babylm(folder: Path, *, num_rows: int = 4) -> Path:
    """Write `evaluation_data/full_eval` of the BabyLM evaluation: minimal pairs and glue_filtered/."""
    write_blimp(folder / "made", count=2)
    (folder / "made" / "data").rename(folder / "blimp_filtered")
    (folder / "made").rmdir()
    for name in ("hypernym", "turn_taking"):
        write_pairs(folder / "supplement_filtered" / f"{name}.jsonl", 2)
    rng = random.Random(0)
    keys: dict[str, tuple[str, ...]] = {
        "boolq": ("question", "passage"),
        "multirc": ("paragraph", "question", "answer"),
        "rte": ("sentence1", "sentence2"),
        "wsc": ("text", "span1_text", "span2_text"),
        "mrpc": ("sentence1", "sentence2"),
        "qqp": ("question1", "question2"),
        "mnli": ("premise", "hypothesis"),
    }
    (folder / "glue_filtered").mkdir()
    for task, texts in keys.items():
        for split in ("train", "valid"):
            rows = []
            for number in range(num_rows):
                idx: Any = {"paragraph": 1, "question": number} if task == "multirc" else number
                rows.append({key: make_sentence(rng) for key in texts} | {"idx": idx, "label": number % 2})
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / "glue_filtered" / f"{task}.{split}.jsonl").write_text(text)
    return folder
