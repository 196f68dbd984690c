import sys
from functools import partial
from pathlib import Path
from typing import Any

import commands
import pytest
import yaml
from mixtures import mixture_of
from repository import ROOT

from xlpretrain import __main__ as rank
from xlpretrain import schema
from xlpretrain.config import data_rules, resume_rules, run_config
from xlpretrain.config.run_config import RunConfig
from xlpretrain.errors import ConfigError
from xlpretrain.schema import Section, former_keys
from xlpretrain.train.setup import resolve_run

SHIPPED = sorted(ROOT.glob("configs/*.yaml"))
MINIMAL = {
    "data": {"train": "data/train"},
    "model": {"type": "transformer_xl", "num_layers": 1, "d_model": 16, "num_heads": 2, "d_ff": 32, "mem_len": 16},
    "objective": {"type": "causal_lm", "seq_len": 16},
    "max_steps": 10,
}


def make_config(**changes) -> RunConfig:
    return schema.validate(RunConfig, {**MINIMAL, **changes}, "test.yaml")


def refusal(call, *args, **kwargs) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


@pytest.mark.parametrize("path", [p for p in SHIPPED if not p.stem.endswith("data")], ids=lambda p: p.stem)
def test_shipped_configs_load_and_survive_a_round_trip(path: Path, tmp_path: Path):
    config = run_config.load(path)
    (tmp_path / "dumped.yaml").write_text(schema.dump(config))
    assert run_config.load(tmp_path / "dumped.yaml") == config


def test_a_former_key_is_read_from_a_file_an_override_and_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(former_keys, "_warned", set())
    monkeypatch.delenv("RANK", raising=False)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, "data": {"train": "data/train", "patience_s": 7.0}}))
    (tmp_path / "provenance.json").write_text("{}")
    begun = run_config.load(path)
    assert begun.data.retry_s == 7.0
    assert capsys.readouterr().err == ""  # nobody typed the keys in the folder of a run
    assert run_config.load(path, ["data.patience_s=8"]).data.retry_s == 8.0
    (tmp_path / "provenance.json").unlink()
    assert run_config.load(path, ["data.retry_s=9"]).data.retry_s == 9.0
    assert capsys.readouterr().err.count("data.patience_s is now called data.retry_s") == 1
    changed = resume_rules.check_resume(
        begun, run_config.load(path, ["data.retry_s=9"]), folder=tmp_path, allow_recipe_change=False
    )
    assert changed == {"data.retry_s": (7.0, 9.0)}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "must start with a letter or a digit, and contain only letters (a-z, A-Z), digits and . _ -"),
        ("a b", "must start with a letter or a digit"),
        ("../x", "must start with a letter or a digit"),
        ("x\n", "must start with a letter or a digit"),
        (2024, "must be text, got 2024; put it in quotes"),
        (True, "must be text, got true; put it in quotes"),
        (None, "must be text, got nothing"),
    ],
)
def test_a_name_that_cannot_be_one_is_told_the_rule(name: object, message: str):
    assert f"  name  {message}" in refusal(make_config, name=name)


def test_every_key_is_explained():
    silent = [path for path, _, _, meaning in schema.explain(make_config()) if not meaning]
    assert silent == []


@pytest.mark.parametrize(
    "lengths", [{"max_steps": None}, {"max_tokens": 100}, {"max_steps": None, "max_tokens": 1, "max_epochs": 1.0}]
)
def test_exactly_one_length_is_asked_for(lengths):
    assert "set exactly one of max_steps, max_tokens, max_epochs" in refusal(make_config, **lengths)


def test_mistakes_of_all_sections_come_in_one_report():
    report = refusal(
        make_config,
        optimizer={"lr": -1},
        engine={"type": "deepspeed", "precison": "fp32"},
        model={**MINIMAL["model"], "mem_length": 3},
        schedule={"type": "linear", "warmup_steps": 9, "total_steps": 9},
        global_batch_size="many",
    )
    for line in (
        "test.yaml: 5 problems",
        "schedule.warmup_steps  must be below total_steps (9), got 9",
        "model.mem_length       unknown key; did you mean mem_len?",
        "optimizer.lr           must be greater than 0, got -1",
        "engine.precison        unknown key; did you mean precision?",
        'global_batch_size      must be a valid integer, got "many"',
    ):
        assert line in report


def test_bf16_at_stage_0_and_owned_deepspeed_options_are_refused_by_name():
    report = refusal(make_config, engine={"zero_stage": 0, "deepspeed": {"train_batch_size": 3}})
    assert "engine.zero_stage" in report and "bf16" in report
    assert "engine.deepspeed.train_batch_size" in report


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden"])
def test_a_name_stays_within_its_folder(name: str):
    assert "name" in refusal(make_config, name=name)


def test_tokens_and_epochs_become_steps(tiny_dataset: Path):
    train = mixture_of(tiny_dataset / "train")
    by_tokens = data_rules.resolve(make_config(max_steps=None, max_tokens=1000), train)
    assert by_tokens.max_steps == 4  # 16 streams of 16 tokens
    by_epochs = data_rules.resolve(make_config(max_steps=None, max_epochs=2.0), train)
    assert by_epochs.max_steps == round(2 * train.manifests[0].num_blocks * train.manifests[0].block_tokens / 256)
    assert by_epochs.schedule.total_steps == by_epochs.max_steps


def test_the_schedules_end_stays_when_max_steps_grows(tiny_dataset: Path):
    train = mixture_of(tiny_dataset / "train")
    begun = data_rules.resolve(make_config(), train)
    longer = data_rules.resolve(make_config(max_steps=50), train, begun=begun)
    assert (longer.max_steps, longer.schedule.total_steps) == (50, 10)
    changed = resume_rules.check_resume(begun, longer, folder=Path("r"), allow_recipe_change=False)
    assert changed == {"max_steps": (10, 50)}


def test_impossible_arithmetic_is_refused_before_work_starts(tiny_dataset: Path):
    train = mixture_of(tiny_dataset / "train")
    few = make_config(global_batch_size=2)
    assert "must be at least the number of ranks, 4, got 2" in refusal(data_rules.validate_data, few, train, 4)
    large = make_config(global_batch_size=train.manifests[0].num_tokens)
    assert "too small for one step" in refusal(data_rules.validate_data, large, train, 1)
    long = make_config(objective={"type": "causal_lm", "seq_len": train.manifests[0].block_tokens})
    assert "does not fit into a block" in refusal(data_rules.validate_data, long, train, 1)


@pytest.mark.parametrize(("task", "refused"), [("sop", True), ("nsp", True), ("none", False)])
def test_rows_with_more_segments_than_the_model_has_are_refused(tiny_dataset: Path, task: str, refused: bool):
    """Their vectors would be looked up beyond the table: a traceback, and on a GPU a dead context."""
    train = mixture_of(tiny_dataset / "train")
    config = make_config(
        model={"type": "bert", "num_heads": 2, "d_model": 16, "num_segments": 1},
        objective={"type": "masked_lm", "seq_len": 16, "sentence_task": task},
    )
    if refused:
        expected = "model.num_segments  must be at least 2, for these samples, got 1"
        assert expected in refusal(data_rules.validate_data, config, train, 1)
    else:
        data_rules.validate_data(config, train, 1)


def test_what_a_resume_may_change():
    old = make_config()
    free = make_config(
        max_steps=20, micro_batch_size=2, engine={"zero_stage": 3}, checkpoint={"keep": 1}, log={"every_steps": 1}
    )
    assert len(resume_rules.check_resume(old, free, folder=Path("r"), allow_recipe_change=False)) == 5
    recipe = make_config(optimizer={"lr": 5e-4})
    report = refusal(resume_rules.check_resume, old, recipe, folder=Path("runs/r"), allow_recipe_change=False)
    assert "optimizer.lr  was 0.001, now 0.0005" in report and "--allow-recipe-change" in report
    resume_rules.check_resume(old, recipe, folder=Path("r"), allow_recipe_change=True)
    for change, both_values in (
        ({"seed": 2}, "seed  was 1, now 2"),
        ({"global_batch_size": 8}, "global_batch_size  was 16, now 8"),
        ({"model": {**MINIMAL["model"], "d_ff": 64}}, "model.d_ff  was 32, now 64"),
        ({"objective": {"type": "causal_lm", "seq_len": 8}}, "objective.seq_len  was 16, now 8"),
    ):
        report = refusal(
            resume_rules.check_resume, old, make_config(**change), folder=Path("r"), allow_recipe_change=True
        )
        assert both_values in report and "another name" in report


@pytest.mark.parametrize("model", ["transformer_xl", "xlnet", "albert"])
def test_groups_are_compared_with_the_models_names_before_work_starts(tiny_dataset: Path, model: str):
    train = mixture_of(tiny_dataset / "train")
    keys = {"type": model, "num_layers": 2, "d_model": 16, "num_heads": 2, "d_ff": 32, "mem_len": 0}
    objective = {"type": "causal_lm", "seq_len": 16} if model == "transformer_xl" else {"type": "masked_lm"}
    config = partial(make_config, model=keys, objective=objective)
    fitting = {"groups": [{"match": "backbone.embedding.*", "lr_factor": 0.5}], "layer_decay": 0.9}
    data_rules.validate_data(config(optimizer=fitting | {"frozen": ["*.bias"]}), train, 1)
    data_rules.validate_data(config(optimizer={"type": "muon"}), train, 1)
    for wrong in ({"frozen": ["*.bais"]}, {"type": "muon", "matrices": ["layers.*"]}):
        report = refusal(data_rules.validate_data, config(optimizer=wrong), train, 1)
        assert f"optimizer.{list(wrong)[-1]}.0  {list(wrong.values())[-1][0]!r} matches no parameter; close" in report
    wrong = config(optimizer={"groups": [{"match": "backbone.*"}, {"match": "embedding.*"}]})
    report = refusal(data_rules.validate_data, wrong, train, 1)
    assert "optimizer.groups.1.match  'embedding.*' matches no parameter; close names: backbone.embedding." in report


def test_groups_may_change_with_the_recipe_alone():
    old, new = make_config(), make_config(optimizer={"groups": [{"match": "*.bias", "lr_factor": 2.0}]})
    report = refusal(resume_rules.check_resume, old, new, folder=Path("r"), allow_recipe_change=False)
    assert "optimizer.groups.0.lr_factor  was None, now 2.0" in report and "--allow-recipe-change" in report
    resume_rules.check_resume(old, new, folder=Path("r"), allow_recipe_change=True)


def test_what_looks_like_a_secret_is_refused_without_being_repeated(tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, "engine": {"deepspeed": {"hub_token": "hunter2"}}}))
    report = refusal(run_config.load, path)
    assert "engine.deepspeed.hub_token" in report and "hunter2" not in report


def test_a_rank_that_is_handed_a_resolved_config_validates_it_once(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    validated = []

    def count(section: type[Section], data: Any, source: str) -> Section:
        validated.append(section)
        return validate(section, data, source)

    validate = schema.validate
    monkeypatch.setattr(schema, "validate", count)
    config = commands.write_config(
        tmp_path / "tiny.yaml",
        tiny_dataset,
        engine={"type": "plain", "precision": "fp32"},
        schedule={"type": "cosine", "warmup_steps": 1},
        wandb={"mode": "disabled"},
        max_steps=2,
    )
    settings, _, _ = resolve_run(run_config.load(config), world_size=1, allow_recipe_change=False)
    config.write_text(schema.dump(settings))
    validated.clear()
    assert rank.main([str(config)]) == 0
    assert validated == [RunConfig]


def trackers_of(data: dict[str, Any], *overrides: str) -> dict[str, Any]:
    merged = schema.apply_overrides({**MINIMAL, **data}, overrides, RunConfig)
    return {tracker.type: tracker for tracker in schema.validate(RunConfig, merged, "test.yaml").trackers}


def test_the_section_of_a_tracker_and_its_item_are_the_same():
    """Configs, overrides and run folders of earlier versions have `wandb: {...}`."""
    assert [tracker.type for tracker in make_config().trackers] == ["wandb"]
    tensorboard = {"trackers": [{"type": "tensorboard"}]}
    for data, overrides in [
        ({"wandb": {"mode": "offline"}}, ()),
        ({}, ("wandb.mode=offline",)),
        ({}, ("trackers.wandb.mode=offline",)),
        ({}, ("wandb={mode: offline}",)),
        ({"trackers": []}, ("wandb.mode=offline",)),
        ({"wandb": {"project": "p"}} | tensorboard, ("wandb.mode=offline",)),
    ]:
        found = trackers_of(data, *overrides)
        assert found["wandb"].mode == "offline"
        assert found.keys() == ({"wandb", "tensorboard"} if "wandb" in data and "trackers" in data else {"wandb"})
    found = trackers_of({}, "trackers.tensorboard.folder=all", "trackers.mlflow.experiment=e")
    assert list(found) == ["wandb", "tensorboard", "mlflow"] and found["mlflow"].experiment == "e"
    assert list(trackers_of(tensorboard)) == ["tensorboard"]
    assert trackers_of({}, "trackers=[]") == {}


def test_a_tracker_given_twice_is_refused():
    both = refusal(make_config, wandb={"mode": "offline"}, trackers=[{"type": "wandb"}])
    assert "wandb  is short for the settings of trackers.wandb" in both
    assert "is there twice" in refusal(make_config, trackers=[{"type": "tensorboard"}, {"type": "tensorboard"}])
    assert "no such list item; items are numbered from 0, or named by their type" in refusal(
        trackers_of, {}, "trackers.tensorbord.folder=x"
    )


def test_a_run_whose_tracker_lacks_its_package_is_refused_before_it_starts(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    path = commands.write_config(tmp_path / "tiny.yaml", tiny_dataset, trackers=[{"type": "tensorboard"}])
    report = refusal(resolve_run, run_config.load(path), world_size=1, allow_recipe_change=False)
    assert report.endswith('pip install "xlpretrain[tensorboard]"')
    assert list(tmp_path.iterdir()) == [path]


def test_an_automatic_size_is_a_word_and_a_resume_takes_the_number_that_was_found(tiny_dataset: Path):
    report = refusal(make_config, micro_batch_size="automatic")
    assert 'micro_batch_size  must be a positive integer or auto, got "automatic"' in report
    assert "must be a positive integer or auto, got 0" in refusal(make_config, micro_batch_size=0)
    train = mixture_of(tiny_dataset / "train")
    new = data_rules.resolve(make_config(micro_batch_size="auto"), train)
    assert new.micro_batch_size == "auto"
    begun = new.model_copy(update={"micro_batch_size": 3})
    assert data_rules.resolve(make_config(micro_batch_size="auto"), train, begun=begun).micro_batch_size == 3
    assert data_rules.resolve(make_config(micro_batch_size=5), train, begun=begun).micro_batch_size == 5
