"""What the two command lines have in common: help and a version, cures, and how far they are."""

import argparse
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from splice.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from rich.console import Console

COMMAND = "COMMAND"  # as help shows it
ANY_WIDTH = 10_000  # of what isn't a terminal
LINE_SECONDS = 10.0  # between two lines on progress where there is no terminal

T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """One that suggests the nearest command, value or option, or the program that has it."""

    def error(self, message: str) -> NoReturn:
        """As argparse calls it."""
        if message.endswith(f"required: {COMMAND}"):
            self.print_help(sys.stderr)
            self.exit(2)
        choice = re.search(r"argument (\S+): invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if choice:
            where, typed, known = choice.groups()
            program = _program_beside(self.prog, typed) if where == COMMAND else ""
            nearest = did_you_mean(typed, re.findall(r"[\w-]+", known))
            if cure := f"it is `{program} {typed}`" if program else nearest:
                message = f"there is no {typed}; {cure}"
        super().error(message)

    def parse_known_args(self, *arguments: Any, **more: Any) -> tuple[Any, list[str]]:
        """As argparse calls it, for each command too; here, all must be known."""
        found, unknown = super().parse_known_args(*arguments, **more)
        if unknown:
            option, others = unknown[0].partition("=")[0], self._option_string_actions
            if cure := did_you_mean(option, others):
                self.error(f"there is no {option}; {cure}")
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown


def _program_beside(own: str, command: str) -> str:
    """The program of the same package that has a command; '' if none has."""
    from importlib.metadata import entry_points

    scripts = entry_points(group="console_scripts")
    packages = [script.dist.name for script in scripts if script.dist and script.name == own]
    beside = (script for script in scripts if script.dist and script.dist.name in packages)
    has_it = (one.name for one in beside if command in import_module(one.module).EXAMPLES)
    return next(has_it, "")


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
    """Make a parser one of commands; give what adds a command: by name, function and help.

    Args:
        parser: of the program.
        examples: the arguments of an example, by the command's name.
    """
    parser.add_argument("--version", action=Version, nargs=0, help="show it and end")
    commands = parser.add_subparsers(dest="command", required=True, metavar=COMMAND)

    def add(
        name: str,
        run: Callable[..., None],
        *,
        help: str,  # noqa: A002
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=help,
            description=f"{help[0].upper()}{help[1:]}.",
            epilog=f"Example: {parser.prog} {name} {examples.get(name, '')}",
        )
        command.set_defaults(run=run)
        return command

    return add


def console() -> "Console":
    """What prints a table: as wide as the terminal, or as it needs where there is none."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else ANY_WIDTH)


@contextmanager
def progress(total: int, name: str, what: str) -> Iterator[Callable[[int], object]]:
    """Say on stderr how many are done: by a bar on a terminal, or else by a line now and then.

    A run that takes seconds needs no line.

    Args:
        total: how many there will be.
        name: of the command, as in `splice import`.
        what: they are, in the plural.

    Yields:
        What is told of more that are done.
    """
    if sys.stderr.isatty():
        from tqdm import tqdm  # comes with dvc

        with tqdm(total=total, desc=name, unit=f" {what}", leave=False) as bar:
            yield bar.update
        return
    done, at = 0, time.monotonic()

    def show(more: int) -> None:
        nonlocal done, at
        done += more
        if time.monotonic() - at > LINE_SECONDS:
            at = time.monotonic()
            print(f"{name}: {done:,} of {total:,} {what}", file=sys.stderr, flush=True)

    yield show


def counted(items: Iterable[T], total: int, name: str, what: str) -> Iterator[T]:
    """Items as they come, while `progress` says how many did."""
    with progress(total, name, what) as show:
        for place, item in enumerate(items):
            show(1 if place else 0)  # the one before
            yield item


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
