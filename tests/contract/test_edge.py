"""The defects of the library, as it comes, against our edge. `test_library_…` shows the defect itself.

A library test that fails after an upgrade is good news: the defect is gone there. One of ours that fails is not.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import aiohttp
import pytest
from structlog.testing import capture_logs

from hub.transport.socketio import EdgeOptions
from hub.transport.socketio.gate import RESERVED
from hub.transport.socketio.socket import SLOW, Socket
from tests.contract.library import library
from tests.fakes.sockets import Closed, Node, Raw, node, raw, until

BIG = b"x" * 100_000


@asynccontextmanager
async def member(options: EdgeOptions | None = None) -> AsyncIterator[tuple[Node, Raw, str]]:
    """A node and a client of it in a room."""
    call_id = str(uuid4())
    async with node(options) as edge, raw(edge.socket_url, token="good:a") as client:
        assert (await client.command("room:join", {"call_id": call_id}))["ok"]
        yield edge, client, call_id


async def cleaned_up(edge: Node, seconds: float = 1.0) -> None:
    """Nothing of any connection is left, and the roster knows within a second."""
    await until(lambda: not edge.edge._sessions and not edge.edge.server.eio.sockets, seconds)
    await until(lambda: set(edge.hub.roster.entries.values()) <= {"interrupted"}, seconds)
    assert not len(edge.edge.attendance) and not edge.hub.bus.rooms
    assert not edge.edge.server._binary_packet and not edge.edge.server.environ
    assert not edge.edge.server.manager.sid_from_eio_sid("", "/")
    assert all(not clients for clients in edge.edge.server.manager._clients.values())


# D1: an event named like one of Socket.IO's own


@pytest.mark.parametrize("name", sorted(RESERVED))
async def test_a_reserved_event_name_closes_the_socket(name: str) -> None:
    """D1"""
    async with member() as (edge, client, _):
        await client.say(f'42["{name}",{{}}]')
        assert await client.closed(1) == 1002
        await cleaned_up(edge)


async def test_library_runs_its_disconnect_handler_for_a_client_that_goes_on_listening() -> None:
    """D1"""
    async with library() as lib, raw(lib.socket_url) as client:
        await lib.connect(client)
        await client.say('42["join","r"]')
        await client.say('42["disconnect","x"]')
        await until(lambda: "disconnect" in lib.handled)
        await lib.sio.emit("secret", "overheard", room="r")
        assert await client.hear() == '42["secret","overheard"]'


# D2: attachments that never come


@pytest.mark.parametrize("head", ["459999999999-", "455-", "450-", "45-", "45x-"])
async def test_more_attachments_than_four_or_nonsense_closes(head: str) -> None:
    """D2"""
    async with member() as (edge, client, _):
        await client.say(head + '["test:bytes",{"data":{"_placeholder":true,"num":0}}]')
        assert await client.closed(1) == 1002
        await cleaned_up(edge)


async def test_half_sent_attachments_are_bounded_and_gone_with_their_sender() -> None:
    """D2"""
    async with node() as edge:
        async with raw(edge.socket_url, token="good:a") as client:
            await client.say('454-["test:bytes",{"data":{"_placeholder":true,"num":0}}]')
            for _ in range(2):
                await client.websocket.send_bytes(b"x" * 20_000)
            await until(lambda: len(_only(edge).parts) == 2)
        await cleaned_up(edge)
        assert not [kept for kept in gc.get_objects() if isinstance(kept, Socket) and kept.parts]
        async with raw(edge.socket_url, token="good:a") as client:
            await client.say('454-["test:bytes",{"data":{"_placeholder":true,"num":0}}]')
            for _ in range(3):
                await client.websocket.send_bytes(b"x" * 30_000)
            assert await client.closed(1) == 1002


async def test_an_event_between_a_packet_and_its_attachments_closes() -> None:
    """D2"""
    async with member() as (edge, client, _):
        await client.say('451-["test:bytes",{"data":{"_placeholder":true,"num":0}}]')
        await client.say('42["test:echo",{"text":"x"}]')
        assert await client.closed(1) == 1002
        await cleaned_up(edge)


async def test_library_hoards_attachments_without_end() -> None:
    """D2: it forgets them with their sender by now, but a sender may have ten digits of them."""
    async with library() as lib, raw(lib.socket_url) as client:
        await lib.connect(client)
        await client.say('459999999999-["echo",{"_placeholder":true,"num":0}]')
        for _ in range(30):
            await client.websocket.send_bytes(b"x" * 500_000)
        await until(lambda: any(len(packet.attachments) == 30 for packet in lib.sio._binary_packet.values()))


# D3: one attachment, many placeholders


async def test_an_attachment_has_exactly_one_placeholder() -> None:
    """D3"""
    one = '{"_placeholder":true,"num":0}'
    async with node() as edge:
        async with raw(edge.socket_url, token="good:a") as client:
            await client.say(f'451-9["test:bytes",{{"data":{one}}}]')
            await client.websocket.send_bytes(b"12345")
            assert (await client.ack(9))["data"] == {"size": 5}
            # A command that takes no bytes refuses them.
            await client.say(f'451-10["test:any",{{"data":{one}}}]')
            await client.websocket.send_bytes(b"12345")
            assert (await client.ack(10))["error"]["code"] == "validation_failed"
        for payload in (f"[{one},{one}]", "{}", '{"_placeholder":true,"num":1}', '{"_placeholder":true,"num":true}'):
            async with raw(edge.socket_url, token="good:a") as client:
                await client.say(f'451-["test:any",{{"data":{payload}}}]')
                await client.websocket.send_bytes(b"12345")
                assert await client.closed(1) == 1002
        await cleaned_up(edge)


async def test_library_multiplies_an_attachment_by_its_placeholders() -> None:
    """D3"""
    async with library() as lib, raw(lib.socket_url) as client:
        await lib.connect(client)
        many = ",".join(['{"_placeholder":true,"num":0}'] * 100)
        await client.say(f'451-["echo",[{many}]]')
        await client.websocket.send_bytes(b"x" * 10_000)
        heard = 0
        while heard < 1_000_000:
            heard += len(await client.hear())


# D4: a frame that is no packet


@pytest.mark.parametrize(
    "text",
    ["zzz", "", "6", "0", "2", "2probe", "5", "4", "49", "42", "42[", "42{}", "42[]", "42[5]", '42["x"', "42null",
     '42["test:echo",NaN]', "4299999999999999999999[]", '42["' + "n" * 200 + '"]', '44{"message":"x"}', "461-[]"],
)  # fmt: skip
async def test_a_malformed_packet_closes_within_a_second_and_leaves_nothing(text: str) -> None:
    """D4"""
    async with member() as (edge, client, _):
        await client.say(text)
        assert await client.closed(1) == 1002
        await cleaned_up(edge)


async def test_a_malformed_packet_is_no_traceback_and_shows_no_data() -> None:
    """D4"""
    with capture_logs() as logs:
        async with member() as (_, client, _call_id):
            await client.say('42["test:echo",{"text":"secret\\u12"}]')
            await client.closed(1)
    assert [line["reason"] for line in logs if line["event"] == "packet_malformed"] == ["not a packet"]
    assert "secret" not in repr(logs) and "exc_info" not in repr(logs)


async def test_nesting_is_limited() -> None:
    """D4"""
    async with node() as edge, raw(edge.socket_url, token="good:a") as client:
        fine = "[" * 30 + "]" * 30
        await client.say(f'421["test:any",{{"data":{fine}}}]')
        assert (await client.ack(1))["ok"]
        for deep in (33, 30_000):
            async with raw(edge.socket_url, token="good:b") as other:
                await other.say('422["test:any",{"data":' + "[" * deep + "]" * deep + "}]")
                assert await other.closed(1) == 1002


@pytest.mark.parametrize("say", ['42["test:echo",{}]', "43[]", '451-["x",{"_placeholder":true,"num":0}]'])
async def test_nothing_but_connect_is_heard_before_connect(say: str) -> None:
    """D4"""
    async with node() as edge, raw(edge.socket_url) as client:
        await client.say(say)
        assert await client.closed(1) == 1002
        await until(lambda: not edge.edge.server.eio.sockets)


async def test_connecting_twice_closes() -> None:
    """D4"""
    async with member() as (edge, client, _):
        await client.say('40{"token":"good:b"}')
        assert await client.closed(1) == 1002
        await cleaned_up(edge)


async def test_library_keeps_the_session_of_a_socket_that_sent_nonsense() -> None:
    """D4"""
    async with library(ping_interval=3, ping_timeout=2) as lib, raw(lib.socket_url) as client:
        await lib.connect(client)
        await client.say('42["join","r"]')
        await client.say("zzz")
        await asyncio.sleep(1.5)
        assert len(list(lib.sio.manager.get_participants("/", "r"))) == 1


# D5: never authenticated


async def test_a_socket_that_never_connects_is_closed() -> None:
    """D5"""
    assert EdgeOptions().auth_s == 5
    async with node(EdgeOptions(auth_s=0.3, ping_ticks=3, pong_ticks=1, tick_s=0.05)) as edge:
        async with raw(edge.socket_url) as client:
            assert await client.closed(1) == 1008
            assert client.pings > 0
        # A token check that hangs holds nothing open either.
        async with raw(edge.socket_url) as client:
            await client.say('40{"token":"hang"}')
            assert await client.closed(1) == 1008
        await until(lambda: not edge.edge.server.eio.sockets)
        async with raw(edge.socket_url, token="good:a") as client:
            await client.silence(0.5)


async def test_library_leaves_an_unauthenticated_socket_open() -> None:
    """D5"""
    async with library(ping_interval=0.2, ping_timeout=0.2) as lib, raw(lib.socket_url) as client:
        with pytest.raises(TimeoutError):
            await client.hear(1.0)
        assert client.pings >= 3


# D6: a reader that does not read


async def test_a_reader_that_does_not_read_is_cut_off_with_bounded_memory() -> None:
    """D6"""
    cut_before = SLOW._value.get()
    async with member() as (edge, client, call_id):
        session = next(iter(edge.edge.sessions()))
        transport = _deaf(client)
        most = 0
        room = session.joined.copy().popitem()[0]
        for number in range(600):
            edge.edge.deliver_room(room, number + 1, "e1", "test:posted", b'{"text":"%b"}' % BIG, None)
            await asyncio.sleep(0)
            most = max(most, session.socket._wire.get_write_buffer_size())
            if not session.socket.open:
                break
        assert not session.socket.open and most <= (1 << 20) + 2 * len(BIG)
        assert SLOW._value.get() == cut_before + 1
        transport.abort()
        await cleaned_up(edge)
        # It may come back and resume.
        async with raw(edge.socket_url, token="good:a") as again:
            assert (await again.command("room:join", {"call_id": call_id}))["ok"]


async def test_many_small_frames_count_too() -> None:
    """D6"""
    async with member(EdgeOptions(queued_bytes=1 << 30)) as (edge, client, _):
        session = next(iter(edge.edge.sessions()))
        transport = _deaf(client)
        for _ in range(3000):
            session.send("test:typed", {"text": "x" * 20_000})
            await asyncio.sleep(0)
            if not session.socket.open:
                break
        assert not session.socket.open
        transport.abort()
        await cleaned_up(edge)


async def test_library_queues_without_end_for_a_reader_that_does_not_read() -> None:
    """D6"""
    async with library() as lib, raw(lib.socket_url) as client:
        await lib.connect(client)
        transport = _deaf(client)
        for _ in range(300):
            await lib.sio.emit("blob", BIG.decode())
            await asyncio.sleep(0)
        queue = next(iter(lib.sio.eio.sockets.values())).queue
        assert sum(len(packet.data) for packet in queue._queue) > 10_000_000
        transport.abort()


# D7: a flood of events


async def test_a_flood_runs_one_command_at_a_time_is_refused_and_closed() -> None:
    """D7"""
    async with member() as (edge, client, _):
        before = len(asyncio.all_tasks())
        for number in range(450):
            await client.say(f'42{number}["test:nap",{{"seconds":0}}]')
        outcomes: list[str] = []
        with pytest.raises(Closed) as end:
            while True:
                text = await client.hear()
                if text.startswith("43"):
                    outcomes.append("limited" if "rate_limited" in text else "ok" if '"ok":true' in text else text)
                elif "session:closing" in text:
                    assert '"reconnect":true' in text and '"retry_after_ms"' in text
                assert len(asyncio.all_tasks()) <= before + 2
        assert end.value.code == 1012
        assert edge.hub.most_running == 1
        assert outcomes.count("ok") in range(99, 130) and outcomes.count("limited") == 300
        assert set(outcomes) == {"ok", "limited"}
        await cleaned_up(edge)


async def test_library_starts_a_task_for_every_event() -> None:
    """D7"""
    async with library() as lib, raw(lib.socket_url) as client:
        await lib.connect(client)
        before = len(asyncio.all_tasks())
        for _ in range(500):
            await client.say('42["slow",3]')
        await until(lambda: lib.handled.count("slow") == 500)
        assert len(asyncio.all_tasks()) >= before + 500


# D8: the order of one sender


async def test_the_next_command_begins_while_the_log_answers_the_last_event_of_one() -> None:
    """D8"""
    async with member() as (edge, client, call_id):
        answers = edge.hub.bus.answers = asyncio.Event()
        for number in range(3):
            await client.say(f'421{number}["test:post",{{"call_id":"{call_id}","text":"{number}","last":true}}]')
        assert (await client.command("test:echo", {"text": "behind"}))["ok"]
        assert [(await client.event())[1]["text"] for _ in range(3)] == ["0", "1", "2"]
        answers.set()
        for number in range(3):
            assert (await client.ack(10 + number))["ok"]


async def test_only_so_many_commands_wait_for_the_log_at_a_time() -> None:
    async with member() as (edge, client, call_id):
        answers = edge.hub.bus.answers = asyncio.Event()
        socket = next(iter(edge.edge.sessions())).socket
        # Fewer than the connection may say in a second.
        for _ in range(80):
            await client.say(f'42["test:post",{{"call_id":"{call_id}","text":"x","last":true}}]')
        await until(lambda: socket.busy)
        assert socket.telling == 64
        await client.say(f'429["test:post",{{"call_id":"{call_id}","text":"behind"}}]')
        answers.set()
        assert (await client.ack(9))["ok"]
        assert [(await client.event())[1]["text"] for _ in range(81)] == ["x"] * 80 + ["behind"]
        await until(lambda: socket.telling == 0)


async def test_who_is_gone_while_the_log_answers_leaves_nothing() -> None:
    async with member() as (edge, client, call_id):
        answers = edge.hub.bus.answers = asyncio.Event()
        socket = next(iter(edge.edge.sessions())).socket
        await client.say(f'421["test:post",{{"call_id":"{call_id}","text":"x","last":true}}]')
        await until(lambda: socket.telling == 1)
        socket.abort()
        answers.set()
        await until(lambda: socket.telling == 0)
        await cleaned_up(edge)


async def test_one_senders_events_keep_their_order() -> None:
    """D8"""
    async with member() as (edge, listener, call_id):
        async with raw(edge.socket_url, token="good:b") as sender:
            for number in range(90):
                pause = 0.003 if number % 3 == 0 else 0
                await sender.say(f'42["test:nap",{{"seconds":{pause}}}]' if number % 2 else "3")
                await sender.say(f'42["test:post",{{"call_id":"{call_id}","text":"{number}"}}]')
                await asyncio.sleep(0.025 if number > 40 else 0)
            heard = [(await listener.event())[1] for _ in range(90)]
        assert [int(payload["text"]) for payload in heard] == list(range(90))
        assert [payload["offset"] for payload in heard] == list(range(1, 91))


async def test_library_lets_one_senders_events_overtake_each_other() -> None:
    """D8"""
    async with library() as lib, raw(lib.socket_url) as client:
        await lib.connect(client)
        for number in range(20):
            await client.say(f'42["slow",{0.05 if number % 2 == 0 else 0}]')
        await until(lambda: len(lib.finished) == 20)
        assert lib.finished != [0.05, 0] * 10


# D15–D17: polling


async def test_polling_is_refused_in_every_form() -> None:
    """D15, D16, D17"""
    async with member() as (edge, client, _):
        victim = client.opening["sid"]
        event = '42["test:echo",{"text":"as the victim"}]'
        before = edge.edge.sessions()
        async with aiohttp.ClientSession() as http:
            for method, query, body in (
                ("GET", "EIO=4&transport=polling", None),
                ("GET", "EIO=4", None),
                ("POST", "EIO=4&transport=polling", event),
                ("POST", f"EIO=4&transport=polling&sid={victim}", event),
                ("POST", f"EIO=4&transport=websocket&sid={victim}", event),
                ("GET", f"EIO=4&transport=websocket&sid={victim}", None),
                ("GET", f"EIO=4&transport=polling&sid={victim}&j=1", None),
                ("OPTIONS", "EIO=4&transport=polling", None),
                ("POST", f"EIO=4&transport=polling&sid={victim}", "x" * 800_000),
            ):
                async with http.request(method, f"{edge.url}/socket.io/?{query}", data=body) as answer:
                    assert answer.status == 400, (method, query)
                    assert (await answer.json())["code"] == "bad_request"
        assert list(before) == list(edge.edge.sessions())
        await client.silence(0.05)
        assert (await client.command("test:echo", {"text": "still"}))["ok"]


async def test_the_sid_of_a_request_does_not_reach_the_log_as_a_line_of_its_own() -> None:
    """D17"""
    with capture_logs() as logs:
        async with node() as edge, aiohttp.ClientSession() as http:
            query = "EIO=4&transport=polling&sid=x%0aFAKE"
            async with http.get(f"{edge.url}/socket.io/?{query}") as answer:
                assert answer.status == 400 and "FAKE" not in await answer.text()
    assert "FAKE" not in repr(logs)


async def test_library_loses_a_post_that_comes_in_two_pieces_behind_a_200() -> None:
    """D15"""
    async with library() as lib, aiohttp.ClientSession() as http:
        base = f"{lib.url}/socket.io/?EIO=4&transport=polling"
        async with http.get(base) as answer:
            sid = (await answer.text()).split('"')[3]
        async with http.post(f"{base}&sid={sid}", data="40") as answer:
            assert answer.status == 200
        body = b'42["note","' + b"x" * 4000 + b'"]'
        reader, writer = await asyncio.open_connection("127.0.0.1", lib.port)
        head = f"POST /socket.io/?EIO=4&transport=polling&sid={sid} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}"
        writer.write(head.encode() + b"\r\n\r\n" + body[:2000])
        await writer.drain()
        await asyncio.sleep(0.2)
        writer.write(body[2000:])
        assert b"200" in await reader.readline()
        writer.close()
        await asyncio.sleep(0.1)
        assert "note" not in lib.handled


async def test_library_lets_a_polling_request_ride_a_websocket_session() -> None:
    """D17"""
    async with library() as lib, aiohttp.ClientSession() as http:
        base = f"{lib.url}/socket.io/?EIO=4&transport=polling"
        async with http.get(base) as answer:
            sid = (await answer.text()).split('"')[3]
        async with http.post(f"{base}&sid={sid}", data="40") as answer:
            assert answer.status == 200
        # Another client, another address for all the library knows: the session id is all it takes.
        async with (
            aiohttp.ClientSession() as thief,
            thief.post(f"{base}&sid={sid}", data='42["note","as the victim"]') as answer,
        ):
            assert answer.status == 200
        await until(lambda: "note" in lib.handled)
        assert lib.remote_addresses == {"127.0.0.1"}


# Compression


async def test_compression_is_never_negotiated() -> None:
    headers = {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"}
    async with node() as edge, aiohttp.ClientSession() as http:
        async with http.ws_connect(edge.socket_url, headers=headers) as websocket:
            assert "Sec-WebSocket-Extensions" not in websocket._response.headers
            assert not websocket.compress


async def test_library_negotiates_compression() -> None:
    async with library() as lib, aiohttp.ClientSession() as http:
        async with http.ws_connect(lib.socket_url, compress=15) as websocket:
            assert websocket.compress


# SIGTERM and `disconnect`: tests/transport/test_socketio.py (drain), tests/e2e (stock clients)


async def test_mass_disconnect_costs_by_the_client_not_by_all_rooms() -> None:
    """The library's manager looks through all rooms for each client that leaves."""
    from hub.transport.socketio.server import Server

    server = Server()
    ours = server.manager
    clients = [f"client{number}" for number in range(5000)]
    for number, client in enumerate(clients):
        ours.connect(f"eio{number}", "/", client)
    assert all(ours.is_connected(client, "/") for client in clients)
    loop = asyncio.get_running_loop()
    started = loop.time()
    for number in range(5000):
        ours.drop(f"eio{number}")
    assert loop.time() - started < 0.5
    assert not any(ours.is_connected(client, "/") for client in clients)


def _only(edge: Node) -> Socket:
    (socket,) = edge.edge.server.eio.sockets.values()
    return socket


def _deaf(client: Raw) -> Any:
    """Stop reading from the network. The transport, to be aborted: saying goodbye would take its time."""
    connection = client.websocket._response.connection
    assert connection is not None and connection.transport is not None
    transport: Any = connection.transport
    transport.pause_reading()
    return transport
