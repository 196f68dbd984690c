"""Write docs/benchmarks.md and its plot from results of `compare.py`: `python benchmarks/report.py [steps.json]`."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"
LEAST_PEAK = 0.7
TARGETS = {"transformer_xl": 2.5, "xlnet": 3.0, "albert": 2.0, "bert": 2.5}
WITHOUT_DROPOUT = {"transformer_xl": 2.0, "xlnet": 2.0, "albert": 1.5, "bert": 1.5}
SHARES = {"transformer_xl": 0.40, "albert": 0.45, "bert": 0.45}
COLUMNS = (
    "case",
    "peer",
    "tokens/s",
    "peer's",
    "ratio (spread)",
    "target",
    "share of peak",
    "target ",
    "GB",
    "peer's GB",
)


def write(results: Path) -> None:
    """Write the page and the plot."""
    data = json.loads(results.read_text())
    before, _, after = (DOCS / "benchmarks.md").read_text().split("<!-- measured -->")
    measured = f"{_machine(data['machine'])}\n\n{table(data['cases'])}"
    text = f"{before}<!-- measured -->\n\n{measured}\n\n<!-- measured -->{after}"
    (DOCS / "benchmarks.md").write_text(text)
    plot(data["cases"], DOCS / "benchmarks.png")


def table(cases: dict[str, Any]) -> str:
    """Markdown table with one row per case and way of feeding its peer."""
    rows = [COLUMNS, *(row for case in cases.values() for row in _rows(case))]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(COLUMNS) + "|", *lines[1:]])


def summary(case: dict[str, Any]) -> list[dict[str, Any]]:
    """Compare ours with the fastest variant of each way of feeding: medians over the valid repeats."""
    sides = case["sides"]
    ours = sides["ours"]
    best = max(repeat["peak_flops"] for side in sides.values() for repeat in side)
    groups: dict[str, list[str]] = {}
    for name in sides:
        if name != "ours":
            groups.setdefault(name.partition(", ")[2], []).append(name)
    found = []
    for feeding, names in groups.items():
        peer = min(names, key=lambda name: statistics.median(r["step_s"] for r in sides[name]))
        pairs = list(zip(ours, sides[peer], strict=True))
        good = [pair for pair in pairs if min(r["peak_flops"] for r in pair) >= LEAST_PEAK * best]
        kept = good or pairs
        ratios = sorted(b["step_s"] / a["step_s"] for a, b in kept)
        tokens = case["case"]["rows"] * case["case"]["seq_len"]
        found.append(
            {
                "peer": peer,
                "feeding": feeding,
                "ours": tokens / statistics.median(a["step_s"] for a, _ in kept),
                "theirs": tokens / statistics.median(b["step_s"] for _, b in kept),
                "ratio": statistics.median(ratios),
                "spread": (ratios[0], ratios[-1]),
                "of_cpu_time": statistics.median(b["cpu_s"] / a["cpu_s"] for a, b in kept),
                "share": statistics.median(case["flops"] / a["step_s"] / a["peak_flops"] for a, _ in kept),
                "memory": (max(a["memory_bytes"] for a in ours), max(b["memory_bytes"] for b in sides[peer])),
                "thrown_out": len(pairs) - len(good),
            }
        )
    return found


def _rows(case: dict[str, Any]) -> list[tuple[str, ...]]:
    keys = case["case"]
    rows = []
    for s in summary(case):
        drop = keys["dropout"] > 0 or keys["attention_dropout"] > 0
        name = f"{keys['model']} {keys['shape']} {keys['rows']}x{keys['seq_len']}, {keys['precision']}"
        name += f", {keys['threads']} thread{'s' if keys['threads'] > 1 else ''}{'' if drop else ', dropout 0'}"
        target, share = _targets(keys, drop)
        thrown = f", {s['thrown_out']} thrown out" if s["thrown_out"] else ""
        low, high = s["spread"]
        rows.append(
            (
                name,
                s["peer"],
                f"{s['ours']:,.0f}",
                f"{s['theirs']:,.0f}",
                f"**{s['ratio']:.2f}** ({low:.2f} to {high:.2f}{thrown})",
                target,
                f"{100 * s['share']:.0f} %",
                share,
                *(f"{memory / 2**30:.2f}" for memory in s["memory"]),
            )
        )
    return rows


def _targets(keys: dict[str, Any], drop: bool) -> tuple[str, str]:
    if keys["precision"] == "fp32":
        return "1", ""
    if keys["threads"] != 2 or (keys["model"] == "albert" and keys["shape"] == "small" and drop):
        return "", ""
    share = SHARES.get(keys["model"]) if keys["shape"] == "base" else None
    return f"{(TARGETS if drop else WITHOUT_DROPOUT)[keys['model']]:g}", f"{100 * share:.0f} %" if share else ""


def _machine(machine: dict[str, Any]) -> str:
    return (
        f"Measured {machine['when']} at commit {machine['commit']} on {machine['cores']} cores of {machine['cpu']}"
        f" ({', '.join(machine['bf16']) or 'no bf16 instructions'}), load {machine['load']:.1f}; torch"
        f" {machine['torch']}, transformers {machine['transformers']}, and {machine['transformers_4']} for"
        " Transformer-XL.\n\n![ratios](benchmarks.png)"
    )


def plot(cases: dict[str, Any], picture: Path) -> None:
    """Plot ratios with their spread, one bar per row of the table."""
    from matplotlib.figure import Figure

    bars = [
        (row[0] + (f" ({s['feeding']})" if s["feeding"] else ""), s)
        for case in cases.values()
        for row, s in zip(_rows(case), summary(case), strict=True)
    ]
    if not bars:
        return
    figure = Figure(figsize=(9, 1 + 0.3 * len(bars)), layout="constrained")
    axis = figure.subplots()
    ratios = [s["ratio"] for _, s in bars]
    errors = [[s["ratio"] - s["spread"][0] for _, s in bars], [s["spread"][1] - s["ratio"] for _, s in bars]]
    axis.barh([name for name, _ in bars], ratios, xerr=errors, color="tab:blue", alpha=0.7)
    axis.axvline(1, color="black", linewidth=1)
    axis.invert_yaxis()
    axis.set(xlabel="tokens per second, times the peer's")
    figure.savefig(picture, dpi=100)


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "results" / "steps.json")
