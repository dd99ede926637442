"""The thread in which a recorded session is shown again, and dreamt again.

Owns: steps and jumps on the recording, at its pace or by the player's keys. Does not know pygame.
"""

from __future__ import annotations

import time
from functools import partial

from envs.player.replay import ReplaySession
from envs.player.worker import Worker

JUMP_S = 5.0
"""How far a jump goes, seconds of play."""


class ReplayWorker(Worker[ReplaySession]):
    """Shows a recording; arguments as `Worker`. Stops at its end, and begins again from there when play goes on."""

    def step(self, by: int) -> None:
        """Pause, and show the next frame (1) or the one before (-1)."""
        self._orders.put(lambda session: self._step(session, by))

    def jump(self, by: int) -> None:
        """Go on (1) or back (-1) by a few seconds."""
        self._orders.put(lambda session: self._go_to(session, session.number + by * round(JUMP_S * session.fps)))

    def jump_to_mark(self, by: int) -> None:
        """Go to the next mark or revisit (1), or to the one before (-1)."""
        self._orders.put(lambda session: self._jump_to_mark(session, by))

    def go_to_start(self) -> None:
        """Go to the first frame."""
        self._orders.put(lambda session: self._go_to(session, 0))

    def go_to_end(self) -> None:
        """Go to the last frame."""
        self._orders.put(lambda session: self._go_to(session, session.num_frames - 1))

    def _advance(self, session: ReplaySession) -> None:
        if session.number == session.num_frames - 1:
            self.is_paused = True
            verdict = "" if session.redream is None else f"; {session.redream.verdict}"
            self.say(f"the end{verdict}")
            return
        self._show(session, partial(session.go_to, session.number + 1))
        self._measure_rate(time.perf_counter())

    def _toggle_pause(self, session: ReplaySession) -> None:
        if self.is_paused and session.number == session.num_frames - 1:
            self._go_to(session, 0)
        super()._toggle_pause(session)

    def _step(self, session: ReplaySession, by: int) -> None:
        self.is_paused = True
        self._go_to(session, session.number + by)

    def _jump_to_mark(self, session: ReplaySession, by: int) -> None:
        line = session.line
        found = sorted({number for number, _ in line.marks} | {second for _, second in line.revisits})
        ahead = [number for number in found[::by] if (number - session.number) * by > 0]
        if ahead:
            self._go_to(session, ahead[0])
        else:
            self.say(f"no mark {'after' if by > 0 else 'before'} this frame")

    def _go_to(self, session: ReplaySession, number: int) -> None:
        """Show a frame; what lies between is dreamt first, as long as no other order comes."""
        number = min(max(number, 0), session.num_frames - 1)
        while session.num_known <= number:
            self.say(f"dreaming frame {session.num_known} of {number}")
            session.dream_on()
            if not self._orders.empty():
                break
        self._step_times_s.clear()
        self._show(session, partial(session.go_to, min(number, session.num_known - 1)))
