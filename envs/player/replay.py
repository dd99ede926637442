"""A recorded session, shown again frame by frame.

Owns: which frame of a line is shown, and what is said of it. Does not know windows, keys or threads.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from tqdm import tqdm

from envs.data.video import VideoTrack
from envs.player.interrupts import held
from envs.player.line import Line
from envs.player.redream import Redream
from envs.player.side_by_side import compose
from envs.player.view import Bar, View, psnr

EVENT_S = 1.0
"""How long is said that there was a mark, seconds of play."""


class ReplaySession:
    """A line that is shown; beside it the dream, where it is dreamt again, or the real world, where that was recorded.

    Args:
        line: to show.
        redream: the dream of it, or None.
        fps: frames a second; None: those of the recording.
    """

    is_session_open = False

    def __init__(self, line: Line, redream: Redream | None = None, fps: float | None = None) -> None:
        self.line, self.redream = line, redream
        self.fps = line.session.info.fps if fps is None else fps
        self.number = 0
        self._video = VideoTrack()
        self.view = self.go_to(0)

    @property
    def num_frames(self) -> int:
        """Frames of the line."""
        return len(self.line)

    @property
    def device(self) -> str | None:
        """Where it is dreamt again, or None."""
        return None if self.redream is None else str(self.redream.env.device)

    @property
    def is_recording(self) -> bool:
        """A video is open and takes every frame that is shown."""
        return self._video.is_open

    @property
    def num_known(self) -> int:
        """Frames that can be shown now: all, or those dreamt so far."""
        return self.num_frames if self.redream is None else self.redream.num_known

    def dream_on(self) -> None:
        """Dream the next frame that is not known yet, where the line is dreamt again."""
        if self.redream is not None:
            self.redream.dream_on()

    def go_to(self, number: int) -> View:
        """Show a frame, the nearest there is; what is not dreamt yet is dreamt first.

        Raises:
            DataError: the file is damaged. StorageError: the video could not be written; it has stopped.
        """
        number = min(max(number, 0), self.num_frames - 1)
        start_s = time.perf_counter()
        while number >= self.num_known:
            self.dream_on()
        step_ms = (time.perf_counter() - start_s) * 1000.0
        self.number = number
        self.view = self._make_view(number, step_ms)
        self._video.add(self.view.frame)
        return self.view

    def _make_view(self, number: int, step_ms: float) -> View:
        line, frame = self.line, self.line.frame(number)
        caption = self._describe(number)
        if self.redream is not None:
            dreamt = self.redream.frame(number)
            likeness = psnr(frame, dreamt)
            frame = compose(frame, dreamt, likeness)
            caption += ["left recorded, right dreamt again", f"{likeness:.1f} dB alike", self.redream.verdict]
        elif line.has_real:
            real = line.frame(number, "real_frames")
            likeness = psnr(real, frame)
            frame = compose(real, frame, likeness)
            caption += ["left real, right dream", f"{likeness:.1f} dB alike"]
        last = max(1, self.num_frames - 1)
        return View(
            frame=frame,
            seed=int(line.start.get("seed", 0)),
            step=number,
            action_name=line.session.info.action_names[line.actions[number - 1]] if number else "",
            reward_total=float(line.rewards[:number].sum()),
            ending=line.endings[number],
            step_ms=step_ms,
            engine=None if self.redream is None else self.redream.env.engine,
            marks=tuple(mark for where, mark in line.marks if where <= number),
            caption=tuple(caption),
            bar=Bar(number / last, tuple(where / last for where, _ in line.marks)),
        )

    def _describe(self, number: int) -> list[str]:
        """Return where a frame is, and what there was in the second before."""
        line, since = self.line, number - EVENT_S * self.fps
        episode, frame = line.place(number)
        found = [f"replay {number} / {self.num_frames - 1}   episode {episode} frame {frame}"]
        found += [f"mark {mark} at frame {where}" for where, mark in line.marks if since < where <= number]
        for first, second in line.revisits:
            if since < second <= number:
                alike = psnr(line.frame(first), line.frame(second))
                found.append(f"frame {second} shows frame {first} again: {alike:.1f} dB")
        return found

    def start_video(self, path: str | os.PathLike[str], scale: int | None = None) -> None:
        """Record what is shown from the present frame on; arguments and errors as `VideoTrack.start`."""
        self._video.start(path, self.fps, scale, self.view.frame)

    def stop_video(self) -> Path | None:
        """Finish the open video; return its file, or None. Errors as `VideoTrack.stop`."""
        return self._video.stop()

    def close(self) -> list[Path]:
        """Finish the open video and close what dreams; return the files that were finished.

        Raises:
            StorageError: the video could not be finished.
        """
        try:
            made = self.stop_video()
        finally:
            if self.redream is not None:
                self.redream.env.close()
        return [] if made is None else [made]


def run_replay(session: ReplaySession, num_steps: int | None = None) -> dict[str, object]:
    """Show a line from its first frame on without a screen, as fast as it goes.

    Args:
        session: at its first frame.
        num_steps: steps to show; None: all.

    Returns:
        frames shown, fps (of the whole loop), world, source, line (the places where it ends in each episode), episodes
        of the file, marks and revisits on the line; and what `Redream.report` says.

    Raises:
        DataError: the file is damaged. StorageError: the open video cannot be written.
    """
    line = session.line
    count = min(session.num_frames - 1, session.num_frames if num_steps is None else num_steps)
    start_s = time.perf_counter()
    for number in tqdm(range(1, count + 1), unit="frame", disable=None):
        with held():
            session.go_to(number)
    elapsed_s = time.perf_counter() - start_s
    report: dict[str, object] = {
        "frames": count + 1,
        "fps": round(count / elapsed_s, 2),
        "world": line.session.info.world,
        "source": line.session.info.source,
        "line": [list(stop) for stop in line.stops],
        "episodes": len(line.session.episodes),
        "marks": len(line.marks),
        "revisits": len(line.revisits),
    }
    return report if session.redream is None else report | session.redream.report()
