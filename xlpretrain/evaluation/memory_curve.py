"""The curve of the held-out loss over the memory length at evaluation, for one or several runs."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from xlpretrain import distributed, schema
from xlpretrain.config import origin
from xlpretrain.config.run_config import RunConfig
from xlpretrain.config.sections import EvalConfig
from xlpretrain.errors import ConfigError, DataError
from xlpretrain.evaluation.context_length import SHARES, THRESHOLD, ContextLength, effective_context_lengths
from xlpretrain.evaluation.held_out import EvalResult
from xlpretrain.evaluation.loaded_run import LoadedRun
from xlpretrain.file_system.atomic_files import atomic_writer
from xlpretrain.run_dir.layout import RunDir
from xlpretrain.tracking.plots import Line, plot_memory_curves
from xlpretrain.tracking.printing import AnswerConsole


@dataclass(frozen=True, kw_only=True)
class CurveSettings:
    """Settings of curves; None: as trained.

    data: folder or URL of a split. mem_lens: memory lengths. clamp_lens: limits of distances, -1 for none, each a curve
    of its own. others: other settings of the evaluations, as in `EvalConfig`. recl: keep the loss of each token. part:
    of a mixed objective; None: the first one.
    """

    data: str | None
    mem_lens: Sequence[int | None]
    clamp_lens: Sequence[int | None]
    others: Mapping[str, Any]
    recl: bool = False
    part: str | None = None

    def of(self, run: RunConfig, *, mem_len: int | None, clamp_len: int | None) -> EvalConfig:
        """The settings of one evaluation of a run. Without a memory there is no `same_length`.

        Raises `ConfigError` if they do not fit the run.
        """
        changes = {"mem_len": mem_len, "clamp_len": clamp_len, **self.others}
        changes["num_streams"] = changes["num_streams"] or run.eval.num_streams
        if mem_len == 0 and len(self.mem_lens) > 1:
            changes["same_length"] = None
        config = schema.validate(EvalConfig, run.eval.model_dump(mode="json") | changes, "xlpretrain eval")
        run.eval_objective(config)
        return config


@dataclass(frozen=True, kw_only=True)
class MemoryCurve:
    """Evaluations of a model with several memory lengths, all on the same predictions.

    name: of the run, and of the setting that tells this curve from the others. clamp_len: None for no limit.
    results: by memory length, ascending.
    """

    name: str
    step: int
    trained_mem_len: int
    clamp_len: int | None
    same_length: bool
    results: Mapping[int, EvalResult]

    @property
    def reference(self) -> int:
        """The length that the others are compared with: that of training, else the shortest one."""
        return self.trained_mem_len if self.trained_mem_len in self.results else min(self.results)

    def difference(self, mem_len: int) -> tuple[float, float]:
        """The loss minus that with the reference length, in nats per prediction, and its standard error over texts."""
        gain, error = self.results[mem_len].gain_over(self.results[self.reference])
        return -gain + 0.0, error


def measure_curves(
    runs: Sequence[Path],
    settings: CurveSettings,
    *,
    device: torch.device,
    dtype: torch.dtype | None,
    moved: Sequence[str],
    weights: str = "trained",
) -> list[MemoryCurve]:
    """Evaluate runs with every memory length, loading each once. Every rank must call it.

    All settings are checked before anything is evaluated. Rank 0 prints each result on stderr.

    Raises:
        ConfigError: the settings do not fit a run, such as a memory length for a model without a memory.
        DataError: the runs were not evaluated on the same predictions.
    """
    for path in runs:
        config = origin.load_config(RunDir(path), moved).of_part(settings.part, "")
        for mem_len in settings.mem_lens:
            for clamp_len in settings.clamp_lens:
                settings.of(config, mem_len=mem_len, clamp_len=clamp_len)
        if settings.recl and not config.objective.generates:
            raise ConfigError(
                f"{path}: --recl needs a model that predicts each token from those before it; objective"
                f" {config.objective.type} does not"
            )
    curves, contents = list[MemoryCurve](), list[str]()
    names = [path.absolute().name for path in runs]
    for path, name in zip(runs, names if len(set(names)) == len(names) else map(str, runs), strict=True):
        run = LoadedRun.load(RunDir(path), device=device, moved=moved, dtype=dtype, weights=weights)
        run = run.of_part(settings.part, "")
        contents.append(run.held_out(settings.data).fingerprint)
        curves += _curves_of(run, settings, name)
    results = [result for curve in curves for result in curve.results.values()]
    if len(set(contents)) > 1 or any(
        not np.array_equal(result.cluster_counts, results[0].cluster_counts) for result in results
    ):
        raise DataError(
            "the runs do not predict the same held-out tokens, so that their losses cannot be compared; name one split"
            " with --data, and compare runs with the same tokenizer and objective"
        )
    return curves


def _curves_of(run: LoadedRun, settings: CurveSettings, name: str) -> Iterator[MemoryCurve]:
    """The curves of one run: one for each limit of distances."""
    backbone = run.config.model
    for limit in settings.clamp_lens:
        results, config = dict[int, EvalResult](), run.config.eval
        for length in settings.mem_lens:
            config = settings.of(run.config, mem_len=length, clamp_len=limit)
            mem_len = run.config.eval_mem_len(config)
            results[mem_len] = run.evaluate(settings.data, config=config, keep_losses=settings.recl)
            if distributed.rank() == 0:
                print(f"{name}, memory {mem_len}: {results[mem_len].loss:.6f} nats", file=sys.stderr)
        trained = getattr(backbone, "clamp_len", None)
        clamp_len = trained if config.clamp_len is None else config.clamp_len
        trained_same = bool(getattr(backbone, "same_length", False))
        yield MemoryCurve(
            name=name + _clamp_suffix(limit, many=len(settings.clamp_lens) > 1),
            step=run.step,
            trained_mem_len=backbone.mem_len,
            clamp_len=None if clamp_len == -1 else clamp_len,
            same_length=trained_same if settings.others["same_length"] is None else settings.others["same_length"],
            results=dict(sorted(results.items())),
        )


def _clamp_suffix(limit: int | None, *, many: bool) -> str:
    if not many:
        return ""
    return ", distances not clamped" if limit == -1 else f", clamped to {limit}"


def context_lengths(curves: Sequence[MemoryCurve]) -> dict[float, list[ContextLength]]:
    """The relative effective context length of each curve, by the share of hard tokens. The curves are the group."""
    losses = np.array([[result.prediction_nll for result in curve.results.values()] for curve in curves])
    lengths = list(curves[0].results)
    return {share: effective_context_lengths(losses, lengths, share=share) for share in SHARES}


def rows_of(curves: Sequence[MemoryCurve]) -> list[dict[str, Any]]:
    """The figures of each evaluation, as written to files. Numbers that do not exist are None."""
    return [
        {
            "curve": curve.name,
            "step": curve.step,
            "mem_len": mem_len,
            "trained_mem_len": curve.trained_mem_len,
            "clamp_len": curve.clamp_len,
            "same_length": curve.same_length and mem_len > 0,
            "predictions": result.main.count,
            "loss": result.loss,
            "perplexity": result.perplexity,
            "bits_per_byte": _or_none(result.bits_per_byte),
            "accuracy": _or_none(result.main.accuracy),
            "difference": curve.difference(mem_len)[0],
            "difference_error": curve.difference(mem_len)[1],
        }
        for curve in curves
        for mem_len, result in curve.results.items()
    ]


def write_curves(path: Path, curves: Sequence[MemoryCurve], recl: Mapping[float, Sequence[ContextLength]]) -> None:
    """Write all figures as .json, one row per evaluation as .csv, or a plot as .png. Raises OSError."""
    if path.suffix == ".png":
        lines = [
            Line(
                curve.name, list(curve.results), [found.loss for found in curve.results.values()], curve.trained_mem_len
            )
            for curve in curves
        ]
        plot_memory_curves(lines, path)
        return
    rows = rows_of(curves)
    with atomic_writer(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        else:
            first = next(iter(curves[0].results.values()))
            content: dict[str, Any] = {"num_tokens": first.num_tokens, "num_bytes": first.num_bytes, "rows": rows}
            if recl:
                content["recl"] = [
                    {
                        "curve": curve.name,
                        "share": share,
                        "num_tokens": found.num_tokens,
                        "is_bound": found.is_bound,
                        "gains": found.gains,
                    }
                    for share, lengths in recl.items()
                    for curve, found in zip(curves, lengths, strict=True)
                ]
            json.dump(content, file, indent=1)
            file.write("\n")


def print_curves(
    curves: Sequence[MemoryCurve], recl: Mapping[float, Sequence[ContextLength]], console: AnswerConsole
) -> None:
    """Print the curves as a table, and the relative effective context lengths, if any."""
    first = next(iter(curves[0].results.values()))
    console.print(f"{first.num_tokens:,} tokens, {first.main.count:,} predictions with each memory length")
    for curve in curves:
        clamped = "distances not clamped" if curve.clamp_len is None else f"distances clamped to {curve.clamp_len}"
        same = ", same length" if curve.same_length else ""
        console.print(f"{curve.name}: step {curve.step}, trained with memory {curve.trained_mem_len}; {clamped}{same}")
    console.print(_table(curves))
    console.print(
        "difference: nats above the loss of the same curve with the memory of training (=), or the shortest one;"
        " ±: standard error over texts"
    )
    if recl:
        lengths = list(curves[0].results)
        console.print(
            f"\nRelative effective context length in tokens, in steps of {lengths[1] - lengths[0]} from {lengths[0]};"
            f" group of {len(curves)}, threshold {THRESHOLD:g}; r: share of the tokens, the hardest ones"
        )
        console.print(_recl_table(curves, recl))


def _table(curves: Sequence[MemoryCurve]) -> Table:
    whole = all(result.covers_all_tokens for curve in curves for result in curve.results.values())
    table = Table(box=None, header_style="bold", pad_edge=False)
    if len(curves) > 1:
        table.add_column("run")
    columns = ["nats each", "perplexity", *(["bits per byte"] if whole else []), "accuracy", "difference"]
    for column in ["memory", *columns]:
        table.add_column(column, justify="right")
    for curve in curves:
        for mem_len, result in curve.results.items():
            difference, error = curve.difference(mem_len)
            table.add_row(
                *([curve.name.replace("[", r"\[")] if len(curves) > 1 else []),
                f"{mem_len}",
                f"{result.loss:.4f}",
                f"{result.perplexity:.3f}",
                *([f"{result.bits_per_byte:.4f}"] if whole else []),
                f"{result.main.accuracy:.4f}",
                "=" if mem_len == curve.reference else f"{difference:+.4f} ± {error:.4f}",
            )
    return table


def _recl_table(curves: Sequence[MemoryCurve], recl: Mapping[float, Sequence[ContextLength]]) -> Table:
    table = Table("run", box=None, header_style="bold", pad_edge=False)
    for share in recl:
        table.add_column(f"r = {share:g}", justify="right")
    for number, curve in enumerate(curves):
        found = [lengths[number] for lengths in recl.values()]
        cells = [("≥ " if each.is_bound else "") + str(each.num_tokens) for each in found]
        table.add_row(curve.name.replace("[", r"\["), *cells)
    return table


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
