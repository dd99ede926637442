"""The rows of a report: each world, ceiling, floor and stand-in, scored alike.

Owns: what scores them, what is skipped and why, and the content of the report. Does not know how rows come about
(`train.memory.running`).
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from envs.worlds.base import World
from train.measures.features import load_feature_extractor
from train.measures.place_classifier import LEAST_ACCURACY, PlaceClassifier, load_or_train
from train.memory.cases import MemoryTest
from train.memory.obedience import Judge
from train.memory.replay import Replay
from train.memory.scores import Row, collect, score, shuffled
from train.memory.tables import METRICS, judge_row, summarize
from train.memory.walks import KINDS
from train.memory.ways import WAYS
from worldmodel.analysis.distances import Ruler
from worldmodel.errors import DataError, MissingPackageError

CELLS = {
    "overall": "means over all pairs; brackets are 95% intervals over tests",
    "by_way": {name: f"the second visit is reached by {meaning}" for name, meaning in WAYS.items()},
    "by_kind": "by kind of walk and by frames from the first visit to the second",
    "by_first": "given: the first visit is a true frame of the context; dreamt: it is a dream as well",
}


class Scoreboard:
    """The rows of a report, and what scores them.

    Args:
        tests: to be replayed.
        world: of the tests.
        out: folder of the report, for the classifier of places.
        features: measure perceptual distances.
        teacher: recording that teaches the classifier; None: places are not named.
        seed: of intervals.
    """

    def __init__(
        self, tests: list[MemoryTest], world: World, *, out: Path, features: bool, teacher: Path | None, seed: int
    ) -> None:
        self.rows: list[Row] = []
        self._tests, self._world, self._seed = tests, world, seed
        self._judge = Judge(world.actions, tests)
        self._started = time.monotonic()
        self._skipped: dict[str, str] = {}
        self._ruler = self._find_ruler(features)
        self._classifier, self._labels = self._find_places(teacher, out)

    def _find_ruler(self, is_wanted: bool) -> Ruler | None:
        """Return the features of frames; None where there are none, and keep why."""
        if not is_wanted:
            self._skipped["perceptual"] = "--no-features was given"
            return None
        try:
            return load_feature_extractor()
        except MissingPackageError as error:
            self._skipped["perceptual"] = str(error)
            return None

    def _find_places(
        self, teacher: Path | None, out: Path
    ) -> tuple[PlaceClassifier | None, dict[tuple[int, int], tuple[int, ...]]]:
        """Return the classifier and what the second frames truly show; or None and nothing, and keep why."""
        if not self._world.place_labels:
            self._skipped["places"] = f"{self._world.name} does not tell what places a frame shows (World.places)"
        elif teacher is None:
            self._skipped["places"] = "no recording teaches what places look like: give --teacher"
        else:
            try:
                labels = find_labels(self._world, self._tests)
            except DataError as error:
                self._skipped["places"] = str(error)
            else:
                if labels:
                    return load_or_train(teacher, out / "places.safetensors"), labels
                self._skipped["places"] = "no second frame shows one place clearly"
        return None, {}

    def add(self, name: str, role: str, replays: Iterable[Replay]) -> Row | None:
        """Score a row and keep it; None where there is nothing to score."""
        row = collect(name, role, self._tests, replays, self._judge)
        if row is None:
            return None
        namer: Callable[[torch.Tensor], torch.Tensor] | None = None
        if self._classifier is not None:
            namer = self._classifier.name
        score(row, self._tests, self._ruler, namer, self._labels)
        self.rows.append(row)
        return row

    def add_shuffled(self, row: Row) -> None:
        """Score and keep the pairs of other tests, where there are others."""
        floor = shuffled(row, self._tests)
        if floor is None:
            self._skipped["pairs of other tests"] = "there is one test"
            return
        score(floor, self._tests, self._ruler, None, {})
        floor.values = {name: floor.values[name] for name in ("psnr", "ssim", "perceptual")}
        self.rows.append(floor)

    def report(self, thresholds: Mapping[str, float]) -> dict[str, Any]:
        """Return the content of the report; `passes` says whether every checkpoint passes.

        Args:
            thresholds: that checkpoints are held to (`train.memory.tables.judge_row`).
        """
        rows: dict[str, Any] = {}
        for row in self.rows:
            tables = summarize(row, self._tests, self._seed)
            asked = thresholds if row.role == "checkpoint" else {}
            # Pairs of other tests are no world: nothing of theirs could obey.
            verdict = judge_row(tables, asked) if row.accuracy or row.role != "floor" else {}
            rows[row.name] = {"role": row.role} | verdict | tables
        pairs = [pair for test in self._tests for pair in test.pairs]
        kinds = sorted({pair.kind for pair in pairs})
        checkpoints = [found for found in rows.values() if found["role"] == "checkpoint"]
        return {
            "passes": all(found["passes"] for found in checkpoints),
            "tests": len(self._tests),
            "pairs": len(pairs),
            "real_tests": sum(test.is_real for test in self._tests),
            "kinds": {kind: KINDS[kind].meaning if kind in KINDS else "as recorded" for kind in kinds},
            "rows": rows,
            "skipped": self._skipped,
            "classifier": self._describe_classifier(),
            "thresholds": dict(thresholds),
            "meanings": {name: metric.meaning for name, metric in METRICS.items()}
            | {"cells": CELLS, "action_accuracy": self._judge.rule},
            "contexts": {test.name: test.context for test in self._tests},
            "seconds": round(time.monotonic() - self._started, 1),
        }

    def _describe_classifier(self) -> dict[str, Any] | None:
        if self._classifier is None:
            return None
        facts = self._classifier.facts
        return facts | {"is_good_enough": facts["accuracy"] >= LEAST_ACCURACY}


def find_labels(world: World, tests: Sequence[MemoryTest]) -> dict[tuple[int, int], tuple[int, ...]]:
    """Return what the second frames of pairs truly show, by numbers of test and pair, where it is clear.

    Args:
        world: of the tests.
        tests: those of the real world are asked.

    Raises:
        DataError: none was recorded with what it takes.
    """
    found: dict[tuple[int, int], tuple[int, ...]] = {}
    problems: list[str] = []
    for index, test in enumerate(tests):
        if not test.is_real:
            continue
        for episode in {pair.place.episode for pair in test.pairs}:
            try:
                places = world.places(test.session.episodes[episode])
            except DataError as error:
                problems.append(str(error))
                continue
            for number, pair in enumerate(test.pairs):
                if pair.place.episode == episode and places.is_clear[pair.place.frame]:
                    found[index, number] = tuple(places.labels[pair.place.frame].tolist())
    if not found and problems:
        raise DataError(problems[0])
    return found
