"""Registers and spills of a layer's programs around its attention, by the compiler, for docs/fused-attention.md.

python -m benchmarks.gpu.layer_table       prints the table in Markdown; needs Triton, but no GPU; takes minutes
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.kernel_table import CARDS, Resources, _usage
from xlpretrain.models.kernels.fused.launch import SUM_COLUMNS, SUM_ROWS, SUM_WARPS
from xlpretrain.models.kernels.fused.layer.operators import ACTIVATION_TILE, Tile, head_tile, norm_tile

WIDTHS = (512, 768, 1024, 4096)
ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu")
HEADS = (32, 64, 128)
_NUMBERS = {
    **dict.fromkeys(("ROWS", "WIDTH", "COLUMNS", "N", "P", "threshold"), "i32"),
    **dict.fromkeys(("keep_scale", "epsilon"), "fp32"),
}
_POINTERS = {**dict.fromkeys(("center", "factor", "partials"), "*fp32"), "seed": "*i32"}


def cases() -> Iterator[tuple[str, str, Tile, Mapping[str, Any]]]:
    """Each program with its size, its tile, and the most that is asked of it."""
    for width in WIDTHS:
        most = {"CENTERED": True, "BIASED": True, "DROPOUT": True}
        yield "add_norm", str(width), norm_tile(width), most
        yield "add_norm_backward", str(width), norm_tile(width), {**most, "SUMMED": True}
    for activation in ACTIVATIONS:
        for program in ("activate", "activate_backward"):
            yield program, activation, ACTIVATION_TILE, {"ACTIVATION": activation, "DROPOUT": True}
    for head in HEADS:
        for program in ("bias_queries", "bias_queries_backward"):
            yield program, str(head), head_tile(head), {"H": head, "SEGMENTS": True}
    yield "column_sums", "any", Tile(SUM_ROWS, SUM_COLUMNS, SUM_WARPS), {}


def compiled(program: str, tile: Tile, constants: Mapping[str, Any], *, capability: int, dtype: str) -> Resources:
    """Compile a program for a card that need not be there."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from xlpretrain.models.kernels.fused import programs as of_attention
    from xlpretrain.models.kernels.fused.layer import programs

    function = getattr(programs, program, None) or getattr(of_attention, program)
    settings = {**constants, "BR": tile.rows, "BC": tile.columns}
    signature, attributes = {}, {}
    for index, name in enumerate(function.arg_names):
        if name in settings:
            signature[name] = "constexpr"
        elif name in _NUMBERS:
            signature[name] = _NUMBERS[name]
            if name in ("WIDTH", "COLUMNS"):
                attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = _POINTERS.get(name, f"*{dtype}")
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(function, signature, constexprs=settings, attrs=attributes)
    result = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": tile.warps})
    usage = _usage(result.asm["cubin"], Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump")
    return Resources(*usage, result.metadata.shared)


def rows() -> Iterator[dict[str, Any]]:
    """One row for each program and size: the most that either data type takes on either card."""
    for program, size, tile, constants in cases():
        found = {
            (CARDS[capability], dtype): compiled(program, tile, constants, capability=capability, dtype=dtype)
            for capability in CARDS
            for dtype in ("bf16", "fp32")
        }
        yield {
            "program": program,
            "for": size,
            "rows x columns": f"{tile.rows} x {tile.columns}",
            "warps": tile.warps,
            **{
                f"registers, {card}": max(each.registers for (name, _), each in found.items() if name == card)
                for card in CARDS.values()
            },
            "spilled, bytes": max(each.spilled_bytes for each in found.values()),
            "shared, KiB": f"{max(each.shared_bytes for each in found.values()) / 1024:.1f}",
        }


if __name__ == "__main__":
    import triton

    from benchmarks.gpu.record import table

    print(f"Triton {triton.__version__}\n\n{table(list(rows()))}")
