from pathlib import Path

import pytest

from xlpretrain.errors import LaunchError
from xlpretrain.file_system.atomic_files import atomic_write
from xlpretrain.run_dir.layout import RunDir, Status


def test_a_folder_without_a_config_was_never_begun(tmp_path: Path):
    with pytest.raises(LaunchError, match="not a run folder"):
        RunDir(tmp_path).check_exists()


def test_what_was_created_is_read_back(tmp_path: Path):
    folder = RunDir(tmp_path / "runs" / "mine")
    folder.create(config="name: mine\n", provenance={"wandb_id": "abc"})
    assert folder.check_exists().config.read_text() == "name: mine\n"
    assert folder.read_provenance() == {"wandb_id": "abc"}
    assert folder.read_status() is None


def test_a_folder_that_cannot_be_made_is_the_users_mistake(tmp_path: Path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(LaunchError, match="cannot be created"):
        RunDir(tmp_path / "runs" / "mine").create(config="", provenance={})


def test_files_of_others_are_not_written_over(tmp_path: Path):
    folder = RunDir(tmp_path)
    folder.refuse_others()
    folder.metrics.write_text("mine")
    with pytest.raises(LaunchError, match=r"metrics\.jsonl: .* does not belong to a run; choose another name"):
        folder.refuse_others()
    folder.lease.mkdir()  # a start that came no further
    folder.refuse_others()


def test_status_survives_the_disk(tmp_path: Path):
    folder = RunDir(tmp_path)
    folder.write_status(Status("stopped", "signal", step=7))
    read = folder.read_status()
    assert read is not None
    assert (read.state, read.reason, read.step) == ("stopped", "signal", 7)
    assert read.pid > 0


def test_a_failed_replacement_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "status.json"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        atomic_write(path, "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
