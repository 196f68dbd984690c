"""Three examples of each task, in files."""

from __future__ import annotations

import json
from pathlib import Path

TEXTS = ["Bation is the word", "A much longer text, with Tring and Wone in it, and more", "Short"]
PAIRS = [(text, other) for text, other in zip(TEXTS, reversed(TEXTS), strict=True)]
CHOICES = [["one thing", "another", "third"], ["a", "b", "a longer choice"], ["this", "that", "those"]]


def task_files(folder: Path, task: str, *, pairs: bool = False) -> dict[str, Path]:
    """Write the files of a task, with the same examples to train and to evaluate on."""
    if task == "tag":
        words = [text.split() for text in TEXTS]
        rows = [{"tokens": of, "tags": ["X", *["Y"] * (len(of) - 1)]} for of in words]
    elif task == "choose":
        rows = [{"context": TEXTS[i], "choices": CHOICES[i], "label": i} for i in range(3)]
    elif task == "answer":
        rows = []
    else:
        of_task = {"regress": ("1", "2.5", "1"), "multilabel": ("a|b", "c", "[]")}
        targets = of_task.get(task, ("b", "a", "b"))
        texts = [(*(PAIRS[i] if pairs else (TEXTS[i],)), target) for i, target in enumerate(targets)]
        columns = ("first", "second", "label") if pairs else ("text", "label")
        rows = [dict(zip(columns, row, strict=True)) for row in texts]
    found = {name: folder / f"{name}.jsonl" for name in ("train", "valid")}
    if task == "answer":
        asked = [
            {"id": str(i), "question": "Which?", "answers": [{"text": text[2:7], "answer_start": 2}]}
            for i, text in enumerate(TEXTS)
        ]
        paragraphs = [{"context": text, "qas": [qa]} for text, qa in zip(TEXTS, asked, strict=True)]
        found = {name: folder / f"{name}.json" for name in found}
    for path in found.values():
        if task == "answer":
            path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
            continue
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return found
