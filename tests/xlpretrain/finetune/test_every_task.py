"""Every task: several seeds, cut short and continued, on one rank and on two."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from commands import finish, kill_all, run, start, wait_for_step
from imported_runs import make_run
from labelled_files import PLAIN, _write

import xlpretrain
from xlpretrain.evaluation.task_outputs import task_outputs

WORDS = {"Bation": "B-A", "Tring": "B-B", "Wone": "O"}
STEPS = 24
RECIPE = [
    *PLAIN,
    "model.dropout=0",  # its masks depend on the number of ranks
    "model.attention_dropout=0",
    "objective.dropout=0",
    "optimizer.lr=0.01",
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


def _outputs(folder: Path) -> list[list[float]]:
    loaded = xlpretrain.load(folder, device="cpu")
    task, _ = loaded.task
    found = task_outputs(loaded.model, task, loaded.tokenizer, task.numbered(loaded.valid))
    return [output.ravel().tolist() for output in found]


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
def test_seeds_that_were_cut_on_two_ranks_give_what_whole_ones_give_on_one(
    tmp_path: Path, tiny_dataset: Path, task: str, more: list[str]
):
    runs = tmp_path / "runs"
    source = make_run(runs, tiny_dataset, {"type": "bert", "max_positions": 80})
    files = ["--train", _files(tmp_path, task, 1), "--valid", _files(tmp_path, task, 2), "--runs-dir", runs]
    command = ["finetune", source.path, "--task", task, *files, "--seeds", 2, *RECIPE, *more]
    whole, _ = run(*command, "--nproc", 1, "--name", "whole")
    process = start(*command, "--nproc", 2, "--name", "cut")
    wait_for_step(runs / "cut" / "seed-2", 10, process)
    kill_all(process)
    cut, _ = finish(start(*command, "--nproc", 2, "--name", "cut"), expect=0)
    assert "mean and standard deviation of 2 seeds" in whole and "mean and standard deviation of 2 seeds" in cut
    summaries = [json.loads((runs / name / "metrics.json").read_text()) for name in ("whole", "cut")]
    assert summaries[0] and summaries[1] == {
        metric: {key: pytest.approx(value, abs=1e-4) for key, value in of.items()}
        for metric, of in summaries[0].items()
    }
    for seed in ("seed-1", "seed-2"):
        ours, theirs = _outputs(runs / "whole" / seed), _outputs(runs / "cut" / seed)
        assert ours == [pytest.approx(of, abs=2e-3) for of in theirs]
    assert _outputs(runs / "whole" / "seed-1") != _outputs(runs / "whole" / "seed-2")
