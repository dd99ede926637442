"""A player at a distance: what may be asked, who has the keys, and what is sent to be shown.

Owns: the messages in both directions and the one seat at the keys. Does not know sockets, pages or who listens.

A message to the server is a JSON object in at most `MAX_MESSAGE_CHARACTERS`: `do`, and `key` or `number` where that
needs one. A message from the server is the length of a JSON object in 4 bytes (big-endian), the object, and a picture,
which is empty where the last one still holds.
"""

from __future__ import annotations

import json
import math
import re
import string
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from envs.player.view import View
from envs.player.worker import WorldWorker
from worldmodel.errors import WorldModelError

MAX_MESSAGE_CHARACTERS = 256
MESSAGES_PER_S = 120
MESSAGES_AT_ONCE = 240
"""More than a page sends: it acknowledges up to 60 pictures a second; a key that is hammered comes 20 times."""

IDLE_S = 30.0
"""After so long without a key another player may take the seat."""

JPEG_QUALITY = 95
"""At 64 pixels a frame is 3.2 kB and 41 dB alike, in 0.2 ms, with colors in full resolution. Lossless PNG: 5.2 kB and
1 ms; WebP halves the resolution of colors: 31 dB. At 256 pixels: 16 kB in 1 ms; PNG 53 kB in 12 ms."""

KEYS = frozenset(string.ascii_lowercase) | {"up", "down", "left", "right"}
"""Names of keys that an action set can bind."""

SIMPLE_ORDERS: dict[str, Callable[[WorldWorker], None]] = {
    "new_dream": WorldWorker.new_dream,
    "pause": WorldWorker.toggle_pause,
    "mark": WorldWorker.mark,
    "come_back": WorldWorker.come_back,
    "keep": WorldWorker.keep,
    "return_to_kept": WorldWorker.return_to_kept,
    "start_rewind": WorldWorker.start_rewind,
    "stop_rewind": WorldWorker.stop_rewind,
    "slower": lambda worker: worker.change_speed(-1),
    "faster": lambda worker: worker.change_speed(1),
}
KEY_ORDERS = ("press", "release")
NUMBER_ORDERS = {"choose_mark": 9, "seen": 2**53 - 1}
"""Orders with a number from 1 on, and its highest."""

OTHER_ORDERS = ("play", "session", "video")

_KEYS_HERE = {"F5": "K", "F9": "L"}
"""Keys of the window that a browser keeps for itself, and those that stand for them on a page."""


class MessageError(WorldModelError, ValueError):
    """A message that no page of ours sends; its text is the reason that the sender is given."""


class Order(NamedTuple):
    """What a client asks for.

    Attributes:
        do: one of `SIMPLE_ORDERS`, `KEY_ORDERS`, `NUMBER_ORDERS`, `OTHER_ORDERS`.
        key: one of `KEYS`, for `KEY_ORDERS`.
        number: for `NUMBER_ORDERS`.
    """

    do: str
    key: str = ""
    number: int = 0


def read_order(text: str) -> Order:
    """Read a message of a client.

    Raises:
        MessageError: it is too long, is no JSON object, asks for nothing that is known, or lacks its key or number.
    """
    if len(text) > MAX_MESSAGE_CHARACTERS:
        raise MessageError(f"a message was longer than {MAX_MESSAGE_CHARACTERS} characters")
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MessageError("a message was no JSON") from error
    do = said.get("do") if isinstance(said, dict) else None
    if not isinstance(do, str):
        raise MessageError("a message was no JSON object that says what to do")

    if do in KEY_ORDERS:
        key = said.get("key")
        if not isinstance(key, str) or key not in KEYS:
            raise MessageError(f"a message to {do} named no key: they are a to z, up, down, left and right")
        return Order(do, key=key)
    if do in NUMBER_ORDERS:
        number = said.get("number")
        if type(number) is not int or not 1 <= number <= NUMBER_ORDERS[do]:
            raise MessageError(f"a message to {do} had no number from 1 to {NUMBER_ORDERS[do]}")
        return Order(do, number=number)
    if do not in SIMPLE_ORDERS and do not in OTHER_ORDERS:
        raise MessageError("a message asked for what is not known")
    return Order(do)


class MessageBudget:
    """How many messages a client may send: `MESSAGES_PER_S` on average, `MESSAGES_AT_ONCE` in a row.

    Args:
        now_s: a clock that never goes back, seconds.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._left = float(MESSAGES_AT_ONCE)
        self._counted_s = now_s()

    def spend(self) -> None:
        """Count one message.

        Raises:
            MessageError: there were too many.
        """
        now_s = self._now_s()
        self._left = min(float(MESSAGES_AT_ONCE), self._left + (now_s - self._counted_s) * MESSAGES_PER_S)
        self._counted_s = now_s
        if self._left < 1:
            raise MessageError(f"too many messages: at most {MESSAGES_PER_S} a second are taken")
        self._left -= 1


class Seat:
    """The one place at the keys: who has it plays, all others watch.

    Args:
        worker: what is played.
        name_file: returns a new name for a file each time, of a "session" or a "video".
        now_s: a clock that never goes back, seconds.
    """

    def __init__(
        self,
        worker: WorldWorker,
        name_file: Callable[[str], Path],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.player: Hashable | None = None
        self._worker = worker
        self._name_file = name_file
        self._now_s = now_s
        self._held: set[str] = set()
        self._last_order_s = 0.0

    def is_open_to(self, client: Hashable) -> bool:
        """Return whether a client that does not play could: nobody does, or who does holds no key and is idle."""
        if self.player is None:
            return True
        is_idle = not self._held and self._now_s() - self._last_order_s >= IDLE_S
        return self.player != client and is_idle

    def take(self, client: Hashable) -> bool:
        """Give the seat to a client if it is open to it; return whether the client plays now."""
        if self.is_open_to(client):
            if self.player is not None:
                self.leave(self.player)
            self.player, self._last_order_s = client, self._now_s()
        return self.player == client

    def leave(self, client: Hashable) -> None:
        """A client goes: if it plays, its keys are released and the seat is free."""
        if self.player != client:
            return
        for key in self._held:
            self._worker.release(key)
        self._held.clear()
        self._worker.stop_rewind()
        self.player = None

    def apply(self, client: Hashable, order: Order) -> None:
        """Hand an order of the player to the world; of others, and while the world loads, nothing is done."""
        if self.player != client:
            return
        self._last_order_s = self._now_s()
        if order.do == "release":  # also of a key that was pressed before a failure: nothing may stay held
            self._held.discard(order.key)
            self._worker.release(order.key)
        elif self._worker.view is None:
            return
        elif order.do == "press":
            self._held.add(order.key)
            self._worker.press(order.key)
        elif order.do == "choose_mark":
            self._worker.choose_mark(order.number)
        elif order.do == "session":
            self._worker.toggle_session(self._name_file(order.do))
        elif order.do == "video":
            self._worker.toggle_video(self._name_file(order.do))
        else:
            SIMPLE_ORDERS[order.do](self._worker)


def describe(worker: WorldWorker, view: View | None) -> dict[str, Any]:
    """Return what of the world is shown beside its picture, ready for JSON.

    Args:
        worker: what is played.
        view: of it, whose picture is sent; None while it loads.

    Returns:
        `loading` (share, text) until there is a first frame, then `hud`; what does not exist is None.
    """
    if view is None:
        share, text = worker.progress
        return {"loading": {"share": share, "text": text}}
    said, said_s = worker.notice
    age_s = time.monotonic() - said_s
    finished = worker.finished_session, worker.finished_video
    for made in finished:
        if made is not None:  # where it lies is nothing to those who are elsewhere
            said = said.replace(str(made.resolve()), made.name)
    session, video = (None if made is None else made.name for made in finished)
    hud = {
        "rate_fps": round(worker.rate_fps, 1),
        "step_ms": round(view.step_ms, 1),
        "step": view.step,
        "action": view.action_name,
        "reward": _finite(view.reward_total),
        "ending": view.ending,
        "memory_used": view.memory_used,
        "memory_frames": view.memory_frames,
        "num_steps": view.num_steps,
        "device": worker.device,
        "engine": view.engine,
        "seed": str(view.seed),  # a number above 2 ** 53 would come out as another one in a browser
        "marks": view.marks,
        "chosen_mark": view.chosen_mark,
        "likeness": None if view.likeness is None else _finite(view.likeness),
        "notice": {"text": translate_keys(said), "age_s": round(age_s, 2)} if said else None,
        "speed": worker.speed,
        "is_paused": worker.is_paused,
        "is_rewinding": worker.is_rewinding,
        "is_recording": worker.is_recording,
        "is_session_open": worker.is_session_open,
        "finished_session": session,
        "finished_video": video,
    }
    return {"hud": hud}


def translate_keys(text: str) -> str:
    """Return a notice with the names of the page's keys in place of the window's."""
    return re.sub(r"\bF[59]\b", lambda match: _KEYS_HERE[match.group()], text)


def encode_picture(frame: np.ndarray) -> bytes:
    """Return a frame uint8 (H, W, 3) RGB as a JPEG."""
    full_colors = cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
    settings = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY, *full_colors]
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), settings)
    return encoded.tobytes()


def pack_message(state: dict[str, Any], picture: bytes) -> bytes:
    """Return a message from the server: length, state, picture."""
    text = json.dumps(state, allow_nan=False).encode()
    return len(text).to_bytes(4, "big") + text + picture


def _finite(value: float) -> float | None:
    """Return a number for JSON, which has no infinity."""
    return round(value, 3) if math.isfinite(value) else None
