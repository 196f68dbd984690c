"""Records of a run on Slurm can be read back, whatever a killed writer left."""

from __future__ import annotations

from pathlib import Path

from launcher.slurm.records import AttemptEnd, AttemptStart, Job, SlurmFolder
from xlpretrain.run_dir.layout import RunDir

START = AttemptStart(job_id="7", restart=0, at=1.5, nodes=("node1", "node2"), world_size=4, step=0)
END = AttemptEnd(at=9.0, outcome="requeued", exit_code=75, step=20, message="time")


def folder(tmp_path: Path) -> SlurmFolder:
    records = SlurmFolder.of(RunDir(tmp_path))
    records.path.mkdir()
    return records


def test_records_read_back(tmp_path: Path) -> None:
    records = folder(tmp_path)
    assert (records.read_job(), records.read_events(), records.read_excluded()) == (None, [], [])
    job = Job(job_id="7_1", cluster="c", submitted_at=1.0, nodes="1-3", log="logs/job.log")
    records.write_job(job)
    records.append(START)
    records.append(END)
    records.exclude(["node2"])
    records.exclude(["node1", "node2"])
    assert (records.read_job(), records.read_events()) == (job, [START, END])
    assert records.read_excluded() == ["node2", "node1"]


def test_an_incomplete_line_does_not_swallow_another(tmp_path: Path) -> None:
    records = folder(tmp_path)
    records.append(START)
    with records.starts.open("a") as file:
        file.write('{"event": "end", "at": 2.')
    assert records.read_events() == [START]
    records.append(END)
    assert records.read_events() == [START, END]


def test_records_of_earlier_versions_do_not_have_progress(tmp_path: Path) -> None:
    records = folder(tmp_path)
    records.starts.write_text('{"event": "end", "at": 9.0, "outcome": "requeued", "exit_code": 75, "step": 20}\n')
    assert records.read_events() == [AttemptEnd(at=9.0, outcome="requeued", exit_code=75, step=20, progress=None)]
