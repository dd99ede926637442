"""Played and recorded files as data for `train.finetune`: which of them may be learned from.

Owns: the choice, and the folder in which those chosen lie side by side. Dreams are not the truth: what was played in a
dream is taken only where it is asked for.
"""

import os
import shutil
from pathlib import Path

from envs.data.episodes import SPLITS, ShardInfo, read_shard
from envs.data.session_files import recover
from envs.data.sessions import is_session, read_session
from worldmodel.errors import DataError


def take_sessions(
    folder: Path,
    out: Path,
    *,
    world: str,
    action_names: tuple[str, ...],
    image_size: int,
    least_frames: int,
    dreams: bool,
) -> dict[str, int]:
    """Put what can be learned from into a folder, as a recording.

    Args:
        folder: of sessions (`play.py --record`) and recordings (`train.record`), mixed.
        out: made, or emptied.
        world: name of the world that is trained.
        action_names: its actions.
        image_size: height and width of its frames, pixels.
        least_frames: an episode must have for a clip to be cut from it.
        dreams: whether what was played in dreams is taken as truth.

    Returns:
        `files` taken, `frames` in episodes that are long enough, `dreams_left_out`: files.

    Raises:
        DataError: no folder, no file in it that may be taken, a file of another world, action set or frame size, one
            without poses, or no episode as long as a clip.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder}: play with --record {folder}")
    recover(folder)
    paths = sorted(folder.glob("*.h5"))
    dreamt = [path for path in paths if is_session(path) and read_session(path).info.source == "dream"]
    taken = [path for path in paths if dreams or path not in dreamt]
    if not taken:
        reason = f"all {len(dreamt)} are dreams, which are no truth: add --take-dreams" if dreamt else "it has none"
        raise DataError(
            f"{folder} holds no session to learn from ({reason}); play the real world: --real --record {folder}"
        )

    shards = [_check(read_shard(path), world, action_names, image_size) for path in taken]
    lengths = [episode.num_frames for shard in shards for episode in shard.episodes]
    if max(lengths) < least_frames:
        raise DataError(
            f"the longest stretch played in {folder} has {max(lengths)} frames, a clip {least_frames}: play longer "
            "without a reset, or give a smaller --clip-frames"
        )
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    numbers = dict.fromkeys(SPLITS, 0)
    for shard in shards:
        target = out / f"{shard.split}-{numbers[shard.split]:05d}.h5"
        numbers[shard.split] += 1
        _place(shard.path.resolve(), target)
    frames = sum(length for length in lengths if length >= least_frames)
    return {"files": len(taken), "frames": frames, "dreams_left_out": len(paths) - len(taken)}


def _check(shard: ShardInfo, world: str, action_names: tuple[str, ...], image_size: int) -> ShardInfo:
    """Return a shard that fits the world."""
    found = {"world": shard.world, "actions": list(shard.action_names), "frames": shard.image_size}
    wanted = {"world": world, "actions": list(action_names), "frames": image_size}
    other = [name for name in wanted if found[name] != wanted[name]]
    if other:
        name = other[0]
        raise DataError(
            f"{shard.path} has {name} {found[name]}; the world has {wanted[name]}: take it out of the folder"
        )
    if any("pose" not in episode.fields for episode in shard.episodes):
        raise DataError(f"{shard.path} has no poses, which a memory of pixels learns from: take it out of the folder")
    return shard


def _place(source: Path, target: Path) -> None:
    try:
        os.symlink(source, target)
    except OSError:  # a system without links
        shutil.copy(source, target)
