"""Messages of a player at a distance, and the seat, by themselves."""

import contextlib
from pathlib import Path

import numpy as np
import pytest

from envs.player import remote
from envs.player.remote import IDLE_S, MessageBudget, MessageError, Order, Seat, encode_picture, read_order
from envs.player.session import PlaySession
from envs.player.worker import WorldWorker
from tests.stub_play import StubEnv


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ('{"do": "press", "key": "w"}', Order("press", key="w")),
        ('{"do": "release", "key": "left", "more": 1}', Order("release", key="left")),
        ('{"do": "choose_mark", "number": 9}', Order("choose_mark", number=9)),
        ('{"do": "seen", "number": 1000}', Order("seen", number=1000)),
        ('{"do": "play"}', Order("play")),
        ('{"do": "new_dream"}', Order("new_dream")),
    ],
)
def test_orders_are_read(text: str, order: Order) -> None:
    assert read_order(text) == order


RUBBISH = [
    "",
    "w",
    "[" * 250,
    "{}",
    "[1]",
    '{"do": 3}',
    '{"do": "__init__"}',
    '{"do": ["press"]}',
    '{"do": "press"}',
    '{"do": "press", "key": "escape"}',
    '{"do": "press", "key": ["w"]}',
    '{"do": "choose_mark", "number": 0}',
    '{"do": "choose_mark", "number": 10}',
    '{"do": "choose_mark", "number": true}',
    '{"do": "choose_mark", "number": "1"}',
    '{"do": "seen", "number": NaN}',
]


@pytest.mark.parametrize("text", RUBBISH)
def test_rubbish_is_no_order(text: str) -> None:
    with pytest.raises(MessageError, match="^a message "):
        read_order(text)


def test_a_budget_allows_a_burst_and_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MESSAGES_AT_ONCE", 4)
    monkeypatch.setattr(remote, "MESSAGES_PER_S", 2)
    now_s = 0.0

    def count(budget: MessageBudget) -> int:
        taken = 0
        with contextlib.suppress(MessageError):
            while True:
                budget.spend()
                taken += 1
        return taken

    budget = MessageBudget(lambda: now_s)
    assert count(budget) == 4
    now_s = 1.5
    assert count(budget) == 3
    now_s = 1000.0
    assert count(budget) == 4


def test_the_seat_passes_on_when_it_is_left_or_idle(tmp_path: Path) -> None:
    now_s = 0.0
    worker = WorldWorker(lambda report: PlaySession(StubEnv()))
    worker.view = PlaySession(StubEnv()).view
    seat = Seat(worker, lambda kind: tmp_path / kind, lambda: now_s)
    assert seat.take("first")
    assert not seat.take("second")
    seat.apply("first", Order("press", key="w"))
    seat.apply("second", Order("press", key="s"))
    assert worker._take_keys() == {"w"}

    now_s = 10 * IDLE_S  # who holds a key is not idle
    assert not seat.take("second")
    seat.apply("first", Order("release", key="w"))
    now_s += IDLE_S - 1
    assert not seat.is_open_to("second")
    now_s += 1
    assert seat.is_open_to("second")
    assert seat.take("second")
    seat.apply("first", Order("press", key="a"))
    seat.apply("second", Order("press", key="s"))
    seat.leave("first")
    assert worker._take_keys() == {"s"}
    seat.leave("second")
    assert worker._take_keys() == set()
    assert seat.player is None
    assert seat.take("first")


def test_a_picture_keeps_its_colors() -> None:
    import cv2

    rng = np.random.default_rng(0)
    frame = np.kron(rng.integers(0, 256, (16, 16, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    decoded = cv2.cvtColor(cv2.imdecode(np.frombuffer(encode_picture(frame), np.uint8), 1), cv2.COLOR_BGR2RGB)
    assert np.abs(decoded.astype(int) - frame).mean() < 4


def test_notices_name_the_keys_of_the_page() -> None:
    assert remote.translate_keys("kept step 5; F9 goes back to it") == "kept step 5; L goes back to it"
    assert remote.translate_keys("F5 keeps one, as F51 would") == "K keeps one, as F51 would"
