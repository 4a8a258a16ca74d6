"""The frame of a program's command line: one configuration file, and a command for each thing to do."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

Add = Callable[[str, Callable[..., int], str], argparse.ArgumentParser]
"""(name, function, help) -> the parser of the new command."""


def make_parser(program: str, description: str | None, config: str) -> tuple[argparse.ArgumentParser, Add]:
    """Make a parser with --config and --verbose, before the command or behind it.

    Args:
        program: its name.
        description: for --help.
        config: the default configuration file.

    Returns:
        The parser, and a function that adds commands to it; `options.command` is the chosen one's function.
    """
    parser = argparse.ArgumentParser(program, description=description)
    shared = argparse.ArgumentParser(add_help=False)
    absent = argparse.SUPPRESS  # behind the command: where it is not given, what stands before it holds
    options: tuple[tuple[argparse.ArgumentParser, Any, Any], ...] = (
        (parser, Path(config), False),
        (shared, absent, absent),
    )
    for target, path, verbose in options:
        target.add_argument(
            "--config", type=Path, default=path, help=f"configuration file (default: {config})"
        )
        target.add_argument("--verbose", action="store_true", default=verbose, help="log every detail")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, function: Callable[..., int], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, parents=[shared])
        command.set_defaults(command=function)
        return command

    return parser, add
