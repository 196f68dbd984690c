"""Former flag names, accepted with a warning for one version. Torch-free."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from typer.core import TyperGroup

FORMER_FLAGS = {
    "--as": "--name",
    "--data": "--input",
    "--on": "--ignore-eod",
    "--take-over": "--force-takeover",
}
"""Former name to new name. A command accepts a former name if it has the new flag and no flag of the former name."""


class RenamedFlags(TyperGroup):
    """A command group that accepts former flag names, which `--help` does not show."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Replace former flag names in the command's arguments, then resolve it as usual."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command, rest if command is None else replace_former_flags(command, rest)


def replace_former_flags(command: Any, arguments: Sequence[str]) -> list[str]:
    """Replace former flag names and print a warning for each on standard error.

    Args:
        command: typer (or click) command that receives the arguments.
        arguments: as typed. Flag values and everything after `--` stay unchanged.
    """
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    flags = {flag for option in options for flag in option.opts}
    with_value = {flag for option in options if not option.is_flag for flag in option.opts}
    former = {old: new for old, new in FORMER_FLAGS.items() if new in flags and old not in flags}
    replaced: list[str] = []
    is_value = False
    for position, argument in enumerate(arguments):
        if argument == "--" and not is_value:
            return [*replaced, *arguments[position:]]
        flag, equals, value = argument.partition("=")
        if flag in former and not is_value:
            print(f"warning: {flag} is now {former[flag]}; the next version removes {flag}", file=sys.stderr)
            flag = former[flag]
            argument = f"{flag}{equals}{value}"
        is_value = not is_value and not equals and flag in with_value
        replaced.append(argument)
    return replaced
