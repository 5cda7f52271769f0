"""From the commit to the telling: nothing comes between, and what is told first was committed first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import UUID

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
    await asyncio.gather(bob.join(call_id), return_exceptions=True)
    await hub.delivered()
    told = [(name, event["participants"][0]["status"]) for name, event in host.heard if name.startswith("participant:")]
    assert told == [("participant:joined", "joined"), ("participant:left", "kicked")]
