"""From the commit to the telling: nothing comes between, and what is told first was committed first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from hub.background.due import LostSockets
from hub.protocol.errors import CallEnded, NotInRoom
from tests.actions.conftest import Node, Socket, eventually


class Slow:
    """The bus, which takes its time before it tells a room."""

    def __init__(self, bus: Any, wait_s: Callable[[], float]) -> None:
        self._bus = bus
        self._wait_s = wait_s
        self.began = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    async def to_room(self, *args: Any, **kwargs: Any) -> Any:
        self.began.set()
        await asyncio.sleep(self._wait_s())
        return await self._bus.to_room(*args, **kwargs)


class Entering(Socket):
    """Something happens while it enters a room."""

    async def meanwhile(self, call_id: UUID, participant_id: UUID) -> None: ...

    async def enter(self, call_id: UUID, participant_id: UUID) -> None:
        await self.meanwhile(call_id, participant_id)
        await super().enter(call_id, participant_id)


def entering(hub: Node, user_id: str) -> Entering:
    socket = Entering(hub, hub.person(user_id).actor)
    hub.sockets.append(socket)
    return socket


async def test_what_is_committed_is_told_also_after_the_commands_deadline(hub: Node) -> None:
    ann, bob = hub.person("ann"), hub.person("bob").socket()
    call_id = await ann.room()
    await bob.join(call_id)
    hub.bus = Slow(hub.bus, lambda: 1.7)  # type: ignore[assignment]
    # Two events, one after the other: longer than the three seconds of a command.
    ended = await ann.do("room:end", call_id=call_id)
    assert ended.call.status == "ended"
    assert bob.names()[-2:] == ["participant:left", "room:ended"]


async def test_what_is_committed_is_told_also_when_nobody_waits_for_the_answer(hub: Node) -> None:
    ann, bob = hub.person("ann"), hub.person("bob").socket()
    call_id = await ann.room()
    await bob.join(call_id)
    slow = Slow(hub.bus, lambda: 0.2)
    hub.bus = slow  # type: ignore[assignment]
    command = hub.dispatcher.commands.get("room:end")
    assert command is not None
    ctx, fields = hub.context(ann.actor), {"call_id": str(call_id)}
    asking = asyncio.create_task(hub.dispatcher.run_for(ctx, command, fields, door="rest"))
    await slow.began.wait()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert asking.cancelled()
    await hub.dispatcher.finish()
    await eventually(lambda: "room:ended" in bob.names())


async def test_a_call_is_told_of_in_the_order_of_the_commits(hub: Node) -> None:
    ann = hub.person("ann")
    call_id = await ann.room()
    host, others = ann.socket(), [hub.person(f"user{number}").socket() for number in range(5)]
    for socket in (host, *others):
        await socket.join(call_id)
    waits = [0.3, 0.2, 0.1, 0.05, 0.0]
    hub.bus = Slow(hub.bus, lambda: waits.pop(0))  # type: ignore[assignment]
    await asyncio.gather(*(socket.do("hand:raise", call_id=call_id) for socket in others))
    assert [len(event["queue"]) for name, event in host.heard if name == "hand:raised"] == [1, 2, 3, 4, 5]


async def test_who_is_kicked_while_coming_in_leaves_no_ghost(hub: Node) -> None:
    host, bob = hub.person("ann").socket(), entering(hub, "bob")
    call_id = await hub.person("ann").room()
    await host.join(call_id)

    async def kick(call_id: UUID, participant_id: UUID) -> None:
        await host.do("participant:kick", call_id=call_id, participant_id=participant_id)

    bob.meanwhile = kick  # type: ignore[method-assign]
    with pytest.raises(NotInRoom):
        await bob.join(call_id)
    assert bob.rooms == {}
    await hub.delivered()
    told = [(name, event["participants"][0]["status"]) for name, event in host.heard if name.startswith("participant:")]
    assert told == [("participant:joined", "joined"), ("participant:left", "kicked")]


async def test_a_call_that_ends_while_somebody_comes_in_keeps_nobody(hub: Node) -> None:
    ann, bob = hub.person("ann"), entering(hub, "bob")
    call_id = await ann.room()

    async def end(call_id: UUID, participant_id: UUID) -> None:
        await ann.do("room:end", call_id=call_id)

    bob.meanwhile = end  # type: ignore[method-assign]
    with pytest.raises(CallEnded):
        await bob.join(call_id)
    assert bob.rooms == {}
    assert await hub.roster.sessions(call_id) == []


async def test_who_comes_back_as_the_grace_ends_is_in(hub: Node) -> None:
    hub.rules = msgspec.structs.replace(hub.rules, socket_grace_s=0.2)
    host, old, new = hub.person("ann").socket(), hub.person("bob").socket(), entering(hub, "bob")
    call_id = await hub.person("ann").room()
    await host.join(call_id)
    await old.join(call_id)
    await hub.roster.interrupt([(call_id, old.id)])
    hub.sockets.remove(old)
    await asyncio.sleep(0.3)

    async def look(call_id: UUID, participant_id: UUID) -> None:
        assert await LostSockets(hub, hub.roster).once() == 1

    new.meanwhile = look  # type: ignore[method-assign]
    joined = await new.join(call_id)
    assert joined.self.status == "joined"
    assert await hub.value("SELECT status FROM call_participants WHERE user_id = 'bob'") == "joined"
    assert (await new.ack("hand:raise", call_id=call_id)).ok
    assert [name for name, _ in host.heard if name.startswith("participant:")][-2:] == [
        "participant:left",
        "participant:joined",
    ]


async def test_a_repeat_gets_its_answer_although_it_would_be_refused_by_now(hub: Node) -> None:
    host, bob = hub.person("ann").socket(), hub.person("bob").socket()
    call_id = await hub.person("ann").room()
    await host.join(call_id)
    his = (await bob.join(call_id)).self.participant_id
    raising, ending = str(uuid4()), str(uuid4())
    assert (await bob.ack("hand:raise", call_id=call_id, op_id=raising)).ok
    await host.do("participant:set_role", call_id=call_id, participant_id=his, role="host")
    assert (await bob.ack("room:end", call_id=call_id, op_id=ending)).ok
    for name, op_id in (("hand:raise", raising), ("room:end", ending)):
        again = await bob.ack(name, call_id=call_id, op_id=op_id)
        assert (again.ok, again.replayed) == (True, True)


async def test_what_was_refused_may_be_asked_again_under_its_key(hub: Node) -> None:
    host, bob = hub.person("ann").socket(), hub.person("bob").socket()
    call_id = await hub.person("ann").room()
    await host.join(call_id)
    his = (await bob.join(call_id)).self.participant_id
    op_id = str(uuid4())
    refused = await bob.ack("room:end", call_id=call_id, op_id=op_id)
    assert refused.error is not None and refused.error.code == "forbidden"
    await host.do("participant:set_role", call_id=call_id, participant_id=his, role="host")
    again = await bob.ack("room:end", call_id=call_id, op_id=op_id)
    assert (again.ok, again.replayed) == (True, False)


async def test_who_was_kicked_without_a_ban_is_not_banned(hub: Node) -> None:
    host, bob = hub.person("ann").socket(), hub.person("bob")
    call_id = await hub.person("ann").room()
    await host.join(call_id)
    his = (await bob.socket().join(call_id)).self.participant_id
    await host.do("participant:kick", call_id=call_id, participant_id=his)
    assert await bob.refused("room:get", call_id=call_id) == "not_in_room"
    await bob.socket().join(call_id)
    assert await bob.refused("room:get", call_id=call_id) == "ok"
    await host.do("participant:kick", call_id=call_id, participant_id=his, ban_s=60)
    assert await bob.refused("room:get", call_id=call_id) == "banned"
    assert await bob.refused("room:token", call_id=call_id) == "banned"
