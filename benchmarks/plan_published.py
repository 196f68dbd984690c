"""Plans of runs on GPUs beside what others published, for docs/planning.md.

    python -m benchmarks.plan_published

Needs no GPU. The plan is of this project's code, the published figure of the authors'. Sources:
github.com/NVIDIA/DeepLearningExamples, PyTorch/LanguageModeling/BERT/README.md (pytorch:21.11, January 2022) and
PyTorch/LanguageModeling/Transformer-XL/README.md (pytorch:20.06), sections "Training performance results". The last
lines are an earlier version of this project on one H200.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from xlpretrain.config import run_config
from xlpretrain.planning.collectives import exchanges
from xlpretrain.planning.devices import DEVICES
from xlpretrain.planning.step_time import StepTime, step_time
from xlpretrain.planning.work import Work, work_of

_CONFIGS = Path(__file__).parents[1] / "configs"
_PLAIN = ("engine.type=plain", "checkpoint.every_steps=1000")


@dataclass(frozen=True)
class Published:
    """A run that others measured. per_second: sequences, or tokens if seq_len is 0."""

    model: str
    device: str
    num_devices: int
    rows: int
    micro_batches: int
    dtype: str
    per_second: float
    config: str
    overrides: Sequence[str]
    vocab_size: int
    seq_len: int = 0
    per_node: int = 8


def runs() -> Iterator[Published]:
    """The published runs, with the shapes that they state."""
    yield from _bert(128, 20, "a100", "fp16", 256, {1: (32, 580), 8: (32, 4591), 256: (1, 138_294)})
    yield from _bert(128, 20, "a100", "tf32", 128, {1: (64, 317)})
    yield from _bert(128, 20, "v100", "fp16", 64, {1: (64, 224), 8: (64, 1746)})
    yield from _bert(512, 80, "a100", "fp16", 32, {1: (128, 210), 8: (128, 1657), 256: (4, 49_663)})
    yield from _bert(512, 80, "a100", "tf32", 16, {1: (256, 110)})
    yield from _bert(512, 80, "v100", "fp16", 8, {1: (256, 75), 8: (256, 586)})
    base = (
        *("model.d_model=512", "model.num_heads=8", "model.d_head=64", "model.d_ff=2048", "model.mem_len=192"),
        *("objective.seq_len=192", "optimizer.type=lamb"),
    )
    for name, config, keys, figures in (
        ("base", "transformer_xl_wikitext103_base", base, {
            ("a100-40", 32): {1: 59_961, 8: 449_890}, ("v100-16", 32): {1: 36_692, 8: 258_648},
            ("v100", 16): {1: 32_875, 16: 414_994},
        }),
        ("large", "transformer_xl_wikitext103_large", ("optimizer.type=lamb",), {
            ("a100-40", 16): {1: 25_084, 8: 191_148}, ("a100-40", 8): {1: 21_554, 8: 159_185},
            ("v100-16", 4): {1: 10_210, 8: 66_716}, ("v100", 8): {1: 14_787, 16: 211_387},
        }),
    ):  # fmt: skip
        for (device, rows_each), found_each in figures.items():
            for number, figure in found_each.items():
                per_node = 16 if device == "v100" else 8
                yield Published(
                    f"Transformer-XL {name}", device, number, rows_each, 1, "fp16", figure,
                    config, keys, 267_735, per_node=per_node,
                )  # fmt: skip


def earlier() -> Iterator[Published]:
    """One H200 with an earlier version of this project; figures are milliseconds of a step there."""
    for name, config, rows, vocab_size, ms in (
        ("BERT base", "bert_base", 32, 30_522, 44.0),
        ("BERT base", "bert_base", 64, 30_522, 78.8),
        ("ALBERT base", "albert_base", 32, 30_000, 42.5),
        ("Transformer-XL, enwik8", "transformer_xl_enwik8_base", 32, 204, 77.8),
        ("Transformer-XL, enwik8", "transformer_xl_enwik8_base", 64, 204, 143.3),
        ("XLNet base", "xlnet_base", 32, 32_000, 196.7),
    ):
        keys = ("optimizer.type=adamw",)
        yield Published(
            f"{name}, this project", "h200", 1, rows, 1, "bf16", 1000 * rows / ms, config, keys, vocab_size, 512
        )


def _bert(
    seq_len: int, predictions: int, device: str, dtype: str, rows: int, figures: dict[int, tuple[int, float]]
) -> Iterator[Published]:
    """Runs of BERT large. figures: by the number of devices, the number of micro-batches and sequences per second."""
    keys = (f"objective.seq_len={seq_len}", f"objective.max_predictions={predictions}", "optimizer.type=lamb")
    for number, (times, figure) in figures.items():
        yield Published(
            f"BERT large, {seq_len}", device, number, rows, times, dtype, figure, "bert_large", keys, 30_528, seq_len
        )


def planned(of: Published, known: dict[object, Work]) -> tuple[float, StepTime]:
    """Sequences or tokens per second by the plan, and the step."""
    precision = "fp32" if of.dtype == "tf32" else "bf16"
    batch = of.rows * of.micro_batches * of.num_devices
    config = run_config.load(
        _CONFIGS / f"{of.config}.yaml",
        [
            *_PLAIN, *of.overrides, f"engine.precision={precision}", f"global_batch_size={batch}",
            f"micro_batch_size={of.rows}",
        ],
    )  # fmt: skip
    key = (of.config, of.overrides, of.rows, precision)
    if key not in known:
        known[key] = work_of(config, vocab_size=of.vocab_size, num_ranks=of.num_devices, device="cuda")
    work = dataclasses.replace(known[key], num_micro_batches=of.micro_batches)
    parameters = sum(1 for _ in config.parameter_names(of.vocab_size))
    sent = exchanges(
        config,
        num_parameters=_num_parameters(work),
        num_tensors=parameters,
        num_micro_batches=of.micro_batches,
        num_ranks=of.num_devices,
        on_gpus=True,
    )
    # The authors' reduction overlaps with the backward pass; this project's plain engine reduces after it.
    sent = [dataclasses.replace(each, overlaps=True) for each in sent]
    step = step_time(
        work, DEVICES[of.device], sent, num_ranks=of.num_devices, per_node=of.per_node, product_dtype=of.dtype
    )
    each = batch if of.seq_len else config.tokens_per_step
    return each / step.seconds, step


def _num_parameters(work: Work) -> int:
    (update,) = {(o.num_bytes, n) for o, n in work.update.items()}
    return int(update[0] * update[1] / 58)  # bytes of an update of LAMB in bf16 for each parameter


def main() -> None:
    """Print the table in Markdown."""
    known: dict[object, Work] = {}
    print("| run | devices | samples x micro-batches | type | plan | published | plan / published | bound |")
    print("|---|---|---|---|--:|--:|--:|---|")
    for of in (*runs(), *earlier()):
        found, step = planned(of, known)
        unit = "seq/s" if of.seq_len else "tok/s"
        devices = f"{of.num_devices} x {DEVICES[of.device].name}"
        print(
            f"| {of.model} | {devices} | {of.rows} x {of.micro_batches} | {of.dtype} |"
            f" {found:,.0f} {unit} | {of.per_second:,.0f} | {found / of.per_second:.2f} | {step.bound} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
