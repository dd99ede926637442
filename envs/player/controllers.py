"""Gamepads, and the mouse that turns: what is moved and pressed there, as keys and orders to a `WorldWorker`.

Owns: which stick and button means what, dead zones, and the grab of the mouse. Does not draw, and knows no worlds: a
direction is the arrow key or the letter that the world binds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pygame  # noqa: TID253 - only envs/player/window.py imports this module, after its own check of pygame

from envs.player.worker import WorldWorker

KEYS = {"up": ("up", "w"), "down": ("down", "s"), "left": ("left", "a"), "right": ("right", "d")}
"""Keys that a direction may stand for; the first that the world binds is meant."""

PRESS_AT, RELEASE_AT = 0.5, 0.35
"""How far a stick is out when a direction begins and ends to count, of 1."""

DPAD_BUTTONS = {11: "up", 12: "down", 13: "left", 14: "right"}
"""Where a D-pad is four buttons."""

MARK, BACK, REWIND, NEW_DREAM, PAUSE = 0, 1, 2, 3, 7
"""Buttons, by the order of an Xbox pad: A, B, X, Y, Start."""

PIXELS_A_TURN = 20
"""How far the mouse moves for the turn of one step."""

EVENTS = (
    *(pygame.JOYDEVICEADDED, pygame.JOYDEVICEREMOVED, pygame.JOYAXISMOTION, pygame.JOYHATMOTION),
    *(pygame.JOYBUTTONDOWN, pygame.JOYBUTTONUP),
)


class Gamepads:
    """All gamepads there are, also those plugged in later.

    Args:
        worker: what they play.
    """

    def __init__(self, worker: WorldWorker) -> None:
        self._worker = worker
        self._pads: dict[int, pygame.joystick.JoystickType] = {}
        self._out: dict[tuple[int, str], set[str]] = {}  # directions held, by pad and part of it
        self._pressed: set[str] = set()
        self._orders: dict[int, Callable[[], object]] = {
            MARK: worker.mark,
            BACK: worker.come_back,
            REWIND: worker.start_rewind,
            NEW_DREAM: worker.new_dream,
            PAUSE: worker.toggle_pause,
        }

    def open(self) -> None:
        """Look for gamepads; where the system has no way to, there are none."""
        with contextlib.suppress(pygame.error):
            pygame.joystick.init()

    def handle(self, event: pygame.event.Event) -> None:
        """Take an event of `EVENTS`."""
        if event.type == pygame.JOYDEVICEADDED:
            with contextlib.suppress(pygame.error):  # gone again already
                pad = pygame.joystick.Joystick(event.device_index)
                self._pads[pad.get_instance_id()] = pad
                self._worker.say(f"gamepad: {pad.get_name()}")
            return
        pad_id = event.instance_id
        if event.type == pygame.JOYDEVICEREMOVED:
            self._pads.pop(pad_id, None)
            for part in [part for part in self._out if part[0] == pad_id]:
                del self._out[part]
        elif event.type == pygame.JOYAXISMOTION and event.axis in (0, 1):
            before = self._out.get((pad_id, f"axis {event.axis}"), set())
            names = ("left", "right") if event.axis == 0 else ("up", "down")
            self._out[pad_id, f"axis {event.axis}"] = _find_directions(event.value, names, before)
        elif event.type == pygame.JOYHATMOTION:
            across, along = event.value
            found = {"left"} if across < 0 else {"right"} if across > 0 else set()
            self._out[pad_id, f"hat {event.hat}"] = found | ({"down"} if along < 0 else {"up"} if along > 0 else set())
        elif event.type in (pygame.JOYBUTTONDOWN, pygame.JOYBUTTONUP):
            self._handle_button(pad_id, event.button, event.type == pygame.JOYBUTTONDOWN)
        self._hold()

    def _handle_button(self, pad_id: int, button: int, is_down: bool) -> None:
        if button in DPAD_BUTTONS:
            self._out[pad_id, f"button {button}"] = {DPAD_BUTTONS[button]} if is_down else set()
        elif is_down and button in self._orders and self._worker.view is not None:
            self._orders[button]()
        elif button == REWIND:
            self._worker.stop_rewind()

    def _hold(self) -> None:
        """Hold the keys of the directions that any pad holds, and let go of the others."""
        bound = {key for key, _ in self._worker.bindings}
        directions: set[str] = set().union(*self._out.values())
        keys = {key for name in directions if (key := next((k for k in KEYS[name] if k in bound), None))}
        for key in keys - self._pressed:
            self._worker.press(key, "gamepad")
        for key in self._pressed - keys:
            self._worker.release(key, "gamepad")
        self._pressed = keys


def _find_directions(value: float, names: tuple[str, str], before: set[str]) -> set[str]:
    """Return the direction in which an axis is out, or none; what was held before is held for longer."""
    name = names[value > 0]
    return {name} if abs(value) >= (RELEASE_AT if name in before else PRESS_AT) else set()


class Mouse:
    """The mouse, which turns while the window has grabbed it.

    Args:
        worker: what it turns.
    """

    def __init__(self, worker: WorldWorker) -> None:
        self._worker = worker
        self.is_grabbed = False

    def toggle(self) -> None:
        """Grab the mouse, or let go of it."""
        if self.is_grabbed:
            self.free()
            self._worker.say("the mouse is free")
        elif not self._worker.can_turn:
            self._worker.say("the mouse cannot turn here: this world has no controls left and right")
        else:
            self.is_grabbed = True
            pygame.event.set_grab(True)
            pygame.mouse.set_visible(False)
            self._worker.say("the mouse turns; G frees it")

    def free(self) -> None:
        """Let go of the mouse."""
        if self.is_grabbed:
            self.is_grabbed = False
            pygame.event.set_grab(False)
            pygame.mouse.set_visible(True)

    def handle(self, event: pygame.event.Event) -> None:
        """Take a movement of the mouse."""
        if self.is_grabbed and self._worker.view is not None:
            self._worker.turn(event.rel[0] / PIXELS_A_TURN)
