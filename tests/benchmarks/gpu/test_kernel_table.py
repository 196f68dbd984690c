"""The fused attention's programs, compiled for cards that are not here: no spills, and shared memory within limits.

Also the counts of the work of one layer's attention (kernel_work.py, fused_work.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from repository import ROOT

from benchmarks.cases import case
from benchmarks.gpu.kernel_table import SHARED_BYTES, Resources
from benchmarks.gpu.kernel_work import IMPLEMENTATIONS, attention_work
from xlpretrain.extras import is_missing
from xlpretrain.models.kernels.fused.tiles import TILES, Tile

LEAST = {"transformer_xl": 4, "xlnet": 3.3}
"""Times that fused attention moves fewer bytes than sdpa, projections left out (docs/fused-attention.md)."""
SCRIPT = """
import json, sys
from benchmarks.gpu.kernel_table import VARIANTS, compiled, programs_of
from xlpretrain.models.kernels.fused.tiles import TILES
capability, dtype, width = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
found = []
for program, tile, band in programs_of(TILES[capability, dtype, width]):
    for variant in VARIANTS:
        seen = compiled(program, tile, variant, band=band, capability=capability, dtype=dtype, width=width)
        found.append([program, band, variant, seen.spilled_bytes, seen.shared_bytes])
print(json.dumps(found))
"""


@pytest.mark.full
@pytest.mark.skipif(is_missing("triton"), reason="Triton is not installed")
@pytest.mark.parametrize(("capability", "dtype", "width"), TILES)
def test_no_program_spills(capability: int, dtype: str, width: int):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(capability), dtype, str(width)]
    output = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert output.returncode == 0, output.stderr
    for *which, spilled, shared in json.loads(output.stdout):
        assert spilled == 0, which
        assert shared <= SHARED_BYTES[capability], which


def test_blocks_are_bounded_by_registers_and_by_shared_memory():
    tile = Tile(64, 64, 4, 2)
    assert Resources(registers=128, spilled_bytes=0, shared_bytes=1024).blocks(90, tile) == 4
    assert Resources(registers=32, spilled_bytes=0, shared_bytes=100 * 1024).blocks(90, tile) == 2


@pytest.mark.parametrize("model", ["transformer_xl", "xlnet"])
def test_fused_attention_moves_and_keeps_less(model: str):
    of = case(model, "base", rows=32, precision="bf16", threads=1)
    sdpa, in_memory, fused = (attention_work(of, name) for name in IMPLEMENTATIONS)
    assert sdpa.scores_bytes >= 1.3 * in_memory.scores_bytes
    assert sdpa.scores_bytes >= LEAST[model] * fused.scores_bytes
    assert sdpa.kept_bytes >= 2 * fused.kept_bytes
    assert fused.operations <= 80
