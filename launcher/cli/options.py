"""Arguments shared by several commands."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from xlpretrain.errors import ConfigError


class Precision(StrEnum):
    """Types of weights in which a trained model can be used."""

    FP32 = "fp32"
    BF16 = "bf16"


PrecisionOption = Annotated[
    Precision | None, typer.Option("--precision", help="Type of the weights (default: as trained).", show_default=False)
]


class Weights(StrEnum):
    """Weights of a checkpoint."""

    TRAINED = "trained"
    AVERAGE = "average"


WeightsOption = Annotated[
    Weights, typer.Option("--weights", help="The trained weights, or their moving average (optimizer.average).")
]
ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Changes to the config, such as optimizer.lr=1e-4.", show_default=False),
]
RunPath = Annotated[
    Path, typer.Argument(metavar="RUN", help="Run folder, such as runs/quickstart.", show_default=False)
]
Dataset = Annotated[
    Path, typer.Argument(metavar="DIR", help="Folder of a dataset split (with index.json).", show_default=False)
]
NumProcesses = Annotated[
    int | None,
    typer.Option(
        "--nproc", min=1, help="Number of ranks (default: one per GPU; without GPUs, two).", show_default=False
    ),
]
AllowRecipeChange = Annotated[
    bool, typer.Option("--allow-recipe-change", help="Allow a started run to change its optimizer and schedule.")
]
MaxRestarts = Annotated[int, typer.Option("--max-restarts", min=0, help="Restart after a crash, at most N times.")]
Cluster = Annotated[
    Path, typer.Option("--cluster", metavar="FILE", help="Site profile, such as slurm/clusters/example.yaml.")
]
Nodes = Annotated[
    str | None,
    typer.Option(
        "--nodes", metavar="N|MIN-MAX", help="Number of nodes, or a range (default: the profile's).", show_default=False
    ),
]
TakeOver = Annotated[
    bool,
    typer.Option(
        "--force-takeover",
        help="Take over a run that another process still appears to own; that process will exit.",
    ),
]
Part = Annotated[
    str | None,
    typer.Option(
        "--part", metavar="NAME", help="Part of a mixed objective (default: the first that can).", show_default=False
    ),
]
RunsAndPaths = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN... [DATA.KEY=PATH ...]",
        help="Run folders; current paths of their data, such as data.valid=DIR.",
        show_default=False,
    ),
]
Sweeps = Annotated[
    list[str] | None,
    typer.Option("--sweep", metavar="KEY=V1,V2", help="One run per value; with several sweeps, one per combination."),
]
RunsDir = Annotated[Path, typer.Option("--runs-dir", metavar="DIR", help="Folder that holds the runs.")]


def parse_lengths(flag: str, text: str, *, least: int) -> list[int]:
    """Ascending lengths from numbers separated by commas, each once; below 0 comes last. Raises `ConfigError`."""
    try:
        lengths = {int(number) for number in text.split(",")}
    except ValueError:
        lengths = {least - 1}
    if min(lengths) < least:
        raise ConfigError(
            f"{flag}: expected a number of at least {least}, or several separated by commas (128,512), got {text!r}"
        )
    return sorted(lengths, key=lambda length: (length < 0, length))
