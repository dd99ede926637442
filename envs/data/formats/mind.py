"""The layout of MIND's ground truth (arXiv:2602.08025): action.json and video.mp4 in a folder for each clip.

Owns: that layout, as its README and its scoring code have it. A folder lies in PERSPECTIVE_data/test/mem_test,
test/action_space_test or train. `action.json` says `mark_time` (the first frame to be predicted), `total_time`,
`caption`, and for each frame in `data`: `time`, the keys `ws` (0 none, 1 forward, 2 back), `ad` (left, right), `ud`
(look up, down) and `lr` (look left, right), held from this frame to the next, `actor_pos` {x, y, z} and `actor_rpy`
{x: roll, y: pitch, z: yaw} in degrees, and `camera_pos`, `camera_rpy` in the third person. The README numbers keys 0
and 1; the scoring code, which is followed here, 0 to 2. Unreal Engine's y points right and its yaw turns right: both
are negated. Lengths keep their unit.

mirror_test is no part of that data: it is a folder of what a model made, NAME/path-1.mp4 and on, in which the scoring
code compares the first half of each video with the second, turned round. Which actions were taken is not said, so there
is nothing to read or write.
"""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from envs.actions import ActionSet
from envs.data.formats.clip import Clip, Signs, find_actions, signs_of
from envs.data.video import VideoWriter
from worldmodel.errors import DataError, MissingPackageError
from worldmodel.files import write_file

FOLDER = Path("1st_data") / "test" / "mem_test"
LEAST_VIDEO_PIXELS = 256  # color is stored at half resolution
CANNOT_HOLD = (
    "frames bit for bit (video.mp4 is compressed), marks and revisits, rewards and ends, and what a world records "
    "beside poses"
)
_KEYS = ("ws", "ad", "ud", "lr")
_CODE = {0: 0, 1: 1, -1: 2}  # sign to key


def write_clip(folder: Path, clip: Clip, actions: ActionSet) -> Path:
    """Write a clip below a folder of data; return its own folder.

    Raises:
        DataError: what the actions do is not known, or the clip has no context. StorageError: a file cannot be written.
    """
    if clip.context is None:
        raise DataError(f"{clip.name} does not say what is to be predicted (mark_time)")
    signs = signs_of(actions)
    place = folder / FOLDER / clip.name
    rows = []
    for time in range(len(clip.frames)):
        turn, walk = signs[clip.actions[time]] if time < len(clip.actions) else (0, 0)
        row: dict[str, Any] = {"time": time, "ws": _CODE[walk], "ad": 0, "ud": 0, "lr": _CODE[turn]}
        if clip.poses is not None:
            row |= _pose_row(clip.poses[time])
        rows.append(row)
    scale = -(-LEAST_VIDEO_PIXELS // clip.frames.shape[1])
    with VideoWriter(place / "video.mp4", clip.fps, scale) as video:
        for frame in clip.frames:
            video.add(frame)
    said = {"mark_time": clip.context, "total_time": len(clip.frames), "caption": clip.name, "data": rows}
    write_file(place / "action.json", (json.dumps(said) + "\n").encode())
    return place


def _pose_row(pose: np.ndarray) -> dict[str, Any]:
    x, y, z, yaw, pitch = pose if len(pose) == 5 else (pose[0], pose[1], 0.0, pose[2], 0.0)
    turned = {"x": 0.0, "y": float(pitch), "z": -float(yaw)}
    return {"actor_pos": {"x": float(x), "y": -float(y), "z": float(z)}, "actor_rpy": turned}


def find_clips(folder: Path) -> list[Path]:
    """Return the folders of clips in MIND's data, or in a part of it.

    Raises:
        DataError: there is none.
    """
    found = sorted(path.parent for path in folder.rglob("action.json")) if folder.is_dir() else []
    if not found:
        raise DataError(
            f"{folder} holds no clip of MIND: expected 1st_data/test/mem_test/NAME with action.json and video.mp4 (in "
            "mirror_test are videos that models made, without actions: make such tests with --kinds mirror)"
        )
    return found


def read_clip(place: Path, actions: ActionSet, image_size: int) -> Clip:
    """Read a clip.

    Args:
        place: its folder.
        actions: the set that its actions are told in.
        image_size: height and width of its frames, pixels; the video's middle square is shrunk to it.

    Raises:
        DataError: a file is missing, damaged or says what it cannot, or an action has no counterpart.
    """
    path = place / "action.json"
    try:
        said = json.loads(path.read_text())
        rows, mark = said["data"], int(said["mark_time"])
        keys = np.array([[row[key] for key in _KEYS] for row in rows], int)
        poses = np.array([_read_pose(row) for row in rows]) if "actor_pos" in rows[0] else None
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(f"{path} is damaged, or no action.json of MIND ({type(error).__name__}: {error})") from error
    if not np.isin(keys, (0, 1, 2)).all():
        raise DataError(f"{path}: ws, ad, ud and lr must be 0, 1 or 2; got {sorted({*keys.ravel().tolist()})}")
    if keys[:-1, 1:3].any():
        step = int(np.flatnonzero(keys[:-1, 1:3].any(1))[0])
        raise DataError(f"{path}: step {step} goes sideways or looks up or down, and no action of {actions.name} does")

    frames, fps = _read_video(place / "video.mp4", image_size)
    if len(frames) != len(rows) or not 0 < mark < len(rows):
        raise DataError(
            f"{place}: action.json has {len(rows)} frames and mark_time {mark}, video.mp4 has {len(frames)} frames"
        )
    sign = np.array([0, 1, -1])
    signs: list[Signs] = [(int(sign[lr]), int(sign[ws])) for ws, _, _, lr in keys[:-1]]
    chosen = find_actions(signs, actions, str(path))
    nothing = np.zeros(len(chosen), np.float32)
    return Clip(place.name, frames, chosen, fps, mark, _plain_poses(poses), None, nothing, nothing.astype(bool))


def _read_pose(row: dict[str, Any]) -> list[float]:
    """Return x, y, z, yaw and pitch of the eye: of the camera where it is not the actor's."""
    place, turned = (row.get(f"camera_{part}", row[f"actor_{part}"]) for part in ("pos", "rpy"))
    return [float(place["x"]), -float(place["y"]), float(place["z"]), -float(turned["z"]), float(turned["y"])]


def _plain_poses(poses: np.ndarray | None) -> np.ndarray | None:
    """Return x, y and heading where height and pitch never change."""
    if poses is None or np.ptp(poses[:, [2, 4]], axis=0).any():
        return poses
    return np.concatenate([poses[:, :2], poses[:, 3:4] % 360.0], 1)


def _read_video(path: Path, image_size: int) -> tuple[np.ndarray, float]:
    """Return frames uint8 (T, image_size, image_size, 3) and frames a second."""
    try:
        import av
    except ImportError as error:
        raise MissingPackageError("reading video needs PyAV; run: pip install av") from error
    frames = []
    try:
        with av.open(str(path)) as container:
            rate = container.streams.video[0].average_rate
            for picture in container.decode(video=0):
                frame = picture.to_ndarray(format="rgb24")
                side = min(frame.shape[:2])
                top, left = ((size - side) // 2 for size in frame.shape[:2])
                middle: Any = np.ascontiguousarray(frame[top : top + side, left : left + side])
                frames.append(cv2.resize(middle, (image_size, image_size), interpolation=cv2.INTER_AREA))
    except (OSError, ValueError, IndexError) as error:
        raise DataError(f"{path} is missing or damaged ({error})") from error
    if not frames or not rate:
        raise DataError(f"{path} has no frame")
    return np.stack(frames), float(rate)
