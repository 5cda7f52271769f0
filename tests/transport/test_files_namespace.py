"""`/files` by raw frames: a connection of its own, longer frames, bytes in and out, and none of what apps hear."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgpack
import msgspec
import pytest
import pytest_asyncio

from hub.transport.socketio import EdgeOptions
from hub.transport.socketio.socket import SLOW
from tests.fakes.sockets import TENANT, Closed, Node, Raw, node, raw, until

CHUNK = bytes(range(256)) * 1024


@pytest_asyncio.fixture
async def edge() -> AsyncIterator[Node]:
    async with node() as running:
        yield running


async def enter(client: Raw, namespace: str = "/files", user: str = "a") -> None:
    await client.say(f'40{namespace},{{"token":"good:{user}"}}')
    assert (await client.hear()).startswith(f'40{namespace},{{"sid":')
    ready = await client.hear()
    assert ready.startswith(f'42{namespace},["session:ready",')


async def say_bytes(client: Raw, number: int, data: bytes) -> None:
    await client.say(f'451-/files,{number}["test:take",{{"data":{{"_placeholder":true,"num":0}}}}]')
    await client.websocket.send_bytes(data)


async def hear_bytes(client: Raw, number: int) -> bytes:
    head = await client.hear()
    assert head == f'461-/files,{number}[{{"ok":true,"data":{{"data":{{"_placeholder":true,"num":0}}}}}}]'
    return bytes(ast.literal_eval(await client.hear()))


async def ack(client: Raw, number: int) -> Any:
    head, text = f"43/files,{number}", await client.hear()
    assert text.startswith(head), text
    return msgspec.json.decode(text[len(head) :])[0]


async def test_bytes_go_in_and_come_back_as_attachments(edge: Node) -> None:
    async with raw(edge.socket_url) as client:
        await enter(client)
        for number, size in enumerate((1, 65_536, 262_144)):
            await say_bytes(client, number, CHUNK[:size])
            assert await hear_bytes(client, number) == CHUNK[:size]


async def test_bytes_go_in_and_come_back_in_one_msgpack_packet(edge: Node) -> None:
    """S-244: frames over sockets by MessagePack."""
    async with raw(f"{edge.socket_url}&parser=msgpack") as client:
        say = client.websocket.send_bytes
        await say(msgpack.packb({"type": 0, "data": {"token": "good:a"}, "nsp": "/files"}))
        heard = [msgpack.unpackb(ast.literal_eval(await client.hear())) for _ in range(2)]
        assert [each["nsp"] for each in heard] == ["/files", "/files"] and heard[1]["data"][0] == "session:ready"
        await say(msgpack.packb({"type": 2, "data": ["test:take", {"data": CHUNK}], "nsp": "/files", "id": 5}))
        answer = msgpack.unpackb(ast.literal_eval(await client.hear()))
        assert answer == {"type": 3, "data": [{"ok": True, "data": {"data": CHUNK}}], "nsp": "/files", "id": 5}


async def test_an_oversize_frame_is_answered_and_only_one_far_over_the_limit_closes(edge: Node) -> None:
    """S-244: oversize → error, not disconnect."""
    limit = EdgeOptions().frame_bytes
    async with raw(f"{edge.socket_url}&parser=msgpack") as client:
        say = client.websocket.send_bytes
        await say(msgpack.packb({"type": 0, "data": {"token": "good:a"}, "nsp": "/files"}))
        for _ in range(2):
            await client.hear()
        for size in (limit + 1, 64):
            packet = {"type": 2, "data": ["test:take", {"data": bytes(size)}], "nsp": "/files", "id": size}
            await say(msgpack.packb(packet))
            (answer,) = msgpack.unpackb(ast.literal_eval(await client.hear()))["data"]
            assert answer["ok"] is (size == 64)
            assert answer["ok"] or answer["error"]["code"] == "payload_too_large"
        await say(bytes(2 * limit))
        assert await client.closed() == 1009


async def test_attachments_over_the_limit_close_the_socket(edge: Node) -> None:
    async with raw(edge.socket_url) as client:
        await enter(client)
        await say_bytes(client, 1, bytes(EdgeOptions().frame_bytes + 1))
        assert await client.closed() == 1002
    await until(lambda: not edge.edge._sessions)


async def test_each_namespace_has_its_own_commands(edge: Node) -> None:
    async with raw(edge.socket_url) as files, raw(edge.socket_url, token="good:b") as apps:
        await enter(files)
        await files.say('42/files,1["test:who",{}]')
        assert (await ack(files, 1))["data"] == {"text": "/files"}
        await files.say('42/files,2["test:echo",{"text":"hi"}]')
        assert (await ack(files, 2))["error"]["code"] == "unknown_event"
        assert (await apps.command("test:who"))["data"] == {"text": "/"}
        assert (await apps.command("test:take", {"data": "aGk="}))["error"]["code"] == "unknown_event"


async def test_a_second_namespace_on_the_same_connection_is_refused(edge: Node) -> None:
    for first, second in (("/files", "/"), ("/", "/files")):
        async with raw(edge.socket_url) as client:
            where = {"/": "", "/files": "/files,"}
            await client.say(f'40{where[first]}{{"token":"good:a"}}')
            for _ in range(2):
                await client.hear()
            await client.say(f'40{where[second]}{{"token":"good:a"}}')
            answer = await client.hear()
            assert answer.startswith(f"44{where[second]}") and '"namespace_forbidden"' in answer
            await client.say(f'42{where[first]}1["test:who",{{}}]')
            assert (await client.hear()).startswith(f"43{where[first]}1[")
            await client.say(f'42{where[second]}2["test:who",{{}}]')
            assert await client.closed() == 1002


async def test_a_files_socket_hears_nothing_that_is_meant_for_its_user(edge: Node) -> None:
    async with raw(edge.socket_url) as files, raw(edge.socket_url, token="good:a") as apps:
        await enter(files, user="a")
        await edge.hub.bus.to_user(TENANT, "a", "test:posted", {"text": "hello"})
        assert (await apps.event())[0] == "test:posted"
        with pytest.raises(TimeoutError):
            await files.hear(0.2)


async def test_a_files_socket_is_sent_away_like_any_other(edge: Node) -> None:
    async with raw(edge.socket_url) as client:
        await enter(client)
        draining = asyncio.create_task(edge.edge.drain())
        heard: list[str] = []
        with pytest.raises(Closed) as end:
            while True:
                heard.append(await client.hear())
        await draining
        assert end.value.code == 1012
        assert [text.partition('"')[0] for text in heard] == ["42/files,["] * 2
        assert "server:draining" in heard[0] and "session:closing" in heard[1]


async def test_who_disconnects_is_forgotten(edge: Node) -> None:
    async with raw(edge.socket_url) as client:
        await enter(client)
        await client.say("41/files,")
        assert await client.closed() == 1000
    await until(lambda: not edge.edge._sessions and not edge.edge._admission._users)
    assert all(not clients for clients in edge.edge.server.manager._clients.values())


async def test_a_reader_that_stops_is_waited_for_and_not_cut_off(edge: Node) -> None:
    """S-244: back-pressure: a frame is read from the store only once the ones before have been read by the client."""
    slow = SLOW._value.get()
    async with raw(edge.socket_url) as client:
        await enter(client)
        asked = asyncio.create_task(_ask(client, 100))
        # 25 MB are asked for, and nobody reads: far more than may lie about.
        await asyncio.sleep(0.5)
        (socket,) = edge.edge.server.eio.sockets.values()
        assert socket.open and socket.transport.get_write_buffer_size() < 2 * EdgeOptions().frame_bytes
        for number in range(100):
            assert await hear_bytes(client, number) == CHUNK
        await asked
    assert SLOW._value.get() == slow


async def _ask(client: Raw, times: int) -> None:
    for number in range(times):
        await say_bytes(client, number, CHUNK)
