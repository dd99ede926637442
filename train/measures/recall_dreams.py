"""Dreaming back to places, and the controls that every report of it carries.

Owns: the context each case is given (whole, too short for the place, or of another scene), the frame that is judged,
and the table of rates. Does not know how cases are found, how the classifier is trained or what the report looks like.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch

from envs.data.episodes import read_episode
from train.data.rollouts import Piece, dream_on, read_pieces
from train.measures.place_classifier import PlaceClassifier
from train.measures.recall_cases import DREAMT, RecallCase
from worldmodel.analysis.metrics import ssim
from worldmodel.analysis.recall import BINS, Verdict, bin_name, summarize
from worldmodel.errors import ConfigError, DataError
from worldmodel.world import WorldModel

Memory = Literal["whole", "short", "shuffled"]
CONTROLS = ("short_memory", "shuffled_memory", "copy_last", "truth", "codec")
MEANINGS = {
    "bins": "success: the classifier names all labels of the place in the middle of the last of 16 dreamt frames; "
    "LABEL_rate: of one alone; intervals are Wilson's, 95%, as if cases were independent; ssim: of the columns that "
    "show the place",
    "short_memory": "context cut to frames that show nothing of the place, so shorter than D",
    "shuffled_memory": "context of another scene, but for at most the last 8 frames, which show nothing of the place",
    "copy_last": "the last context frame in place of the dream",
    "truth": "the real frame in place of the dream: the ceiling",
    "codec": "the real frame encoded and decoded",
    "constant_guess": "the most frequent labels among the cases, always answered",
}
KEPT_FRAMES = 8  # newest context frames that a shuffled memory keeps
_SHORT = (112, 48, 16, 8, 4, 2)  # lengths of a memory that is too short
_LEAST_COLUMNS = 11  # pixels; the window of SSIM


def _length(case: RecallCase, memory: Memory, context_frames: int | None) -> int:
    whole = min(case.context, context_frames or case.context)
    if memory != "short":
        return whole
    return min(whole, next(size for size in (*_SHORT, 1) if size <= case.absent))


def _read_others(batch: Sequence[RecallCase], length: int, everyone: Sequence[RecallCase], seed: int) -> dict[str, Any]:
    """Read for each case the context of another scene, `length` frames."""
    rng = np.random.default_rng([seed, 5, batch[0].frame])
    pieces = []
    for case in batch:
        donors = [o.episode for o in everyone if o.episode.scene_seed != case.episode.scene_seed]
        donors = [episode for episode in donors if episode.num_frames >= length]
        if not donors:
            raise DataError(
                f"a shuffled memory of {length} frames needs cases of another scene, and all {len(everyone)} cases "
                "are of one: record more episodes or leave the controls out (place_recall.controls=false)"
            )
        donor = donors[int(rng.integers(len(donors)))]
        pieces.append(Piece(donor, int(rng.integers(donor.num_frames - length + 1)), length))
    return read_pieces(pieces)


def dream_cases(
    model: WorldModel,
    cases: Sequence[RecallCase],
    *,
    memory: Memory = "whole",
    context_frames: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    on_frames: Callable[[int], object] = lambda count: None,
) -> torch.Tensor:
    """Dream every case from its real context under its true actions.

    Args:
        model: the world.
        cases: what to dream.
        memory: the whole context, one too short for the place, or one of another scene.
        context_frames: at most so many context frames, for a world whose memory is that long; None: enough for the
            place and some frames before it.
        batch_size: dreams at once; those of one context length go together.
        seed: of the dreams' chance; a case has the same chance with every `memory`.
        on_frames: told the number of frames dreamt after every step.

    Returns:
        uint8 (len(cases), H, W, 3), the last of `DREAMT` dreamt frames of each case.

    Raises:
        ConfigError: `context_frames` is below 1. DataError: a file is gone, or no other scene to shuffle with.
    """
    if context_frames is not None and context_frames < 1:
        raise ConfigError(
            f"context_frames must be at least 1; got {context_frames}: leave it out for the whole context"
        )
    lengths = [_length(case, memory, context_frames) for case in cases]
    dreamt: list[torch.Tensor | None] = [None] * len(cases)
    for length in sorted(set(lengths)):
        for batch in _split([i for i, own in enumerate(lengths) if own == length], batch_size):
            chosen = [cases[i] for i in batch]
            given = read_pieces([Piece(c.episode, c.start - length, length + DREAMT) for c in chosen])
            frames, actions = given["frames"][:, :length], given["actions"]
            if memory == "shuffled":
                other = _read_others(chosen, length, cases, seed)
                for row, case in enumerate(chosen):
                    replaced = length - min(KEPT_FRAMES, case.absent, length)
                    frames[row, :replaced] = other["frames"][row, :replaced]
                    actions[row, : max(replaced - 1, 0)] = other["actions"][row, : max(replaced - 1, 0)]
            dream = dream_on(model, frames, actions, [seed + i for i in batch], on_frames)
            for row, i in enumerate(batch):
                dreamt[i] = dream.frames[row, -1]
    return torch.stack([frame for frame in dreamt if frame is not None])


def _split(indices: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


def read_frames(cases: Sequence[RecallCase], numbers: Sequence[int]) -> torch.Tensor:
    """Read one frame of each case's episode, uint8 (len(cases), H, W, 3).

    Raises:
        DataError: a file is damaged or gone.
    """
    pairs = zip(cases, numbers, strict=True)
    frames = [read_episode(c.episode, number, number + 1, ("frames",))["frames"][0] for c, number in pairs]
    return torch.from_numpy(np.stack(frames))


def judge(
    frames: torch.Tensor, truth: torch.Tensor, cases: Sequence[RecallCase], classifier: PlaceClassifier
) -> list[Verdict]:
    """Judge a frame of each case.

    Args:
        frames: uint8 (len(cases), H, W, 3), what is shown in place of the judged frames.
        truth: uint8, the same shape, the judged frames.
        cases: whose places they should show.
        classifier: names their labels.
    """
    named = classifier.name(frames).tolist()
    width, verdicts = frames.shape[2], []
    for i, case in enumerate(cases):
        first, last = round(case.columns[0] * width), round(case.columns[1] * width)
        first = max(0, min(first, (first + last - _LEAST_COLUMNS) // 2))
        part = slice(first, max(last, first + _LEAST_COLUMNS))
        likeness = float(ssim(frames[i, :, part], truth[i, :, part]))
        is_right = tuple(found == label for found, label in zip(named[i], case.labels, strict=True))
        verdicts.append(Verdict(is_right, likeness))
    return verdicts


def guess_constant(cases: Sequence[RecallCase]) -> dict[str, float | None]:
    """Return for each bin the rate of the best answer that is always the same; None for a bin without cases."""
    found = {}
    for low, high in BINS:
        answers = Counter(case.labels for case in cases if low < case.distance <= high)
        found[bin_name((low, high))] = max(answers.values()) / answers.total() if answers else None
    return found


def measure_recall(
    model: WorldModel,
    cases: Sequence[RecallCase],
    classifier: PlaceClassifier,
    *,
    context_frames: int | None = None,
    batch_size: int = 64,
    controls: Sequence[str] = CONTROLS,
    seed: int = 0,
    on_frames: Callable[[int], object] = lambda count: None,
    on_verdicts: Callable[[torch.Tensor, list[Verdict]], object] = lambda frames, verdicts: None,
) -> dict[str, Any]:
    """Measure how often the world shows a place again as it was.

    Args:
        model: the world.
        cases: from `train.measures.recall_cases.find_cases`.
        classifier: the judge.
        context_frames: see `dream_cases`.
        batch_size: dreams at once.
        controls: names from `CONTROLS`.
        seed: of the dreams' chance.
        on_frames: told the number of frames dreamt after every step.
        on_verdicts: given the frames of the measured dreams, uint8 (len(cases), H, W, 3), and their verdicts.

    Returns:
        `bins`: see `worldmodel.analysis.recall.summarize`; `controls`: name -> bins likewise; `constant_guess`: bin ->
        rate; `cases`, `scenes`: counts; `meanings`: what each is.

    Raises:
        ConfigError: an unknown control, or `context_frames` below 1. DataError: see `dream_cases`.

    Source: arXiv:2503.10704, the retrieval experiment; the controls are ours.
    """
    unknown = [name for name in controls if name not in CONTROLS]
    if unknown:
        raise ConfigError(f"unknown controls {unknown}; accepted: {', '.join(CONTROLS)}")

    settings: dict[str, Any] = {"context_frames": context_frames, "batch_size": batch_size, "seed": seed}
    settings["on_frames"] = on_frames

    distances, truth = [case.distance for case in cases], read_frames(cases, [case.frame for case in cases])
    shown: dict[str, Callable[[], torch.Tensor]] = {
        "short_memory": lambda: dream_cases(model, cases, memory="short", **settings),
        "shuffled_memory": lambda: dream_cases(model, cases, memory="shuffled", **settings),
        "copy_last": lambda: read_frames(cases, [case.start - 1 for case in cases]),
        "truth": lambda: truth,
        "codec": lambda: model.decode(model.encode(truth)).cpu(),
    }

    frames = dream_cases(model, cases, **settings)
    verdicts = judge(frames, truth, cases, classifier)
    on_verdicts(frames, verdicts)
    return {
        "bins": summarize(distances, verdicts, classifier.labels),
        "controls": {
            name: summarize(distances, judge(shown[name](), truth, cases, classifier), classifier.labels)
            for name in controls
        },
        "constant_guess": guess_constant(cases),
        "cases": len(cases),
        "scenes": len({case.episode.scene_seed for case in cases}),
        "meanings": MEANINGS,
    }
