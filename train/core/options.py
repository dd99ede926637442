"""How programs read their options and keep them: a dataclass in, tyro on the command line, JSON beside the results.

Owns: parsing, saving and the one-line error exit of every program. Does not know what any option means.
"""

import dataclasses
import json
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import tyro

from train.core.interrupts import Stopped
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


def read_assignments(kind: type, texts: Sequence[str], owner: str) -> dict[str, Any]:
    """Return values of fields of a dataclass from texts FIELD=VALUE, with the types that it declares.

    Args:
        kind: a dataclass of whole numbers, numbers, truth values and texts, each perhaps None.
        texts: what was given with --set.
        owner: whose settings they are, for messages.

    Raises:
        ConfigError: no such field, or not a value of its type.
    """
    hints = {field.name: typing.get_type_hints(kind)[field.name] for field in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in hints:
            raise ConfigError(
                f"--set {text!r} is not accepted; settings of {owner} (NAME=VALUE): {', '.join(hints) or 'none'}"
            )
        values[name] = _read_value(text, value, hints[name])
    return values


def _read_value(text: str, value: str, hint: Any) -> Any:
    choices = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        if value not in choices:
            raise ConfigError(f"--set {text!r}: give one of {', '.join(map(str, choices))}")
        return value
    if choices and value.lower() == "none" and type(None) in choices:
        return None
    kind = next((choice for choice in choices if choice is not type(None)), hint)
    if kind is bool:
        if value.lower() not in ("true", "false"):
            raise ConfigError(f"--set {text!r}: give true or false")
        return value.lower() == "true"
    try:
        return kind(value)
    except ValueError as error:
        raise ConfigError(f"--set {text!r}: {error}") from error


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
    """Run a program; an error of ours ends it with one line on stderr and exit status 1, an interrupt with 130.

    A training that was stopped by a signal says how it goes on, and exits with 128 and the signal's number.
    """
    try:
        program()
    except WorldModelError as error:
        sys.exit(f"error: {error}")
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.exit_status)
    except KeyboardInterrupt:
        print("interrupted; run the same command to go on", file=sys.stderr)
        sys.exit(130)
