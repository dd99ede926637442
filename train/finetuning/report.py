"""OUT/report.json of `train.finetune`: what was done, how long it took, and what was cut."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from train.core.machine import Machine, describe_machine
from train.core.options import options_to_json, save_json
from train.finetuning.deadline import Clock
from train.finetuning.options import FineTuneOptions


class Report:
    """OUT/report.json, and the lines that are printed of each part."""

    def __init__(self, options: FineTuneOptions, clock: Clock, machine: Machine) -> None:
        """Begin one."""
        self.path, self.clock = options.out / "report.json", clock
        self.content: dict[str, Any] = {
            "options": options_to_json(options),
            "machine": describe_machine(machine.device),
            "parts": {},
            "cut": {},
            "is_complete": False,
        }

    @contextmanager
    def timed(self, part: str) -> Iterator[dict[str, Any]]:
        """Run a part of the work; what the block puts into the yielded dict is kept and printed."""
        facts: dict[str, Any] = {}
        started, self.clock.part = self.clock.now, part
        self.clock.raise_if_terminated()
        try:
            yield facts
        finally:
            facts["seconds"] = round(self.clock.now - started, 1)
            self.content["parts"][part] = facts
            shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in facts.items()}
            print(f"[{self.clock.now:.0f} s] {part}: {shown}", flush=True)
            self.save()

    def cut(self, part: str, what: str) -> None:
        """Note and print what was left out for lack of time, and what it would have taken."""
        self.content["cut"][part] = what
        print(f"[{self.clock.now:.0f} s] cut: {part}: {what}", flush=True)

    def save(self) -> None:
        """Write it whole."""
        self.content["seconds"] = round(self.clock.now, 1)
        save_json(self.path, self.content)
