#!/usr/bin/env python3
"""Two people in a real call: sockets to the hub, media through LiveKit, and the call's life as the hub tells it.

    scripts/dev demo

Uses the hub that `scripts/dev` runs in another terminal, or starts one for itself. Ends 0 when the call went from
waiting to active to ended and media flowed both ways.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import socketio

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from hub import settings  # noqa: E402
from hub.app import make_tokens  # noqa: E402
from hub.cli import environment  # noqa: E402
from tests.rtc import RtcClient  # noqa: E402

BUILD_S = 1800.0
STEP_S = 30.0
EVENTS = (
    "room:started", "room:updated", "room:ended", "participant:joined", "participant:left", "participant:updated",
    "media:changed", "hand:raised", "hand:lowered", "session:closing",
)  # fmt: skip
_STARTED = time.monotonic()


def say(who: str, text: str) -> None:
    print(f"{time.monotonic() - _STARTED:6.2f} s  {who:<5} {text}", flush=True)


class Person:
    """One user: a socket at the hub and, once in the call, a WebRTC client in a process of its own."""

    def __init__(self, name: str, url: str, token: str) -> None:
        self.name = name
        self._url = url
        self.token = token
        self.socket = socketio.AsyncClient(reconnection=False)
        self.heard: list[tuple[str, dict[str, Any]]] = []
        self._news = asyncio.Condition()
        self.rtc: RtcClient | None = None
        for event in EVENTS:
            self.socket.on(event, self._hear(event))

    def _hear(self, event: str) -> Any:
        async def hear(payload: dict[str, Any]) -> None:
            async with self._news:
                self.heard.append((event, payload))
                self._news.notify_all()
            say(self.name, f"hears {event:<20} {_short(event, payload)}")

        return hear

    async def connect(self) -> None:
        auth = {"token": self.token, "protocol": "1", "client": "demo/1.0"}
        await self.socket.connect(self._url, auth=auth, transports=["websocket"])

    async def ask(self, command: str, **payload: Any) -> dict[str, Any]:
        # Busy is not broken: what may be asked again is, for a while.
        give_up = time.monotonic() + STEP_S
        while True:
            ack = await self.socket.call(command, payload, timeout=10)
            if ack["ok"] or not ack["error"]["retryable"] or time.monotonic() > give_up:
                break
            await asyncio.sleep(1)
        if not ack["ok"]:
            raise SystemExit(f"{self.name}: {command} was refused: {ack['error']}")
        data: dict[str, Any] = ack["data"]
        return data

    async def wait_for(self, event: str, **fields: Any) -> None:
        def seen() -> bool:
            return any(name == event and fields.items() <= payload.items() for name, payload in self.heard)

        async with asyncio.timeout(STEP_S), self._news:
            await self._news.wait_for(seen)

    async def enter(self, call_id: str) -> None:
        joined = await self.ask("room:join", call_id=call_id, display_name=self.name)
        media = joined["media"]
        self.rtc = await RtcClient.start(media["url"], media["token"], audio=True, video=True, seconds=120)
        connected = await self.rtc.wait_for("connected", timeout_s=STEP_S)
        say(self.name, f"has media: {connected.get('sid') or connected.get('identity') or 'connected'}")


def _short(event: str, payload: dict[str, Any]) -> str:
    place = f"#{payload['offset']}" if "offset" in payload else ""
    if "participants" in payload:
        people = ", ".join(f"{one['display_name']} {one['status']}" for one in payload["participants"])
        return f"{place} {people}"
    if "media" in payload:
        on = [kind for kind, is_on in payload["media"].items() if is_on is True]
        return f"{place} {', '.join(on) or 'nothing published'}"
    if "call" in payload:
        return f"{place} the call is {payload['call']['status']}"
    return place


async def call_life(url: str, tokens: dict[str, str]) -> int:
    ada, ben = (Person(name, url, token) for name, token in tokens.items())
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {ada.token}"}) as http:
        body = {
            "name": "Team Standup",
            "call_type": "group",
            "max_participants": 10,
            "metadata": {"team": "Engineering"},
        }
        give_up = time.monotonic() + STEP_S
        while True:
            async with http.post(f"{url}/api/v1/rooms", json=body) as response:
                call = await response.json()
            if response.status != 503 or time.monotonic() > give_up:
                break
            await asyncio.sleep(1)
        if response.status != 201:
            raise SystemExit(f"POST /api/v1/rooms answered {response.status}: {call}")
        say("Ada", f"creates call {call['call_id']} (room {call['room_name']}, {call['status']})")
        try:
            await asyncio.gather(ada.connect(), ben.connect())
            await ada.enter(call["call_id"])
            await ada.wait_for("room:started")
            await ben.enter(call["call_id"])
            assert ada.rtc and ben.rtc
            for person, other in ((ada, ben), (ben, ada)):
                assert person.rtc
                seen = await person.rtc.wait_for("frames", timeout_s=STEP_S)
                say(person.name, f"receives {other.name}'s media: {seen}")
            await ben.ask("hand:raise", call_id=call["call_id"])
            await ada.wait_for("hand:raised")
            await ben.ask("room:leave", call_id=call["call_id"])
            await ada.wait_for("participant:left")
            await ada.ask("room:end", call_id=call["call_id"])
            await ada.wait_for("room:ended")
        finally:
            for person in (ada, ben):
                if person.rtc:
                    await person.rtc.kill()
                with contextlib.suppress(Exception):
                    await person.socket.disconnect()
        return await _epilogue(http, f"{url}/api/v1/rooms/{call['call_id']}")


async def _epilogue(http: aiohttp.ClientSession, room: str) -> int:
    async with http.get(room) as response:
        call = await response.json()
    async with http.get(f"{room}/participants") as response:
        people = (await response.json())["items"]
    say("hub", f"remembers: {call['status']}, {call['duration_s']} s")
    for one in people:
        say("hub", f"  {one['display_name']}: {one['status']} ({one['left_reason']}), {one['duration_s']} s")
    return 0 if call["status"] == "ended" and len(people) == 2 else 1


@asynccontextmanager
async def running_hub() -> AsyncIterator[settings.Settings]:
    """The settings of a hub with media: the one that runs, or one of our own in a directory that goes with us."""
    if "DATABASE_URL" in environment.environ() and await _media_ready(environment.load_all()):
        yield environment.load_all()
        return
    with tempfile.TemporaryDirectory(prefix="auralink-demo-") as directory:
        command = [sys.executable, "-m", "hub", "dev", "--data-dir", directory]
        child = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.DEVNULL)
        try:
            yield await _until_ready(child, Path(directory) / environment.ENV_FILE)
        finally:
            if child.returncode is None:
                child.terminate()
            await asyncio.wait_for(child.wait(), 30)


async def _until_ready(child: asyncio.subprocess.Process, file: Path) -> settings.Settings:
    print("starting a hub for the demo (the first time, LiveKit is built, which takes some minutes) …", flush=True)
    async with asyncio.timeout(BUILD_S):
        while True:
            if child.returncode is not None:
                raise SystemExit("the hub did not come up")
            loaded = _written(file)
            if loaded and await _media_ready(loaded):
                return loaded
            await asyncio.sleep(0.3)


def _written(file: Path) -> settings.Settings | None:
    """What a starting hub wrote of its settings, None as long as it has not."""
    if not file.exists():
        return None
    pairs = (line.partition("=") for line in file.read_text().splitlines())
    return settings.load({name: value for name, _, value in pairs})


async def _media_ready(loaded: settings.Settings) -> bool:
    """Is that hub up, and its LiveKit too?"""
    timeout = aiohttp.ClientTimeout(total=3)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as http, http.get(f"{loaded.public_url}/healthz") as response:
            return response.status == 200 and (await response.json())["status"] == "ok"
    except (aiohttp.ClientError, TimeoutError):
        return False


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    async with running_hub() as loaded:
        tokens = make_tokens(loaded)
        people = {name: tokens.issue(name.lower(), display_name=name).token for name in ("Ada", "Ben")}
        return await call_life(loaded.public_url, people)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
