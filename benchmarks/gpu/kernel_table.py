"""Registers, spills and shared memory of the fused attention's programs, by the compiler, for docs/fused-attention.md.

python -m benchmarks.gpu.kernel_table      prints the table in Markdown; needs Triton, but no GPU; takes minutes
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlpretrain.models.kernels.fused.tiles import TILES, Tile, Tiles, padded

CARDS = {80: "A100", 90: "H100"}
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}
"""Largest shared memory of a block, by compute capability (CUDA programming guide, technical specifications)."""
_REGISTERS, _WARPS = 65536, 64  # of a multiprocessor
_RESERVED = 1024  # bytes of shared memory that CUDA takes for each block
VARIANTS = {
    "decoder": {"SEGMENTS": False, "WINDOW": True, "NOT_OWN": False, "DROPOUT": True, "DIRECTIONS": False},
    "two streams": {"SEGMENTS": True, "WINDOW": False, "NOT_OWN": True, "DROPOUT": True, "DIRECTIONS": True},
}
"""The most that a model asks of the programs; without dropout, for one, they need less."""
_POINTERS = dict.fromkeys(("seed", "queries", "keys", "directions"), "*i32")
_POINTERS |= dict.fromkeys(("normalizer", "delta", "d_distance"), "*fp32")
_NUMBERS = dict.fromkeys(("B", "N", "Q", "K", "R", "T", "S", "threshold", "SAMPLES", "SETS"), "i32")
_NUMBERS |= {"keep_scale": "fp32", "scale": "fp32"}


@dataclass(frozen=True)
class Resources:
    """The resources that a compiled program takes on a card."""

    registers: int
    """Of each thread."""
    spilled_bytes: int
    shared_bytes: int

    def blocks(self, capability: int, tile: Tile) -> int:
        """Number of blocks that a multiprocessor holds at once."""
        by_registers = _REGISTERS // (self.registers * 32 * tile.warps)
        by_memory = (SHARED_BYTES[capability] + _RESERVED) // (self.shared_bytes + _RESERVED)
        return min(by_registers, by_memory, _WARPS // tile.warps)


def compiled(
    program: str, tile: Tile, variant: str, *, band: bool, capability: int, dtype: str, width: int
) -> Resources:
    """Compile a program for a card that need not be there. band: it makes scores by position."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from xlpretrain.models.kernels.fused import programs

    function = getattr(programs, program)
    constants: dict[str, Any] = {
        **VARIANTS[variant],
        **{"H": width, "HP": padded(width), "BQ": tile.queries, "BK": tile.keys, "PRECISION": "tf32x3"},
        **{"BAND": band, "MEMORY": not band or VARIANTS[variant]["NOT_OWN"]},
    }
    constants = {name: value for name, value in constants.items() if name in function.arg_names}
    signature, attributes = {}, {}
    for index, name in enumerate(function.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in _NUMBERS:
            signature[name] = _NUMBERS[name]
        else:
            signature[name] = _POINTERS.get(name, f"*{dtype}")
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(function, signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    result = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, spilled = _usage(result.asm["cubin"], Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump")
    return Resources(registers, spilled, result.metadata.shared)


def _usage(cubin: bytes, cuobjdump: Path) -> tuple[int, int]:
    """Registers, and bytes of the stack, which the programs use for nothing but spills."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [cuobjdump, "--dump-resource-usage", file.name]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in output.splitlines() if "REG:" in line]
    numbers = dict(field.split(":", 1) for field in line.split() if ":" in field)
    return int(numbers["REG"]), int(numbers["STACK"])


def programs_of(tiles: Tiles) -> Iterator[tuple[str, Tile, bool]]:
    """The programs of an attention, each with its tile; True if it makes scores by position."""
    for kind in tiles:
        for program, tile in ({} if kind is None else kind._asdict()).items():
            yield program, tile, kind is tiles.band


def rows() -> Iterator[dict[str, Any]]:
    """One row for each tile of the table: the most that any variant takes."""
    for (capability, dtype, width), tiles in TILES.items():
        for program, tile, band in programs_of(tiles):
            sizes = {"capability": capability, "dtype": dtype, "width": width}
            found = [compiled(program, tile, variant, band=band, **sizes) for variant in VARIANTS]
            most = Resources(*(max(getattr(each, key) for each in found) for key in vars(found[0])))
            blocks = most.blocks(capability, tile)
            yield {
                "card": CARDS[capability],
                "dtype": dtype,
                "head": width,
                "scores by position": "made" if band else "in memory",
                "program": program,
                "queries x keys": f"{tile.queries} x {tile.keys}",
                "warps": tile.warps,
                "stages": tile.stages,
                "registers": most.registers,
                "spilled, bytes": most.spilled_bytes,
                "shared, KiB": f"{most.shared_bytes / 1024:.1f}",
                "blocks": blocks,
                "occupancy": f"{blocks * tile.warps / _WARPS:.0%}",
            }


if __name__ == "__main__":
    import triton

    from benchmarks.gpu.record import table

    print(f"Triton {triton.__version__}\n\n{table(list(rows()))}")
