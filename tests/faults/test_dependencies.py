"""A dependency freezes or is gone: everybody is answered in time with its name, and it all comes back by itself."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import aiohttp
import psutil  # type: ignore[import-untyped]
import pytest

from hub.actions import all_commands
from hub.commands import APPS
from hub.embedded import Postgres
from hub.media.livekit import LiveKit as LiveKitApi
from hub.media.values import Server
from tests.e2e.stage import NodeProcess, Person, Stage, op_id
from tests.faults.conftest import Servers

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Promised are 3 s; the rest is for the machine that runs clients and servers at once.
ANSWERED_S = 4.0
HEALTH_S = 8.0
BACK_S = 30.0
MADE = "Made while it was broken"
# So many commands at once: each asks the database twice, and on a busy machine those behind would wait for a connection
# longer than anybody does.
AT_ONCE = 24


def _signal_all(postgres: Postgres, number: signal.Signals) -> None:
    """Every backend too: a frozen postmaster alone only keeps new connections out."""
    postmaster = psutil.Process(postgres.pid)
    for process in (postmaster, *postmaster.children(recursive=True)):
        # A backend may end by itself between the look and the signal.
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


@contextmanager
def frozen_database(servers: Servers) -> Iterator[None]:
    _signal_all(servers.postgres, signal.SIGSTOP)
    try:
        yield
    finally:
        _signal_all(servers.postgres, signal.SIGCONT)


@contextmanager
def stopped_database(servers: Servers) -> Iterator[None]:
    servers.postgres.stop()
    try:
        yield
    finally:
        servers.postgres.start()


@contextmanager
def frozen_redis(servers: Servers) -> Iterator[None]:
    servers.valkey.freeze()
    try:
        yield
    finally:
        servers.valkey.thaw()


@contextmanager
def stopped_redis(servers: Servers) -> Iterator[None]:
    servers.valkey.stop()
    try:
        yield
    finally:
        servers.valkey.start()


@contextmanager
def frozen_livekit(servers: Servers) -> Iterator[None]:
    servers.livekit.freeze()
    try:
        yield
    finally:
        servers.livekit.thaw()


@contextmanager
def killed_livekit(servers: Servers) -> Iterator[None]:
    servers.livekit.kill()
    try:
        yield
    finally:
        servers.livekit.start()


@dataclass
class Case:
    """What breaks, the code of whoever needs it, and the commands that work without it or may."""

    fault: Callable[[Servers], Any]
    check: str
    # Another check that goes with it, sooner or later.
    beside: str
    code: str
    ready: bool
    # By command: those that must fail, and those that must not; the others may do either.
    needed_by: frozenset[str] = frozenset()
    not_needed_by: frozenset[str] = frozenset()


_WITHOUT_DATABASE = frozenset(
    {"session:ping", "session:refresh", "session:me", "session:limits", "session:policy", "admin:config"}
)
# Refused for a reason of its own before it comes to a database: no guest asks, no scanner is there.
_REFUSED_BEFORE = frozenset({"link:renew", "file:rescan"})
_CLUSTERED = frozenset(
    {
        *("admin:nodes", "admin:sessions", "admin:overview", "admin:close_session", "admin:drain_node"),
        *("admin:undrain_node", "presence:set", "presence:unwatch"),
    }
)
_ALL = frozenset(command.name for command in all_commands())
_DATABASE = {
    "check": "database",
    "beside": "migrations",
    "code": "database_unavailable",
    "ready": False,
    "needed_by": _ALL - _WITHOUT_DATABASE - _REFUSED_BEFORE - _CLUSTERED - {"admin:reconcile"},
    "not_needed_by": _WITHOUT_DATABASE,
}
_REDIS = {
    "check": "redis",
    "beside": "bus",
    "code": "cluster_unavailable",
    "ready": False,
    "needed_by": frozenset({"room:join", "room:sync", "room:events"}),
    "not_needed_by": _WITHOUT_DATABASE
    | {"room:list", "room:get", "participant:list", "room:create", "room:token", "media:authorize", "admin:audit"},
}
_LIVEKIT = {
    "check": "livekit",
    "beside": "livekit",
    "code": "media_unavailable",
    "ready": True,
    "needed_by": frozenset({"room:create", "participant:mute", "data:send"}),
    "not_needed_by": _ALL - {"room:create", "participant:mute", "data:send"},
}
CASES: dict[str, Case] = {
    "the database freezes": Case(frozen_database, **_DATABASE),  # type: ignore[arg-type]
    "the database is stopped": Case(stopped_database, **_DATABASE),  # type: ignore[arg-type]
    "redis freezes": Case(frozen_redis, **_REDIS),  # type: ignore[arg-type]
    "redis is stopped": Case(stopped_redis, **_REDIS),  # type: ignore[arg-type]
    "livekit freezes": Case(frozen_livekit, **_LIVEKIT),  # type: ignore[arg-type]
    "livekit is killed": Case(killed_livekit, **_LIVEKIT),  # type: ignore[arg-type]
}


@dataclass
class Play:
    """People in calls, each with something left to do when the fault strikes."""

    hub: Stage
    node: NodeProcess
    ada: Person
    admin: Person
    # The one that people are in; those to be ended, deleted, ended by the admin; and one that nobody has entered.
    calls: list[str]
    ids: dict[str, str]
    sockets: dict[str, Person] = field(default_factory=dict)

    @property
    def call_id(self) -> str:
        return self.calls[0]

    async def command(self, name: str, payload: Mapping[str, Any], *, by: str | None = None) -> None:
        """A socket of its own for this command: those of one socket run one after the other."""
        person = self.hub.person(by or "ada", node=self.node)
        await person.connect()
        if by is not None and name != "room:join":
            await _join(person, self.call_id)
        self.sockets[name] = person


async def _join(person: Person, call_id: str) -> None:
    """However busy the machine is."""
    deadline = time.monotonic() + BACK_S
    while not (answer := await person.ack("room:join", call_id=call_id))["ok"]:
        assert answer["error"]["retryable"] and time.monotonic() < deadline, answer
        await asyncio.sleep(0.5)


async def play(hub: Stage, node: NodeProcess) -> Play:
    ada = hub.person("ada", node=node)
    calls = [(await ada.create())["call_id"] for _ in range(5)]
    await ada.connect()
    await ada.join(calls[0])
    ids = {}
    for name in ("ben", "kim", "rob"):
        person = hub.person(name, node=node)
        await person.connect()
        joined = await person.join(calls[0], media=name == "ben")
        ids[name] = joined["self"]["participant_id"]
    await ada.wait_for("media:changed", lambda event: event["media"]["microphone"])
    admin = hub.person("root", node=node, operator=True)
    made = Play(hub, node, ada, admin, calls, ids)
    await asyncio.gather(*(made.command(name, {}, by=by) for name, (by, _) in socket_commands(made).items()))
    return made


def socket_commands(it: Play) -> dict[str, tuple[str | None, dict[str, Any]]]:
    """Who says what; None is another socket of the host."""
    c = {"call_id": it.call_id}
    return {
        "session:ping": (None, {}),
        "session:refresh": (None, {"token": it.ada.token}),
        "room:join": ("joe", {**c, "media": True}),
        "room:sync": ("sid", {**c, "since": {"epoch": "x", "offset": 0}}),
        "room:leave": ("leo", c),
        "room:update": (None, {**c, "metadata": {"topic": op_id()}}),
        "room:end": (None, {"call_id": it.calls[1]}),
        "participant:update": (None, {**c, "display_name": f"Ada {op_id()}"}),
        "participant:set_role": (None, {**c, "participant_id": it.ids["rob"], "role": "viewer"}),
        "participant:kick": (None, {**c, "participant_id": it.ids["kim"], "ban_s": 60}),
        "participant:unban": (None, {**c, "user_id": "nobody"}),
        "participant:mute": (None, {**c, "participant_id": it.ids["ben"], "sources": ["microphone"]}),
        "hand:raise": (None, c),
        "hand:lower": (None, c),
        "lobby:knock": (None, c),
        "lobby:cancel": (None, c),
        "lobby:list": (None, c),
        "lobby:admit": (None, {**c, "all": True}),
        "lobby:deny": (None, {**c, "all": True}),
        "chat:post": (None, {**c, "text": "hello"}),
        "chat:delete": (None, {**c, "message_id": op_id()}),
        "chat:list": (None, c),
        "chat:typing": ("tim", {**c, "typing": True}),
        "quality:report": (None, {**c, "window_ms": 5000, "samples": []}),
        "reaction:send": ("ria", {**c, "emoji": "👍"}),
        "media:authorize": (None, c),
        "media:set": (None, {**c, "microphone": False, "camera": False, "screen_share": False}),
        "data:send": (None, {**c, "topic": "t", "data": "d"}),
        "presence:set": (None, {"status": "busy"}),
        "presence:watch": (None, {"user_ids": ["ben"]}),
        "invite:send": (None, {**c, "user_ids": ["friend"]}),
        "invite:accept": (None, {"invite_id": op_id()}),
        "invite:decline": (None, {"invite_id": op_id()}),
        "invite:cancel": (None, {"invite_id": op_id()}),
        "invite:list": (None, {}),
        "contact:list": (None, {}),
        "contact:add": (None, {"user_id": "ben"}),
        "contact:update": (None, {"contact_id": op_id(), "favorite": True}),
        "contact:remove": (None, {"contact_id": op_id()}),
        "presence:unwatch": (None, {"user_ids": ["ben"]}),
        "file:list": (None, c),
        "file:get": (None, {"file_id": op_id()}),
        "file:delete": (None, {"file_id": op_id()}),
        "file:rescan": (None, {"file_id": op_id()}),
        "file:copy": (None, {"file_id": op_id(), "call_id": it.calls[4]}),
        "file:move": (None, {"file_id": op_id(), "call_id": it.calls[4]}),
        "link:renew": (None, {}),
    }


def _form(call_id: str) -> aiohttp.FormData:
    form = aiohttp.FormData({"call_id": call_id})
    form.add_field("file", b"abc", filename="a.txt", content_type="text/plain")
    return form


def rest_calls(it: Play) -> dict[str, tuple[str, str, Any]]:
    room, c = f"/rooms/{it.call_id}", {"call_id": it.call_id}
    nobody = "00000000-0000-4000-8000-000000000000"
    return {
        "session:me": ("GET", "/me", None),
        "session:limits": ("GET", "/limits", None),
        "session:policy": ("GET", "/policy", None),
        "room:create": ("POST", "/rooms", {"name": MADE, "call_type": "group"}),
        "room:list": ("GET", "/rooms", None),
        "room:get": ("GET", room, None),
        "room:update": ("PATCH", room, {"name": f"Renamed {op_id()}"}),
        "room:end": ("POST", f"/rooms/{it.calls[1]}/end", {}),
        "room:delete": ("DELETE", f"/rooms/{it.calls[2]}", None),
        "room:token": ("POST", f"/rooms/{it.calls[4]}/token", {}),
        "room:events": ("GET", f"{room}/events?since=x:0", None),
        "participant:list": ("GET", f"{room}/participants", None),
        "participant:edit": ("PATCH", f"{room}/participants/{it.ids['rob']}", {"role": "participant"}),
        "participant:kick": ("DELETE", f"{room}/participants/{it.ids['kim']}", None),
        "participant:unban": ("DELETE", f"{room}/bans/nobody", None),
        "participant:mute": ("POST", f"{room}/participants/{it.ids['ben']}/mute", {"sources": ["camera"]}),
        "lobby:list": ("GET", f"{room}/lobby", None),
        "lobby:admit_one": ("POST", f"{room}/lobby/{nobody}/admit", {}),
        "lobby:deny_one": ("POST", f"{room}/lobby/{nobody}/deny", {}),
        "chat:post": ("POST", f"{room}/messages", {"text": "hello"}),
        "chat:delete": ("DELETE", f"{room}/messages/{nobody}", None),
        "chat:list": ("GET", f"{room}/messages", None),
        "quality:record": ("POST", "/quality/metrics", {"call_id": it.call_id, "jitter_ms": 1}),
        "quality:list": ("GET", f"/quality/metrics?call_id={it.call_id}", None),
        "data:send": ("POST", f"{room}/data", {"topic": "t", "data": "d"}),
        "presence:list": ("GET", "/presence?user_ids=ben", None),
        "invite:send": ("POST", f"{room}/invites", {"user_ids": ["colleague"]}),
        "invite:accept": ("POST", f"/invites/{nobody}/accept", {}),
        "invite:decline": ("POST", f"/invites/{nobody}/decline", {}),
        "invite:cancel": ("POST", f"/invites/{nobody}/cancel", {}),
        "invite:list": ("GET", "/invites", None),
        "contact:list": ("GET", "/contacts", None),
        "contact:get": ("GET", f"/contacts/{nobody}", None),
        "contact:add": ("POST", "/contacts", {"user_id": "ben"}),
        "contact:update": ("PATCH", f"/contacts/{nobody}", {"favorite": True}),
        "contact:remove": ("DELETE", f"/contacts/{nobody}", None),
        "file:list": ("GET", f"/files?call_id={it.call_id}", None),
        "file:get": ("GET", f"/files/{nobody}", None),
        "file:download": ("GET", f"/files/{nobody}/download", None),
        "file:preview": ("GET", f"/files/{nobody}/preview", None),
        "file:delete": ("DELETE", f"/files/{nobody}", None),
        "file:rescan": ("POST", f"/files/{nobody}/rescan", {}),
        "file:upload": ("POST", "/files/upload", _form(it.call_id)),
        "file:presign": ("POST", "/files/presign", {**c, "name": "a.txt", "size_bytes": 3, "mime_type": "text/plain"}),
        "file:confirm": ("POST", f"/files/{nobody}/complete", {}),
        "file:copy": ("POST", f"/files/{nobody}/copy", {"call_id": it.calls[4]}),
        "file:move": ("POST", f"/files/{nobody}/move", {"call_id": it.calls[4]}),
        "link:create": ("POST", "/links", c),
        "link:list": ("GET", "/links", None),
        "link:get": ("GET", f"/links/{nobody}", None),
        "link:update": ("PATCH", f"/links/{nobody}", {"title": "Another"}),
        "link:revoke": ("DELETE", f"/links/{nobody}", None),
        "link:analytics": ("GET", f"/links/{nobody}/analytics", None),
        "link:picture": ("GET", f"/links/{nobody}/qr.svg", None),
        "link:resolve": ("GET", "/links/resolve/AAAAAAAA", None),
        "link:validate": ("POST", "/links/validate/AAAAAAAA", {}),
        "link:renew": ("POST", "/guests/renew", {}),
        "admin:announce": ("POST", "/admin/announce", {"message": "Soon"}),
        "admin:drain_node": ("POST", "/admin/nodes/nobody/drain", {}),
        "admin:undrain_node": ("POST", "/admin/nodes/nobody/undrain", {}),
        "admin:overview": ("GET", "/admin/overview", None),
        "admin:nodes": ("GET", "/admin/nodes", None),
        "admin:rooms": ("GET", "/admin/rooms", None),
        "admin:end_room": ("POST", f"/admin/rooms/{it.calls[3]}/end", {}),
        "admin:sessions": ("GET", "/admin/sessions", None),
        "admin:close_session": ("DELETE", f"/admin/sessions/{'x' * 20}", None),
        "admin:inbox": ("GET", "/admin/inbox", None),
        "admin:retry_inbox": ("POST", f"/admin/inbox/{nobody}/retry", {}),
        "admin:audit": ("GET", "/admin/audit", None),
        "admin:export_audit": ("GET", "/admin/audit/export", None),
        "admin:config": ("GET", "/admin/config", None),
        "admin:reconcile": ("POST", "/admin/reconcile", {"dry_run": True}),
    }


async def outcomes(it: Play, only: str | None = None) -> dict[str, tuple[str, float]]:
    """Everything that can be said, much of it at once: the code ("ok") and the seconds, by command and door."""
    found: dict[str, tuple[str, float]] = {}

    async def by_socket(name: str, payload: dict[str, Any]) -> str:
        answer = await it.sockets[name].ack(name, **payload)
        return "ok" if answer["ok"] else str(answer["error"]["code"])

    async def by_rest(name: str, method: str, path: str, body: Any) -> str:
        asking = it.admin if name.startswith("admin:") else it.ada
        answer = await asking.rest(method, path, body)
        if answer.status == 503:
            assert int(answer.headers["Retry-After"]) >= 1, name
        return "ok" if answer.status < 300 else str(answer.body["code"])

    gate = asyncio.Semaphore(AT_ONCE)

    async def timed(name: str, ask: Callable[[], Awaitable[str]]) -> None:
        async with gate:
            started = time.monotonic()
            found[name] = (await ask(), time.monotonic() - started)

    asked = {f"socket {name}": partial(by_socket, name, said) for name, (_, said) in socket_commands(it).items()}
    asked |= {f"rest {name}": partial(by_rest, name, *request) for name, request in rest_calls(it).items()}
    await asyncio.gather(*(timed(name, ask) for name, ask in asked.items() if only in (None, name)))
    return found


async def test_every_command_is_asked_in_these_tests() -> None:
    """Or a new one would be forgotten here."""
    somebody: Any = Person("ada", "", "")
    blank = Play(somebody, somebody, somebody, somebody, [""] * 5, dict.fromkeys(("ben", "kim", "rob"), ""))
    # Chunk frames have a connection of their own, and tests of what breaks under them.
    apps = {command.name for command in all_commands() if command.socket and APPS in command.namespaces}
    assert set(socket_commands(blank)) == apps
    assert set(rest_calls(blank)) == {command.name for command in all_commands() if command.http}


# What is refused for a reason of its own: nobody was banned, no such session, a call that another command ended first.
_OWN_REASONS = frozenset(
    {"not_found", "conflict", "call_ended", "banned", "not_in_room", "room_locked", "forbidden", "link_expired"}
)


@pytest.mark.slow
@pytest.mark.timeout(150)
@pytest.mark.parametrize("what", CASES)
async def test_everybody_is_answered_in_time_with_the_right_code(breakable: Stage, servers: Servers, what: str) -> None:
    """S-184, S-037, S-043: and the process lives, the health pages tell the truth, and all is well again by itself."""
    case = CASES[what]
    node = breakable.nodes[0] if breakable.nodes else await breakable.node(AURALINK_MAX_CONNECTIONS_PER_USER="100")
    pid = node.pid
    try:
        it = await play(breakable, node)
        rooms, made = await _livekit_rooms(servers), await _made(breakable)
        with case.fault(servers):
            found = await outcomes(it)
            health = await _health_that_says(it.ada, case.check)
        assert {name: took for name, (_, took) in found.items() if took > _promised_s(name)} == {}, found
        wrong = {name: code for name, (code, _) in found.items() if not _right(case, name.split()[1], code)}
        assert wrong == {}, found
        if case.beside != case.check:
            health.pop(case.beside, None)
        assert health == {
            "/livez": 200,
            "/readyz": 200 if case.ready else 503,
            "/healthz": 200 if case.ready else 503,
            case.check: "failed",
        }
        await _all_is_well_again(it)
        assert node.pid == pid
        # No row without a room, no room without a row.
        fresh = await _made(breakable) - made
        assert len(fresh) == (found["rest room:create"][0] == "ok")
        if case.fault is not frozen_livekit:
            # When that one thaws it does what it was asked; nobody knew, and such a room is the sweep's.
            known = {row["livekit_room_name"] for row in await breakable.rows("SELECT livekit_room_name FROM calls")}
            assert await _livekit_rooms(servers) - rooms <= known
    finally:
        await breakable.send_home()


@pytest.mark.slow
@pytest.mark.timeout(150)
async def test_whoever_is_first_to_meet_a_frozen_livekit_is_answered_in_time_too(
    breakable: Stage, servers: Servers
) -> None:
    """S-184: nothing has failed yet, so every call to LiveKit waits its whole time, and there is time for one."""
    node = breakable.nodes[0] if breakable.nodes else await breakable.node(AURALINK_MAX_CONNECTIONS_PER_USER="100")
    first = {
        "socket participant:set_role": "ok",
        "socket participant:kick": "ok",
        "socket room:end": "ok",
        "socket room:update": "ok",
        "rest room:create": "media_unavailable",
        "rest room:token": "ok",
        "rest room:delete": "ok",
        "socket participant:mute": "media_unavailable",
    }
    try:
        it = await play(breakable, node)
        found = {}
        for name in first:
            with frozen_livekit(servers):
                (found[name],) = (await outcomes(it, only=name)).values()
            await _all_is_well_again(it)
        assert {name: code for name, (code, _) in found.items()} == first
        assert {name: took for name, (_, took) in found.items() if took > ANSWERED_S} == {}
    finally:
        await breakable.send_home()


def _promised_s(name: str) -> float:
    # One that is declared to take longer says so in the documents.
    longest = next(command.deadline_s for command in all_commands() if command.name == name.split()[1])
    return max(longest - 3, 0) + ANSWERED_S


def _right(case: Case, name: str, code: str) -> bool:
    if name in case.needed_by:
        return code == case.code
    if name in case.not_needed_by:
        return code == "ok" or code in _OWN_REASONS
    return code in {"ok", case.code} | _OWN_REASONS


async def _health_that_says(person: Person, check: str) -> dict[str, object]:
    """The pages, once they have looked again: probes share one look for a moment."""
    found = await _health(person)
    for _ in range(int(HEALTH_S / 0.2)):
        if check in found:
            break
        await asyncio.sleep(0.2)
        found = await _health(person)
    return found


async def _health(person: Person) -> dict[str, object]:
    found: dict[str, object] = {}
    for page in ("/livez", "/readyz", "/healthz"):
        answer = await person.rest("GET", f"/{page}")
        found[page] = answer.status
    checks = (answer.body.get("details") or answer.body)["checks"]
    return found | {name: check["status"] for name, check in checks.items() if check["status"] != "ok"}


async def _all_is_well_again(it: Play) -> None:
    """Ready, and those who were in the call all the time hear what a newcomer does."""
    await it.node.until_ready(BACK_S)
    deadline = time.monotonic() + BACK_S
    newcomer = it.hub.person(f"new-{op_id()}", node=it.node)
    await newcomer.connect()
    while not (answer := await newcomer.ack("room:join", call_id=it.call_id, media=True))["ok"]:
        assert answer["error"]["retryable"], answer
        assert time.monotonic() < deadline, answer
        await asyncio.sleep(0.5)
    while (made := await newcomer.rest("POST", "/rooms", {"name": "All is well", "call_type": "group"})).status != 201:
        assert made.status == 503, made
        assert time.monotonic() < deadline, made
        await asyncio.sleep(0.5)
    participant_id = answer["data"]["self"]["participant_id"]
    rob = next(person for person in it.hub.people if person.user_id == "rob")
    while True:
        raised = await newcomer.ack("hand:raise", call_id=it.call_id)
        assert raised["ok"] or raised["error"]["retryable"], raised
        for _ in range(10):
            if any(name == "hand:raised" and participant_id in str(payload["queue"]) for name, payload in rob.heard):
                return
            await asyncio.sleep(0.1)
        assert time.monotonic() < deadline, rob.heard[-5:]
        await newcomer.ack("hand:lower", call_id=it.call_id)


async def _livekit_rooms(servers: Servers) -> set[str]:
    livekit = servers.livekit
    server = Server(url=livekit.url, api_key=livekit.api_key, api_secret=livekit.api_secret)
    async with LiveKitApi({"default": server}) as api:
        return {room.name for room in await api.list_rooms()}


async def _made(hub: Stage) -> set[str]:
    found = await hub.rows("SELECT livekit_room_name FROM calls WHERE name = $1", MADE)
    return {row["livekit_room_name"] for row in found}
