"""Engines against each other. The ranks measure (workers/engine_cases.py); what is right is said here.

Modules: plain.py, zero.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import plugins
import pytest
import torch
from reference_lamb import albert_model, gated_model, train_by_formula
from tiny_model import training
from torch import nn
from torchrun import torchrun
from two_rules import TWO_RULES, OneGroup
from workers.engine_cases import (
    FP32,
    FROZEN_NAMES,
    frozen,
    gradient,
    lamb,
    losses,
    muon,
    muon_in_bf16,
    muon_on_albert,
    rows_of_none,
    two_rules,
    uncorrected_adamw,
)

from xlpretrain import distributed
from xlpretrain.engine.config import AnyEngine, DeepSpeedConfig
from xlpretrain.errors import ConfigError
from xlpretrain.optim import OptimizerConfig
from xlpretrain.optim.groups import GroupConfig
from xlpretrain.schema import Section, apply_overrides, validate

Numbers = dict[str, Any]


@pytest.fixture(scope="module", params=["default", pytest.param("full", marks=pytest.mark.full)])
def measured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Numbers:
    """What two ranks measured, without a compiler on PATH; `printed` and `extensions` are what else they left."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "bin").mkdir()
    env = {"PATH": str(folder / "bin"), "TORCH_EXTENSIONS_DIR": str(folder / "extensions")}
    printed = torchrun("engine_cases.py", folder / "measured.json", request.param, nproc=2, env=env)
    found = json.loads((folder / "measured.json").read_text())
    return {**found, "printed": printed, "extensions": (folder / "extensions").exists()}


@pytest.fixture(scope="module")
def alone() -> Iterator[Numbers]:
    """The oracle: the plain engine in fp32 on one process, which sees everything."""
    distributed.init()
    plain = FP32["plain fp32"]
    yield {"losses": losses(plain), "rows_of_none": rows_of_none(plain), "gradient": gradient(plain)}
    distributed.shutdown()


def _largest_difference(found: list[list[float]], expected: list[tuple[float, float]]) -> float:
    pairs = [pair for a, b in zip(found, expected, strict=True) for pair in zip(a, b, strict=True)]
    return max(abs(a - b) / abs(b) for a, b in pairs)


def test_every_stage_on_two_ranks_gives_the_losses_of_plain_on_one(measured: Numbers, alone: Numbers) -> None:
    # Uneven counts, accumulation 2, clipping at an eighth of the norm, two parameter groups, a tied embedding.
    assert len(measured["losses"]) >= 5
    assert min(norm for _, norm in alone["losses"]) > 0.5
    for name, found in measured["losses"].items():
        assert len(found) == 20
        assert _largest_difference(found, alone["losses"]) < 1e-5, name


@pytest.fixture(scope="module")
def lamb_by_formula() -> list[tuple[float, float]]:
    """On the gated model with three weights in its gate."""
    expected = train_by_formula(gated_model(fused=False), num_streams=7, steps=20, grad_clip=0.5)
    assert min(norm for _, norm in expected) > 0.5
    return expected


def test_lamb_on_any_partition_is_its_formula_on_one_process(
    measured: Numbers, alone: Numbers, lamb_by_formula: list[tuple[float, float]]
) -> None:
    # Uneven counts, accumulation 2, clipping, activation checkpointing, three projections in one weight, padding.
    assert _largest_difference(lamb(FP32["plain fp32"]), lamb_by_formula) < 1e-5
    for name, found in measured["lamb"].items():
        assert len(found) == 20
        assert _largest_difference(found, lamb_by_formula) < (1e-5 if "fp32" in name else 2e-2), name


def test_lamb_trains_albert_by_its_formula_on_any_partition(measured: Numbers) -> None:
    expected = train_by_formula(albert_model(), num_streams=7, steps=20, grad_clip=0.5)
    assert len(measured["lamb_on_albert"]) >= 3
    for name, found in measured["lamb_on_albert"].items():
        assert len(found) == 20
        assert _largest_difference(found, expected) < 1e-5, name


def test_lamb_on_slices_taken_for_tensors_is_something_else(
    measured: Numbers, lamb_by_formula: list[tuple[float, float]]
) -> None:
    for case in ("lamb_on_flat_slices", "lamb_that_takes_three_tensors_for_one"):
        for name, found in measured[case].items():
            assert _largest_difference(found, lamb_by_formula) > 1e-3, f"{case}, {name}"


def test_groups_of_two_rules_are_the_same_on_any_partition(measured: Numbers, alone: Numbers) -> None:
    expected = two_rules(FP32["plain fp32"])
    assert len(expected["groups"]) == 5
    for name, found in measured["two_rules"].items():
        assert _largest_difference(found["losses"], expected["losses"]) < (1e-5 if "fp32" in name else 2e-2), name
        assert (found["groups"], found["updates"]) == (expected["groups"], 20), name
    # Groups matter here: without them the losses are others.
    ungrouped = two_rules(FP32["plain fp32"], TWO_RULES.model_copy(update={"groups": ()}))
    assert _largest_difference(ungrouped["losses"], expected["losses"]) > 1e-3


def test_groups_that_an_engine_cannot_step_are_refused(alone: Numbers) -> None:
    with pytest.raises(ConfigError, match=r"group 0 has parameters with different state: .*build it from"):
        training(FP32["plain fp32"], num_streams=2, num_micro_batches=1, optimizer=OneGroup())
    unmatched = TWO_RULES.model_copy(update={"groups": (GroupConfig(match="backbone.embeding.*"),)})
    with pytest.raises(ConfigError, match=r"groups.0.match +'backbone.embeding.\*' matches no .* backbone.embedding.w"):
        training(FP32["plain fp32"], num_streams=2, num_micro_batches=1, optimizer=unmatched)


def test_adamw_without_bias_correction_is_the_same_on_any_partition(measured: Numbers, alone: Numbers) -> None:
    expected = uncorrected_adamw(FP32["plain fp32"])
    for name, found in measured["uncorrected_adamw"].items():
        assert _largest_difference(found, expected) < 1e-5, name


def _check_muon(measured: Numbers) -> None:
    expected, on_albert = muon(FP32["plain fp32"]), muon_on_albert(FP32["plain fp32"])
    for name, found in measured["muon"].items():
        assert len(found["losses"]) == 20
        assert _largest_difference(found["losses"], expected["losses"]) < 1e-4, name
        for values in found["singular values"]:  # without the iteration the smallest are thousandths of the largest
            assert len(values) == 17 and min(values) > 0.6 and max(values) < 1.3, (name, values)
    for name, found in measured["muon_on_albert"].items():
        assert _largest_difference(found["losses"], on_albert["losses"]) < 1e-4, name
        assert found["groups"] == on_albert["groups"], name
    # Seen as one matrix, the three of the fused weight make other steps.
    separate = muon(FP32["plain fp32"], fused=False)
    assert _largest_difference(separate["losses"], expected["losses"]) < 1e-4


def test_muon_on_any_partition_is_that_of_whole_matrices(measured: Numbers, alone: Numbers) -> None:
    _check_muon(measured)


@pytest.mark.full
@pytest.mark.parametrize("nproc", [2, 3])
def test_muon_is_the_same_on_two_and_three_ranks_and_close_in_bf16(alone: Numbers, tmp_path: Path, nproc: int) -> None:
    torchrun("engine_cases.py", tmp_path / "measured.json", "muon", nproc=nproc)
    found = json.loads((tmp_path / "measured.json").read_text())
    _check_muon(found)
    expected = [loss for loss, _ in muon_in_bf16(FP32["plain fp32"])["losses"]]
    assert len(found["muon_in_bf16"]) >= 10
    for name, rounded in found["muon_in_bf16"].items():
        worst = max(abs(a - b) / b for (a, _), b in zip(rounded["losses"], expected, strict=True))
        assert worst < 0.01, (name, worst)


def test_frozen_parameters_move_in_no_bit_and_have_neither_state_nor_gradient(
    measured: Numbers, alone: Numbers
) -> None:
    expected = frozen(FP32["plain fp32"])
    for name, found in {"plain fp32": expected, **measured["frozen"]}.items():
        assert _largest_difference(found["losses"], expected["losses"]) < (1e-5 if "fp32" in name else 2e-2), name
        assert set(found["moved"]).isdisjoint(FROZEN_NAMES) and set(found["moved"]) == set(found["has gradient"]), name
        assert found["kinds"] == {key: ["weight"] for key in FROZEN_NAMES}, name
        assert found["goes on"] == found["uninterrupted"], name


class _WholeParametersConfig(OptimizerConfig):
    type: Literal["adafactor"] = "adafactor"
    parameter_view = "parameters"

    def state_keys(self, name: str, shape: Sequence[int]) -> tuple[str, ...]:
        return ()

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adafactor(self.parameter_groups(parameters))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_optimizer_of_whole_parameters_is_refused_where_there_are_none(alone: Numbers, stage: int) -> None:
    with pytest.raises(ConfigError, match=f"optimizer.type +adafactor needs whole .*engine.zero_stage {stage} .*use "):
        training(
            DeepSpeedConfig(zero_stage=stage), num_streams=2, num_micro_batches=1, optimizer=_WholeParametersConfig()
        )


def test_a_micro_batch_without_rows_changes_nothing(measured: Numbers, alone: Numbers) -> None:
    for name, found in measured["rows_of_none"].items():
        assert _largest_difference(found, alone["rows_of_none"]) < (1e-5 if "fp32" in name else 1e-2), name


def test_a_loss_that_is_not_finite_on_one_rank_changes_nothing_on_any(measured: Numbers) -> None:
    assert len(measured["no_number"]) >= 8
    cases = ("no_number", "no_number_with_lamb", "no_number_on_a_device")
    for name, found in [item for case in cases for item in measured[case].items()]:
        assert not found["norm is finite"], name
        assert found["unchanged"], name
        assert found["goes on"] == found["goes on without it"], name
        assert found["updates"] == 4, name


def test_gradients_over_32_micro_batches_are_those_of_fp32(measured: Numbers, alone: Numbers) -> None:
    expected = torch.tensor(alone["gradient"]["gradient"], dtype=torch.float64)
    for name, found in measured["gradient"].items():
        tolerance = 1e-5 if "fp32" in name else 0.01
        gradient = torch.tensor(found["gradient"], dtype=torch.float64)
        assert math.isclose(found["norm"], float(expected.norm()), rel_tol=tolerance), name
        assert float((gradient - expected).norm() / expected.norm()) < tolerance, name


def test_evaluation_sees_rows_that_only_one_rank_has_and_leaves_training_alone(measured: Numbers) -> None:
    for name, found in measured["evaluation"].items():
        before, after = found["losses"]
        assert after < before, name
        assert found["goes on"] == found["goes on without it"], name


def test_activation_checkpointing_changes_no_bit(measured: Numbers) -> None:
    for name, found in measured["activation_checkpointing"].items():
        assert found["with"] == found["without"], name


def test_what_is_chosen_on_gpus_changes_the_rounding_of_the_norm_alone(measured: Numbers) -> None:
    for name, found in measured["on_gpus"].items():
        assert _largest_difference(found["with"], found["without"]) < 1e-6, name


def test_an_update_in_bf16_takes_few_operations_for_each_parameter(measured: Numbers) -> None:
    """On GPUs: DeepSpeed itself checks and measures each gradient, by 15 operations and views more."""
    found = measured["on_gpus"]["zero 1 bf16"]
    assert found["operations"] < 150 + 5 * len(found["names"])


def test_nothing_is_compiled_and_nothing_is_printed(measured: Numbers) -> None:
    assert not measured["extensions"]
    assert measured["printed"] == ""


@pytest.mark.full
@pytest.mark.timeout(900)
def test_compiled_models_give_the_same_losses_under_every_stage(tmp_path: Path) -> None:
    torchrun("engine_cases.py", tmp_path / "measured.json", "compiled", nproc=2, timeout_s=800)
    for name, found in json.loads((tmp_path / "measured.json").read_text())["compiled"].items():
        assert _largest_difference(found["with"], found["without"]) < (1e-5 if "fp32" in name else 1e-2), name
        assert not any("_orig_mod" in parameter for parameter in found["names"])


class _Config(Section):
    engine: AnyEngine = DeepSpeedConfig()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"zero_stage": 0}, "zero_stage"),
        ({"precision": "fp32", "grad_dtype": "bf16"}, "grad_dtype"),
        ({"deepspeed": {"train_batch_size": 8}}, "deepspeed.train_batch_size .*global_batch_size"),
        ({"deepspeed": {"zero_optimization": {"stage": 2}}}, "deepspeed.zero_optimization.stage .*engine.zero_stage"),
        ({"deepspeed": {"gradient_clipping": 1.0}}, "optimizer.grad_clip"),
        (
            {"deepspeed": {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}},
            "offload_optimizer .*not passed",
        ),
        ({"type": "plain", "deepspeed": {"comms_logger": {"enabled": True}}}, "engine.deepspeed +unknown key"),
        ({"type": "plain", "zero_stage": 7}, "engine.zero_stage +unknown key"),
        ({"type": "horovod"}, "engine.type +must be one of deepspeed, plain"),
    ],
)
def test_what_cannot_work_is_refused_by_name(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(_Config, {"engine": data}, "test")


def test_options_of_deepspeed_that_change_no_result_are_passed_on() -> None:
    options = {"zero_optimization": {"reduce_bucket_size": 50_000_000}, "wall_clock_breakdown": False}
    engine = validate(_Config, {"engine": {"deepspeed": options}}, "test").engine
    assert isinstance(engine, DeepSpeedConfig)
    assert engine.deepspeed == options


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_gpus_have_other_options_at_stages_1_and_2_and_those_of_the_user_win(stage: int) -> None:
    config = DeepSpeedConfig(zero_stage=stage, deepspeed={"zero_optimization": {"reduce_bucket_size": 7}})
    on_cpu, on_gpus = (
        config.options(grad_clip=1.0, num_micro_batches=1, on_gpus=on_gpus)["zero_optimization"]
        for on_gpus in (False, True)
    )
    assert on_cpu == {"reduce_bucket_size": 7, "stage": config.actual_stage}
    chosen = {} if stage == 3 else {"reduce_scatter": False, "overlap_comm": False}  # one process
    assert on_gpus == on_cpu | chosen


ENGINE_OF_A_PACKAGE = """
from typing import ClassVar, Literal

from xlpretrain.engine.config import DTYPES, EngineConfig
from xlpretrain.engine.plain import PlainEngine


class MineConfig(EngineConfig):
    type: Literal["mine"] = "mine"
    shards: int = 1
    layout_keys: ClassVar[tuple[str, ...]] = ("shards", "precision")

    def make_engine(self, model, optimizer, *, num_micro_batches, weights, device):
        kinds = {"precision": DTYPES[self.precision], "grad_dtype": DTYPES[self.grad_dtype]}
        return PlainEngine(model, optimizer, **kinds, weights=weights, device=device)
"""


def test_an_engine_of_a_package_trains(alone: Numbers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugins.install(tmp_path, "mine", {"mine.py": ENGINE_OF_A_PACKAGE}, {"engine.mine": "mine:MineConfig"})
    with plugins.on_path(tmp_path, monkeypatch):
        config = validate(_Config, {"engine": {"type": "mine", "shards": 4, "precision": "fp32"}}, "test").engine
        run = training(config, num_streams=7, num_micro_batches=2)
        assert run.engine.layout == {"engine": "mine", "shards": 4, "precision": "fp32", "micro_batches": 2}
        assert _largest_difference(run.steps(0, 3), alone["losses"][:3]) < 1e-6


def test_an_engine_has_no_keys_of_another_and_ignores_them_with_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    # As in the resolved configs of former versions, and in a file whose type an override has changed.
    given = {"engine": {"type": "plain", "zero_stage": 2, "deepspeed": {}, "precision": "fp32"}}
    given = apply_overrides(given, ["engine.zero_stage=3"], _Config)
    engine = validate(_Config, given, "my.yaml").engine
    assert engine.type == "plain" and engine.precision == "fp32"
    assert engine.model_dump().keys().isdisjoint({"zero_stage", "deepspeed"})
    printed = capsys.readouterr().err
    assert "warning: my.yaml: engine.zero_stage means nothing here and is ignored; remove it\n" in printed
