"""What the two command lines have in common: a version, and help with an example."""

import argparse
import os
import re
import socket
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, NoReturn

from splice.errors import UserError


class Parser(argparse.ArgumentParser):
    """One that suggests the nearest command or value."""

    def error(self, message: str) -> NoReturn:
        """As argparse calls it."""
        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        known = re.findall(r"[\w-]+", choice[2]) if choice else []
        if choice and (close := get_close_matches(choice[1], known, n=1)):
            message = f"there is no {choice[1]}; did you mean {close[0]}?"
        super().error(message)


class Version(argparse.Action):
    """Print program and version, looked up only then, and end."""

    def __call__(self, parser: argparse.ArgumentParser, *_arguments: Any) -> None:
        """As argparse calls it."""
        from importlib.metadata import entry_points

        for command in entry_points(group="console_scripts", name=parser.prog):
            print(f"{parser.prog} {command.dist.version if command.dist else 'unknown'}")
        parser.exit()


def commands_of(
    parser: argparse.ArgumentParser, examples: Mapping[str, str]
) -> Callable[..., argparse.ArgumentParser]:
    """Make a parser one of commands; give what adds a command, by name and help.

    Args:
        parser: of the program.
        examples: the arguments of an example, by the command's name.
    """
    parser.add_argument("--version", action=Version, nargs=0, help="show it and end")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, *, help: str) -> argparse.ArgumentParser:  # noqa: A002
        return commands.add_parser(
            name,
            help=help,
            description=f"{help[0].upper()}{help[1:]}.",
            epilog=f"Example: {parser.prog} {name} {examples.get(name, '')}",
        )

    return add


def listening(host: str, port: int, command: str) -> socket.socket:
    """A socket that listens on a port, 0 for any that is free.

    Args:
        host: address of this machine.
        port: number.
        command: that is said to take another one, as in `splice ui`.

    Raises:
        UserError: the port is taken, or not for everybody.
    """
    try:
        return socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise UserError(
            f"cannot listen on {host}:{port}: {why}; choose another, as in `{command} --port 5005`"
        ) from error
