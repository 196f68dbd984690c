"""The process that runs checks, so that one that hangs or crashes can be ended.

    python -m launcher.doctor.worker NAME ...

Reads a request from standard input and prints messages: `begin` (a check), `made` (a folder), `finding`, `done`. It
exits when its standard input is closed, also if its parent was killed; folders are removed first. Torch-free at import.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from types import FrameType
from typing import NoReturn

from launcher.doctor import channel, checks
from launcher.doctor.findings import failure, from_error
from launcher.doctor.request import Request
from xlpretrain.errors import XLPretrainError, exit_rank


def main(names: Sequence[str]) -> None:
    """Run checks by name, in order."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, _leave)
    request = Request.from_json(sys.stdin.readline())
    channel.open_channel()
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    for name in names:
        channel.send(begin=name)
        try:
            for finding in checks.load(name)(request):
                channel.send(finding=replace(finding, check=finding.check or name).to_dict())
        except XLPretrainError as error:
            channel.send(finding=replace(from_error(error), check=name).to_dict())
        except OSError as error:
            text = f"{error.filename or name}: {error.strerror or error}"
            remedy = "free space there, or set TMPDIR or runs_dir to another disk"
            channel.send(finding=replace(failure(text, remedy), check=name).to_dict())
        except Exception as error:  # the other checks go on
            text = f"the check itself failed: {type(error).__name__}: {error}"
            channel.send(finding=replace(failure(text, "please report it"), check=name).to_dict())
    channel.send(done=True)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # removing folders is not interrupted
    sys.exit(128 + number)


def _leave_with_parent() -> None:
    sys.stdin.read()
    while True:  # a launcher of ranks forwards signals to them for as long as they run
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)


if __name__ == "__main__":
    main(sys.argv[1:])
    exit_rank(0)
