"""Every task: several seeds, cut short and continued, on one rank and on two."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from commands import finish, kill_all, read_metrics, run, start, wait_for_step
from imported_runs import make_run
from labelled_files import PLAIN, _write

WORDS = {"Bation": "B-A", "Tring": "B-B", "Wone": "O"}
STEPS = 24
RECIPE = [
    *PLAIN,
    "model.dropout=0",  # its masks depend on the number of ranks
    "model.attention_dropout=0",
    "objective.dropout=0",
    "optimizer.lr=0.001",  # small enough that roundings, which differ with the number of ranks, stay small
    f"max_steps={STEPS}",
    "schedule.warmup_steps=2",
    "eval.every_steps=8",
    "checkpoint.every_steps=8",
]


def _files(folder: Path, task: str, seed: int) -> Path:
    """Examples whose targets are words that they contain."""
    rng = random.Random(seed)
    chosen = [rng.choices(list(WORDS), k=rng.randrange(1, 5)) for _ in range(40)]
    path = folder / f"{seed}.jsonl"
    if task == "answer":
        path = path.with_suffix(".json")
        asked = [
            {
                "context": (context := f"here is {' '.join(words)}"),
                "qas": [{"id": str(i), "question": "What?", "answers": [_answer(context, words[0])]}],
            }
            for i, words in enumerate(chosen)
        ]
        path.write_text(json.dumps({"data": [{"paragraphs": asked}]}))
        return path
    if task in ("classify", "multilabel", "regress"):
        target = {
            "classify": lambda words: words[0],
            "multilabel": lambda words: "|".join(sorted(set(words))),
            "regress": lambda words: str(len(words)),
        }[task]
        return _write(path.with_suffix(".csv"), [(" ".join(of), target(of)) for of in chosen], ("text", "label"))
    rows = [
        {"tokens": words, "tags": [WORDS[word] for word in words]}
        if task == "tag"
        else {"context": words[0], "choices": list(WORDS), "label": list(WORDS).index(words[0])}
        for words in chosen
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def _answer(context: str, word: str) -> dict[str, object]:
    return {"text": word, "answer_start": context.index(word)}


def _losses(folder: Path) -> dict[int, float]:
    """The held-out loss by step. Between numbers of ranks it is compared with a tolerance: roundings depend on them,
    and Adam amplifies these where gradients are small."""
    return {row["step"]: row["valid/loss"] for row in read_metrics(folder) if "valid/loss" in row}


@pytest.mark.full
@pytest.mark.parametrize(
    ("task", "more"),
    [
        ("classify", ["objective.class_weights=balanced"]),
        ("multilabel", []),
        ("regress", []),
        ("tag", ["objective.class_weights={O: 0.5}"]),
        ("choose", []),
        ("answer", []),
    ],
)
def test_seeds_that_were_cut_give_what_whole_ones_give_and_ranks_make_no_difference(
    tmp_path: Path, tiny_dataset: Path, task: str, more: list[str]
):
    runs = tmp_path / "runs"
    source = make_run(runs, tiny_dataset, {"type": "bert", "max_positions": 80})
    files = ["--train", _files(tmp_path, task, 1), "--valid", _files(tmp_path, task, 2), "--runs-dir", runs]
    command = ["finetune", source.path, "--task", task, *files, *RECIPE, *more]
    seeds = [*command, "--seeds", 2, "--nproc", 2, "--name"]
    whole, _ = run(*seeds, "whole")
    process = start(*seeds, "cut")
    wait_for_step(runs / "cut" / "seed-2", 10, process)
    kill_all(process)
    cut, _ = finish(start(*seeds, "cut"), expect=0)
    assert "mean and standard deviation of 2 seeds" in whole and "mean and standard deviation of 2 seeds" in cut
    summaries = [json.loads((runs / name / "metrics.json").read_text()) for name in ("whole", "cut")]
    assert summaries[0] == summaries[1] and all(len(of["values"]) == 2 for of in summaries[0].values())
    losses = [[_losses(runs / name / f"seed-{seed}") for seed in (1, 2)] for name in ("whole", "cut")]
    assert losses[0] == losses[1], "a fine-tune that was killed goes on in every bit"
    assert losses[0][0].keys() == {8, 16, 24} and losses[0][0] != losses[0][1]
    run(*command, "--nproc", 1, "--name", "alone", "seed=1")
    assert _losses(runs / "alone") == pytest.approx(losses[0][0], rel=1e-3)
