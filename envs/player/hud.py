"""What is drawn over and around the picture: counters, help, loading, notes.

Owns: text and its looks. Draws on a surface it is given; does not know events, threads or environments.
"""

from __future__ import annotations

import textwrap
import time

import pygame  # noqa: TID253 - only envs/player.py imports this module, after its own check of pygame

from envs.player.view import Bar, View

HELP = (
    ("W A S D / arrows", "walk and turn; hold and combine"),
    ("R", "new dream (next seed)"),
    ("P", "pause"),
    ("T", "sharp or smooth picture"),
    ("Backspace", "hold: rewind; F5 keeps a moment, F9 goes back"),
    ("M / N / 1-9", "mark a view / say you are back / choose a mark"),
    ("- / =", "slower or faster"),
    ("G", "the mouse turns, or is free"),
    ("Gamepad", "stick, D-pad; A mark, B back, X rewind, Y new dream"),
    ("V / B", "record an MP4 / a session"),
    ("F11 / F12", "full screen / screenshot"),
    ("H", "hide or show the counters"),
    ("F1", "this help"),
    ("Esc", "quit"),
)
NOTICE_S = 4.0

_TEXT = (235, 235, 235)
_FAINT = (150, 150, 160)
_ACCENT = (120, 190, 255)
_RECORD = (235, 60, 60)
_PANEL = (10, 10, 14, 170)


class Hud:
    """Draws text panels, sized to the window; rendered lines are kept, because most stay the same between frames."""

    def __init__(self, help_lines: tuple[tuple[str, str], ...] = HELP) -> None:
        self._help = help_lines
        self._fonts: dict[int, pygame.font.Font] = {}
        self._lines: dict[tuple[str, int, tuple[int, int, int]], pygame.Surface] = {}

    def draw_counters(self, screen: pygame.Surface, view: View, rate_fps: float, device: str | None) -> None:
        """Draw what `list_counters` says at the top left."""
        size = self._size(screen)
        lines = [part for line in list_counters(view, rate_fps, device) for part in self._wrap(line, size, screen)]
        self._draw_panel(screen, [self._line(line, size, _TEXT) for line in lines], (size // 2, size // 2))

    def _wrap(self, text: str, size: int, screen: pygame.Surface) -> list[str]:
        """Return a line as lines that fit the screen."""
        letters = max(16, (screen.get_width() - 3 * size) // self._line("0", size, _TEXT).get_width())
        return textwrap.wrap(text, letters, replace_whitespace=False, drop_whitespace=False)

    def draw_bar(self, screen: pygame.Surface, bar: Bar) -> None:
        """Draw a bar along the bottom, with its ticks."""
        width, height = screen.get_size()
        thick = max(4, self._size(screen) // 3)
        place = pygame.Rect(0, height - thick, width, thick)
        pygame.draw.rect(screen, (50, 50, 60), place)
        pygame.draw.rect(screen, _ACCENT, (0, place.y, round(width * bar.share), thick))
        for tick in bar.ticks:
            pygame.draw.rect(screen, _TEXT, (round((width - 3) * tick), place.y - thick // 2, 3, thick + thick // 2))

    def draw_recording(self, screen: pygame.Surface, text: str) -> None:
        """Draw the red mark of running recordings, and which they are, at the top right."""
        size = self._size(screen)
        label = self._line(text, size, _RECORD)
        mark = pygame.Surface((label.get_width() + size, label.get_height()), pygame.SRCALPHA)
        pygame.draw.circle(mark, _RECORD, (size // 3, label.get_height() // 2), size // 3)
        mark.blit(label, (size, 0))
        self._draw_panel(screen, [mark], (screen.get_width() - mark.get_width() - 2 * size, size // 2))

    def draw_notes(self, screen: pygame.Surface, lines: list[str]) -> None:
        """Draw lines centered near the bottom: a pause, the end of an episode, a file that was saved."""
        if not lines:
            return
        size = self._size(screen)
        surfaces = [self._line(part, size, _TEXT) for line in lines for part in self._wrap(line, size, screen)]
        self._draw_panel(screen, surfaces, self._centered(screen, surfaces, share=0.9))

    def draw_help(self, screen: pygame.Surface) -> None:
        """Draw the keys in the middle."""
        surfaces = self._help_lines(self._size(screen))
        self._draw_panel(screen, surfaces, self._centered(screen, surfaces, share=0.5))

    def draw_loading(self, screen: pygame.Surface, share: float, text: str, elapsed_s: float) -> None:
        """Draw the progress bar of loading, what is being loaded, for how long, and the keys beneath."""
        screen.fill((18, 18, 24))
        width, height = screen.get_size()
        size = self._size(screen)
        bar = pygame.Rect(width // 8, height // 4, max(1, width * 3 // 4), max(4, size // 2))
        pygame.draw.rect(screen, (50, 50, 60), bar, border_radius=size // 4)
        done = bar.copy()
        done.width = int(bar.width * min(max(share, 0.0), 1.0))
        pygame.draw.rect(screen, _ACCENT, done, border_radius=size // 4)
        dots = "." * (1 + int(elapsed_s * 2) % 3)
        screen.blit(self._line(f"{text} {dots}", size, _TEXT), (bar.x, bar.y - int(size * 1.4)))
        screen.blit(self._line(f"{elapsed_s:.0f} s", size, _FAINT), (bar.x, bar.bottom + size // 2))
        surfaces = self._help_lines(size)
        self._draw_panel(screen, surfaces, self._centered(screen, surfaces, share=0.65))

    def _help_lines(self, size: int) -> list[pygame.Surface]:
        keys = [self._line(key, size, _ACCENT) for key, _ in self._help]
        column = max(key.get_width() for key in keys) + size
        rows = []
        for key, (_, meaning) in zip(keys, self._help, strict=True):
            text = self._line(meaning, size, _TEXT)
            row = pygame.Surface((column + text.get_width(), text.get_height()), pygame.SRCALPHA)
            row.blit(key, (0, 0))
            row.blit(text, (column, 0))
            rows.append(row)
        return rows

    def _draw_panel(self, screen: pygame.Surface, lines: list[pygame.Surface], corner: tuple[int, int]) -> None:
        margin = lines[0].get_height() // 2
        width = max(line.get_width() for line in lines) + 2 * margin
        height = sum(line.get_height() for line in lines) + 2 * margin
        panel = pygame.Surface((width, height), pygame.SRCALPHA)
        panel.fill(_PANEL)
        y = margin
        for line in lines:
            panel.blit(line, (margin, y))
            y += line.get_height()
        screen.blit(panel, corner)

    @staticmethod
    def _centered(screen: pygame.Surface, lines: list[pygame.Surface], share: float) -> tuple[int, int]:
        margin = lines[0].get_height()
        width = max(line.get_width() for line in lines) + margin
        height = sum(line.get_height() for line in lines) + margin
        y = min(int(screen.get_height() * share) - height // 2, screen.get_height() - height - margin // 2)
        return (screen.get_width() - width) // 2, max(0, y)

    @staticmethod
    def _size(screen: pygame.Surface) -> int:
        return max(14, min(34, min(screen.get_size()) // 34))

    def _line(self, text: str, size: int, color: tuple[int, int, int]) -> pygame.Surface:
        key = (text, size, color)
        if key not in self._lines:
            if len(self._lines) > 200:
                self._lines.clear()
            if size not in self._fonts:
                self._fonts[size] = pygame.font.Font(None, int(size * 1.3))
            self._lines[key] = self._fonts[size].render(text, True, color)
        return self._lines[key]


def list_counters(view: View, rate_fps: float, device: str | None) -> list[str]:
    """Return what is said of a view: frames a second, step, action, memory, reward, how steps run, marks, seed."""
    lines = [
        f"{rate_fps:4.1f} frames/s   {view.step_ms:3.0f} ms   step {view.step}",
        f"action {view.action_name or '-'}   reward {view.reward_total:g}",
    ]
    if view.memory_frames is not None:
        used = "-" if view.memory_used is None else view.memory_used
        lines.append(f"memory {used} / {view.memory_frames} frames")
    if view.num_steps is not None:
        lines.append(f"{view.num_steps} denoising step{'s' * (view.num_steps != 1)}   {device or ''}")
    if view.engine is not None:
        progress = "" if view.compile_progress is None else f": {view.compile_progress}"
        lines.append(" ".join(f"{view.engine}{progress}".split()))
    if view.marks:
        alike = "" if view.likeness is None else f"   {view.likeness:.1f} dB like mark {view.chosen_mark}"
        lines.append(f"marks {' '.join(map(str, view.marks))}{alike}")
    lines += view.caption
    lines.append(f"seed {view.seed}   F1 help")
    return lines


def is_fresh(said_s: float) -> bool:
    """Say whether a notice of that moment (`time.monotonic`) is still to be shown."""
    return time.monotonic() - said_s < NOTICE_S
