"""Two edges joined by a real Valkey: one order for everybody, on whatever node they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from uuid import UUID, uuid4

import pytest_asyncio

from hub.cluster import Cluster
from hub.embedded import Valkey
from tests.fakes.sockets import TENANT, FakeHub, Node, Raw, node, raw, until

_SECRET = b"a secret of the nodes of this test"


@pytest_asyncio.fixture
async def nodes(valkey: Valkey, env_name: str) -> AsyncIterator[tuple[Node, Node]]:
    async with AsyncExitStack() as stack:
        started = []
        for name in ("a", "b"):
            cluster = await stack.enter_async_context(
                Cluster.open(valkey.url, env=env_name, secret=_SECRET, node_id=name)
            )
            started.append(await stack.enter_async_context(node(hub=FakeHub(cluster))))
        yield started[0], started[1]


async def test_members_on_two_nodes_agree_on_every_position(nodes: tuple[Node, Node]) -> None:
    """D9"""
    call_id = str(uuid4())
    async with raw(nodes[0].socket_url, token="good:ada") as ada, raw(nodes[1].socket_url, token="good:bob") as bob:
        for client in (ada, bob):
            assert (await client.command("room:join", {"call_id": call_id}))["ok"]
        heard: dict[Raw, list[tuple[int, str]]] = {ada: [], bob: []}

        async def send(client: Raw) -> None:
            for number in range(50):
                await client.say(f'42["test:post",{{"call_id":"{call_id}","text":"{id(client)} {number}"}}]')
                await asyncio.sleep(0.005)

        async def listen(client: Raw) -> None:
            while len(heard[client]) < 100:
                _, payload = await client.event()
                heard[client].append((payload["offset"], payload["text"]))

        await asyncio.gather(send(ada), send(bob), listen(ada), listen(bob))
        assert heard[ada] == heard[bob]
        assert [offset for offset, _ in heard[ada]] == list(range(1, 101))
        for client in (ada, bob):
            own = [text for _, text in heard[ada] if text.startswith(f"{id(client)} ")]
            assert own == [f"{id(client)} {number}" for number in range(50)]


async def test_what_is_for_a_user_reaches_their_sessions_on_all_nodes(nodes: tuple[Node, Node]) -> None:
    async with raw(nodes[0].socket_url, token="good:ada") as one, raw(nodes[1].socket_url, token="good:ada") as two:
        heard = asyncio.gather(one.event(), two.event())
        # The subscription is made in the background.
        for _ in range(50):
            await nodes[0].hub.bus.to_user(TENANT, "ada", "invite:received", {"invite_id": "1"})
            await asyncio.sleep(0.02)
            if heard.done():
                break
        assert [name for name, _ in await heard] == ["invite:received"] * 2


async def test_what_was_said_to_a_user_between_two_nodes_is_heard_on_the_second(nodes: tuple[Node, Node]) -> None:
    bus = nodes[0].hub.bus
    async with raw(nodes[0].socket_url, token="good:ada") as ada:
        await bus.to_user(TENANT, "ada", "invite:received", {"n": 1})
        _, heard = await ada.event()
    for number in (2, 3):
        await bus.to_user(TENANT, "ada", "invite:received", {"n": number})
    since = f"{heard['epoch']}:{heard['offset']}"
    async with raw(nodes[1].socket_url, token="good:ada", user_since=since) as again:
        assert again.ready["recovery"]["recovered"] is True
        await bus.to_user(TENANT, "ada", "invite:received", {"n": 4})
        events = [(await again.event())[1] for _ in range(3)]
        assert [(event["n"], event["offset"]) for event in events] == [(n, n) for n in (2, 3, 4)]
        assert {event["epoch"] for event in events} == {heard["epoch"]}
        await again.silence()


async def test_one_node_puts_a_session_of_another_out_of_a_room(nodes: tuple[Node, Node]) -> None:
    call_id = uuid4()
    async with raw(nodes[1].socket_url, token="good:bob") as bob:
        await bob.command("room:join", {"call_id": str(call_id)})
        (entry,) = await nodes[0].hub.roster.sessions(call_id)
        assert entry.session_id == bob.ready["session_id"] and entry.node_id == "b"
        message = {"kind": "evict", "session_id": entry.session_id, "call_id": str(call_id), "reason": "kicked"}
        await nodes[0].hub.bus.control("b", message)
        assert await bob.event() == ("room:left", {"call_id": str(call_id), "reason": "kicked"})
        await _roster_becomes(nodes[0], call_id, [])


async def test_a_lost_socket_is_interrupted_on_all_nodes_within_a_second(nodes: tuple[Node, Node]) -> None:
    call_id = uuid4()
    async with raw(nodes[1].socket_url, token="good:bob") as bob:
        await bob.command("room:join", {"call_id": str(call_id)})
        await bob.say("zzz")
        await _roster_becomes(nodes[0], call_id, ["interrupted"])


async def test_a_drained_node_leaves_its_people_in_their_rooms(nodes: tuple[Node, Node]) -> None:
    call_id = uuid4()
    async with raw(nodes[1].socket_url, token="good:bob") as bob:
        await bob.command("room:join", {"call_id": str(call_id)})
        draining = asyncio.create_task(nodes[1].edge.drain())
        assert await bob.closed() == 1012
        await draining
        await until(lambda: not nodes[1].edge.server.eio.sockets)
        await asyncio.sleep(0.1)
        await _roster_becomes(nodes[0], call_id, ["live"])


async def _roster_becomes(where: Node, call_id: UUID, states: list[str]) -> None:
    async with asyncio.timeout(1):
        while [entry.state for entry in await where.hub.roster.sessions(call_id)] != states:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
