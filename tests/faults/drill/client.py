"""A light client that keeps the rules: positions, holes, reconnecting on another node, commands sent again by `op_id`.

It speaks Socket.IO over a plain WebSocket, so that hundreds of them fit into one process, and writes down what it does
and hears.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import aiohttp
import msgspec

from tests.faults.drill import view as views
from tests.faults.drill.history import Cut, Delayed, Fail, Gone, Heard, History, Info, Invoke, Ok, Picture
from tests.faults.drill.view import View

CONNECT_S = 3.0
ANSWER_S = 6.0
# How long a command is sent again, and how long a client tries to come back, before nobody waits any more.
PATIENCE_S = 90.0
# Refusals that do not say that nothing happened.
_OPEN = frozenset(
    {"timeout", "internal", "cluster_unavailable", "database_unavailable", "server_draining", "media_unavailable"}
)
# Waiting helps, but for how long nobody knows.
_NO_SEAT = frozenset({"room_full", "room_locked"})
_HELD = 5_000


class Unanswered(Exception):
    """The socket was lost, or the answer did not come in time."""


class Refused(Exception):
    """The node did not let us in; the text is its code."""


@dataclass
class Resume:
    """How a client came back: when its reconnect began, how long until it was in all its rooms again, and how."""

    began: float
    took_s: float
    recovered: bool


@dataclass
class Room:
    """One stay in one room."""

    call: str
    stay: int
    view: View = field(default_factory=View)
    syncing: bool = False
    held: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    gone: str = ""


class Client:
    """`start` it, `join` rooms, `ask`; it stays connected, to whichever node, until `close`."""

    def __init__(
        self,
        user: str,
        token: str,
        nodes: Sequence[str],
        http: aiohttp.ClientSession,
        history: History,
        *,
        first: int = 0,
        patient: bool = False,
    ) -> None:
        self.user, self._token, self._nodes, self._http, self.history = user, token, nodes, http, history
        self._next = first
        # Waits for ever for a node that says nothing.
        self._patient = patient
        self.rooms: dict[str, Room] = {}
        self.session = ""
        self.node = ""
        self.connected = asyncio.Event()
        # In all its rooms again.
        self.settled = asyncio.Event()
        self.resumes: list[Resume] = []
        # name → when, of what the server says about itself.
        self.notices: dict[str, list[float]] = {}
        # (seconds, code) of every command that was answered.
        self.answers: list[tuple[float, str]] = []
        self.on_event: Callable[[str, dict[str, Any], float], None] | None = None
        self._marks = itertools.count(1)
        self._ids = itertools.count(1)
        self._pending: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._ws: aiohttp.ClientWebSocketResponse | None = None
        self._deaf: asyncio.TimerHandle | None = None
        self._deaf_s = 30.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = False
        self._running: asyncio.Task[None] | None = None

    # Life

    async def start(self) -> None:
        """Connected when this returns. Raises TimeoutError."""
        self._running = asyncio.create_task(self._run(), name=f"client {self.user}")
        async with asyncio.timeout(PATIENCE_S):
            await self.connected.wait()

    async def close(self) -> None:
        self._ended = True
        self.cut()
        for task in [*self._tasks, *([self._running] if self._running else [])]:
            task.cancel()
        await asyncio.gather(*self._tasks, *([self._running] if self._running else []), return_exceptions=True)

    def cut(self) -> None:
        """The cable is pulled: no goodbye."""
        raw = self._ws.get_extra_info("socket") if self._ws is not None else None
        if raw is not None:
            with contextlib.suppress(OSError):
                raw.shutdown(socket.SHUT_RDWR)

    async def _run(self) -> None:
        began: float | None = None
        while not self._ended:
            began = began or time.monotonic()
            url = self._nodes[self._next % len(self._nodes)]
            try:
                await self._visit(url, began)
                began = None
            except (aiohttp.ClientError, OSError, TimeoutError, Refused, msgspec.DecodeError):
                pass
            # Elsewhere: behind a balancer, a node that just failed is not tried first.
            self._next += 1
            await asyncio.sleep(random.uniform(0.02, 0.2))

    async def _visit(self, url: str, began: float) -> None:
        """One socket from its opening to its end. Raises where it never came to anything."""
        async with asyncio.timeout(CONNECT_S):
            ws = await self._http.ws_connect(f"{url}/socket.io/?EIO=4&transport=websocket", max_msg_size=0)
        self._ws = ws
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._greet(ws)
            self.node = url
            self.connected.set()
            back = asyncio.create_task(self._come_back(began), name=f"coming back {self.user}")
            try:
                await self._read(ws)
            finally:
                back.cancel()
                await asyncio.gather(back, return_exceptions=True)
        finally:
            if self.connected.is_set():
                self.history.add(Cut(time.monotonic(), self.user))
            self.connected.clear()
            self.settled.clear()
            self.session = ""
            self._ws = None
            self._hang_up(ws)

    def _hang_up(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        if self._deaf is not None:
            self._deaf.cancel()
            self._deaf = None
        raw = ws.get_extra_info("socket")
        if raw is not None:
            with contextlib.suppress(OSError):
                raw.shutdown(socket.SHUT_RDWR)
        ws._response.close()
        pending, self._pending = self._pending, {}
        for future in pending.values():
            if not future.done():
                future.set_exception(Unanswered("the socket was lost"))
                future.exception()
        for room in self.rooms.values():
            room.syncing = False
            room.held.clear()

    async def _greet(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        opening = msgspec.json.decode((await self._text(ws))[1:])
        self._deaf_s = (opening["pingInterval"] + opening["pingTimeout"]) / 1000
        auth = {"token": self._token, "protocol": "1", "client": "drill/1"}
        await ws.send_str("40" + msgspec.json.encode(auth).decode())
        answer = await self._text(ws)
        if not answer.startswith("40"):
            raise Refused(answer[:200])
        name, ready = msgspec.json.decode((await self._text(ws))[2:])
        if name != "session:ready":
            raise Refused(name)
        self.session = ready["session_id"]

    @staticmethod
    async def _text(ws: aiohttp.ClientWebSocketResponse) -> str:
        message = await ws.receive()
        if message.type is not aiohttp.WSMsgType.TEXT:
            raise Refused(f"closed with {ws.close_code}")
        return str(message.data)

    async def _come_back(self, began: float) -> None:
        """Into every room again, from where we were."""
        known = [room for room in self.rooms.values() if room.view.epoch]
        recovered = True
        try:
            for room in known:
                recovered = await self._rejoin(room) and recovered
        except Unanswered:
            # A node that does not let us in in time: another one may.
            self.cut()
            return
        self.settled.set()
        if known:
            self.resumes.append(Resume(began, time.monotonic() - began, recovered))

    async def _rejoin(self, room: Room) -> bool:
        give_up = time.monotonic() + PATIENCE_S
        while time.monotonic() < give_up and not room.gone:
            payload = {"call_id": room.call, "media": False, "since": room.view.position}
            answer = await self._command("room:join", payload)
            if answer["ok"]:
                self._take(room, "room:join", answer["data"])
                return bool(answer["data"]["recovered"])
            error = answer["error"]
            self.history.add(Delayed(time.monotonic(), self.user, room.call, "room:join", error["code"]))
            if not error["retryable"] or error["code"] in _NO_SEAT:
                self._out(room, error["code"])
                return False
            await asyncio.sleep(error.get("retry_after_ms", 200) / 1000)
        return False

    async def _read(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self._listen_for_pings()
        while True:
            message = await ws.receive()
            if message.type is not aiohttp.WSMsgType.TEXT:
                return
            text: str = message.data
            if text == "2":
                self._listen_for_pings()
                await ws.send_str("3")
            elif text.startswith("42"):
                name, data = msgspec.json.decode(text[2:])
                self._event(name, data)
            elif text.startswith("43"):
                number, _, answer = text[2:].partition("[")
                future = self._pending.pop(int(number), None)
                if future is not None and not future.done():
                    future.set_result(msgspec.json.decode("[" + answer)[0])
            elif text.startswith("41"):
                return

    def _listen_for_pings(self) -> None:
        if self._deaf is not None:
            self._deaf.cancel()
        if not self._patient:
            self._deaf = asyncio.get_running_loop().call_later(self._deaf_s, self.cut)

    # Commands

    async def _command(self, name: str, payload: Mapping[str, Any], timeout_s: float = ANSWER_S) -> dict[str, Any]:
        """One try on the socket there is. Raises Unanswered."""
        ws = self._ws
        if ws is None or not self.connected.is_set():
            raise Unanswered("not connected")
        number = next(self._ids)
        future = self._pending[number] = asyncio.get_running_loop().create_future()
        started = time.monotonic()
        try:
            async with asyncio.timeout(timeout_s):
                await ws.send_str(f"42{number}" + msgspec.json.encode([name, payload]).decode())
                answer: dict[str, Any] = await future
        except (TimeoutError, ConnectionError, RuntimeError, aiohttp.ClientError) as error:
            if isinstance(error, TimeoutError):
                self.answers.append((timeout_s, "none"))
            raise Unanswered(type(error).__name__) from error
        finally:
            self._pending.pop(number, None)
        self.answers.append((time.monotonic() - started, "ok" if answer["ok"] else answer["error"]["code"]))
        return answer

    async def ask(
        self, name: str, call: str, *, mark: int = 0, target: str = "", patience_s: float = PATIENCE_S, **payload: Any
    ) -> str:
        """A changing command, sent again under its `op_id` while its fate is open. "ok", or the code of its end."""
        op = self.history.next_op()
        self.history.add(Invoke(time.monotonic(), op, self.user, name, call, mark, target))
        body = {"call_id": call, "op_id": str(uuid4()), **payload}
        give_up = time.monotonic() + patience_s
        code = "unanswered"
        # A try whose fate is open may still take effect: then a later refusal does not say that nothing happened.
        doubtful = False
        while time.monotonic() < give_up:
            try:
                async with asyncio.timeout(max(0.01, give_up - time.monotonic())):
                    await self.settled.wait()
                    answer = await self._command(name, body)
            except (Unanswered, TimeoutError):
                code, doubtful = "unanswered", True
                await asyncio.sleep(0.05)
                continue
            if answer["ok"]:
                self.history.add(Ok(time.monotonic(), op))
                return "ok"
            error = answer["error"]
            code = error["code"]
            if code not in _OPEN:
                end = Info(time.monotonic(), op, code) if doubtful else Fail(time.monotonic(), op, code)
                self.history.add(end)
                return str(code)
            doubtful = True
            await asyncio.sleep(min(error.get("retry_after_ms", 200) / 1000, 1.0))
        self.history.add(Info(time.monotonic(), op, code))
        return code

    async def update(self, call: str, *, patience_s: float = PATIENCE_S) -> str:
        """Change our own number in the room, which everybody shall hear."""
        mark = next(self._marks)
        return await self.ask("participant:update", call, mark=mark, metadata={"mark": mark}, patience_s=patience_s)

    async def join(self, call: str, *, patience_s: float = PATIENCE_S) -> str:
        """ "ok", or why not."""
        op = self.history.next_op()
        self.history.add(Invoke(time.monotonic(), op, self.user, "room:join", call))
        room = Room(call, self.history.next_stay())
        give_up = time.monotonic() + patience_s
        code = "unanswered"
        while time.monotonic() < give_up:
            try:
                async with asyncio.timeout(max(0.01, give_up - time.monotonic())):
                    await self.settled.wait()
                    # Known from now on: events may come right behind the answer.
                    self.rooms[call] = room
                    answer = await self._command("room:join", {"call_id": call, "media": False})
            except (Unanswered, TimeoutError):
                code = "unanswered"
                await asyncio.sleep(0.05)
                continue
            if answer["ok"]:
                self._take(room, "room:join", answer["data"])
                self.history.add(Ok(time.monotonic(), op))
                return "ok"
            code = answer["error"]["code"]
            if not answer["error"]["retryable"] or code in _NO_SEAT:
                break
            await asyncio.sleep(min(answer["error"].get("retry_after_ms", 200) / 1000, 1.0))
        if self.rooms.get(call) is room:
            del self.rooms[call]
        self.history.add(Info(time.monotonic(), op, code))
        return code

    async def leave(self, call: str) -> str:
        code = await self.ask("room:leave", call)
        room = self.rooms.get(call)
        if room is not None:
            self._out(room, "left")
        return code

    async def picture(self, call: str) -> dict[str, Any] | None:
        """A fresh snapshot, as a newcomer would get it; None where it cannot be had."""
        nowhere = {"call_id": call, "since": {"epoch": "none", "offset": 0}}
        for _ in range(10):
            try:
                answer = await self._command("room:sync", nowhere)
            except Unanswered:
                return None
            if answer["ok"]:
                found: dict[str, Any] = answer["data"]
                return found
            if not answer["error"]["retryable"]:
                return None
            await asyncio.sleep(answer["error"].get("retry_after_ms", 200) / 1000)
        return None

    # Events

    def _event(self, name: str, data: dict[str, Any]) -> None:
        now = time.monotonic()
        if self.on_event is not None:
            self.on_event(name, data, now)
        if name.startswith(("server:", "session:")):
            self.notices.setdefault(name, []).append(now)
            return
        room = self.rooms.get(str(data.get("call_id", "")))
        if room is None or room.gone:
            return
        if name == "room:left":
            # After a leave of ours the answer says it; taken over by our own new socket is no end either.
            self._out(room, data["reason"])
        elif name == "room:resynced":
            self._sync(room)
        elif data.get("offset") is not None:
            self._recorded(room, name, data)
        elif "epoch" in data:
            self._hear(room, name, data)
        if name == "room:ended":
            self._out(room, "ended")

    def _recorded(self, room: Room, name: str, data: dict[str, Any]) -> None:
        if room.syncing or not room.view.epoch:
            if len(room.held) < _HELD:
                room.held.append((name, data))
            return
        match room.view.place(data["epoch"], data["offset"]):
            case "apply":
                self._hear(room, name, data)
            case "repeat":
                self.history.repeats += 1
            case "hole":
                self.notices.setdefault("hole", []).append(time.monotonic())
                room.held.append((name, data))
                self._sync(room)

    def _hear(self, room: Room, name: str, data: dict[str, Any]) -> None:
        room.view.apply(name, data)
        user, mark = views.own_mark(name, data) or ("", 0)
        self.history.add(
            Heard(
                time.monotonic(),
                self.user,
                room.stay,
                room.call,
                data["epoch"],
                data.get("offset"),
                name,
                views.digest(name, data),
                user,
                mark,
                tuple(views.left(name, data)),
            )
        )

    def _sync(self, room: Room) -> None:
        if room.syncing or not room.view.epoch:
            return
        room.syncing = True
        task = asyncio.create_task(self._catch_up(room), name=f"sync {self.user}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _catch_up(self, room: Room) -> None:
        ws = self._ws
        while self._ws is ws and room.syncing and not room.gone:
            try:
                answer = await self._command("room:sync", {"call_id": room.call, "since": room.view.position})
            except Unanswered:
                await asyncio.sleep(0.1)
                continue
            if answer["ok"]:
                self._take(room, "room:sync", answer["data"])
                return
            self.history.add(Delayed(time.monotonic(), self.user, room.call, "room:sync", answer["error"]["code"]))
            if not answer["error"]["retryable"]:
                self._out(room, answer["error"]["code"])
                return
            await asyncio.sleep(min(answer["error"].get("retry_after_ms", 200) / 1000, 1.0))

    def _take(self, room: Room, by: str, answer: Mapping[str, Any]) -> None:
        """A snapshot, or the events since, and then what came meanwhile."""
        recovered = bool(answer["recovered"])
        marks = {each["user_id"]: views.mark(each) for each in answer["participants"]}
        hands = tuple(hand["participant_id"] for hand in answer["hands"])
        at = answer["position"]
        self.history.add(
            Picture(
                time.monotonic(),
                self.user,
                room.stay,
                room.call,
                by,
                at["epoch"],
                at["offset"],
                recovered,
                marks,
                hands,
            )
        )
        if recovered:
            for missed in answer["missed"]:
                self._hear(room, missed["event"], missed["data"])
        else:
            room.view.picture(answer)
        room.syncing = False
        held, room.held = room.held, []
        for name, data in held:
            self._recorded(room, name, data)

    def _out(self, room: Room, why: str) -> None:
        if room.gone:
            return
        room.gone = why
        if self.rooms.get(room.call) is room:
            del self.rooms[room.call]
        self.history.add(Gone(time.monotonic(), self.user, room.stay, room.call, why))
