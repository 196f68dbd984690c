"""The command `xlpretrain`: collects the sub-commands and prints errors as one message. Torch-free.

Arguments and help are declared in `run_commands`, `model_commands` and `data_commands`; the code of the
commands is in `actions`, whose modules are imported only when a command runs.
"""

from __future__ import annotations

import errno
import sys

import typer

from launcher.cli import data_commands, model_commands, run_commands
from launcher.cli.renamed_flags import RenamedFlags
from xlpretrain.errors import USER_ERROR, XLPretrainError

_DISK_ERRORS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}

app = typer.Typer(
    cls=RenamedFlags,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Pretrain Transformer-XL, XLNet, ALBERT and BERT models: exact data order, exact resume.",
)
app.add_typer(run_commands.app)
app.add_typer(model_commands.app)
app.add_typer(data_commands.app, name="data")


def main() -> None:
    """Run the command. A user error is printed as one message; its exit code is 2."""
    try:
        app()
    except XLPretrainError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except OSError as error:
        if error.errno not in _DISK_ERRORS or error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(USER_ERROR)
