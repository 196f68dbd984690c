"""The fused attention's programs, compiled for cards that are not here: no spills, and shared memory within limits.

Also the counts of the work of one layer's attention (kernel_work.py).
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
from benchmarks.gpu.kernel_work import attention_work
from xlpretrain.extras import is_missing
from xlpretrain.models.kernels.fused.tiles import TILES, Tile

SCRIPT = """
import json, sys
from benchmarks.gpu.kernel_table import VARIANTS, compiled
from xlpretrain.models.kernels.fused.tiles import PROGRAMS, TILES
capability, dtype, width = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
found = []
for program, tile in zip(PROGRAMS, TILES[capability, dtype, width], strict=True):
    for variant in VARIANTS:
        seen = compiled(program, tile, variant, capability=capability, dtype=dtype, width=width)
        found.append([program, variant, seen.spilled_bytes, seen.shared_bytes])
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
    for program, variant, spilled, shared in json.loads(output.stdout):
        assert spilled == 0 or dtype == "fp32", (program, variant)  # docs/fused-attention.md has those of fp32
        assert shared <= SHARED_BYTES[capability], (program, variant)


def test_blocks_are_bounded_by_registers_and_by_shared_memory():
    tile = Tile(64, 64, 4, 2)
    assert Resources(registers=128, spilled_bytes=0, shared_bytes=1024).blocks(90, tile) == 4
    assert Resources(registers=32, spilled_bytes=0, shared_bytes=100 * 1024).blocks(90, tile) == 2


@pytest.mark.parametrize("model", ["transformer_xl", "xlnet"])
def test_fused_attention_moves_and_keeps_less(model: str):
    of = case(model, "base", rows=32, precision="bf16", threads=1)
    sdpa, fused = (attention_work(of, name) for name in ("sdpa", "fused"))
    assert sdpa.scores_bytes >= 1.3 * fused.scores_bytes
    assert sdpa.kept_bytes >= 2 * fused.kept_bytes
    assert fused.operations <= 71
