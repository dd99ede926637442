"""Playing in a browser, without one: a client that says what a page says, and clients that no page would be."""

import asyncio
import contextlib
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import WSServerHandshakeError

from envs.data.sessions import read_session
from envs.player import remote
from envs.player.browser import IN_FLIGHT, MAX_CLIENTS, make_page
from envs.player.session import PlaySession
from envs.player.worker import Report
from tests.stub_browser import Page, Place, SteadyEnv, run
from tests.stub_play import StubEnv
from worldmodel.errors import WorldModelError


def test_held_keys_combine_and_leaving_releases_them(tmp_path: Path) -> None:
    async def test(place: Place) -> None:
        page = await place.play()
        await page.ask("press", key="w")
        await page.hud(lambda hud: hud["action"] == "forward")
        await page.ask("press", key="right")
        await page.hud(lambda hud: hud["action"] == "forward_right")
        await page.ask("release", key="w")
        await page.hud(lambda hud: hud["action"] == "turn_right")
        await page.ask("press", key="w")
        await page.hud(lambda hud: hud["action"] == "forward_right")
        watcher = await place.open()
        await page.socket.close()
        await watcher.hud(lambda hud: hud["action"] == "noop")
        assert watcher.state["can_play"]

    run(test, tmp_path)


def test_pictures_and_counters_are_those_of_the_world(tmp_path: Path) -> None:
    import cv2

    async def test(place: Place) -> None:
        page = await place.play()
        assert {"num_steps": 2, "memory_frames": 4, "device": "cpu", "seed": "0"}.items() <= page.state["hud"].items()
        await page.ask("pause")
        hud = await page.hud(lambda hud: hud["is_paused"])
        view = place.worker.view
        assert view is not None
        assert (hud["step"], hud["reward"]) == (view.step, view.reward_total)
        decoded = cv2.cvtColor(cv2.imdecode(np.frombuffer(page.picture, np.uint8), 1), cv2.COLOR_BGR2RGB)
        assert np.abs(decoded.astype(int) - view.frame).max() < 12
        await page.ask("new_dream")
        assert not (await page.hud(lambda hud: hud["seed"] == "1"))["is_paused"]

    run(test, tmp_path)


def test_marks_rewinding_and_kept_moments(tmp_path: Path) -> None:
    async def test(place: Place) -> None:
        page = await place.play()
        await page.ask("keep")
        kept = await page.hud(lambda hud: hud["notice"] and "kept step" in hud["notice"]["text"])
        assert "L goes back to it" in kept["notice"]["text"]
        await page.ask("mark")
        hud = await page.hud(lambda hud: hud["marks"] == [1])
        assert hud["chosen_mark"] == 1
        step = hud["step"]
        await page.hud(lambda hud: hud["step"] > step + 60)
        await page.ask("come_back")
        hud = await page.hud(lambda hud: hud["notice"] and "back at mark 1" in hud["notice"]["text"])
        step = hud["step"]
        await page.ask("start_rewind")
        await page.hud(lambda hud: hud["is_rewinding"] and hud["step"] < step - 4)
        await page.ask("stop_rewind")
        await page.hud(lambda hud: not hud["is_rewinding"])
        await page.ask("choose_mark", number=3)
        await page.hud(lambda hud: hud["notice"] and "there is no mark 3" in hud["notice"]["text"])
        await page.ask("return_to_kept")
        await page.hud(lambda hud: hud["notice"] and "back at step" in hud["notice"]["text"])
        await page.ask("slower")
        await page.hud(lambda hud: hud["speed"] == 0.5)

    run(test, tmp_path)


@pytest.mark.parametrize("pace", ["paused", "slow", "fast"])
def test_the_way_back_works_at_every_pace(tmp_path: Path, pace: str) -> None:
    def told(hud: dict[str, Any], text: str) -> int:
        """Return the number of the step in a notice of these words, -1 where there is another one."""
        found = re.match(rf"{text} step (\d+)", hud["notice"]["text"]) if hud["notice"] else None
        return int(found.group(1)) if found else -1

    async def test(place: Place) -> None:
        page = await place.play()
        await page.hud(lambda hud: hud["step"] > 60)
        for order in {"paused": ["pause"], "slow": ["slower"] * 2, "fast": ["faster"] * 2}[pace]:
            await page.ask(order)
        hud = await page.hud(lambda hud: hud["is_paused"] or hud["speed"] in (0.25, 4))
        here = hud["step"]
        await page.ask("start_rewind")
        await page.hud(lambda hud: hud["is_rewinding"] and hud["step"] < here - 5)
        await page.ask("stop_rewind")
        hud = await page.hud(lambda hud: told(hud, "on from") >= 0)
        assert told(hud, "on from") < here - 5 and not hud["is_rewinding"]
        assert hud["is_paused"] is (pace == "paused")
        await page.ask("keep")
        kept = told(await page.hud(lambda hud: told(hud, "kept") >= 0), "kept")
        await page.ask("return_to_kept")
        hud = await page.hud(lambda hud: told(hud, "back at") == kept)
        assert hud["is_paused"] is (pace == "paused")
        if pace == "paused":
            assert hud["step"] == kept
            await page.ask("pause")
        await page.hud(lambda hud: hud["step"] > kept)

    run(test, tmp_path)


def test_a_player_who_leaves_while_rewinding_plays_on(tmp_path: Path) -> None:
    async def test(place: Place) -> None:
        page, watcher = await place.play(), await place.open()
        step = (await page.hud(lambda hud: hud["step"] > 10))["step"]
        await page.ask("start_rewind")
        await page.hud(lambda hud: hud["is_rewinding"] and hud["step"] < step)
        await page.socket.close()
        # Of what was shown meanwhile a watcher gets the newest alone, which may be of before or after the rewinding.
        hud = await watcher.hud(lambda hud: hud["notice"] and "on from step" in hud["notice"]["text"])
        assert not hud["is_rewinding"]

    run(test, tmp_path)


def test_loading_is_told_and_orders_wait_for_the_first_frame(tmp_path: Path) -> None:
    env = SteadyEnv()

    def make(report: Report) -> PlaySession:
        report(0.25, "loading the model")
        time.sleep(1)
        report(0.5, "making the first frame")
        time.sleep(0.5)
        return PlaySession(env)

    async def test(place: Place) -> None:
        page = await place.open()
        await page.ask("play")
        state = await page.until(lambda state: state.get("loading", {}).get("text") == "loading the model")
        assert state["loading"]["share"] == 0.25
        for order in ("new_dream", "pause", "mark"):
            await page.ask(order)
        await page.until(lambda state: state.get("loading", {}).get("share") == 0.5)
        hud = await page.hud(lambda hud: hud["step"] > 3)
        assert page.state["plays"] and hud["marks"] == [] and not hud["is_paused"]

    run(test, tmp_path, make)
    assert env.seeds == [0]


def test_one_plays_and_the_others_watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "IDLE_S", 0.3)
    env = SteadyEnv()

    async def test(place: Place) -> None:
        first, second = await place.play(), await place.open()
        await first.ask("press", key="w")
        await second.ask("play")
        await second.hud(lambda hud: hud["action"] == "forward")
        assert not second.state["plays"]
        assert second.state["num_watching"] == 1
        await second.ask("press", key="s")
        await second.ask("new_dream")
        await asyncio.sleep(0.5)  # longer than idle, but a key is held
        assert not (await second.take())["can_play"]

        await first.ask("release", key="w")
        await second.until(lambda state: state["can_play"])
        await second.ask("play")
        await second.until(lambda state: state["plays"])
        await first.until(lambda state: not state["plays"])
        await second.ask("press", key="a")
        await second.hud(lambda hud: hud["action"] == "turn_left")
        await second.socket.close()
        await first.until(lambda state: state["can_play"])

    run(test, tmp_path, lambda report: PlaySession(env))
    assert env.seeds == [0] and "back" not in env.actions


# --- sessions ---


@pytest.mark.parametrize(
    ("kind", "suffix", "mark"), [("session", "h5", "is_session_open"), ("video", "mp4", "is_recording")]
)
def test_what_is_downloaded_is_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, suffix: str, mark: str
) -> None:
    import av

    name, other = f"{kind}-0.{suffix}", {"session": "/video", "video": "/session"}[kind]

    async def begin(page: Page) -> int:
        """Begin to record; return the first step that is."""
        await page.ask(kind)
        return int((await page.hud(lambda hud: hud[mark]))["step"])

    async def end(page: Page, step: int) -> dict[str, Any]:
        """End what records since a step, ten steps later at the earliest; return the counters afterwards."""
        await page.hud(lambda hud: hud["step"] > step + 10)
        await page.ask(kind)
        return await page.hud(lambda hud: not hud[mark])

    async def test(place: Place) -> None:
        page = await place.play()
        assert (await place.client.get(f"/{kind}")).status == 404
        first = await begin(page)
        assert (await place.client.get(f"/{kind}")).status == 404  # nothing ends it before the page asks
        hud = await end(page, first)
        assert hud[f"finished_{kind}"] == name
        assert hud["notice"]["text"] == f"{kind} saved: {name}"
        for path in (f"/{kind}", f"/{kind}?file=/etc/passwd", f"/{kind}?path=../x"):
            answer = await place.client.get(path)
            assert answer.status == 200
            assert name in answer.headers["Content-Disposition"]
            assert answer.headers["Content-Disposition"].startswith("attachment")
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert await answer.read() == (tmp_path / name).read_bytes()
        for path in (f"/{kind}/..%2f..%2fetc%2fpasswd", f"/{kind}/{name}", f"/{name}", "/page.js", other):
            assert (await place.client.get(path)).status == 404
        hud = await end(page, await begin(page))
        assert hud[f"finished_{kind}"] == f"{kind}-2.{suffix}"  # stopping takes a name as well

    monkeypatch.chdir(tmp_path)
    run(test, Path())  # a folder that is told of by a name of its own when something is saved
    if kind == "video":
        with av.open(str(tmp_path / name)) as container:
            num_frames = sum(1 for _ in container.decode(video=0))
    else:
        (episode,) = read_session(tmp_path / name).episodes.values()
        num_frames = episode.num_frames
    assert num_frames > 10


def test_a_watcher_records_nothing(tmp_path: Path) -> None:
    async def test(place: Place) -> None:
        player, watcher = await place.play(), await place.open()
        for order in ("video", "session"):
            await watcher.ask(order)
        step = (await player.hud())["step"]
        hud = await player.hud(lambda hud: hud["step"] > step + 10)
        assert not hud["is_recording"] and not hud["is_session_open"]

    run(test, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_session_recorded_from_the_start_is_whole_after_the_end(tmp_path: Path) -> None:
    async def test(place: Place) -> None:
        page = await place.play()
        assert (await page.hud(lambda hud: hud["step"] > 5))["is_session_open"]

    run(test, tmp_path, record=tmp_path / "all.h5")
    assert read_session(tmp_path / "all.h5").episodes[0].num_frames > 5
    assert [path.name for path in tmp_path.iterdir()] == ["all.h5"]


# --- who may come, and how much ---


def test_the_page_is_whole_and_may_do_nothing_else(tmp_path: Path) -> None:
    async def test(place: Place) -> None:
        answer = await place.client.get("/")
        text = await answer.text()
        assert answer.status == 200 and answer.content_type == "text/html"
        assert "<title>a &lt;title&gt;</title>" in text and "<!--" not in text
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        for outside in ("http://", "https://", "//cdn", "@import", "url("):
            assert outside not in text
        for path in ("/nothing", "/session", "/video"):
            missing = await place.client.get(path)
            assert missing.status == 404
            assert missing.headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"

    run(test, tmp_path)


def test_another_sites_page_may_not_connect(tmp_path: Path) -> None:
    async def test(place: Place) -> None:
        others = ("http://evil.example", place.origin + "1", place.origin + ".evil.example", "null", "", "http://[")
        for origin in others:
            with pytest.raises(WSServerHandshakeError) as refused:
                await place.open(Origin=origin)
            assert refused.value.status == 403
        # Under a name of its own that leads here, a site's pages have the origin that they ask.
        with pytest.raises(WSServerHandshakeError) as refused:
            await place.open(Origin="http://evil.example:80", Host="evil.example:80")
        assert refused.value.status == 403
        for host in ("evil.example", "evil.example:8765", "127.0.0.1.evil.example", "[", ""):
            assert (await place.client.get("/", headers={"Host": host})).status in (400, 403)
        for host in ("localhost:9000", "127.0.0.1", "[::1]:8765"):
            assert (await place.client.get("/", headers={"Host": host})).status == 200

    run(test, tmp_path)


def test_nothing_is_answered_without_the_token(tmp_path: Path) -> None:
    async def test(place: Place) -> None:
        for path in ("/", "/session", "/video", "/socket"):
            for query in ("", "?token=", "?token=wrong", "?token=s%C3%A9cret", "?Token=right", "?token=right1"):
                answer = await place.client.get(path + query, headers={"Origin": place.origin})
                assert answer.status == 403
                assert "open the whole address that play.py printed" in await answer.text()
        assert (await place.client.get("/?token=right")).status == 200
        page = await place.open("?token=right")
        await page.hud()
        with pytest.raises(WSServerHandshakeError) as refused:
            await place.open("?token=right", Origin="http://evil.example")
        assert refused.value.status == 403

    run(test, tmp_path, token="right")


@pytest.mark.parametrize(
    ("send", "reason"),
    [
        (lambda page: page.socket.send_str("rubbish"), "a message was no JSON"),
        (lambda page: page.socket.send_str('{"do": "rm"}'), "a message asked for what is not known"),
        (lambda page: page.socket.send_bytes(b"\x00" * 20), "a message was no text"),
        (lambda page: page.ask("seen", number=12345), "message 12345 was acknowledged, which is not under way"),
    ],
    ids=["no JSON", "unknown", "bytes", "seen"],
)
def test_who_sends_rubbish_is_closed_and_the_game_goes_on(
    tmp_path: Path, send: Callable[[Page], Awaitable[None]], reason: str
) -> None:
    async def test(place: Place) -> None:
        page, bad = await place.play(), await place.open()
        await send(bad)
        assert await bad.closing() == (1008, reason)
        step = page.state["hud"]["step"]
        await page.hud(lambda hud: hud["step"] > step + 5)

    assert run(test, tmp_path).error is None


def test_a_message_that_is_too_large_closes(tmp_path: Path) -> None:
    async def test(place: Place) -> None:
        page = await place.play()
        for length, code, reason in ((300, 1008, "a message was longer than 256 characters"), (100_000, 1009, "")):
            bad = await place.open()
            await bad.socket.send_str('{"do": "play", "more": "' + "x" * length + '"}')
            assert await bad.closing() == (code, reason)
        await page.hud()

    run(test, tmp_path)


@pytest.mark.parametrize("kind", ["messages", "pings"])
def test_a_flood_closes_and_the_game_goes_on(tmp_path: Path, kind: str) -> None:
    async def test(place: Place) -> None:
        page, bad = await place.play(), await place.open()

        async def flood() -> None:
            with contextlib.suppress(ConnectionError):
                for _ in range(50_000):
                    await (bad.ask("press", key="w") if kind == "messages" else bad.socket.ping())

        flooding = asyncio.create_task(flood())
        assert await bad.closing() == (1008, "too many messages: at most 120 a second are taken")
        flooding.cancel()
        step = page.state["hud"]["step"]
        await page.hud(lambda hud: hud["step"] > step + 5)

    assert run(test, tmp_path).error is None


def test_a_slow_page_gets_the_newest_and_nothing_queues_up(tmp_path: Path) -> None:
    async def test(place: Place) -> None:
        slow, fast = await place.open(), await place.play()
        for _ in range(IN_FLIGHT):
            await slow.take(is_acknowledged=False)
        withheld_from = slow.state["hud"]["step"] if "hud" in slow.state else 0
        hud = await fast.hud(lambda hud: hud["step"] > withheld_from + 60)
        with pytest.raises(TimeoutError):
            await slow.socket.receive(0.3)  # nothing more until something was drawn
        numbers = slow.state["number"]
        assert numbers == IN_FLIGHT
        await slow.ask("seen", number=IN_FLIGHT)
        state = await slow.take()
        assert state["number"] == IN_FLIGHT + 1
        assert state["hud"]["step"] >= hud["step"]

    run(test, tmp_path)


def test_pages_are_bounded(tmp_path: Path) -> None:
    async def test(place: Place) -> None:
        pages = [await place.open() for _ in range(MAX_CLIENTS)]
        one_more = await place.open()
        assert await one_more.closing() == (1013, f"{MAX_CLIENTS} pages are open already: close one")
        await pages[0].socket.close()
        await (await place.open()).hud()

    run(test, tmp_path)


def test_a_world_that_fails_ends_the_game_with_a_reason(tmp_path: Path) -> None:
    class BrokenEnv(StubEnv):
        def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
            if self._step == 3:
                raise WorldModelError("out of memory at /home/me")
            return super().step(action)

    async def test(place: Place) -> None:
        page = await place.open()
        assert await page.closing() == (1011, "the world has failed")

    assert str(run(test, tmp_path, lambda report: PlaySession(BrokenEnv())).error) == "out of memory at /home/me"


def test_the_policy_names_the_script_that_the_page_holds() -> None:
    import base64
    import hashlib
    import re

    page, policy = make_page("t")
    for tag, source in (("script", "script-src"), ("style", "style-src")):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{source} 'sha256-{digest}'" in policy


def test_what_serving_adds_to_a_frame_is_little(tmp_path: Path) -> None:
    """From the moment in which a frame is there until a client on this machine has its picture; -s shows how long."""
    made_s: dict[int, float] = {}

    class TimedEnv(StubEnv):
        fps = 15

        def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
            found = super().step(action)
            made_s[self._step] = time.perf_counter()
            return found

    added_ms: list[float] = []

    async def test(place: Place) -> None:
        page = await place.play()
        while len(added_ms) < 60:
            state = await page.take()
            added_ms.append((time.perf_counter() - made_s[state["hud"]["step"]]) * 1000)

    run(test, tmp_path, lambda report: PlaySession(TimedEnv()))
    median_ms, p95_ms = np.percentile(added_ms, [50, 95])
    print(f"serving adds {median_ms:.1f} ms to a frame (median), {p95_ms:.1f} ms (95%)")
    assert median_ms <= 15
