"""The thread in which a world loads and dreams, so that a window or a server stays alive whatever the model does.

Owns: loading in the background, steady pacing, held and tapped keys on their way to an action, orders from the player
(reset, pause, rewind, marks, recordings, speed).
Does not know pygame or the web. Everything that touches the environment runs in this one thread (an OpenGL context
belongs to the thread that made it); who shows it only reads the public attributes, each replaced whole.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, TypeVar

from envs.player.session import PlaySession
from envs.player.view import View
from worldmodel.errors import WorldModelError

Report = Callable[[float, str], None]
"""Tells how far loading is: (share from 0 to 1, what comes next)."""

SPEEDS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Factors of the world's own rate that a player can choose."""

REWIND_STEPS = 2
"""Steps back that rewinding shows in the time of one step."""


MOST_TURNS = 3.0
"""How many steps of turning are kept for later: a mouse that stops should not turn on for long."""


class Progress(NamedTuple):
    """How far loading is: a share from 0 to 1, and what is being loaded."""

    share: float
    text: str


class Notice(NamedTuple):
    """A line for the player, and when it was said (`time.monotonic`)."""

    text: str
    said_s: float


class _Stopped(Exception):
    """Leaves the thread from inside an order or a loading stage."""


class Shown(Protocol):
    """What of a session showing it needs."""

    fps: float
    view: View

    @property
    def device(self) -> str | None:
        """Where frames are made, or None."""

    @property
    def is_recording(self) -> bool:
        """A video is open."""

    @property
    def is_session_open(self) -> bool:
        """A session file is open."""

    def start_video(self, path: Path, scale: int | None = None) -> None:
        """Record a video from the present frame on."""

    def stop_video(self) -> Path | None:
        """Finish the open video; return its file."""

    def close(self) -> list[Path]:
        """Finish the open recordings and free what makes frames; return the files that were finished."""


S = TypeVar("S", bound=Shown)


class Worker(Generic[S]):
    """Loads a session in a thread and shows it at its own pace.

    Args:
        make_session: called in the thread with a `Report`; makes the session.
        video_path: record to this file from the first frame on; None records nothing.
        video_scale: video pixels per frame pixel; None as in `VideoTrack.start`.

    Attributes:
        finished_video: the video that was finished last by an order, or None.
        on_change: called in the thread when there may be something new to show; must return at once and not raise.
    """

    def __init__(
        self,
        make_session: Callable[[Report], S],
        video_path: Path | None = None,
        video_scale: int | None = None,
    ) -> None:
        self.progress = Progress(0.0, "starting")
        self.view: View | None = None
        self.rate_fps = 0.0
        self.device: str | None = None
        self.notice = Notice("", 0.0)
        self.error: BaseException | None = None
        self.is_paused = False
        self.is_recording = False
        self.is_session_open = False
        self.speed = 1.0
        self.finished_video: Path | None = None
        self.on_change: Callable[[], None] = lambda: None
        self._make_session = make_session
        self._video_path = video_path
        self._video_scale = video_scale
        self._orders: queue.SimpleQueue[Callable[[S], None]] = queue.SimpleQueue()
        self._told_engine: str | None = None
        self._is_stopping = threading.Event()
        self._step_times_s: deque[float] = deque(maxlen=31)
        self._thread = threading.Thread(target=self._run, name="world", daemon=True)

    @property
    def is_alive(self) -> bool:
        """The thread runs: it has been started and has not ended."""
        return self._thread.is_alive()

    @property
    def _is_resting(self) -> bool:
        """Nothing is shown anew until an order comes."""
        return self.is_paused

    def start(self) -> None:
        """Begin loading; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """End play and wait until the video is whole and the environment closed; loading ends at its next stage."""
        self._is_stopping.set()
        self._orders.put(_raise_stopped)
        if self._thread.ident is not None:
            self._thread.join()

    def toggle_pause(self) -> None:
        """Pause, or go on."""
        self._orders.put(self._toggle_pause)

    def toggle_video(self, path: Path) -> None:
        """Start recording to `path`, or finish the recording that runs."""
        self._orders.put(lambda session: self._toggle_video(session, path))

    def change_speed(self, by: int) -> None:
        """Play slower (-1) or faster (+1)."""
        index = SPEEDS.index(self.speed) + by
        self.speed = SPEEDS[min(max(index, 0), len(SPEEDS) - 1)]
        self.say(f"speed {self.speed:g}")

    def say(self, text: str) -> None:
        """Show a line to the player for a few seconds."""
        self.notice = Notice(text, time.monotonic())

    def _run(self) -> None:
        session: S | None = None
        try:
            session = self._make_session(self._report)
            if self._video_path is not None:
                session.start_video(self._video_path, self._video_scale)
                self.is_recording = True
            self._begin(session)
            self.device = session.device
            self.view = session.view
            self._tell_engine()
            self.on_change()
            self._play(session)
        except _Stopped:
            pass
        except BaseException as error:  # Whatever it was, the window must hear of it, or it would wait for ever.
            self.error = error
        finally:
            self._close(session)
            self.on_change()

    def _begin(self, session: S) -> None:
        """Do what is to be done before the first frame is shown."""

    def _advance(self, session: S) -> None:
        """Show what comes next."""
        raise NotImplementedError

    def _play(self, session: S) -> None:
        due_s = time.perf_counter()
        while True:
            wait_s = None if self._is_resting else due_s - time.perf_counter()
            order = self._next_order(wait_s)
            if order is not None:
                order(session)
                self.on_change()
                continue
            period_s, start_s = 1.0 / (session.fps * self.speed), time.perf_counter()
            # A little lateness is caught up with, for a steady rate; more than a period (a pause, a slow step) is not.
            due_s = (due_s if start_s - due_s < period_s else start_s) + period_s
            self._advance(session)
            self.on_change()

    def _show(self, session: S, move: Callable[[], View]) -> None:
        """Show where a step or a jump leads, also when only a recording failed."""
        try:
            self.view = move()
        except WorldModelError as error:
            if (session.is_recording, session.is_session_open) == (self.is_recording, self.is_session_open):
                raise
            self.view = session.view
            self.say(f"recording stopped: {error}")
        self.is_recording, self.is_session_open = session.is_recording, session.is_session_open
        self._tell_engine()

    def _tell_engine(self) -> None:
        """Print how steps run, whenever that changes: compiling in the background ends some minutes later."""
        engine = None if self.view is None else self.view.engine
        if engine is not None and engine != self._told_engine:
            self._told_engine = engine
            print(f"steps run {' '.join(engine.split())}", flush=True)

    def _next_order(self, wait_s: float | None) -> Callable[[S], None] | None:
        """Wait for an order until the next step is due (None: for ever); None means that it is time to step."""
        try:
            return self._orders.get(timeout=wait_s) if wait_s is None or wait_s > 0 else self._orders.get_nowait()
        except queue.Empty:
            return None

    def _measure_rate(self, now_s: float) -> None:
        self._step_times_s.append(now_s)
        if len(self._step_times_s) > 1:
            self.rate_fps = (len(self._step_times_s) - 1) / (now_s - self._step_times_s[0])

    def _toggle_pause(self, session: S) -> None:
        self.is_paused = not self.is_paused
        self._step_times_s.clear()

    def _toggle_video(self, session: S, path: Path) -> None:
        try:
            if session.is_recording:
                made = session.stop_video()
                self.finished_video = made or self.finished_video
                self.say("" if made is None else f"video saved: {made.resolve()}")
            else:
                session.start_video(path, self._video_scale)
                self.say(f"recording {path.name}; V stops")
        except WorldModelError as error:
            self.say(f"recording stopped: {error}")
        self.is_recording = session.is_recording

    def _report(self, share: float, text: str) -> None:
        if self._is_stopping.is_set():
            raise _Stopped
        self.progress = Progress(share, text)
        self.on_change()

    def _close(self, session: S | None) -> None:
        try:
            for path in [] if session is None else session.close():
                print(f"saved {path.resolve()}", flush=True)
        except BaseException as error:
            self.error = self.error or error


class WorldWorker(Worker[PlaySession]):
    """Plays: steps a session by the keys that are held.

    Args:
        make_session, video_path, video_scale: as `Worker`.
        session_path: record a session to this file from the first frame on; None records none.

    Attributes:
        finished_session: the session file that was finished last, or None.
        bindings: pairs of a key and the control it stands for in the world that is played; none while it loads.
    """

    def __init__(
        self,
        make_session: Callable[[Report], PlaySession],
        video_path: Path | None = None,
        video_scale: int | None = None,
        session_path: Path | None = None,
    ) -> None:
        super().__init__(make_session, video_path, video_scale)
        self.is_rewinding = False
        self.finished_session: Path | None = None
        self._session_path = session_path
        self._rewound_steps = 0
        self._resets_wanted = 0
        self.bindings: tuple[tuple[str, str], ...] = ()
        self._keys_lock = threading.Lock()
        self._held: set[tuple[str, str]] = set()  # key, and what holds it
        self._tapped: set[str] = set()
        self._turns = 0.0

    @property
    def _is_resting(self) -> bool:
        return self.is_paused and not self.is_rewinding

    def press(self, key: str, device: str = "keyboard") -> None:
        """A key went down; even a tap shorter than a step counts for one step.

        Args:
            key: by its name.
            device: what holds it; a key is up when no device holds it.
        """
        with self._keys_lock:
            self._held.add((key, device))
            self._tapped.add(key)

    def release(self, key: str, device: str = "keyboard") -> None:
        """A key went up."""
        with self._keys_lock:
            self._held.discard((key, device))

    def release_all(self) -> None:
        """All keys went up, and nothing more is turned."""
        with self._keys_lock:
            self._held.clear()
            self._turns = 0.0

    @property
    def can_turn(self) -> bool:
        """The world that is played has controls left and right."""
        return {"left", "right"} <= {control for _, control in self.bindings}

    def turn(self, steps: float) -> None:
        """Turn right in the next so many steps, or left (below 0); what is too small for a step is kept for later."""
        with self._keys_lock:
            self._turns = min(max(self._turns + steps, -MOST_TURNS), MOST_TURNS)

    def new_dream(self) -> None:
        """Begin the dream of the next seed before the next step; play goes on if it was paused.

        Asked for again before that, it is still one dream: a row of presses during a slow step is one wish.
        """
        self._resets_wanted += 1
        if self._resets_wanted == 1:
            self._orders.put(self._new_dream)

    def toggle_session(self, path: Path) -> None:
        """Start recording a session to `path`, or finish the one that runs."""
        self._orders.put(lambda session: self._toggle_session(session, path))

    def mark(self) -> None:
        """Mark the present frame, to come back to."""
        self._orders.put(lambda session: self._try(session, self._mark))

    def choose_mark(self, number: int) -> None:
        """Choose the mark to come back to."""
        self._orders.put(lambda session: self._try(session, lambda s: f"mark {s.choose_mark(number).number} chosen"))

    def come_back(self) -> None:
        """Say that the present frame is the chosen mark again."""
        self._orders.put(lambda session: self._try(session, self._come_back))

    def keep(self) -> None:
        """Keep the present moment."""
        self._orders.put(lambda session: self._try(session, lambda s: f"kept step {s.keep().step}; F9 goes back to it"))

    def return_to_kept(self) -> None:
        """Go to the moment that was kept last."""
        self._orders.put(lambda session: self._try(session, lambda s: f"back at step {s.return_to_kept().step}"))

    def start_rewind(self) -> None:
        """Show what was, backwards, until `stop_rewind`, also while play is paused."""
        self._orders.put(self._start_rewind)

    def stop_rewind(self) -> None:
        """Play on from what is shown, or stay paused there."""
        self._orders.put(self._stop_rewind)

    def _begin(self, session: PlaySession) -> None:
        if self._session_path is not None:
            session.start_session(self._session_path)
            self.is_session_open = True
        if session.faults:
            self.say(f"a poor world: {session.faults[0]}")
        self.bindings = session.action_set.keys
        self._take_keys()  # A key tapped while loading is not meant for the first frame.

    def _advance(self, session: PlaySession) -> None:
        if self.is_rewinding:
            self._rewind_on(session)
            return
        action = session.action_set.from_keys(self._take_keys())
        self._show(session, partial(session.step, action))
        self._measure_rate(time.perf_counter())

    def _try(self, session: PlaySession, do: Callable[[PlaySession], str]) -> None:
        """Do what a player asked for, and say what came of it; where it cannot be done play goes on."""
        try:
            self.say(do(session))
        except WorldModelError as error:
            self.say(str(error))
        self.view = session.view
        self.is_recording, self.is_session_open = session.is_recording, session.is_session_open

    @staticmethod
    def _mark(session: PlaySession) -> str:
        return f"mark {session.mark().number}: N says that you are back"

    @staticmethod
    def _come_back(session: PlaySession) -> str:
        mark, likeness = session.come_back()
        return f"back at mark {mark.number} after {session.view.step - mark.step} steps: {likeness:.1f} dB alike"

    def _start_rewind(self, session: PlaySession) -> None:
        if not session.can_rewind:
            self.say("this world cannot go back")
            return
        self.is_rewinding, self._rewound_steps = True, 0
        self._rewind_on(session)  # at once: a tap shorter than a step counts

    def _rewind_on(self, session: PlaySession) -> None:
        self._rewound_steps = min(self._rewound_steps + REWIND_STEPS, session.steps_back)
        self.view = session.look_back(self._rewound_steps)
        self.say(f"rewinding: {self._rewound_steps / session.fps:.1f} s back")

    def _stop_rewind(self, session: PlaySession) -> None:
        if not self.is_rewinding:
            return
        self.is_rewinding = False
        self._step_times_s.clear()
        if self._rewound_steps:
            self._show(session, partial(session.rewind, self._rewound_steps))
            self.say(f"on from step {session.view.step}")

    def _take_keys(self) -> set[str]:
        with self._keys_lock:
            keys = {key for key, _ in self._held} | self._tapped
            self._tapped.clear()
            if abs(self._turns) >= 1:
                control = "right" if self._turns > 0 else "left"
                self._turns -= math.copysign(1, self._turns)
                keys |= {key for key, bound in self.bindings if bound == control}
        return keys

    def _new_dream(self, session: PlaySession) -> None:
        self._resets_wanted = 0
        self.is_paused = self.is_rewinding = False
        self._step_times_s.clear()
        self._show(session, partial(session.reset, session.view.seed + 1))

    def _toggle_session(self, session: PlaySession, path: Path) -> None:
        try:
            if session.is_session_open:
                made = session.stop_session(lambda share: self.say(f"saving the session: {share:.0%}"))
                self.finished_session = made or self.finished_session
                saved = "" if made is None else f"session saved: {made.resolve()}"
                self.say(saved or "nothing was played: no session kept")
            else:
                session.start_session(path)
                self.say(f"recording the session {path.name}; B stops")
        except WorldModelError as error:
            self.say(f"no session: {error}")
        self.is_session_open = session.is_session_open


def _raise_stopped(session: Shown) -> None:
    raise _Stopped
