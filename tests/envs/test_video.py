"""envs/video.py: what comes out is what went in, and a bad end leaves no half file."""

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from envs.data.video import VideoWriter
from worldmodel.errors import ConfigError, MissingPackageError, ShapeError, StateError, StorageError


def read_video(path: Path) -> tuple[np.ndarray, float]:
    """Return frames uint8 (T, H, W, 3) and frames a second."""
    with av.open(str(path)) as container:
        rate = float(container.streams.video[0].average_rate or 0)
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]), rate


def flat(color: tuple[int, int, int], height: int = 64, width: int = 64) -> np.ndarray:
    return np.full((height, width, 3), color, np.uint8)


def test_frames_come_back_in_order_at_their_rate(tmp_path: Path) -> None:
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 120, 40), (0, 0, 0), (255, 255, 255)]
    with VideoWriter(tmp_path / "a.mp4", fps=15, scale=2) as video:
        for color in colors:
            video.add(flat(color))
    frames, rate = read_video(tmp_path / "a.mp4")
    assert rate == 15
    assert frames.shape == (6, 128, 128, 3)
    assert np.abs(frames.mean(axis=(1, 2)) - np.array(colors)).max() < 4
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"


def test_orientation_and_scale(tmp_path: Path) -> None:
    frame = flat((0, 0, 0))
    frame[:16, :32] = (250, 200, 40)
    with VideoWriter(tmp_path / "a.mp4", fps=7.5, scale=4) as video:
        video.add(frame)
    frames, rate = read_video(tmp_path / "a.mp4")
    assert rate == 7.5
    expected = frame.repeat(4, axis=0).repeat(4, axis=1).astype(int)
    assert np.abs(frames[0].astype(int) - expected).mean() < 2


def test_odd_sides_are_padded(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", fps=15) as video:
        video.add(flat((90, 160, 30), height=63, width=65))
    frames, _ = read_video(tmp_path / "a.mp4")
    assert frames.shape == (1, 64, 66, 3)
    assert np.abs(frames[0, -1, -1].astype(int) - (90, 160, 30)).max() < 6


def test_final_name_appears_only_when_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.mp4"
    video = VideoWriter(path, fps=15)
    video.add(flat((1, 2, 3)))
    assert not path.exists()
    video.close()
    video.close()
    assert list(path.parent.iterdir()) == [path]


def test_failure_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), VideoWriter(path, fps=15) as video:
        video.add(flat((1, 2, 3)))
        raise KeyError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_no_frames_no_file(tmp_path: Path) -> None:
    VideoWriter(tmp_path / "a.mp4", fps=15).close()
    assert list(tmp_path.iterdir()) == []


def test_add_after_close(tmp_path: Path) -> None:
    video = VideoWriter(tmp_path / "a.mp4", fps=15)
    video.close()
    with pytest.raises(StateError, match="closed"):
        video.add(flat((0, 0, 0)))


@pytest.mark.parametrize(
    "frame",
    [np.zeros((64, 64, 3)), np.zeros((64, 64), np.uint8), np.zeros((3, 64, 64), np.uint8), [[1, 2, 3]]],
    ids=["float", "gray", "channels first", "list"],
)
def test_bad_frame(tmp_path: Path, frame: np.ndarray) -> None:
    with pytest.raises(ShapeError, match="uint8"), VideoWriter(tmp_path / "a.mp4", fps=15) as video:
        video.add(frame)
    assert list(tmp_path.iterdir()) == []


def test_size_must_stay(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", fps=15) as video:
        video.add(flat((0, 0, 0)))
        with pytest.raises(ShapeError, match=r"\(64, 64, 3\).*\(32, 64, 3\)"):
            video.add(flat((0, 0, 0), height=32))
    assert len(read_video(tmp_path / "a.mp4")[0]) == 1


@pytest.mark.parametrize(
    ("name", "fps", "scale"), [("a.gif", 15, 1), ("a.mp4", 0, 1), ("a.mp4", 0.0004, 1), ("a.mp4", 15, 0)]
)
def test_bad_settings(tmp_path: Path, name: str, fps: float, scale: int) -> None:
    with pytest.raises(ConfigError):
        VideoWriter(tmp_path / name, fps=fps, scale=scale)
    assert list(tmp_path.iterdir()) == []


def test_too_large_a_picture_names_the_largest_scale(tmp_path: Path) -> None:
    video = VideoWriter(tmp_path / "a.mp4", fps=15, scale=129)
    with pytest.raises(ConfigError, match="8256 x 8256 .* scale of at most 128"):
        video.add(flat((0, 0, 0)))
    assert list(tmp_path.iterdir()) == []


def test_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/a\.mp4"):
        VideoWriter(tmp_path / "file" / "a.mp4", fps=15)


@pytest.mark.parametrize("num_frames", [2, 60], ids=["while closing", "while adding"])
@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are a Unix thing")
def test_full_disk(tmp_path: Path, num_frames: int) -> None:
    """A limit on the size of files stands for the full disk; it must not be set in the process of the tests."""
    program = (
        "import resource, sys, numpy as np\n"
        "from envs.data.video import VideoWriter\n"
        "from worldmodel.errors import StorageError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8000, -1))\n"
        "noise = np.random.default_rng(0)\n"
        "try:\n"
        "    with VideoWriter(sys.argv[1], fps=15, scale=4) as video:\n"
        "        for _ in range(int(sys.argv[2])):\n"
        "            video.add(noise.integers(0, 255, (64, 64, 3)).astype(np.uint8))\n"
        "except StorageError as error:\n"
        "    print(error)\n"
    )
    path = tmp_path / "a.mp4"
    done = subprocess.run(
        [sys.executable, "-c", program, str(path), str(num_frames)], capture_output=True, text=True, check=True
    )
    assert str(path) in done.stdout and "free some space" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with (
        pytest.raises(MissingPackageError, match="pip install av"),
        VideoWriter(tmp_path / "a.mp4", fps=15) as video,
    ):
        video.add(flat((0, 0, 0)))
