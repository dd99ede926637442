"""What a measure is: a question about a world, its settings, what it needs, and how its answer is reported.

Owns: the class that measures derive from, the bench they work at, the needs there are, and reading lists of numbers.
Knows no measure by name (`train.measures.registry`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from envs.data.episodes import EpisodeInfo
from envs.worlds.base import World
from envs.worlds.registry import try_revisit
from train.measures.features import find_weights
from worldmodel.errors import ConfigError, DataError, MissingPackageError, WorldModelError
from worldmodel.world import WorldModel


@dataclass(frozen=True)
class Bench:
    """What a measure works with.

    Attributes:
        model: the dreamt world.
        world: the world that it dreams of.
        episodes: held-out recorded ones; empty where no recording was given.
        data: folder of the recording, if one was given.
        out: folder for files of this measure.
        batch_size: dreams at once.
        seed: of the choice of cases and of the dreams.
        on_frames: is called with the number of frames dreamt after every step.
    """

    model: WorldModel
    world: World
    episodes: list[EpisodeInfo]
    data: Path | None
    out: Path
    batch_size: int = 25
    seed: int = 0
    on_frames: Callable[[int], object] = lambda count: None


class Measure:
    """A measure; derive from it, and name it in `train.measures.registry`.

    Attributes:
        name: as in `--measures NAME` and in reports.
        Options: a dataclass of its settings (`--set NAME.FIELD=VALUE`), with a default for each.
        needs: names from `NEEDS`; where one is lacking the measure is skipped, and the report says why.
        quick: settings of a rehearsal (`--quick`): no number is larger than these, and a text takes the place of the
            default.
    """

    name: ClassVar[str]
    Options: ClassVar[type]
    needs: ClassVar[tuple[str, ...]] = ("recording",)
    quick: ClassVar[Mapping[str, int | str]] = {}

    def num_frames(self, bench: Bench, options: Any) -> int:
        """Return about how many frames it dreams, for the progress bar."""
        raise NotImplementedError

    def check(self, bench: Bench, options: Any) -> None:
        """Raise what would keep it from being taken with these settings, as far as that is known without any work.

        Called before any measure is taken, where nothing of `needs` is lacking; by default it does nothing.

        Raises:
            WorldModelError: one of its kinds; the measure is then skipped, and the report says why.
        """

    def run(self, bench: Bench, options: Any) -> dict[str, Any]:
        """Measure, and write pictures to `bench.out`; return what goes into `report.json`.

        Raises:
            WorldModelError: one of its kinds; the report then says that the measure failed, and others go on.
        """
        raise NotImplementedError

    def lines(self, found: dict[str, Any]) -> list[str]:
        """Return the answer as lines of markdown, below a heading that is there already."""
        raise NotImplementedError


def _lacks_recording(bench: Bench) -> str | None:
    return None if bench.episodes else "it needs a recording: give --data"


def _lacks_poses(bench: Bench) -> str | None:
    return None if all("pose" in episode.fields for episode in bench.episodes) else "the recording has no poses"


def _lacks_displacements(bench: Bench) -> str | None:
    if bench.world.actions.displacements:
        return None
    return f"what the actions of {bench.world.name} do to a pose is not known (ActionSet.displacements)"


def _lacks_places(bench: Bench) -> str | None:
    if not bench.world.place_labels:
        return f"{bench.world.name} does not tell what places a frame shows (World.places)"
    try:
        bench.world.places(bench.episodes[0])
    except DataError as error:
        return str(error)
    return None


def _lacks_revisit(bench: Bench) -> str | None:
    scene, reason = try_revisit(bench.episodes[0])
    if scene is not None:
        scene.close()
    return reason


def _lacks_targets(bench: Bench) -> str | None:
    try:
        with bench.world.targets(bench.episodes[0], bench.model.codec.config.image_size):
            return None
    except (ConfigError, DataError, MissingPackageError) as error:
        return str(error)


def _lacks_features(bench: Bench) -> str | None:
    try:
        find_weights()
    except MissingPackageError as error:
        return str(error)
    return None


NEEDS: dict[str, Callable[[Bench], str | None]] = {
    "recording": _lacks_recording,
    "poses": _lacks_poses,
    "displacements": _lacks_displacements,
    "places": _lacks_places,
    "revisit": _lacks_revisit,
    "targets": _lacks_targets,
    "features": _lacks_features,
}
"""Name of a need to what says why a bench lacks it; None where it does not. All after the first take a recording."""


def why_not(measure: Measure, bench: Bench, options: Any) -> str | None:
    """Return why a measure cannot be taken here with these settings; None where it can."""
    for name in measure.needs:
        if (reason := NEEDS[name](bench)) is not None:
            return reason
    try:
        measure.check(bench, options)
    except WorldModelError as error:
        return str(error)
    return None


def read_numbers(name: str, text: str, least: int = 1) -> tuple[int, ...]:
    """Read a setting that is a list of numbers, such as "1,2,4".

    Args:
        name: of the setting, for messages.
        text: whole numbers with commas.
        least: the smallest that is accepted.

    Raises:
        ConfigError: not whole numbers with commas, one below `least`, or one that is there twice.
    """
    try:
        numbers = tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{name} must be whole numbers with commas, such as 1,2,4; got {text!r}") from error
    if min(numbers) < least or len({*numbers}) != len(numbers):
        raise ConfigError(f"{name} must be different numbers of at least {least}; got {text!r}")
    return numbers
