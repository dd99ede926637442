"""Gamepads and the mouse, by posted events: which actions they lead to, and what they order."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from envs.actions import ActionSet
from envs.player.session import PlaySession
from envs.player.worker import WorldWorker
from tests.stub_play import RewindableEnv, StubEnv, key

Script = Iterator[Callable[[], bool]]


def post(kind: str, **values: Any) -> None:
    import pygame

    pygame.event.post(pygame.event.Event(getattr(pygame, kind), **values))


def stick(axis: int, value: float, pad: int = 0) -> None:
    post("JOYAXISMOTION", instance_id=pad, axis=axis, value=value)


def button(number: int, is_down: bool = True, pad: int = 0) -> None:
    post("JOYBUTTONDOWN" if is_down else "JOYBUTTONUP", instance_id=pad, button=number)


def does(env: StubEnv, name: str) -> Callable[[], bool]:
    """Return whether the next actions are these: two, as one may be on its way."""
    count = len(env.actions)
    return lambda: len(env.actions) > count + 2 and env.actions[-1] == name


def test_the_left_stick_walks(window: Callable[..., Any]) -> None:
    env = StubEnv()

    def script(player: Any, worker: WorldWorker) -> Script:
        yield lambda: worker.view is not None
        for moves, name in (
            ([(1, -0.9)], "forward"),
            ([(0, 0.8)], "forward_right"),
            ([(0, 0.4)], "forward_right"),  # out once, it counts until it is nearly back
            ([(0, 0.2)], "forward"),
            ([(0, 0.4)], "forward"),  # and not out yet, it does not
            ([(1, 0.7), (0, 0.0)], "back"),
            ([(1, 0.0), (4, 1.0), (3, -1.0)], "noop"),  # triggers and the other stick
        ):
            for axis, value in moves:
                stick(axis, value)
            yield does(env, name)

    window(script, env)


def test_the_d_pad_walks_as_a_hat_and_as_buttons(window: Callable[..., Any]) -> None:
    env = StubEnv()

    def script(player: Any, worker: WorldWorker) -> Script:
        yield lambda: worker.view is not None
        for value, name in (((0, 1), "forward"), ((-1, 1), "forward_left"), ((1, 0), "turn_right"), ((0, 0), "noop")):
            post("JOYHATMOTION", instance_id=0, hat=0, value=value)
            yield does(env, name)
        for number, is_down, name in ((11, True, "forward"), (14, True, "forward_right"), (11, False, "turn_right")):
            button(number, is_down)
            yield does(env, name)

    window(script, env)


def test_pads_and_keys_are_held_apart_and_a_pad_that_goes_lets_go(window: Callable[..., Any]) -> None:
    env = StubEnv()

    def script(player: Any, worker: WorldWorker) -> Script:
        yield lambda: worker.view is not None
        key("up")
        stick(1, -1.0)
        stick(1, -1.0, pad=1)
        yield does(env, "forward")
        stick(1, 0.0)
        yield does(env, "forward")
        post("JOYDEVICEREMOVED", instance_id=1)
        yield does(env, "forward")
        key("up", is_down=False)
        yield does(env, "noop")
        stick(0, -1.0, pad=1)
        yield does(env, "turn_left")
        post("JOYDEVICEREMOVED", instance_id=1)
        yield does(env, "noop")

    window(script, env)


class LettersEnv(StubEnv):
    """Its world binds letters, and calls its controls by names of its own."""

    action_set = ActionSet("Rooms", ("stay", "left", "right"), (("a", "l"), ("d", "r")), ((), ("l",), ("r",)))

    def step(self, action: int) -> Any:
        result = super().step(0)
        self.actions[-1] = self.action_set.names[action]
        return result


def test_a_world_with_letters_alone(window: Callable[..., Any]) -> None:
    env = LettersEnv()

    def script(player: Any, worker: WorldWorker) -> Script:
        yield lambda: worker.view is not None
        stick(0, -1.0)
        yield does(env, "left")
        stick(0, 1.0)
        stick(1, -1.0)
        yield does(env, "right")
        key("g")
        yield lambda: worker.notice.text == "the mouse cannot turn here: this world has no controls left and right"
        stick(0, 0.0)
        post("MOUSEMOTION", rel=(200, 0), pos=(0, 0), buttons=(0, 0, 0))
        yield does(env, "stay")

    window(script, env)
    assert "right" in env.actions


def test_buttons_mark_come_back_rewind_pause_and_begin_anew(window: Callable[..., Any]) -> None:
    env = RewindableEnv()

    def make(report: Any) -> PlaySession:
        time.sleep(0.5)
        return PlaySession(env)

    def script(player: Any, worker: WorldWorker) -> Script:
        button(3)  # while loading: nothing is there yet to answer
        yield lambda: worker.view is not None and worker.view.step > 3
        assert env.seeds == [0]
        button(0)
        yield lambda: worker.view is not None and worker.view.marks == (1,)
        step = worker.view.step if worker.view else 0
        yield lambda: worker.view is not None and worker.view.step > step + 3
        button(1)
        yield lambda: "back at mark 1" in worker.notice.text
        button(2)
        yield lambda: worker.is_rewinding and "s back" in worker.notice.text
        button(2, is_down=False)
        yield lambda: not worker.is_rewinding
        button(7)
        yield lambda: worker.is_paused
        button(3)
        yield lambda: worker.view is not None and worker.view.seed == 1

    window(script, make=make)


def test_the_mouse_turns_while_it_is_grabbed(window: Callable[..., Any]) -> None:
    import pygame

    env = StubEnv(step_s=0.02)

    def script(player: Any, worker: WorldWorker) -> Script:
        def move(pixels: int) -> None:
            post("MOUSEMOTION", rel=(pixels, 3), pos=(0, 0), buttons=(0, 0, 0))

        yield lambda: worker.view is not None
        move(100)
        yield does(env, "noop")
        key("g")
        yield lambda: pygame.event.get_grab() and not pygame.mouse.get_visible()
        for _ in range(4):
            move(10)  # two steps' turn
        yield does(env, "noop")
        assert env.actions.count("turn_right") == 2
        key("w")
        move(-10_000)  # no more than a few steps
        yield lambda: env.actions[-1] == "forward_left"
        yield does(env, "forward")
        assert env.actions.count("forward_left") + env.actions.count("turn_left") == 3
        key("g")
        yield lambda: not pygame.event.get_grab() and pygame.mouse.get_visible()
        move(100)
        yield does(env, "forward")
        key("g")
        yield lambda: pygame.event.get_grab()
        post("WINDOWFOCUSLOST")
        yield lambda: not pygame.event.get_grab()
        yield does(env, "noop")  # and the keys are let go

    window(script, env)
    assert env.actions.count("turn_right") == 2


@pytest.mark.parametrize("name", ["Gamepad", "G"])
def test_help_tells_of_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    from envs.player.hud import HELP

    assert name in dict(HELP)
