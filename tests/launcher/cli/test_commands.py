"""The command line: help, user errors, and imports.

Modules: run_commands.py, model_commands.py, data_commands.py, options.py, by_hand.py, monitor.py.
"""

import subprocess
import sys
from collections.abc import Iterator
from functools import reduce
from pathlib import Path

import click
import commands
import pytest
from click.testing import CliRunner
from typer.main import get_command

from launcher.cli import actions, main
from launcher.cli.actions import configs

HEAVY = "torch|deepspeed|wandb|sentencepiece|matplotlib"


def modules_after(code: str) -> str:
    """Heavy packages that a fresh interpreter has imported after running `code`."""
    check = f"{code}\nimport sys; print(sorted(m for m in sys.modules if m in {HEAVY.split('|')!r}))"
    return subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout.strip()


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['xlpretrain', '--help']\nfrom launcher.cli.main import main\n"
        "import io, contextlib\nwith contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): main()"
    )
    assert modules_after(code) == "[]"


def test_arguments_are_explained_and_checked_without_any_action():
    """For every command: a module of `actions` is imported only after the arguments were accepted."""
    code = """
import sys
from click.testing import CliRunner
from typer.main import get_command
from launcher.cli.main import app

def walk(command, *path):
    yield path
    for name, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, *path, name)

command = get_command(app)
for path in walk(command):
    assert CliRunner().invoke(command, [*path, "--help"]).exit_code == 0
    assert CliRunner().invoke(command, [*path, "--no-such-option"]).exit_code == 2
assert not [name for name in sys.modules if name.startswith("launcher.cli.actions.")]
"""
    assert modules_after(code) == "[]"


def test_commands_that_inspect_runs_import_nothing_heavy():
    code = (
        "from launcher.cli.actions import monitor\n"
        "from launcher.slurm import history\nfrom launcher.slurm.job import attempt, requeue"
    )
    assert modules_after(code) == "[]"


def test_no_room_has_an_action_of_another_name():
    with pytest.raises(ModuleNotFoundError, match=r"launcher\.cli\.actions\.nothing"):
        actions.nothing  # noqa: B018


def test_loading_a_config_imports_no_deepspeed():
    code = (
        "from pathlib import Path\nfrom xlpretrain.config import run_config\n"
        "run_config.load(Path('configs/quickstart.yaml'))"
    )
    assert "deepspeed" not in modules_after(code)


def test_every_command_has_help():
    def walk(command: click.Command, *path: str) -> Iterator[tuple[str, ...]]:
        yield path
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, *path, name)

    app = get_command(main.app)
    paths = list(walk(app))
    assert len(paths) > 20
    for path in paths:
        found = CliRunner().invoke(app, [*path, "--help"], prog_name="xlpretrain")
        assert found.exit_code == 0, found.output
        assert " ".join(["Usage: xlpretrain", *path]) in found.output
    for path in (path for path in paths if path):
        command = reduce(lambda group, name: group.commands[name], path, app)
        assert command.help, path
        for parameter in command.params:
            assert parameter.name == "help" or parameter.help, f"{' '.join(path)}: {parameter.name} has no help"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "no.yaml"], "no.yaml: no such file"),
        (["resume", "/nowhere"], "not a run folder"),
        (["status", "/nowhere"], "not a run folder"),
        (["status", "--runs-dir", "/nowhere"], "no such folder"),
        (["logs", "/nowhere"], "not a run folder"),
        (["stop", "/nowhere"], "not a run folder"),
        (["cancel", "/nowhere"], "not a run folder"),
        (["eval", "/nowhere"], "not a run folder"),
        (["report", "/nowhere"], "not a run folder"),
        (["checkpoints", "/nowhere"], "not a run folder"),
        (["config"], "missing argument CONFIG"),
        (["config", "--copy", "nothing"], "unknown built-in config 'nothing'"),
        (["config", "configs/quickstart.yaml", "max_stepz=3"], "did you mean max_steps?"),
        (["data", "build", "configs/quickstart.yaml"], "sources"),
        (["data", "verify", "/nowhere"], "not a dataset"),
        (["data", "stats", "/nowhere"], "not a dataset"),
        (["train", "configs/quickstart.yaml", "data.train=/nowhere"], "/nowhere: not a dataset"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_user_errors_are_one_message_and_exit_code_2(arguments: list[str], message: str):
    assert message in commands.refused(*arguments)


def test_misused_options_exit_with_2_as_well():
    _, err = commands.run("train", expect=2)
    assert "Missing argument" in err


def test_bare_ranks_print_a_config_error_once():
    program = ["--nproc-per-node", 2, "-m", "xlpretrain", "configs/quickstart.yaml", "max_stepz=3"]
    _, err = commands.run(*program, program="torchrun", expect=1)
    assert err.count("did you mean max_steps?") == 1


def test_with_only_rank_set_it_names_the_missing_variables(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(commands.EXTRA, "RANK", "1")
    _, err = commands.run("-m", "xlpretrain", "configs/quickstart.yaml", program="python", expect=2)
    assert err.startswith("error: RANK is set, but not WORLD_SIZE, MASTER_ADDR, MASTER_PORT: start ranks with torchrun")
    assert len(err.splitlines()) == 1


def test_shipped_configs_are_copied_but_never_over_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    configs.copy_shipped("quickstart")
    assert Path("quickstart.yaml").read_text() == configs.shipped_files()["quickstart"].read_text()
    with pytest.raises(Exception, match="already exists"):
        configs.copy_shipped("quickstart.yaml")
    for name, target in {"slurm_site": "slurm_site.yaml", "pretrain.sbatch": "pretrain.sbatch"}.items():
        configs.copy_shipped(name)
        assert Path(target).read_text() == configs.shipped_files()[name].read_text()


def test_the_former_name_of_plain_sbatch_warns_and_works():
    (_, old), (_, new) = (
        commands.run("-m", name, expect=2, program="python")
        for name in ("launcher.by_hand", "launcher.slurm.submission.plain_sbatch")
    )
    warning, _, rest = old.partition("\n")
    assert "launcher.by_hand is now launcher.slurm.submission.plain_sbatch" in warning
    assert rest.replace("by_hand.py", "plain_sbatch.py") == new
