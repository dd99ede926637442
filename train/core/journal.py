"""What a recipe is, its clock, and the file that remembers what was done.

Owns: the options of `train.recipe`, OUT/recipe.json, and that a finished stage is not done again. Knows no stage.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from train.core.machine import Machine, describe_machine
from train.core.options import options_to_json, save_json
from train.core.plans import Plan, get_plan
from worldmodel.errors import ConfigError, DataError, SeedError
from worldmodel.presets import get_preset


@dataclass(frozen=True)
class RecipeOptions:
    """Record a world, learn to dream it, measure the dream and bundle it, all within a time."""

    out: Path
    """Folder of everything; made if missing. The world to play comes into OUT/world."""
    world: str = "LabMaze"
    """Real world to learn."""
    preset: str = "small"
    """Size of the model: tiny, small or base."""
    memory: str | None = None
    """Memory structure of the denoiser: summary (ours), prepend, channel, cross, none, or module:class of one of your
    own; default the preset's. A memory of pixels comes beside it where the recording can teach one."""
    minutes: float = 25.0
    """Time for all of it."""
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Processes that record."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile in training: auto leaves it out where a training is too short to earn it back."""
    seed: int = 0
    """Seed of the recording, the weights and the openings."""

    def __post_init__(self) -> None:
        if not self.minutes > 0 or self.workers < 1:
            raise ConfigError(f"minutes must be above 0 and workers at least 1; got {self.minutes}, {self.workers}")
        if self.seed < 0:
            raise SeedError(f"seed must be 0 or more; got {self.seed}")


def show_fact(fact: Any) -> str:
    """Return a fact as short text: four digits, and maps without quotes."""
    if isinstance(fact, dict):
        return "(" + ", ".join(f"{name}: {show_fact(value)}" for name, value in fact.items()) + ")"
    if isinstance(fact, bool) or not isinstance(fact, int | float):
        return str(fact)
    return f"{fact:,.0f}" if isinstance(fact, int) or abs(fact) >= 1000 else f"{fact:.4g}"


class Journal:
    """One recipe in its folder: options, plan, clock, and what is done so far."""

    def __init__(self, options: RecipeOptions, machine: Machine) -> None:
        """Begin, or go on with what the folder holds.

        Raises:
            ConfigError: no such preset. DataError: the folder holds another recipe. StorageError: it cannot be written.
        """
        self.options, self.machine = options, machine
        self.plan: Plan = get_plan(options.preset, machine.device.type)
        self.image_size = get_preset(options.preset).codec.image_size
        self._started, self._file = time.monotonic(), options.out / "recipe.json"
        fixed = {k: v for k, v in options_to_json(options).items() if k not in ("out", "workers", "device", "compile")}
        fixed["device_type"] = machine.device.type
        self.content: dict[str, Any] = {"options": fixed, "seconds": 0.0, "stages": {}}
        if self._file.is_file():
            try:
                found = json.loads(self._file.read_text())
                others = [f"{k}={v!r}" for k, v in found["options"].items() if fixed.get(k) != v]
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(f"{self._file} is damaged: delete it, or choose another --out") from error
            if others:
                raise DataError(
                    f"{options.out} holds a recipe with {', '.join(others)}: give the same or another --out"
                )
            self.content = found
        self._seconds_before = float(self.content["seconds"])
        self.content |= {"machine": describe_machine(machine.device), "plan": dataclasses.asdict(self.plan)}
        self.save()

    @property
    def used_minutes(self) -> float:
        """Time used so far, earlier attempts included up to the last finished stage of each."""
        return (self._seconds_before + time.monotonic() - self._started) / 60

    def save(self) -> None:
        """Write recipe.json whole."""
        self.content["seconds"] = 60 * self.used_minutes
        save_json(self._file, self.content)

    def folder(self, stage: str) -> Path:
        """Return the folder of a stage's results."""
        return self.options.out / stage

    def is_done(self, stage: str) -> bool:
        """Whether a stage is finished."""
        return bool(self.content["stages"].get(stage, {}).get("is_done"))

    def note(self, stage: str, **facts: Any) -> None:
        """Keep facts of a stage and save them."""
        self.content["stages"].setdefault(stage, {}).update(facts)
        self.save()

    def run_stage(self, stage: str, work: Callable[[], dict[str, Any]]) -> None:
        """Do a stage unless it is done; keep and print what it says of itself."""
        if self.is_done(stage):
            print(f"{stage}: done before", flush=True)
            return
        started = time.monotonic()
        facts = work()
        self.note(stage, is_done=True, seconds=time.monotonic() - started, **facts)
        shown = ", ".join(f"{name} {show_fact(fact)}" for name, fact in facts.items())
        print(f"[{self.used_minutes:.1f} of {self.options.minutes:g} min] {stage}: {shown}", flush=True)
