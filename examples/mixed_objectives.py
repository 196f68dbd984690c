"""Compare a mixed objective with each of its parts alone, at equal tokens, on the held-out loss of every part.

    python examples/mixed_objectives.py examples/documentation/gpt_bert.yaml --seeds 3

Trains one run per seed with the mix, and with each part alone in its place; runs that are finished are not repeated.
Prints a table of held-out losses, and plots them over the tokens.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import torch

from xlpretrain.config import run_config
from xlpretrain.config.run_config import RunConfig
from xlpretrain.evaluation.loaded_run import LoadedRun
from xlpretrain.extras import optional
from xlpretrain.models.pretraining_model import PretrainingModel
from xlpretrain.objectives.base import Objective
from xlpretrain.objectives.mixed.objective import MixedObjective

MIXED = "mixed"


def main() -> None:
    """Train, evaluate, print and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plot", type=Path, default=Path("mixed-objectives.png"))
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_intermixed_args()
    config = run_config.load(options.config, options.overrides)
    if not isinstance(config.objective, MixedObjective):
        sys.exit(f"{options.config}: expected a mixed objective, got {config.objective.type}")
    parts = {part.label: part.objective for part in config.objective.parts}
    runs: dict[str, list[RunConfig]] = {name: [] for name in (MIXED, *parts)}
    for seed in range(1, options.seeds + 1):
        for name, of_seeds in runs.items():
            of_seeds.append(_train(options.config, options.overrides, config, name, seed))
    print("| trained with | " + " | ".join(f"held-out loss, {name}" for name in parts) + " |")
    print("|---|" + "---|" * len(parts))
    for name, of_seeds in runs.items():
        cells = [_spread([_loss(run, objective) for run in of_seeds]) for objective in parts.values()]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    _plot(options.plot, runs, list(parts))
    print(f"written: {options.plot}")


def _train(path: Path, overrides: list[str], config: RunConfig, name: str, seed: int) -> RunConfig:
    """Train a run with the mix, or with a part alone; returns its config."""
    own = [f"name={config.name}-{name}-{seed}", f"seed={seed}", *overrides]
    if name != MIXED:
        assert isinstance(config.objective, MixedObjective)
        own.append(f"objective={json.dumps(config.objective.part(name, '').model_dump(mode='json'))}")
    found = run_config.load(path, own)
    if not (found.folder.path / "status.json").is_file() or found.folder.read_status().state != "finished":
        subprocess.run([sys.executable, "-m", "xlpretrain", str(path), *own], check=True)
    return found


def _loss(config: RunConfig, objective: Objective) -> float:
    """The held-out loss of a run's model as a model of `objective`, whose head has the same parameters."""
    run = LoadedRun.load(config.folder, device=torch.device("cpu")).of_part(None, "")
    head = objective.head(run.model.backbone)
    head.load_state_dict(run.model.head.state_dict())
    model = PretrainingModel(run.model.backbone, head).eval()
    alone = replace(run, config=run.config.model_copy(update={"objective": objective}), model=model)
    return alone.evaluate(config=config.eval.model_copy(update={"max_tokens": None})).loss


def _spread(values: list[float]) -> str:
    return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def _plot(path: Path, runs: dict[str, list[RunConfig]], parts: list[str]) -> None:
    """Plot each part's held-out loss over all tokens trained on, of the mix and of the part alone."""
    with optional("matplotlib", "the plot"):
        import matplotlib.pyplot as plt
        from matplotlib.ticker import EngFormatter
    figure, axes = plt.subplots(1, len(parts), figsize=(5 * len(parts), 3.6), squeeze=False)
    for axis, part in zip(axes[0], parts, strict=True):
        for name, key, color in ((MIXED, f"valid/loss/{part}", "tab:blue"), (part, "valid/loss", "tab:orange")):
            for number, config in enumerate(runs[name]):
                lines = (config.folder.path / "metrics.jsonl").read_text().splitlines()
                rows = [row for row in map(json.loads, lines) if key in row]
                label = (name if name == MIXED else f"{name} alone") if number == 0 else None
                axis.plot([r["tokens"] for r in rows], [r[key] for r in rows], color=color, label=label, alpha=0.8)
        axis.set(title=f"held-out loss, {part}", xlabel="tokens trained on", ylabel="nats per prediction")
        axis.xaxis.set_major_formatter(EngFormatter())
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
