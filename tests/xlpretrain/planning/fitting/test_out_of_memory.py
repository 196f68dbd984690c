"""Errors of a rank without memory name the plan and a setting that fits."""

from __future__ import annotations

import pytest
import torch
from planned_runs import VOCAB, planned_config

from xlpretrain.errors import OutOfMemoryError
from xlpretrain.planning.fitting.memory_limits import MemoryLimit
from xlpretrain.planning.fitting.out_of_memory import explained_if_out_of_memory, explanation, is_out_of_memory
from xlpretrain.planning.memory import memory_of

WIDE = {"type": "bert", "num_layers": 6, "d_model": 64, "num_heads": 4, "d_ff": 256, "max_positions": 40}
CPU = torch.device("cpu")


def test_torchs_and_pythons_errors_are_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("bad_alloc"))


def test_settings_that_fit_are_named_with_the_plan():
    config = planned_config("bert", model=WIDE, global_batch_size=256, micro_batch_size=256, engine={"type": "plain"})
    small, large = (
        memory_of(config.model_copy(update={"micro_batch_size": size}), vocab_size=VOCAB, num_ranks=1, device="cuda")
        for size in (128, 256)
    )
    told = explanation(config, MemoryLimit((small.peak, "free on a GPU")), vocab_size=VOCAB, num_ranks=1, device="cuda")
    assert "with micro_batch_size 256" in told
    assert large.describe() in told
    assert "(free on a GPU)" in told
    assert "micro_batch_size=128 (" in told
    assert " or engine.activation_checkpointing=true (" in told
    nothing = explanation(config, MemoryLimit((1000, "tiny")), vocab_size=VOCAB, num_ranks=1, device="cuda")
    assert "use more ranks, a smaller model" in nothing


def test_a_higher_stage_is_named():
    config = planned_config("bert", model=WIDE, engine={"zero_stage": 2}, global_batch_size=2, micro_batch_size=1)
    at_3 = config.model_copy(update={"engine": config.engine.model_copy(update={"zero_stage": 3})})
    peak = memory_of(at_3, vocab_size=VOCAB, num_ranks=2, device="cpu").peak
    told = explanation(config, MemoryLimit((peak, "tight")), vocab_size=VOCAB, num_ranks=2, device="cpu")
    assert ("engine.zero_stage=3" in told) == (
        peak < memory_of(config, vocab_size=VOCAB, num_ranks=2, device="cpu").peak
    )


def test_other_errors_pass_and_those_of_memory_are_explained_even_without_a_plan():
    config, limit = planned_config(), MemoryLimit((1000, "tiny"))
    with pytest.raises(RuntimeError, match="other"), explained_if_out_of_memory(config, limit, device=CPU):
        raise RuntimeError("other")
    with (
        pytest.raises(OutOfMemoryError, match=r"(?s)rank 0 ran out of memory: MemoryError\n.*smaller micro_batch_size"),
        explained_if_out_of_memory(config, limit, device=CPU),
    ):
        raise MemoryError  # its data does not exist, so no plan can be made
