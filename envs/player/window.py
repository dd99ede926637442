"""The player's window: opens at once, shows loading, then the dream; keys go out, pictures come in.

Owns: the pygame window, its events, scaling, screenshots. Does not know models or options: a `Worker` loads and steps
the world in its own thread, so the window answers at 60 Hz however slow the world is.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from envs.player.interrupts import held
from envs.player.worker import Worker, WorldWorker
from worldmodel.errors import DisplayError, MissingPackageError

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
try:
    import pygame
except ImportError as error:
    raise MissingPackageError(
        f"the player's window needs pygame-ce ({error}); run: pip install pygame-ce, or play with --headless"
    ) from error

from envs.player.controllers import EVENTS, Gamepads, Mouse
from envs.player.hud import HELP, Hud, is_fresh

EVENTS_HZ = 60
SCANCODES = {
    pygame.KSCAN_W: "w",
    pygame.KSCAN_A: "a",
    pygame.KSCAN_S: "s",
    pygame.KSCAN_D: "d",
    pygame.KSCAN_Q: "q",
    pygame.KSCAN_E: "e",
}
"""Keys that walk, by their place on a keyboard."""

DEFAULT_SIDE = 640
_INVISIBLE_DRIVERS = ("dummy", "offscreen", "evdev")
_DISPLAY_HELP = "run with --headless, or without a screen under: xvfb-run -a python play.py"


def check_display() -> None:
    """Make sure that a window could be seen. SDL by itself falls back to an invisible driver without a word.

    A video driver asked for by `SDL_VIDEODRIVER` is taken as it is, invisible or not.

    Raises:
        DisplayError: on Linux, neither DISPLAY nor WAYLAND_DISPLAY is set.
    """
    if _is_driver_chosen() or not sys.platform.startswith(("linux", "freebsd")):
        return
    if not os.environ.get("DISPLAY") and not os.environ.get("WAYLAND_DISPLAY"):
        raise DisplayError(f"no display: neither DISPLAY nor WAYLAND_DISPLAY is set; {_DISPLAY_HELP}")


W = TypeVar("W", bound=Worker[Any])


class Window(Generic[W]):
    """One window over one `Worker`; what keys do is said by those who derive from it.

    Args:
        worker: not yet started.
        title: of the window.
        scale: screen pixels per frame pixel at first; None keeps 640 x 640. The window can be resized.
        folder: where screenshots, videos and sessions go; made when something is saved.

    Raises:
        DisplayError: there is no display.
    """

    help: ClassVar[tuple[tuple[str, str], ...]] = HELP
    """Keys, and what they do."""

    def __init__(self, worker: W, title: str, scale: int | None = None, folder: Path = Path(".")) -> None:
        check_display()
        self.worker = worker
        self.folder = folder
        self.is_smooth = False
        self.is_help_shown = False
        self.is_hud_shown = True
        self._title = title
        self._scale = scale
        self._hud: Hud | None = None
        self._is_sized = False
        self._first_size = (0, 0)
        self._drawn: object = None
        self._start_s = time.monotonic()
        self._orders = self._make_orders()

    def run(self) -> None:
        """Open the window and play until it is closed.

        Raises:
            DisplayError: the window cannot be opened.
            WorldModelError: what loading or dreaming raised.
        """
        try:
            self._open()
            self.worker.start()
            self._open_controllers()
            clock = pygame.time.Clock()
            while self.worker.error is None and all(self._handle(event) for event in pygame.event.get()):
                self._draw()
                clock.tick(EVENTS_HZ)
        finally:
            # The window goes first: closing a video or a half-loaded model may take a moment.
            with held():
                pygame.quit()
                self.worker.stop()
        if self.worker.error is not None:
            raise self.worker.error

    def _open(self) -> None:
        try:
            # Not pygame.init(): sound is not needed, and it and gamepads cost a second on some machines.
            pygame.display.init()
            pygame.font.init()
            self._first_size = first_size((64, 64), self._scale, screen_size())
            pygame.display.set_mode(self._first_size, pygame.RESIZABLE)
        except pygame.error as error:
            raise DisplayError(f"cannot open a window: {error}; {_DISPLAY_HELP}") from error
        driver = pygame.display.get_driver()
        if driver in _INVISIBLE_DRIVERS and not _is_driver_chosen():
            raise DisplayError(f"cannot open a window: SDL found only its {driver!r} driver; {_DISPLAY_HELP}")
        pygame.display.set_caption(self._title)
        self._hud = Hud(self.help)

    def _handle(self, event: pygame.event.Event) -> bool:
        """Take one event; False ends play."""
        if event.type == pygame.QUIT:
            return False
        if event.type == pygame.KEYUP:
            self._release(event)
        elif event.type == pygame.KEYDOWN:
            return self._handle_key(event)
        elif event.type == pygame.WINDOWFOCUSLOST:
            self._lose_focus()
        elif event.type in (pygame.VIDEORESIZE, pygame.VIDEOEXPOSE, pygame.WINDOWEXPOSED):
            self._drawn = None
        return True

    def _handle_key(self, event: pygame.event.Event) -> bool:
        """Take a key that went down; False ends play."""
        key = event.key
        if key == pygame.K_ESCAPE:
            return False
        if self.worker.view is None and key != pygame.K_F1:  # loading: nothing is there yet to answer
            return True
        if key in self._orders:
            self._orders[key]()
        else:
            self._press(event)
        return True

    def _make_orders(self) -> dict[int, Callable[[], object]]:
        """Return what each key does that does something at once."""
        worker = self.worker
        return {
            pygame.K_p: worker.toggle_pause,
            pygame.K_v: lambda: worker.toggle_video(self._file_name(".mp4")),
            pygame.K_MINUS: lambda: worker.change_speed(-1),
            pygame.K_EQUALS: lambda: worker.change_speed(1),
            pygame.K_F11: self._toggle_full_screen,
            pygame.K_F12: self._save_screenshot,
            pygame.K_t: lambda: self._toggle("is_smooth"),
            pygame.K_h: lambda: self._toggle("is_hud_shown"),
            pygame.K_F1: lambda: self._toggle("is_help_shown"),
        }

    def _open_controllers(self) -> None:
        """Open what there is beside the keyboard, which may take a moment."""

    def _press(self, event: pygame.event.Event) -> None:
        """Take another key that went down."""

    def _release(self, event: pygame.event.Event) -> None:
        """Take a key that went up."""

    def _lose_focus(self) -> None:
        """Forget what is held: the window will not hear that it is let go."""

    def _toggle(self, name: str) -> None:
        setattr(self, name, not getattr(self, name))

    def _toggle_full_screen(self) -> None:
        pygame.display.toggle_fullscreen()
        self._drawn = None

    def _draw(self) -> None:
        """Draw and show, unless nothing has changed since the last time."""
        screen, worker, hud = pygame.display.get_surface(), self.worker, self._hud
        if screen is None or hud is None:
            return

        view, notes = worker.view, self.notes
        if view is None:
            share, text = worker.progress
            hud.draw_loading(screen, share, text, time.monotonic() - self._start_s)
            pygame.display.flip()
            return

        open_files = {"REC": worker.is_recording, "SESSION": worker.is_session_open}
        recorded = [name for name, is_open in open_files.items() if is_open]
        switches = (self.is_smooth, self.is_help_shown, self.is_hud_shown, tuple(recorded))
        state = (view, screen.get_size(), tuple(notes), switches)
        if state == self._drawn:
            return
        self._drawn = state

        height, width = view.frame.shape[:2]
        if not self._is_sized:
            screen = self._fit_window(screen, (width, height))
        screen.fill((0, 0, 0))
        picture = pygame.image.frombuffer(view.frame.tobytes(), (width, height), "RGB")
        size = fit((width, height), screen.get_size(), is_whole=not self.is_smooth)
        scaled = (pygame.transform.smoothscale if self.is_smooth else pygame.transform.scale)(picture, size)
        screen.blit(scaled, ((screen.get_width() - size[0]) // 2, (screen.get_height() - size[1]) // 2))

        if self.is_hud_shown:
            hud.draw_counters(screen, view, worker.rate_fps, worker.device)
        if view.bar is not None:
            hud.draw_bar(screen, view.bar)
        if recorded:
            hud.draw_recording(screen, " ".join(recorded))
        hud.draw_notes(screen, notes)
        if self.is_help_shown:
            hud.draw_help(screen)
        pygame.display.flip()

    def _fit_window(self, screen: pygame.Surface, picture: tuple[int, int]) -> pygame.Surface:
        """Give the window the size that the first picture wants, unless its user has resized it."""
        self._is_sized = True
        largest = screen_size()
        size = first_size(picture, self._scale, largest)
        if self._scale is not None and size != (picture[0] * self._scale, picture[1] * self._scale):
            fitting = size[0] // picture[0]
            self.worker.say(f"scale {self._scale} does not fit the screen of {largest[0]} x {largest[1]}: {fitting}")
        if size == self._first_size or screen.get_size() != self._first_size:
            return screen
        screen = pygame.display.set_mode(size, pygame.RESIZABLE)
        pygame.display.set_window_position(((largest[0] - size[0]) // 2, (largest[1] - size[1]) // 2))
        return screen

    @property
    def notes(self) -> list[str]:
        """The lines that are shown to the player now: how an episode ended, a pause, what the worker says."""
        worker, notes = self.worker, []
        if worker.view is not None and worker.view.ending == "terminated":
            notes.append("terminated: the episode is over. R: a new dream, or walk on")
        elif worker.view is not None and worker.view.ending == "truncated":
            notes.append("truncated: the time is over. R: a new dream, or walk on")
        if worker.is_paused:
            notes.append("paused (P goes on)")
        if worker.notice.text and is_fresh(worker.notice.said_s):
            notes.append(worker.notice.text)
        return notes

    def _file_name(self, suffix: str) -> Path:
        moment = f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() // 1_000_000 % 1000:03d}"
        return self.folder / f"worldmodel-{moment}{suffix}"

    def _save_screenshot(self) -> None:
        screen, path = pygame.display.get_surface(), self._file_name(".png")
        if screen is None:
            return
        temporary = path.with_name(f".{path.stem}.partial.png")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            pygame.image.save(screen, str(temporary))
            os.replace(temporary, path)
        except (pygame.error, OSError) as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            self.worker.say(f"no screenshot: {error}")
        else:
            self.worker.say(f"saved {path.resolve()}")


class Player(Window[WorldWorker]):
    """The window to play in; arguments as `Window`."""

    def __init__(self, worker: WorldWorker, title: str, scale: int | None = None, folder: Path = Path(".")) -> None:
        self._gamepads, self._mouse = Gamepads(worker), Mouse(worker)
        super().__init__(worker, title, scale, folder)

    def _open_controllers(self) -> None:
        self._gamepads.open()

    def _handle(self, event: pygame.event.Event) -> bool:
        if event.type in EVENTS:
            self._gamepads.handle(event)
        elif event.type == pygame.MOUSEMOTION:
            self._mouse.handle(event)
        return super()._handle(event)

    def _make_orders(self) -> dict[int, Callable[[], object]]:
        worker = self.worker
        return super()._make_orders() | {
            pygame.K_r: worker.new_dream,
            pygame.K_b: lambda: worker.toggle_session(self._file_name(".h5")),
            pygame.K_m: worker.mark,
            pygame.K_n: worker.come_back,
            pygame.K_BACKSPACE: worker.start_rewind,
            pygame.K_F5: worker.keep,
            pygame.K_F9: worker.return_to_kept,
            pygame.K_g: self._mouse.toggle,
        }

    def _press(self, event: pygame.event.Event) -> None:
        if pygame.K_1 <= event.key <= pygame.K_9:
            self.worker.choose_mark(event.key - pygame.K_0)
        else:
            self.worker.press(key_name(event))

    def _release(self, event: pygame.event.Event) -> None:
        if event.key == pygame.K_BACKSPACE:
            self.worker.stop_rewind()
        self.worker.release(key_name(event))

    def _lose_focus(self) -> None:
        self.worker.stop_rewind()
        self.worker.release_all()
        self._mouse.free()


def key_name(event: pygame.event.Event) -> str:
    """Return the name of a key: by where it is on a keyboard, so that W A S D are where they are on any layout."""
    place = SCANCODES.get(getattr(event, "scancode", -1))
    return pygame.key.name(event.key) if place is None else place


def screen_size() -> tuple[int, int]:
    """Return width and height of the first screen, pixels."""
    return pygame.display.get_desktop_sizes()[0]


def first_size(picture: tuple[int, int], scale: int | None, screen: tuple[int, int]) -> tuple[int, int]:
    """Return width and height that a window has at first, within the screen.

    Args:
        picture: width and height of the picture, pixels.
        scale: screen pixels per frame pixel; None: the largest with at most `DEFAULT_SIDE` rows.
        screen: width and height of the screen, pixels.
    """
    largest = min(screen[0] / picture[0], screen[1] / picture[1])
    factor = max(1, int(min(DEFAULT_SIDE / picture[1] if scale is None else scale, largest)))
    return picture[0] * factor, picture[1] * factor


def fit(picture: tuple[int, int], window: tuple[int, int], is_whole: bool) -> tuple[int, int]:
    """Return the largest size (width, height) of a picture inside a window, sides in proportion, at least one pixel.

    Args:
        picture: width and height of the picture, pixels.
        window: width and height of the window, pixels.
        is_whole: enlarge by a whole number only, so that all frame pixels are equally large.
    """
    factor = min(window[0] / picture[0], window[1] / picture[1])
    if is_whole and factor >= 1:
        factor = int(factor)
    return max(1, int(picture[0] * factor)), max(1, int(picture[1] * factor))


def _is_driver_chosen() -> bool:
    return bool(os.environ.get("SDL_VIDEODRIVER") or os.environ.get("SDL_VIDEO_DRIVER"))
