"""Make golden folders: datasets, runs and checkpoints of the current version.

    python tests/support/make_golden.py tests/golden/0.1.0

test_golden.py reads all existing sets, so that later versions keep reading users' files. Make a
new set when a format changes; never change or delete an old one.

folders.tar.xz holds data/, runs/ and the labelled texts of a classifier. expected.json holds, for each run, a digest of
every parameter and optimizer state in its checkpoint and of the streams' memories, and the losses of its next steps:
resumed by one process with the plain engine in fp32, and with the engine and the number of ranks it was made with.
Paths in the archived files begin with `ROOT`; the test replaces it by the folder that it unpacks them to.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path("/tmp/xlpretrain-golden")
STEPS, NEXT, STREAMS = 6, 5, 6

SIZES = {"num_layers": 2, "d_model": 12, "num_heads": 2, "d_ff": 24}
DROPOUT = {"dropout": 0.1, "attention_dropout": 0.1}
LAMB = {"type": "lamb", "lr": 0.01, "grad_clip": 0.5}
MODELS: dict[str, dict[str, Any]] = {
    "transformer_xl": {
        "model": {"type": "transformer_xl", **SIZES, **DROPOUT, "mem_len": 12},
        "objective": {"type": "causal_lm", "seq_len": 16},
    },
    "xlnet": {
        "model": {"type": "xlnet", **SIZES, **DROPOUT, "mem_len": 12},
        "objective": {"type": "permutation_lm", "seq_len": 32, "reuse_len": 16, "perm_size": 16, "num_predict": 7},
    },
    "albert": {
        "model": {"type": "albert", **SIZES, "d_embed": 8, "max_positions": 32},
        "objective": {"type": "masked_lm", "seq_len": 32, "sentence_task": "sop"},
        "optimizer": LAMB,
    },
    "bert": {
        "model": {"type": "bert", **SIZES, **DROPOUT, "max_positions": 32},
        "objective": {"type": "masked_lm", "seq_len": 32, "sentence_task": "nsp"},
    },
}
PLAIN: dict[str, Any] = {"type": "plain"}
ZERO_1, ZERO_3 = ({"type": "deepspeed", "zero_stage": stage} for stage in (1, 3))
# Each engine, precision and number of ranks at least once; each model with each engine.
RUNS: list[tuple[str, dict[str, Any], str, int]] = [
    ("transformer_xl", PLAIN, "fp32", 1),
    ("xlnet", PLAIN, "fp32", 2),
    ("albert", PLAIN, "bf16", 1),
    ("bert", PLAIN, "bf16", 2),
    ("xlnet", ZERO_1, "fp32", 1),
    ("albert", ZERO_1, "fp32", 2),
    ("bert", ZERO_1, "bf16", 1),
    ("transformer_xl", ZERO_1, "bf16", 2),
    ("albert", ZERO_3, "fp32", 1),
    ("bert", ZERO_3, "fp32", 2),
    ("transformer_xl", ZERO_3, "bf16", 1),
    ("xlnet", ZERO_3, "bf16", 2),
]
RESUMED_AS_PLAIN = ["engine.type=plain", "engine.precision=fp32"]


def make_text(seed: int, count: int) -> list[str]:
    """Make documents of a few sentences, with artificial words distributed by Zipf's law."""
    rng = random.Random(seed)
    syllables = ["ba", "co", "di", "fer", "gu", "lan", "mo", "nis", "pra", "sol", "tek", "vu", "wer", "zin"]
    words = ["".join(rng.choice(syllables) for _ in range(rng.randint(1, 3))) for _ in range(400)]

    def sentence() -> str:
        chosen = [words[min(int(rng.paretovariate(0.8)), len(words)) - 1] for _ in range(rng.randint(3, 11))]
        return " ".join(chosen).capitalize() + rng.choice(".!?")

    return [" ".join(sentence() for _ in range(rng.randint(2, 9))) for _ in range(count)]


def run(*arguments: object) -> None:
    """Run the command line of this version."""
    unwanted = ("WANDB_", "OMP_NUM_THREADS", "XLPRETRAIN_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    env |= {"WANDB_MODE": "disabled", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [str(Path(sys.executable).parent / "xlpretrain"), *map(str, arguments)]
    subprocess.run(command, check=True, env=env, stdout=subprocess.DEVNULL)


def make_datasets() -> None:
    """Build two corpora with a common SentencePiece tokenizer, and a third in bytes."""
    for seed, name in enumerate(["words", "more_words"]):
        lines = (json.dumps({"text": text}) + "\n" for text in make_text(seed, 260))
        (ROOT / f"{name}.jsonl").write_text("".join(lines))
    tokenizers: dict[str, dict[str, Any]] = {
        "words": {"vocab_size": 160, "character_coverage": 1.0},
        "more_words": {"path": str(ROOT / "data" / "words" / "tokenizer" / "spiece.model")},
        "bytes": {"model_type": "bytes"},
    }
    for name, tokenizer in tokenizers.items():
        config = {
            "out": str(ROOT / "data" / name),
            "sources": [{"type": "jsonl", "path": str(ROOT / f"{name.replace('bytes', 'words')}.jsonl")}],
            "tokenizer": tokenizer,
            "splits": {"valid": 0.1},
            "block_tokens": 512,
            "workers": 1,
        }
        path = ROOT / f"{name}_data.yaml"
        path.write_text(yaml.safe_dump(config))
        run("data", "build", path)


def run_config(name: str, changes: dict[str, Any], engine: dict[str, Any], corpora: list[str]) -> Path:
    """Config of a run of `STEPS` steps."""
    train: Any = [{"path": str(ROOT / "data" / corpus / "train"), "weight": 1.0} for corpus in corpora]
    config = {
        "name": name,
        "runs_dir": str(ROOT / "runs"),
        "data": {
            "train": train if len(corpora) > 1 else train[0]["path"],
            "valid": str(ROOT / "data" / corpora[0] / "valid"),
        },
        "optimizer": {"type": "adamw", "lr": 3e-3, "grad_clip": 0.5},
        "schedule": {"type": "cosine", "warmup_steps": 2, "total_steps": 20},
        "engine": engine,
        "global_batch_size": STREAMS,
        "micro_batch_size": 2,
        "max_steps": STEPS,
        "checkpoint": {"every_steps": STEPS, "keep": 1},
        "eval": {"every_steps": STEPS, "max_tokens": 500, "num_streams": 2},
        "log": {"every_steps": 1},
        "wandb": {"mode": "disabled"},
        **changes,
    }
    path = ROOT / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def make_runs() -> dict[str, int]:
    """Train each run. Returns the number of ranks by name."""
    made: dict[str, int] = {}
    for model, engine, precision, ranks in RUNS:
        kind = engine["type"] if engine is PLAIN else f"zero{engine['zero_stage']}"
        name = f"{model}_{kind}_{precision}_{ranks}"
        run("train", run_config(name, MODELS[model], {**engine, "precision": precision}, ["words"]), "--nproc", ranks)
        made[name] = ranks
    small = {"model": {**MODELS["transformer_xl"]["model"], "num_layers": 1}}
    for name, corpora in {"mixture": ["words", "more_words"], "bytes": ["bytes"]}.items():
        changes = {**MODELS["transformer_xl"], **small}
        run("train", run_config(name, changes, {**PLAIN, "precision": "fp32"}, corpora), "--nproc", 1)
        made[name] = 1
    make_classifier("classifier")
    return {**made, "classifier": 1}


def make_classifier(name: str) -> None:
    """Fine-tune a classifier of texts by their first letter."""
    rows = [(text, "early" if text[0] < "M" else "late") for text in make_text(7, 60)]
    for split, part in {"train": rows[:48], "valid": rows[48:]}.items():
        lines = (json.dumps({"text": text, "label": label}) + "\n" for text, label in part)
        (ROOT / f"labelled_{split}.jsonl").write_text("".join(lines))
    run(
        "finetune", ROOT / "runs" / "bert_plain_bf16_2", "--train", ROOT / "labelled_train.jsonl",
        "--valid", ROOT / "labelled_valid.jsonl", "--name", name, "--runs-dir", ROOT / "runs", f"max_steps={STEPS}",
        "engine.type=plain", "engine.precision=fp32", "log.every_steps=1", f"checkpoint.every_steps={STEPS}",
        "checkpoint.keep=1", "schedule.total_steps=20", "stop.patience=100", f"eval.every_steps={STEPS}",
    )  # fmt: skip


def read_losses(folder: Path) -> list[float]:
    """Training losses after step `STEPS`."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row["train/loss"] for row in rows if row["step"] > STEPS and "train/loss" in row]


def resume_copy(name: str, *arguments: object) -> list[float]:
    """Compute the next losses of a run, leaving its folder unchanged."""
    folder, kept = ROOT / "runs" / name, ROOT / "kept"
    shutil.copytree(folder, kept)
    run("resume", folder, f"max_steps={STEPS + NEXT}", "log.every_steps=1", *arguments)
    losses = read_losses(folder)
    assert len(losses) == NEXT, losses
    shutil.rmtree(folder)
    kept.rename(folder)
    return losses


def read_state(folder: Path) -> dict[str, Any]:
    """Digests of everything in a checkpoint."""
    import torch

    from xlpretrain.checkpoint.reader import Checkpoint

    with Checkpoint(folder) as checkpoint:
        manifest = checkpoint.manifest
        state = {
            f"{kind}|{name}": digest(checkpoint.read(kind, name, 0, torch.Size(parameter.shape).numel()))
            for name, parameter in manifest.parameters.items()
            for kind in manifest.kinds
        }
        memory = checkpoint.read_memory(range(STREAMS)) if manifest.memory else None
        return {
            "state": state,
            "memory": digest(memory.float()) if memory is not None and memory.numel() else None,
            "train_state": {key: value for key, value in dict(manifest.state).items() if key != "wandb_id"},
            "num_updates": manifest.updates,
        }


def digest(tensor: Any) -> str:
    """First 64 bits of the SHA-256 of the elements, in order."""
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]


def main(out: Path) -> None:
    """Make everything under `ROOT`, then move it to `out`."""
    assert not out.exists(), f"{out}: golden folders are never changed"
    shutil.rmtree(ROOT, ignore_errors=True)
    ROOT.mkdir()
    make_datasets()
    expected = {}
    for name, ranks in make_runs().items():
        checkpoint = ROOT / "runs" / name / "checkpoints" / f"step-{STEPS:08d}"
        expected[name] = {
            "ranks": ranks,
            **read_state(checkpoint),
            "losses_as_plain": resume_copy(name, *RESUMED_AS_PLAIN, "--nproc", 1),
            "losses_as_made": resume_copy(name, "--nproc", ranks),
        }
        print(name, expected[name]["losses_as_plain"], expected[name]["losses_as_made"], flush=True)
    for folder in (ROOT / "runs").iterdir():
        shutil.rmtree(folder / "wandb", ignore_errors=True)
        for picture in folder.glob("*.png"):
            picture.unlink()
    out.mkdir(parents=True)
    (out / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    with tarfile.open(out / "folders.tar.xz", "w:xz") as archive:
        for part in sorted([ROOT / "data", ROOT / "runs", *ROOT.glob("labelled_*.jsonl")]):
            archive.add(part, part.name)
    shutil.rmtree(ROOT)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
