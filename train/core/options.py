"""How programs read their options and keep them: a dataclass in, tyro on the command line, JSON beside the results.

Owns: parsing, saving and the one-line error exit of every program. Does not know what any option means.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import tyro

from worldmodel.errors import ConfigError, WorldModelError
from worldmodel.files import write_file

Options = TypeVar("Options")


def parse_options(
    kind: type[Options],
    program: str,
    arguments: Sequence[str] | None = None,
    gone: Mapping[str, str] = MappingProxyType({}),
) -> Options:
    """Read an options dataclass from the command line; its docstrings become the help.

    Args:
        kind: a dataclass type.
        program: how the program is started, for the help text.
        arguments: the words to read; None: those of the process.
        gone: options that there were once, and what took their place.

    Raises:
        SystemExit: help was asked for, or a word is not understood (tyro says which).
        ConfigError: an option is gone; says what took its place.
    """
    for word in sys.argv[1:] if arguments is None else arguments:
        if (name := word.partition("=")[0]) in gone:
            raise ConfigError(f"{name} is gone: {gone[name]}")
    return tyro.cli(kind, prog=program, args=arguments)


def options_to_json(options: Any) -> dict[str, Any]:
    """Return a dataclass as JSON-ready values; paths become text."""
    values = dataclasses.asdict(options)
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def save_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all.

    Raises:
        StorageError: the file cannot be written.
    """
    write_file(path, (json.dumps(content, indent=2) + "\n").encode())


def run_program(program: Callable[[], None]) -> None:
    """Run a program; an error of ours ends it with one line on stderr and exit status 1, an interrupt with 130."""
    try:
        program()
    except WorldModelError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted; run the same command to go on", file=sys.stderr)
        sys.exit(130)
