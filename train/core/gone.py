"""Programs that there were once: what took their place."""

from collections.abc import Callable

from worldmodel.errors import ConfigError


def gone(name: str, instead: str) -> Callable[[], None]:
    """Return what a program that is gone does: it says what took its place.

    Args:
        name: of the program, such as "train.needle".
        instead: the command that took its place.
    """

    def main() -> None:
        raise ConfigError(f"{name} is gone: {instead}")

    return main
