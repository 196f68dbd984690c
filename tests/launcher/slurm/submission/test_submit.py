"""Checks, files and output of `xlpretrain submit`, with fake Slurm commands.

Modules: finished.py.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import submitit
import yaml
from commands import write_config
from fake_slurm import FakeSlurm
from submitit import SlurmExecutor

from launcher.cli.actions import training
from launcher.local.options import StartOptions
from launcher.slurm.profile import ClusterConfig
from launcher.slurm.records import SlurmFolder
from launcher.slurm.submission import executor
from launcher.sweeps.variants import variants
from xlpretrain.config import run_config
from xlpretrain.errors import ConfigError, XLPretrainError
from xlpretrain.run_dir.layout import RunDir, Status


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A fake cluster that accepts every job as number 7, and lists none."""
    (tmp_path / "fake").mkdir()
    fake = FakeSlurm(tmp_path / "fake", monkeypatch)
    fake.has("srun")
    fake.has("sbatch", "Submitted batch job 7")
    fake.has("squeue")
    fake.has("scontrol", "ClusterName = test")
    return fake


@pytest.fixture
def call(tmp_path: Path, tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch, slurm: FakeSlurm) -> Any:
    """Submit the run `r` by default."""
    config = write_config(tmp_path / "run.yaml", tiny_dataset, name="r")
    monkeypatch.chdir(tmp_path)

    def call(*overrides: str, profile: dict[str, Any] | None = None, **options: Any) -> None:
        site = tmp_path / "site.yaml"
        site.write_text(yaml.safe_dump({"python": "/opt/my python", "tasks_per_node": 2, **(profile or {})}))
        defaults = {"nodes": "1-2", "sweeps": (), "allow_recipe_change": False, "dry_run": False}
        training.submit(config, overrides, cluster=site, **{**defaults, **options})

    return call


def refusal(call: Any, *overrides: str, **options: Any) -> str:
    with pytest.raises(XLPretrainError) as error:
        call(*overrides, **options)
    return str(error.value)


def test_a_submitted_run_is_recorded_and_printed(call: Any, slurm: FakeSlurm, tmp_path: Path, capsys: Any) -> None:
    call("max_steps=7")
    run = RunDir(tmp_path / "runs" / "r")
    records = SlurmFolder.of(run)
    job = records.read_job()
    assert job is not None
    assert (job.job_id, job.cluster, job.nodes, job.log) == ("7", "test", "1-2", str(run.logs / "job.log"))
    assert yaml.safe_load(records.config.read_text())["max_steps"] == 7
    assert (run.path / "code" / "launcher" / "slurm" / "job" / "attempt.py").is_file()
    assert not run.exists(), "a run starts with its first attempt"
    said = capsys.readouterr().out
    assert "job 7" in said
    assert "xlpretrain status" in said


@pytest.mark.parametrize(
    ("overrides", "options", "message"),
    [
        (["max_stepz=1"], {}, "did you mean max_steps?"),
        (["global_batch_size=3"], {}, "must be at least the number of ranks, 4, got 3"),
        (["data.train=/nowhere"], {}, "/nowhere: not a dataset"),
        ([], {"nodes": "two"}, "or MIN-MAX such as 1-3"),
        ([], {"profile": {"env": {"MY_TOKEN": "x"}}}, "looks like a secret"),
        ([], {"sweeps": ["seed"]}, "expected key=value,value"),
    ],
    ids=str,
)
def test_user_errors_never_reach_the_queue(
    call: Any, slurm: FakeSlurm, tmp_path: Path, overrides: list[str], options: dict[str, Any], message: str
) -> None:
    assert message in refusal(call, *overrides, **options)
    assert not (tmp_path / "runs").exists()
    assert not any(line.startswith("sbatch") for line in slurm.asked)


def test_errors_of_slurm_are_printed_and_leave_nothing_behind(call: Any, slurm: FakeSlurm, tmp_path: Path) -> None:
    slurm.has("sbatch", error="sbatch: error: invalid partition specified: nosuch")
    assert "invalid partition specified: nosuch" in refusal(call)
    assert not (tmp_path / "runs" / "r").exists()
    assert "invalid partition specified: nosuch" in refusal(call, sweeps=["seed=1,2"])
    assert [path.name for path in (tmp_path / "runs").rglob("*")] in ([], [".sweeps"])


def test_a_run_in_the_queue_stopped_or_done_is_not_submitted(
    call: Any, slurm: FakeSlurm, tmp_path: Path, capsys: Any
) -> None:
    call()
    slurm.has("squeue", "7|PENDING||N/A|Priority")
    assert "already submitted as job 7" in refusal(call)
    slurm.has("squeue", "7|COMPLETED||N/A|None")
    run = RunDir(tmp_path / "runs" / "r")
    run.stop_file.touch()
    assert "the run was stopped by the user; `xlpretrain resume" in refusal(call)
    run.stop_file.unlink()
    run.write_status(Status("finished", "finished", step=60, max_steps=60))
    asked = len(slurm.asked)
    call()
    assert "already finished: 60 steps" in capsys.readouterr().out
    assert len(slurm.asked) == asked


def test_a_run_that_ran_out_of_patience_is_neither_submitted_nor_resumed(
    call: Any, slurm: FakeSlurm, tmp_path: Path, capsys: Any
) -> None:
    call("stop.patience=2")
    slurm.has("squeue", "7|COMPLETED||N/A|None")
    run = RunDir(tmp_path / "runs" / "r")
    config = SlurmFolder.of(run).config
    data = run_config.load(config).data.open()
    run.create(config=config.read_text(), provenance={"data_sha256": data.train.fingerprint})
    run.write_status(Status("finished", "finished", step=40, max_steps=60))
    asked = len([line for line in slurm.asked if line.startswith("sbatch")])

    def resume(*overrides: str) -> None:
        training.resume_on_slurm(run, overrides, StartOptions(), nodes=None)

    call("stop.patience=2")
    resume()
    told = capsys.readouterr().out
    assert told.count("already finished: 40 steps") == 2 and told.count("raise stop.patience to continue") == 2
    assert len([line for line in slurm.asked if line.startswith("sbatch")]) == asked
    resume("stop.patience=3")
    assert len([line for line in slurm.asked if line.startswith("sbatch")]) == asked + 1


def test_a_dry_run_prints_the_script_and_writes_nothing(call: Any, tmp_path: Path, capsys: Any) -> None:
    before = sorted(tmp_path.rglob("*"))
    call(dry_run=True, profile={"partition": "gpu", "gres": "gpu:h100:2", "setup": ["module load cuda"]})
    text = capsys.readouterr().out
    for line in ("#SBATCH --partition=gpu", "#SBATCH --gres=gpu:h100:2", "#SBATCH --nodes=1-2", "#SBATCH --requeue"):
        assert line in text.splitlines()
    assert "module load cuda" in text
    assert "submitit.core._submit" in text
    assert "--wckey" not in text
    assert "--time" not in text, "the site's default, if none is asked for"
    assert [path for path in sorted(tmp_path.rglob("*")) if path.name != "site.yaml"] == [
        path for path in before if path.name != "site.yaml"
    ]


@pytest.mark.parametrize("sweeps", [[], ["seed=1,2"]], ids=["run", "sweep"])
def test_the_script_of_a_dry_run_is_the_one_that_sbatch_gets(
    call: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, sweeps: list[str]
) -> None:
    monkeypatch.setattr(executor.secrets, "token_hex", lambda _: "0000")
    monkeypatch.setattr(executor.time, "strftime", lambda _: "20260101-000000")
    call(dry_run=True, sweeps=sweeps)
    printed = capsys.readouterr().out
    call(sweeps=sweeps)
    scripts = {path.resolve() for path in (tmp_path / "runs").rglob("*_submission.sh")}
    assert {path.read_text() + "\n" for path in scripts} == {printed}


def test_two_private_names_of_submitit_are_used_and_exist() -> None:
    """Decision 0036. Where this fails, submitit has changed: `executor.script` has to find the script another way."""
    launcher = Path(executor.__file__).parents[2]
    used = set()
    for path in launcher.rglob("*.py"):
        if "submitit" in (text := path.read_text()):
            used |= set(re.findall(r"(?:executor|submitit|slurm)\.(_[a-z]\w+)", text))
            used |= set(re.findall(r"from submitit\S* import (_\w+)", text))
    assert used == {"_make_submission_file_text", "_submitit_command_str"}
    gone = [name for name in sorted(used) if not hasattr(SlurmExecutor, name)]
    assert not gone, f"submitit {submitit.__version__} has no SlurmExecutor.{gone[0]}, which --dry-run needs"


def test_odd_paths_and_values_reach_the_script_as_text(tmp_path: Path, slurm: FakeSlurm) -> None:
    run = RunDir(tmp_path / "a \"b' $(touch x)\n`touch x` 100% \\z" / "run")
    # The parts of the script that need neither Slurm nor submitit.
    (run.path / "code").mkdir(parents=True)
    run.logs.mkdir()
    value = "'\"$(touch x)\n`touch x`"
    site = ClusterConfig(env={"ODD": value}, setup=("true",))
    text = executor.script([run], site, name="run")
    assert all(line.startswith("#SBATCH --") for line in text.partition("# setup")[0].split("\n\n")[1].splitlines()[1:])
    shown = text.partition("# command")[0] + '\nprintf %s "$ODD"; printf "|%s" "$PWD"\n'
    subprocess.run(["/bin/bash", "-e", "-c", shown], cwd=tmp_path, check=True, env={})
    assert (run.path / executor.LOG).read_text() == f"{value}|{run.path}/code"
    assert not list(tmp_path.rglob("x"))


def test_patterns_of_submitit_in_paths_are_refused(tmp_path: Path, slurm: FakeSlurm) -> None:
    with pytest.raises(ConfigError, match="holds %j, which submitit reads as a pattern"):
        executor.script([RunDir(tmp_path / "%job" / "run")], ClusterConfig(), name="run")


def test_no_secret_of_the_environment_is_written(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789secret")
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789secret")
    call()
    written = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert len(written) > 50
    assert not [path for path in written if b"0123456789secret" in path.read_bytes()]


def test_a_sweep_is_an_array_with_a_folder_for_each_run(call: Any, slurm: FakeSlurm, tmp_path: Path) -> None:
    call(sweeps=["optimizer.lr=1e-4,3e-4", "seed=1,2"], profile={"array_parallelism": 2})
    names = ["r-lr1e-4-seed1", "r-lr1e-4-seed2", "r-lr3e-4-seed1", "r-lr3e-4-seed2"]
    for index, name in enumerate(names):
        records = SlurmFolder.of(RunDir(tmp_path / "runs" / name))
        job = records.read_job()
        assert job is not None
        assert job.job_id == f"7_{index}"
        (link,) = (tmp_path / "runs" / ".sweeps").glob(f"*/runs/{index}")
        assert link.resolve() == tmp_path / "runs" / name
    (script,) = (tmp_path / "runs" / ".sweeps").rglob("*_submission.sh")
    assert "#SBATCH --array=0-3%2" in script.read_text()
    assert [yaml.safe_load((tmp_path / "runs" / name / "slurm/config.yaml").read_text())["seed"] for name in names] == [
        1,
        2,
        1,
        2,
    ]


def test_values_of_a_sweep_make_safe_and_unique_names() -> None:
    found = variants(["optimizer.betas=[0.9,0.95],[0.9,0.99]", "a.b='x,y','x;y'"])
    assert [each.overrides[0] for each in found[::2]] == ["optimizer.betas=[0.9,0.95]", "optimizer.betas=[0.9,0.99]"]
    assert [each.overrides[1] for each in found[:2]] == ["a.b='x,y'", "a.b='x;y'"]
    suffixes = [each.suffix for each in found]
    assert suffixes[:2] == ["-betas_0.9_0.95_-b_x_y_", "-betas_0.9_0.95_-b_x_y_-2"]
    assert len(set(suffixes)) == 4
    assert variants([])[0].suffix == ""


@pytest.mark.parametrize("sweep", [["seed="], ["seed=1,,2"], ["=1"], ["name=a,b"], ["seed=1,1"], ["seed=1", "seed=2"]])
def test_invalid_sweeps_are_refused(sweep: list[str]) -> None:
    with pytest.raises(ConfigError, match="--sweep"):
        variants(sweep)
