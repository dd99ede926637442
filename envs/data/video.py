"""Video files: frames in, one H.264 MP4 out.

Owns: encoding, that a file under its final name is always whole (temporary name, then a move), and the one video that
is open while something is shown. Does not know where the frames come from: the player, a recorder and an evaluation use
it alike.
"""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from worldmodel.errors import (
    ConfigError,
    MissingPackageError,
    ShapeError,
    StateError,
    StorageError,
    WorldModelError,
)

MIN_FPS = 0.001
MAX_SIDE = 8192
DEFAULT_SIDE = 256
"""Rows of a video, at least, where no scale is given."""


class VideoWriter:
    """Write uint8 RGB frames to an MP4 file; every call of `add` is one video frame.

    The first frame fixes the size. H.264 with 4:2:0 color wants even sides, so an odd side is padded by repeating its
    last row or column. Color is stored at half resolution: give `scale` 2 or more for frames of 64 pixels.

    Args:
        path: the file to write, ending in `.mp4`; missing folders are made, an existing file is replaced on `close`.
        fps: frames a second of the video, above 0.
        scale: whole number >= 1; each frame pixel becomes a sharp block of `scale` x `scale` video pixels.

    Raises:
        ConfigError: the path does not end in `.mp4`, or `fps` or `scale` is out of range.
        StorageError: the folder cannot be made or written to.
    """

    def __init__(self, path: str | os.PathLike[str], fps: float, scale: int = 1) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() != ".mp4":
            raise ConfigError(f"video file {str(path)!r} must end in .mp4; give a name such as play.mp4")
        if not MIN_FPS <= fps <= 1000:
            raise ConfigError(f"video fps must be from {MIN_FPS} to 1000; got {fps}")
        if scale < 1:
            raise ConfigError(f"video scale must be a whole number of at least 1; got {scale}")
        self.fps = float(fps)
        self.scale = int(scale)
        self.num_frames = 0
        self._temporary = self.path.with_name(f".{self.path.stem}.{os.getpid()}.partial.mp4")
        self._shape: tuple[int, ...] | None = None
        self._container: Any = None
        self._stream: Any = None
        self._is_closed = False
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._temporary.touch()
        except OSError as error:
            raise self._storage_error(error) from error

    def add(self, frame: np.ndarray) -> None:
        """Append one frame.

        Args:
            frame: uint8 (H, W, 3) RGB, the size of the first one.

        Raises:
            ShapeError: another dtype, rank or size.
            ConfigError: frames at this scale have more than 8192 pixels a side.
            StateError: the writer is closed.
            StorageError: the disk is full or the file cannot be written; the unfinished file is removed.
            MissingPackageError: PyAV is not installed, or was built without H.264.
        """
        if self._is_closed:
            raise StateError(f"video {self.path} is closed; open a new VideoWriter to write more")
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
            found = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
            raise ShapeError(f"a video frame must be a uint8 array (H, W, 3); got {found}")
        if self._shape is not None and frame.shape != self._shape:
            raise ShapeError(f"video frames must all have the size of the first, {self._shape}; got {frame.shape}")
        try:
            if self._shape is None:
                self._open(frame.shape)
            self._encode(frame)
        except OSError as error:
            self.discard()
            raise self._storage_error(error) from error
        self.num_frames += 1

    def close(self) -> None:
        """Finish the file and move it to its name; without any frame no file is left. A second call does nothing.

        Raises:
            StorageError: the disk is full or the file cannot be written; the unfinished file is removed.
        """
        if self._is_closed:
            return
        if self.num_frames == 0:
            self.discard()
            return
        try:
            self._container.mux(self._stream.encode(None))
            self._container.close()
            os.replace(self._temporary, self.path)
        except OSError as error:
            self.discard()
            raise self._storage_error(error) from error
        self._is_closed = True

    def discard(self) -> None:
        """Stop and remove what was written; the file under the final name, if there was one, stays as it was."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            if self._container is not None:
                self._container.close()
        except OSError:
            pass  # The disk may be full: the file goes anyway.
        finally:
            self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def _open(self, shape: tuple[int, ...]) -> None:
        try:
            import av
        except ImportError as error:
            raise MissingPackageError("writing video needs PyAV; run: pip install av") from error

        height, width = (side * self.scale for side in shape[:2])
        if max(height, width) > MAX_SIDE:
            self.discard()
            raise ConfigError(
                f"a video of {width} x {height} pixels is too large, more than {MAX_SIDE} a side; take a scale of at "
                f"most {MAX_SIDE // max(shape[:2])}"
            )

        rate = Fraction(self.fps).limit_denominator(1001)
        self._container = av.open(str(self._temporary), mode="w", format="mp4", options={"movflags": "faststart"})
        try:
            # Faster than the default preset by far: the player encodes while it dreams.
            self._stream = self._container.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": "18"})
        except (av.error.EncoderNotFoundError, ValueError) as error:
            self.discard()
            raise MissingPackageError(
                "this PyAV has no H.264 encoder (libx264); install the ready-made wheel: pip install --upgrade av"
            ) from error

        self._stream.width, self._stream.height = width + width % 2, height + height % 2
        self._stream.pix_fmt = "yuv420p"
        # One thread: the encoder must not take the cores that make the frames.
        self._stream.codec_context.thread_count = 1
        self._shape = shape

    def _encode(self, frame: np.ndarray) -> None:
        import av

        picture = frame.repeat(self.scale, axis=0).repeat(self.scale, axis=1) if self.scale > 1 else frame
        odd_rows, odd_columns = picture.shape[0] % 2, picture.shape[1] % 2
        if odd_rows or odd_columns:
            picture = np.pad(picture, ((0, odd_rows), (0, odd_columns), (0, 0)), mode="edge")
        video_frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        video_frame.pts = self.num_frames
        self._container.mux(self._stream.encode(video_frame))

    def _storage_error(self, error: OSError) -> StorageError:
        reason = error.strerror or str(error)
        return StorageError(
            f"cannot write video {self.path}: {reason}; free some space there or choose another place with write access"
        )


class VideoTrack:
    """The video that what is shown goes to: open or not, one after the other."""

    def __init__(self) -> None:
        self._writer: VideoWriter | None = None

    @property
    def is_open(self) -> bool:
        """A video is open and takes every further frame."""
        return self._writer is not None

    def start(self, path: str | os.PathLike[str], fps: float, scale: int | None, frame: np.ndarray) -> None:
        """Record from a frame uint8 (H, W, 3) on; an open video is finished first.

        Args:
            path: a file name ending in `.mp4`.
            fps: frames a second.
            scale: video pixels per frame pixel; None takes the smallest that makes at least `DEFAULT_SIDE` rows.
            frame: the first one.

        Raises:
            ConfigError: the name or the scale is not accepted.
            StorageError: the file cannot be written.
        """
        self.stop()
        if scale is None:
            scale = max(1, -(-DEFAULT_SIDE // frame.shape[0]))
        self._writer = VideoWriter(path, fps, scale)
        self.add(frame)

    def add(self, frame: np.ndarray) -> None:
        """Append a frame, where a video is open.

        Raises:
            StorageError: it could not be written; the video is removed, none is open any more.
        """
        if self._writer is None:
            return
        try:
            self._writer.add(frame)
        except WorldModelError:
            self._writer.discard()
            self._writer = None
            raise

    def stop(self) -> Path | None:
        """Finish the open video; return its file, or None where none is open.

        Raises:
            StorageError: the file could not be finished; none is open any more.
        """
        writer, self._writer = self._writer, None
        if writer is None:
            return None
        writer.close()
        return writer.path
