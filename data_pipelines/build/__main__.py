"""One job of a build on a cluster: `python -m data_pipelines.build WORK STAGE NUM_JOBS`, or `WORK finish`.

The job runs every NUM_JOBS-th task of the stage, starting at task SLURM_ARRAY_TASK_ID.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from data_pipelines.build.pipeline import publish, run_stage, stages_of
from data_pipelines.execution.progress import ProgressReporter
from data_pipelines.execution.workers import Workers
from data_pipelines.stages.plan import current_versions
from data_pipelines.stages.work_dir import WorkDir
from xlpretrain.errors import USER_ERROR, DataError
from xlpretrain.tracking.console import outlive_console
from xlpretrain.tracking.printing import AnswerConsole

FINISH, REPLACE = "finish", "replace"


def main(arguments: list[str]) -> None:
    """Run the job. A user error is printed as one message and exits with code 2."""
    outlive_console()
    work = WorkDir(Path(arguments[0]))
    try:
        if arguments[1] == FINISH:
            publish(work, replace=REPLACE in arguments)
            return
        if work.plan.versions != current_versions(work.config):
            raise DataError(
                f"{work.folder}: started with other versions of xlpretrain or its libraries; run `xlpretrain data "
                "build` again, which starts over"
            )
        stage = next(stage for stage in stages_of(work.config) if stage.name == arguments[1])
        part = slice(int(os.environ.get("SLURM_ARRAY_TASK_ID", "0")), None, int(arguments[2]))
        with Workers(_cores(work)) as workers:
            run_stage(work, stage, ProgressReporter(AnswerConsole()), workers, part=part)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(USER_ERROR)
    except OSError as error:
        print(f"error: {error.filename or work.folder}: {error.strerror or error}", file=sys.stderr, flush=True)
        sys.exit(USER_ERROR)


def _cores(work: WorkDir) -> int:
    """Number of workers: the cores that Slurm assigned to the job on this node, at most `workers`."""
    return min(work.config.workers, int(os.environ.get("SLURM_CPUS_ON_NODE") or work.config.workers))


if __name__ == "__main__":
    main(sys.argv[1:])
