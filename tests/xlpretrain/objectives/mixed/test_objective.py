"""The keys of a mixed objective, and what it makes of its parts."""

from __future__ import annotations

from typing import Any

import pytest

from xlpretrain import schema
from xlpretrain.config.run_config import RunConfig
from xlpretrain.config.sections import EvalConfig
from xlpretrain.data.loader import Loader
from xlpretrain.data.skip_windows import SkippedWindows
from xlpretrain.errors import ConfigError
from xlpretrain.objectives import CausalLM, MaskedLM
from xlpretrain.objectives.mixed.objective import MixedObjective
from xlpretrain.objectives.mixed.samples import GroupedSamples

SIZES = {"num_layers": 1, "d_model": 16, "num_heads": 2, "d_ff": 16}
MASKED = {"type": "masked_lm", "sentence_task": "none"}
CAUSAL = {"type": "causal_lm"}
PERMUTED = {"type": "permutation_lm", "reuse_len": 0, "perm_size": 32, "num_predict": 4, "bi_data": False}


def config(parts: list[dict[str, Any]], *, seq_len: int | None = 32, **changes: Any) -> RunConfig:
    objective = {"type": "mixed", "parts": parts} | ({"seq_len": seq_len} if seq_len else {})
    content = {"data": {"train": "x"}, "model": {"type": "bert", **SIZES}, "objective": objective, "max_steps": 3}
    return schema.validate(RunConfig, {**content, "global_batch_size": 8, **changes}, "test")


def half(objective: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return {"share": 0.5, "objective": objective, **keys}


def test_terms_carry_the_names_of_the_parts_and_weights_their_shares():
    sop = {"type": "masked_lm", "sentence_task": "sop", "sentence_weight": 0.5}
    objective = config([{"share": 0.25, "objective": sop, "name": "m"}, {"share": 0.75, "objective": CAUSAL}]).objective
    assert objective.weights == {"m/mlm": 0.25, "m/sop": 0.125, "causal_lm/lm": 0.75}
    assert objective.terms == tuple(objective.weights)
    assert objective.part_losses({"m/mlm": 2.0, "m/sop": 1.0, "causal_lm/lm": 4.0}) == {"m": 2.5, "causal_lm": 4.0}
    assert objective.answer_names["m/sop"] == ("parts in order", "parts swapped")


def test_one_part_is_like_its_objective():
    alone = config([{"share": 1, "objective": CAUSAL}]).objective
    assert (alone.terms, alone.weights, alone.by_part) == (("lm",), {"lm": 1.0}, {})
    (group,) = alone.stream_groups(8, 16)
    assert (group.objective, group.streams, group.mem_len) == (CausalLM(seq_len=32), range(8), 16)
    assert group.seed(7) == 7


def test_each_part_has_its_own_seed_and_a_memory_if_it_can():
    model = {"type": "xlnet", **SIZES, "mem_len": 16}
    made = config([half(MASKED), half(CAUSAL)], model=model)
    first, second = made.objective.stream_groups(8, 16)
    assert (first.mem_len, second.mem_len) == (0, 16)
    assert first.seed(7) == 7 and second.seed(7) != 7
    assert made.of_part("masked_lm", "").model.mem_len == 0
    assert made.of_part(None, "generates").model.mem_len == 16


def test_parts_have_one_seq_len():
    named = config([half({**MASKED, "seq_len": 16}), half(CAUSAL)], seq_len=None).objective
    assert [part.objective.seq_len for part in named.parts] == [16, 16] and named.seq_len == 16
    default = config([half(MASKED), half(CAUSAL)], seq_len=None).objective
    assert default.seq_len == 512
    made = config([half(MASKED), half(CAUSAL)])
    shorter = made.eval_objective(EvalConfig(seq_len=24))
    assert isinstance(shorter, MixedObjective)
    assert [part.objective.seq_len for part in shorter.parts] == [24, 24]
    again = schema.validate(RunConfig, schema.parse_yaml(schema.dump(made), "x"), "again")
    assert again == made


def test_a_step_reads_what_its_parts_read():
    permuted = {**PERMUTED, "reuse_len": 16, "perm_size": 16}
    model = {"type": "xlnet", **SIZES, "mem_len": 16}
    parts = [{"share": 0.25, "objective": permuted}, {"share": 0.75, "objective": CAUSAL}]
    assert config(parts, model=model).tokens_per_step == 2 * 16 + 6 * 32


def test_a_part_is_found_by_name_or_use():
    objective = config([half(MASKED, name="both"), half(CAUSAL)]).objective
    assert isinstance(objective.part("both", ""), MaskedLM)
    assert isinstance(objective.part(None, "generates"), CausalLM)
    assert isinstance(objective.part(None, "hub_head"), MaskedLM)
    with pytest.raises(ConfigError, match=r"--part c: no such part .* it has both \(masked_lm\), causal_lm"):
        objective.part("c", "")
    masked = config([half(MASKED), half(MASKED, name="again")]).objective
    assert not masked.generates
    with pytest.raises(ConfigError, match=r"no part .* declares `generates`; it has masked_lm \(masked_lm\), again"):
        masked.part(None, "generates")
    with pytest.raises(ConfigError, match="objective causal_lm has no parts"):
        CausalLM().part("x", "")


@pytest.mark.parametrize(
    ("parts", "changes", "message"),
    [
        ([half(MASKED), half(PERMUTED)], {}, r"parts\.1\.objective\.type +permutation_lm needs two_stream, which bert"),
        ([half(MASKED), half(CAUSAL)], {"model": {"type": "transformer_xl", **SIZES, "mem_len": 0}}, "needs bidirect"),
        ([{"share": 0.97, "objective": MASKED}, {"share": 0.03, "objective": CAUSAL}], {}, "causal_lm no stream"),
        ([half(MASKED), {"share": 0.7, "objective": CAUSAL}], {}, "shares must sum to 1, got 1.2"),
        ([half(MASKED), {"share": -0.5, "objective": CAUSAL}], {}, r"parts\.1\.share +must be greater than 0"),
        ([half(MASKED), half(MASKED)], {}, r"parts\.1\.name +masked_lm is there twice"),
        ([half(MASKED, name="a/b"), half(CAUSAL)], {}, "must consist of letters"),
        ([half(MASKED), half({"type": "mixed", "parts": []})], {}, 'must be one of masked_lm, .*, got "mixed"'),
        ([half(MASKED), half({"type": "classify"})], {}, 'must be one of masked_lm, .*, got "classify"'),
        ([half(MASKED), half({**CAUSAL, "seq_len": 16})], {}, r"parts\.1\.objective\.seq_len +must be that of all"),
        ([], {}, r"objective\.parts"),
        ([half(MASKED), half(CAUSAL)], {"model": {"type": "bert", **SIZES, "max_positions": 16}}, "max_positions"),
        (
            [half({"type": "masked_lm"}), half({"type": "masked_lm", "sentence_task": "nsp"}, name="b")],
            {},
            "one sentence_task, got nsp and sop",
        ),
        ([half(MASKED)] * 2, {"model": {"type": "xlnet", **SIZES, "mem_len": 8}}, r"model\.mem_len +must be 0"),
        (
            [half(PERMUTED | {"bi_data": True}), half(CAUSAL)],
            {"model": {"type": "xlnet", **SIZES, "mem_len": 0}, "global_batch_size": 6},
            r"must be even .* got 3; .* \(part permutation_lm has 3 streams\)",
        ),
    ],
)
def test_bad_input_is_reported(parts, changes, message):
    with pytest.raises(ConfigError, match=message):
        config(parts, **changes)


def test_a_micro_batch_without_samples_has_the_part_of_its_streams():
    """Ranks that have no stream of a part run it all the same, in step with the others."""
    samples = SkippedWindows(GroupedSamples([], [range(3), range(3, 5)]), [(1, 2)], [8, 8])
    loader = Loader(samples, lambda samples: (len(samples), samples.part), [range(0), range(3, 3)])
    assert loader.step(0) == [(0, 0), (0, 1)]
