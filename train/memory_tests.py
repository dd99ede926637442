"""Program: tests of memory. `python -m train.memory_tests make | run | export | import`, each with --help.

Owns: the commands and the exit status: 0; 1 where a checkpoint misses a threshold that was given; 2 after an error.
Does not know what a test is (`train.memory`).
"""

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from train.core.options import parse_options, run_program
from train.memory.exchange import ExportOptions, ImportOptions, export_tests, import_tests
from train.memory.making import MakeOptions, make_tests
from train.memory.running import RunOptions, run_tests
from worldmodel.errors import ConfigError, WorldModelError

PROGRAM = "python -m train.memory_tests"
MISSED_STATUS, ERROR_STATUS = 1, 2


class Command(NamedTuple):
    """A command: its options, and what it does; that is given the command line as well, and returns the status."""

    options: type
    run: Callable[[Any, str], int]


def _print_found(work: Callable[[Any], dict[str, Any]]) -> Callable[[Any, str], int]:
    """Return a command that prints what came of its work."""

    def run(options: Any, line: str) -> int:
        print(json.dumps(work(options)))
        return 0

    return run


def _run(options: RunOptions, line: str) -> int:
    report = run_tests(options, line)
    print((options.out / "report.md").read_text())
    print(f"report: {options.out / 'report.html'}")
    return MISSED_STATUS if options.threshold and not report["passes"] else 0


COMMANDS: dict[str, Command] = {
    "make": Command(MakeOptions, _print_found(make_tests)),
    "run": Command(RunOptions, _run),
    "export": Command(ExportOptions, _print_found(export_tests)),
    "import": Command(ImportOptions, _print_found(import_tests)),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the first word says, and return the exit status.

    Args:
        arguments: the words to read; None: those of the process.

    Raises:
        ConfigError: no such command. WorldModelError: as the commands.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    name = words[0] if words else ""
    if name in ("-h", "--help"):
        print(f"usage: {PROGRAM} {' | '.join(COMMANDS)}, each with --help")
        return 0
    if name not in COMMANDS:
        raise ConfigError(f"unknown command {name!r}; there are {', '.join(COMMANDS)}, each with --help")
    command = COMMANDS[name]
    options: Any = parse_options(command.options, f"{PROGRAM} {name}", words[1:])
    return command.run(options, f"{PROGRAM} {shlex.join(words)}")


def program() -> None:
    """Run `main`; an error of ours ends it with one line, and not with the status of a missed threshold."""
    try:
        sys.exit(main())
    except WorldModelError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(ERROR_STATUS)


if __name__ == "__main__":
    run_program(program)
