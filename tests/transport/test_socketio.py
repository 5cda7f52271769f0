"""The socket edge by raw frames: connecting, commands and acks, rooms, what the server sends by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import aiohttp
import msgpack
import msgspec
import pytest
import pytest_asyncio

from hub.context import Position, RosterEntry
from hub.transport.socketio import EdgeOptions
from hub.transport.socketio.session import Session
from tests.fakes.sockets import TENANT, Closed, FakeHub, Node, Raw, connect, node, raw, until


@pytest_asyncio.fixture
async def edge() -> AsyncIterator[Node]:
    async with node() as running:
        yield running


async def test_session_ready_is_the_first_event_after_connect(edge: Node) -> None:
    async with raw(edge.socket_url, token="good:ada") as client:
        assert client.opening["upgrades"] == []
        assert client.opening["pingInterval"] == 15000 and client.opening["pingTimeout"] == 8000
        ready = client.ready
        assert ready["user"] == {"id": "ada", "role": "authenticated", "display_name": "Ada"}
        assert ready["protocol"] == "1" and ready["server"]["node_id"] == "node-1"
        assert ready["recovery"] == {"window_s": 120, "user": {"epoch": "e1", "offset": 0}}
        assert ready["limits"]["event_bytes"] == 65536
        assert ready["server_time"].endswith("Z") and ready["token_expires_at"].endswith("Z")
        assert edge.edge.session(ready["session_id"]) is not None


@pytest.mark.parametrize(
    ("auth", "code", "retryable"),
    [
        ("{}", "token_missing", False),
        ("", "token_missing", False),
        ('{"token":"bad"}', "token_invalid", False),
        ('{"token":"expired"}', "token_expired", False),
        ('{"token":"good:a","protocol":"2"}', "protocol_unsupported", False),
        ('{"token":"good:a","device_id":"a b"}', "protocol_unsupported", False),
        ('{"token":["good:a"]}', "protocol_unsupported", False),
    ],
)
async def test_a_refused_connect_says_why(edge: Node, auth: str, code: str, retryable: bool) -> None:
    async with raw(edge.socket_url) as client:
        await client.say("40" + auth)
        answer = await client.hear()
        assert answer.startswith("44")
        assert msgspec.json.decode(answer[2:])["data"] == {"code": code, "retryable": retryable}


async def test_other_namespaces_are_forbidden_and_answered_in_their_own_name(edge: Node) -> None:
    async with raw(edge.socket_url) as client:
        await client.say('40/admin,{"token":"good:a"}')
        answer = await client.hear()
        assert answer.startswith("44/admin,")
        assert msgspec.json.decode(answer[9:])["data"]["code"] == "namespace_forbidden"
        await connect(client, "good:a")
        await client.say('42/admin,["test:echo",{}]')
        assert await client.closed() == 1002


async def test_a_second_attempt_after_a_refusal_may_succeed(edge: Node) -> None:
    async with raw(edge.socket_url) as client:
        await client.say('40{"token":"bad"}')
        assert (await client.hear()).startswith("44")
        await connect(client, "good:ada")


async def test_polling_is_refused_with_a_clear_400(edge: Node) -> None:
    async with aiohttp.ClientSession() as http:
        async with http.get(f"{edge.url}/socket.io/?EIO=4&transport=polling") as answer:
            assert answer.status == 400 and answer.content_type == "application/problem+json"
            body = await answer.json()
            assert body["code"] == "bad_request" and "websocket" in body["message"]
        async with http.post(f"{edge.url}/socket.io/?EIO=4&transport=polling&sid=x", data="4") as answer:
            assert answer.status == 400


@pytest.mark.parametrize("query", ["EIO=3&transport=websocket", "EIO=4&transport=websocket&token=good:a"])
async def test_a_wrong_handshake_is_refused_before_the_upgrade(edge: Node, query: str) -> None:
    async with aiohttp.ClientSession() as http:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await http.ws_connect(f"{edge.url}/socket.io/?{query}")
        assert refused.value.status == 400


async def test_origins_are_held_against_the_list() -> None:
    async with node(EdgeOptions(origins=frozenset({"https://app.example"}))) as edge:
        async with raw(edge.socket_url, token="good:a", headers={"Origin": "https://app.example"}):
            pass
        async with raw(edge.socket_url, token="good:a"):
            pass
        async with aiohttp.ClientSession() as http:
            for origin in ("https://evil.example", "null", "http://app.example", "https://app.example.evil.example"):
                headers = {"Origin": origin, "X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https"}
                with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                    await http.ws_connect(edge.socket_url, headers=headers)
                assert refused.value.status == 403


async def test_connections_are_limited_per_node_address_and_user() -> None:
    options = EdgeOptions(max_connections=3, max_connections_per_address=2, max_connections_per_user=1)
    trusted = msgspec.structs.replace(options, trusted_proxies=("127.0.0.0/8",))
    async with node(trusted) as edge, raw(edge.socket_url, token="good:a", headers={"X-Forwarded-For": "10.0.0.1"}):
        async with raw(edge.socket_url, headers={"X-Forwarded-For": "10.0.0.1"}) as client:
            await client.say('40{"token":"good:a"}')
            refusal = msgspec.json.decode((await client.hear())[2:])["data"]
            assert refusal["code"] == "too_many_connections" and refusal["retry_after_ms"] > 0
            async with aiohttp.ClientSession() as http:
                with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                    await http.ws_connect(edge.socket_url, headers={"X-Forwarded-For": "10.0.0.1"})
                assert refused.value.status == 429
                async with raw(edge.socket_url, headers={"X-Forwarded-For": "10.9.9.9, 10.0.0.2"}):
                    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                        await http.ws_connect(edge.socket_url, headers={"X-Forwarded-For": "10.0.0.3"})
                    assert refused.value.status == 503 and refused.value.headers is not None
                    assert int(refused.value.headers["Retry-After"]) > 0
        await until(lambda: edge.edge._admission._connections == 1)


async def test_bad_tokens_from_one_address_are_slowed_down() -> None:
    async with node(EdgeOptions(bad_tokens_burst=3)) as edge, raw(edge.socket_url) as client:
        codes = []
        for _ in range(5):
            await client.say('40{"token":"bad"}')
            codes.append(msgspec.json.decode((await client.hear())[2:])["data"]["code"])
        assert codes == ["token_invalid"] * 3 + ["rate_limited"] * 2


async def test_every_event_is_acked(edge: Node) -> None:
    async with raw(edge.socket_url, token="good:a") as client:
        assert await client.command("test:echo", {"text": "hi"}) == {"ok": True, "data": {"text": "hi"}}
        unknown = await client.command("no:such", {})
        assert unknown["error"]["code"] == "unknown_event" and unknown["error"]["retryable"] is False
        assert (await client.command("test:crash"))["error"]["code"] == "internal"
        assert (await client.command("test:unencodable"))["error"]["code"] == "internal"
        for payload in ('["test:echo"]', '["test:echo",1]', '["test:echo",null]', '["test:echo",{"text":"a"},2]'):
            await client.say(f"4277{payload}")
            assert (await client.ack(77))["error"]["code"] == "validation_failed"
        wrong = await client.command("test:echo", {"text": 5})
        assert wrong["error"]["errors"][0]["path"] == "text" and wrong["error"]["request_id"]


async def test_half_a_character_is_refused_by_its_place(edge: Node) -> None:
    """JSON can write what is no text: the socket lives."""
    deep = "[" * 20 + "]" * 20 + ',{"a":[' + "[]," * 20 + '"\\udc00x"]}'
    async with raw(edge.socket_url, token="good:a") as client:
        for name, payload, path in (
            ("test:echo", r'{"text":"\ud800"}', "text"),
            ("test:any", r'{"data":["a","\ud800\u0041"]}', "data[1]"),
            ("test:any", f'{{"data":[{deep}]}}', "data[1].a[20]"),
            ("test:any", r'{"\udfff":1}', ""),
        ):
            await client.say(f'4277["{name}",{payload}]')
            error = (await client.ack(77))["error"]
            assert (error["code"], error["errors"][0]["path"]) == ("validation_failed", path)
        await client.say(r'4278["no:such",{"text":"\ud800"}]')
        assert (await client.ack(78))["error"]["code"] == "unknown_event"
        for number in ("9" * 5000, "1e999"):
            await client.say(f'4279["test:any",{{"data":{number}}}]')
            assert (await client.ack(79))["error"]["code"] == "validation_failed"


async def test_events_without_an_ack_id_get_none_and_unasked_acks_are_ignored(edge: Node) -> None:
    async with raw(edge.socket_url, token="good:a") as client:
        await client.say('42["test:echo",{"text":"hi"}]')
        await client.say('435[{"unasked":true}]')
        assert (await client.command("test:echo", {"text": "next"}))["data"] == {"text": "next"}


async def test_an_event_over_64_kib_is_answered_and_one_far_over_it_closes(edge: Node) -> None:
    async with raw(edge.socket_url, token="good:a") as client:
        answer = await client.command("test:echo", {"text": "x" * 70_000})
        assert answer["error"]["code"] == "payload_too_large"
        await client.say('421["test:echo",{"text":"' + "x" * 300_000 + '"}]')
        assert await client.closed() == 1009


async def test_commands_of_a_connection_run_in_order_one_at_a_time(edge: Node) -> None:
    async with raw(edge.socket_url, token="good:a") as client:
        for number in range(10):
            await client.say(f'42{number}["test:nap",{{"seconds":0.0{number % 3}}}]')
        heard = [int((await client.hear())[2:].partition("[")[0]) for _ in range(10)]
        assert heard == list(range(10)) and edge.hub.most_running == 1


async def test_whoever_asked_is_answered_in_time_while_what_was_decided_is_told(edge: Node) -> None:
    """S-184: with one answer; and who was told that it failed is not in, until they ask again."""
    call_id = str(uuid4())
    async with raw(edge.socket_url, token="good:ada") as client, raw(edge.socket_url, token="good:ben") as other:
        await other.command("room:join", {"call_id": call_id})
        answer = await client.command("test:decide", {"call_id": call_id, "seconds": 0.5})
        assert answer["error"]["code"] == "timeout" and answer["error"]["retryable"]
        assert not edge.hub.bus.logs
        assert (await other.event())[1]["text"] == "decided"
        assert await client.command("test:echo", {"text": "next"}) == {"ok": True, "data": {"text": "next"}}
        await until(lambda: len(edge.hub.roster.entries) == 1)
        await client.command("room:join", {"call_id": call_id})
        await other.command("test:post", {"call_id": call_id, "text": "more"})
        assert (await client.event())[1]["text"] == "more"


async def test_members_hear_a_room_in_offset_order_and_leavers_do_not(edge: Node) -> None:
    call_id = str(uuid4())
    async with raw(edge.socket_url, token="good:a") as one, raw(edge.socket_url, token="good:b") as two:
        for client in (one, two):
            assert (await client.command("room:join", {"call_id": call_id}))["ok"]
        await one.command("test:post", {"call_id": call_id, "text": "hi", "times": 20})
        for client in (one, two):
            heard = [await client.event() for _ in range(20)]
            assert [payload["offset"] for _, payload in heard] == list(range(1, 21))
            assert heard[0][1] == {
                "call_id": call_id, "epoch": "e1", "offset": 1, "text": "hi 0",
                "by": {"participant_id": None, "user_id": "a"},
            }  # fmt: skip
        assert (await two.command("room:leave", {"call_id": call_id}))["ok"]
        await one.command("test:post", {"call_id": call_id, "text": "again", "recorded": False})
        name, payload = await one.event()
        assert name == "test:typed" and "offset" not in payload
        await two.silence()


async def test_events_wait_for_the_ack_of_the_join_and_come_once(edge: Node) -> None:
    call_id = str(uuid4())
    async with raw(edge.socket_url, token="good:a") as client:
        await client.say(f'427["room:join",{{"call_id":"{call_id}","meanwhile":3}}]')
        assert (await client.hear()).startswith("437[")
        heard = [await client.event() for _ in range(3)]
        # The ack told the room as of offset 3.
        assert [(payload["offset"], payload["text"]) for _, payload in heard] == [
            (4, "after 0"), (5, "after 1"), (6, "after 2"),
        ]  # fmt: skip
        await client.command("test:post", {"call_id": call_id, "text": "later"})
        assert (await client.event())[1]["offset"] == 7
        await client.silence()


async def test_a_join_that_is_refused_leaves_nothing_behind(edge: Node) -> None:
    call_id = uuid4()
    async with raw(edge.socket_url, token="good:a") as client:
        refused = await client.command("room:join", {"call_id": str(call_id), "fail": True, "meanwhile": 1})
        assert refused["error"]["code"] == "room_full"
        await client.silence()
        await until(lambda: not edge.hub.roster.entries)
        assert call_id not in edge.hub.bus.rooms and not len(edge.edge.attendance)


async def test_a_second_join_that_is_refused_leaves_the_session_in_the_room(edge: Node) -> None:
    call_id = str(uuid4())
    async with raw(edge.socket_url, token="good:a") as client:
        assert (await client.command("room:join", {"call_id": call_id}))["ok"]
        refused = await client.command("room:join", {"call_id": call_id, "fail": True, "meanwhile": 1})
        assert refused["error"]["code"] == "room_full"
        await client.command("test:post", {"call_id": call_id, "text": "still here"})
        assert [(await client.event())[1]["text"] for _ in range(2)] == ["after 0", "still here"]


async def test_a_join_without_the_cluster_is_refused(edge: Node) -> None:
    async with raw(edge.socket_url, token="good:a") as client:
        edge.hub.bus.down = True
        refused = await client.command("room:join", {"call_id": str(uuid4())})
        assert refused["error"]["code"] == "cluster_unavailable" and not len(edge.edge.attendance)
        assert (await client.command("test:echo", {"text": "still"}))["ok"]


async def test_a_lost_socket_is_interrupted_and_retried_while_the_roster_is_down(edge: Node) -> None:
    call_id = uuid4()
    async with raw(edge.socket_url, token="good:a") as client:
        await client.command("room:join", {"call_id": str(call_id)})
        edge.hub.roster.down = True
    await until(lambda: not edge.edge._sessions)
    assert call_id not in edge.hub.bus.rooms
    edge.hub.roster.down = False
    await until(lambda: list(edge.hub.roster.entries.values()) == ["interrupted"])


async def test_a_farewell_that_had_to_wait_does_not_put_out_whoever_is_in_again(edge: Node) -> None:
    """A join fails while the roster is down, and its farewell too; the next join comes before that is tried again."""
    call_id = uuid4()
    async with raw(edge.socket_url, token="good:a") as client:
        edge.hub.roster.down = True
        refused = await client.command("room:join", {"call_id": str(call_id)})
        assert refused["error"]["code"] == "cluster_unavailable"
        await asyncio.sleep(0.1)
        edge.hub.roster.down = False
        assert (await client.command("room:join", {"call_id": str(call_id)}))["ok"]
        await until(lambda: edge.edge._chores.idle)
        assert list(edge.hub.roster.entries.values()) == ["live"]


async def test_a_room_is_subscribed_while_somebody_is_in_it(edge: Node) -> None:
    call_id = uuid4()
    async with raw(edge.socket_url, token="good:a") as one:
        await one.command("room:join", {"call_id": str(call_id)})
        async with raw(edge.socket_url, token="good:b") as two:
            await two.command("room:join", {"call_id": str(call_id)})
        await until(lambda: len(edge.edge._sessions) == 1)
        assert call_id in edge.hub.bus.rooms
        await one.command("room:leave", {"call_id": str(call_id)})
        assert call_id not in edge.hub.bus.rooms


async def test_a_users_sessions_hear_what_is_for_them(edge: Node) -> None:
    async with raw(edge.socket_url, token="good:a") as one, raw(edge.socket_url, token="good:a") as two:
        await until(lambda: bool(edge.hub.bus.users))
        await edge.hub.bus.to_user(TENANT, "a", "invite:received", {"invite_id": "1"})
        for client in (one, two):
            assert await client.event() == ("invite:received", {"epoch": "e1", "offset": 1, "invite_id": "1"})


async def test_who_says_up_to_where_they_heard_gets_the_rest_right_after_session_ready(edge: Node) -> None:
    async def invite(*numbers: int) -> None:
        for number in numbers:
            await edge.hub.bus.to_user(TENANT, "a", "invite:received", {"n": number})

    async with raw(edge.socket_url, token="good:a") as client:
        await invite(1)
        assert (await client.event())[1]["offset"] == 1
    await invite(2, 3)
    for _ in range(2):
        async with raw(edge.socket_url, token="good:a", user_since="e1:1") as again:
            assert again.ready["recovery"]["recovered"] is True
            assert [(await again.event())[1]["n"] for _ in range(2)] == [2, 3]
            await again.silence()
    async with raw(edge.socket_url, token="good:a", user_since="e0:1") as late:
        assert late.ready["recovery"] == {"window_s": 120, "user": {"epoch": "e1", "offset": 3}, "recovered": False}
        await late.silence()
        edge.edge.resynced_user(TENANT, "a")
        assert await late.event() == ("session:resynced", {"position": {"epoch": "e1", "offset": 3}})
    async with raw(edge.socket_url.replace("transport", "parser=msgpack&transport")) as client:
        assert client.opening
    async with raw(edge.socket_url) as client:
        await client.say('40{"token":"good:a","protocol":"1","user_since":"3"}')
        assert '"code":"protocol_unsupported"' in await client.hear()


async def test_the_subscription_of_a_user_is_made_up_for_when_the_cluster_is_back(edge: Node) -> None:
    edge.hub.bus.down = True
    async with raw(edge.socket_url, token="good:a"):
        await asyncio.sleep(0.05)
        assert not edge.hub.bus.users
        edge.hub.bus.down = False
        await until(lambda: bool(edge.hub.bus.users))


async def test_an_evicted_session_is_told_and_hears_no_more(edge: Node) -> None:
    call_id = uuid4()
    async with raw(edge.socket_url, token="good:a") as client:
        await client.command("room:join", {"call_id": str(call_id)})
        session_id = client.ready["session_id"]
        await edge.hub.bus.control(
            "node-1",
            {
                "kind": "evict", "session_id": session_id, "call_id": str(call_id),
                "event": "room:left", "data": {"reason": "kicked", "message": ""},
            },
        )  # fmt: skip
        assert await client.event() == ("room:left", {"call_id": str(call_id), "reason": "kicked", "message": ""})
        await edge.hub.bus.to_room(call_id, "test:posted", {"text": "x"})
        await client.silence()
        await until(lambda: not edge.hub.roster.entries)


async def test_who_hears_that_a_call_has_ended_is_out(edge: Node) -> None:
    call_id = uuid4()
    async with raw(edge.socket_url, token="good:a") as client:
        await client.command("room:join", {"call_id": str(call_id)})
        await edge.hub.bus.to_room(call_id, "test:posted", {"text": "x"})
        await edge.hub.bus.to_room(call_id, "room:ended", {"reason": "ended_by_host"})
        assert [(await client.event())[0] for _ in range(2)] == ["test:posted", "room:ended"]
        await until(lambda: not edge.hub.roster.entries)
        await edge.hub.bus.to_room(call_id, "test:posted", {"text": "y"})
        await client.silence()


async def test_who_comes_in_as_a_call_ends_is_out_as_well(edge: Node) -> None:
    call_id = uuid4()
    position = edge.hub.bus.position

    async def position_and_end(call_id: UUID) -> Position:
        at = await position(call_id)
        await edge.hub.bus.to_room(call_id, "room:ended", {"reason": "ended_by_host"})
        return at

    edge.hub.bus.position = position_and_end  # type: ignore[method-assign]
    async with raw(edge.socket_url, token="good:a") as client:
        assert (await client.command("room:join", {"call_id": str(call_id), "meanwhile": 1}))["ok"]
        assert [(await client.event())[0] for _ in range(2)] == ["room:ended", "test:posted"]
        await until(lambda: not edge.hub.roster.entries)
        await edge.hub.bus.to_room(call_id, "test:posted", {"text": "y"})
        await client.silence()


@pytest.mark.parametrize(("reconnect", "code"), [(True, 1012), (False, 1000)])
async def test_a_closed_session_is_told_whether_to_come_back(edge: Node, reconnect: bool, code: int) -> None:
    async with raw(edge.socket_url, token="good:a") as client:
        message = {"kind": "close", "session_id": client.ready["session_id"], "code": "closed", "message": "bye"}
        await edge.hub.bus.control("node-1", {**message, "reconnect": reconnect})
        assert await client.event() == ("session:closing", {"code": "closed", "message": "bye", "reconnect": reconnect})
        if not reconnect:
            assert await client.hear() == "41"
        with pytest.raises(Closed) as end:
            await client.hear()
        assert end.value.code == code


async def test_a_token_that_ends_is_announced_and_then_closes() -> None:
    async with node(EdgeOptions(expiring_s=0.2)) as edge, raw(edge.socket_url, token="good:a:0.4") as client:
        assert (await client.event())[0] == "session:expiring"
        assert (await client.event())[1]["code"] == "token_expired"
        assert await client.hear() == "41"
        assert await client.closed() == 1000


async def test_a_refreshed_session_goes_on() -> None:
    async with node(EdgeOptions(expiring_s=0.2)) as edge, raw(edge.socket_url, token="good:a:0.5") as client:
        assert (await client.event())[0] == "session:expiring"
        assert (await client.command("session:refresh", {"text": "good:a:60"}))["ok"]
        await client.silence(0.6)
        assert (await client.command("test:echo", {"text": "still"}))["ok"]


async def test_a_draining_node_sends_everybody_away_and_takes_nobody() -> None:
    async with node(EdgeOptions(drain_s=1)) as edge:
        call_id = uuid4()
        async with raw(edge.socket_url, token="good:a") as one, raw(edge.socket_url, token="good:b") as two:
            await one.command("room:join", {"call_id": str(call_id)})
            draining = asyncio.create_task(edge.edge.drain())
            for client in (one, two):
                name, payload = await client.event()
                assert name == "server:draining" and 0 <= payload["reconnect_after_ms"] <= 3000
                name, payload = await client.event()
                assert name == "session:closing" and payload["reconnect"] is True
                assert await client.closed() == 1012
            async with aiohttp.ClientSession() as http:
                with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                    await http.ws_connect(edge.socket_url)
                assert refused.value.status == 503
                assert refused.value.headers is not None and "Retry-After" in refused.value.headers
            await asyncio.wait_for(draining, 3)
        await asyncio.sleep(0.05)
        assert edge.hub.roster.calls == [("enter", call_id)]


async def test_heartbeat_keeps_the_living_and_drops_the_dead() -> None:
    options = EdgeOptions(ping_ticks=5, pong_ticks=3, tick_s=0.05, hangup_s=0.1)
    async with node(options) as edge, raw(edge.socket_url, token="good:a") as living:
        async with raw(edge.socket_url, token="good:b") as dead:
            dead.answers_pings = False
            await asyncio.gather(dead.closed(2), living.silence(1.0))
        assert living.pings >= 2
        assert (await living.command("test:echo", {"text": "still"}))["ok"]


async def test_a_long_command_does_not_look_like_a_dead_client() -> None:
    options = EdgeOptions(ping_ticks=4, pong_ticks=2, tick_s=0.05)
    async with node(options) as edge, raw(edge.socket_url, token="good:a") as client:
        assert (await client.command("test:nap", {"seconds": 0.8}))["ok"]


async def test_pings_of_websocket_itself_are_answered(edge: Node) -> None:
    async with raw(edge.socket_url, token="good:a") as client:
        await client.websocket.ping(b"hello")
        # aiohttp's client swallows the pong; that the connection lives on is what there is to see.
        assert (await client.command("test:echo", {"text": "still"}))["ok"]


async def test_a_command_survives_its_client(edge: Node) -> None:
    async with raw(edge.socket_url, token="good:a") as client:
        await client.say('42["test:nap",{"seconds":0.3}]')
        await until(lambda: edge.hub.running == 1)
        client.websocket._response.connection.transport.abort()  # type: ignore[union-attr]
    await asyncio.sleep(0.1)
    assert edge.hub.running == 1
    await until(lambda: edge.hub.running == 0)


async def test_huge_rooms_are_written_in_slices_and_everybody_hears_everything_in_order(edge: Node) -> None:
    """Two serializers, more members than a slice has, bursts, and one who leaves on the way."""
    from hub.transport.socketio.fanout import Rooms

    rooms, call_id = Rooms(), uuid4()
    sessions = [_FakeSession(edge, number) for number in range(700)]
    for session in sessions:
        rooms.enter(call_id, session)  # type: ignore[arg-type]
        rooms.release(call_id, session)  # type: ignore[arg-type]
    for offset in range(1, 4):
        rooms.deliver(call_id, offset, "e", "test:posted", b'{"n":%d}' % offset)
    await asyncio.sleep(0)
    rooms.exit(call_id, sessions[-1])  # type: ignore[arg-type]
    rooms.deliver(call_id, 4, "e", "test:posted", b'{"n":4}', "s5")
    await asyncio.sleep(0.05)
    first = sessions[0].socket.heard
    assert first == sessions[698].socket.heard and len(first) == 2
    assert first[0].count(b"test:posted") == 3 and first[1].count(b'"n":4') == 1
    assert len(sessions[5].socket.heard) == 1
    assert sessions[-1].socket.heard == []


async def test_an_event_that_one_serializer_cannot_write_costs_nobody_the_events_after_it(edge: Node) -> None:
    """msgpack has no word for numbers beyond 64 bits: its clients look for themselves, the others hear all."""
    from hub.transport.socketio.fanout import Rooms

    rooms, call_id, other = Rooms(), uuid4(), uuid4()
    sessions = [_FakeSession(edge, number) for number in range(3)]
    sessions[1].socket.codec = edge.edge._packets.msgpack
    for session, of in zip(sessions, (call_id, call_id, other), strict=True):
        rooms.enter(of, session)  # type: ignore[arg-type]
        rooms.release(of, session)  # type: ignore[arg-type]
    for number in (2**70, 1):
        rooms.deliver(call_id, None, "", "test:posted", b'{"n":%d}' % number)
        rooms.deliver(other, None, "", "test:posted", b'{"n":%d}' % number)
        await asyncio.sleep(0.01)
    plain, packed, elsewhere = (b"".join(session.socket.heard) for session in sessions)
    assert plain == elsewhere and plain.count(b"test:posted") == 2 and str(2**70).encode() in plain
    assert packed.count(b"test:posted") == 1 and packed.count(b"room:resynced") == 1
    assert packed.index(b"room:resynced") < packed.index(b"test:posted") and str(call_id).encode() in packed


async def test_a_turn_that_breaks_in_one_room_goes_on_in_the_others_and_comes_again(edge: Node) -> None:
    from hub.transport.socketio.fanout import Rooms

    rooms, call_id, other = Rooms(), uuid4(), uuid4()
    sessions = [_FakeSession(edge, number) for number in range(2)]
    for session, of in zip(sessions, (call_id, other), strict=True):
        rooms.enter(of, session)  # type: ignore[arg-type]
        rooms.release(of, session)  # type: ignore[arg-type]

    def broken() -> None:
        raise LookupError("a bug")

    for number in (1, 2):
        rooms.deliver(call_id, None, "", "test:posted", b'{"n":%d}' % number)
        rooms.then(call_id, broken)
        rooms.deliver(other, None, "", "test:posted", b'{"n":%d}' % number)
        await asyncio.sleep(0.01)
    for session in sessions:
        assert b"".join(session.socket.heard).count(b"test:posted") == 2


class _FakeSocket:
    def __init__(self, codec: object) -> None:
        self.codec = codec
        self.open = True
        self.heard: list[bytes] = []
        self.session: object = None

    def write(self, data: bytes, count: int = 1) -> None:
        self.heard.append(data)


class _FakeSession:
    def __init__(self, edge: Node, number: int) -> None:
        self.id = f"s{number}"
        self.socket = _FakeSocket(edge.edge._packets.json)
        self.socket.session = self


async def test_seen_by_somebody_already_in_the_room_drops_what_comes_late(edge: Node) -> None:
    from hub.transport.socketio.fanout import Rooms

    rooms, call_id, session = Rooms(), uuid4(), _FakeSession(edge, 1)
    rooms.enter(call_id, session)  # type: ignore[arg-type]
    rooms.release(call_id, session)  # type: ignore[arg-type]
    rooms.seen(call_id, session, Position("e", 2))  # type: ignore[arg-type]
    for offset in (1, 2, 3):
        rooms.deliver(call_id, offset, "e", "test:posted", b"{%d}" % offset)
        await asyncio.sleep(0.01)
    assert [data[-3:] for data in session.socket.heard] == [b"3}]"]


async def test_who_came_after_the_last_recorded_event_is_a_member_like_all_others(edge: Node) -> None:
    """Also where from then on nothing is recorded; but not before what was heard until then has been written."""
    from hub.transport.socketio.fanout import Rooms

    heard = Position("e", 4)
    rooms, call_id, session = Rooms(lambda _: heard), uuid4(), _FakeSession(edge, 1)
    for position, passed in ((Position("e", 5), False), (Position("f", 1), False), (Position("e", 4), True)):
        rooms.enter(call_id, session)  # type: ignore[arg-type]
        rooms.seen(call_id, session, position)  # type: ignore[arg-type]
        rooms.release(call_id, session)  # type: ignore[arg-type]
        assert bool(rooms._rooms[call_id].members) is passed
        rooms.exit(call_id, session)  # type: ignore[arg-type]
    rooms.enter(call_id, session)  # type: ignore[arg-type]
    rooms.seen(call_id, session, heard)  # type: ignore[arg-type]
    rooms.deliver(call_id, 4, "e", "test:posted", b'{"n":4}')
    rooms.release(call_id, session)  # type: ignore[arg-type]
    assert not rooms._rooms[call_id].members
    rooms.deliver(call_id, None, "e", "test:typed", b'{"n":0}')
    await asyncio.sleep(0.01)
    assert rooms._rooms[call_id].members
    assert [data.count(b"test:") for data in session.socket.heard] == [1] and b"typed" in session.socket.heard[0]


async def _say_packed(client: Raw, packet: object) -> None:
    await client.websocket.send_bytes(msgpack.packb(packet))


async def _hear_packed(client: Raw) -> dict[str, object]:
    message = await client.websocket.receive(timeout=5)
    assert message.type is aiohttp.WSMsgType.BINARY, message
    whole: dict[str, object] = msgpack.unpackb(message.data)
    return whole


async def test_msgpack_and_json_clients_share_a_room(edge: Node) -> None:
    call_id = str(uuid4())
    async with raw(edge.socket_url + "&parser=msgpack") as packed, raw(edge.socket_url, token="good:b") as plain:
        await _say_packed(packed, {"type": 0, "data": {"token": "good:a"}, "nsp": "/", "options": {"compress": True}})
        assert (await _hear_packed(packed))["type"] == 0
        ready = await _hear_packed(packed)
        assert ready["data"][0] == "session:ready"  # type: ignore[index]
        assert isinstance(ready["data"][1]["server_time"], str)  # type: ignore[index]
        await _say_packed(packed, {"type": 2, "data": ["room:join", {"call_id": call_id}], "nsp": "/", "id": 0})
        answer = await _hear_packed(packed)
        assert answer["id"] == 0 and answer["data"][0]["ok"] is True  # type: ignore[index]
        await plain.command("room:join", {"call_id": call_id})
        await plain.command("test:post", {"call_id": call_id, "text": "für alle"})
        heard = await _hear_packed(packed)
        assert heard["type"] == 2 and heard["data"] == ["test:posted", (await plain.event())[1]]


async def test_an_answer_that_cannot_be_written_is_internal_and_the_socket_lives(edge: Node) -> None:
    async with raw(edge.socket_url + "&parser=msgpack") as client:
        await _say_packed(client, {"type": 0, "data": {"token": "good:a"}, "nsp": "/"})
        await _hear_packed(client)
        await _hear_packed(client)
        for number in (1, 2):
            await _say_packed(client, {"type": 2, "data": ["test:huge", {}], "nsp": "/", "id": number})
            answer = await _hear_packed(client)
            assert answer["id"] == number and answer["data"][0]["error"]["code"] == "internal"  # type: ignore[index]


async def test_msgpack_extensions_of_stock_clients_are_tolerated(edge: Node) -> None:
    async with raw(edge.socket_url + "&parser=msgpack") as client:
        await _say_packed(client, {"type": 0, "data": {"token": "good:a"}, "nsp": "/"})
        await _hear_packed(client)
        await _hear_packed(client)
        undefined, buffer = msgpack.ExtType(0, b"\0"), msgpack.ExtType(0, b"12345678")
        await _say_packed(client, {"type": 2, "data": ["test:any", {"data": undefined}], "nsp": "/", "id": 1})
        assert (await _hear_packed(client))["data"] == [{"ok": True, "data": {"data": None}}]
        await _say_packed(client, {"type": 2, "data": ["test:bytes", {"data": buffer}], "nsp": "/", "id": 2})
        assert (await _hear_packed(client))["data"] == [{"ok": True, "data": {"size": 8}}]
        for foreign in (buffer, b"raw", msgpack.ExtType(5, b"x"), msgpack.Timestamp(1)):
            await _say_packed(client, {"type": 2, "data": ["test:any", {"data": foreign}], "nsp": "/", "id": 3})
            refused = (await _hear_packed(client))["data"]
            assert refused[0]["error"]["code"] == "validation_failed"  # type: ignore[index]


@pytest.mark.parametrize(
    "packet",
    [
        {"type": 5, "data": ["x"], "nsp": "/"},
        {"type": 2, "data": {"a": 1}, "nsp": "/"},
        {"type": 2, "data": ["test:any", {1: 2}], "nsp": "/"},
        {"type": 2, "data": ["disconnect", {}], "nsp": "/"},
        {"type": True, "data": ["x"], "nsp": "/"},
        {"type": 2, "data": ["x", {}], "nsp": None},
        {"type": 2, "data": ["x", {}], "nsp": "/", "id": -1},
        {"type": 2, "data": ["x", {}], "nsp": "/", "id": "1"},
        {"data": ["x"], "nsp": "/"},
        [2, ["x"]],
        7,
    ],
)
async def test_a_misshapen_msgpack_packet_closes(edge: Node, packet: object) -> None:
    async with raw(edge.socket_url + "&parser=msgpack") as client:
        await _say_packed(client, {"type": 0, "data": {"token": "good:a"}, "nsp": "/"})
        await _hear_packed(client)
        await _say_packed(client, packet)
        assert await client.closed(1) == 1002
        await until(lambda: not edge.edge._sessions)


async def test_the_fake_hub_serves_two_edges_apart() -> None:
    hub = FakeHub()
    async with node(hub=hub) as one, node(EdgeOptions(region="eu")) as two:
        async with raw(one.socket_url, token="good:a") as a, raw(two.socket_url, token="good:a") as b:
            assert a.ready["server"]["region"] == "default" and b.ready["server"]["region"] == "eu"
        assert len(two.edge._sessions) <= 1


async def test_a_socket_lost_while_entering_begins_its_grace(edge: Node) -> None:
    call_id = uuid4()
    arrived, go_on = asyncio.Event(), asyncio.Event()
    enter = edge.hub.roster.enter

    async def slow_enter(call_id: UUID, entry: RosterEntry) -> None:
        arrived.set()
        await go_on.wait()
        await enter(call_id, entry)

    edge.hub.roster.enter = slow_enter  # type: ignore[method-assign]
    async with raw(edge.socket_url, token="good:a") as client:
        await client.say(f'421["room:join",{{"call_id":"{call_id}"}}]')
        await arrived.wait()
        # The reader does not see the end while its command runs; the pinger does.
        next(iter(edge.edge.sessions())).socket.cut_off()
    go_on.set()
    await until(lambda: list(edge.hub.roster.entries.values()) == ["interrupted"])
    assert call_id not in edge.edge.rooms and call_id not in edge.hub.bus.rooms and not len(edge.edge.attendance)


async def test_a_session_put_out_while_entering_stays_out(edge: Node) -> None:
    call_id = uuid4()
    arrived, go_on = asyncio.Event(), asyncio.Event()
    enter = edge.hub.roster.enter

    async def slow_enter(call_id: UUID, entry: RosterEntry) -> None:
        await enter(call_id, entry)
        arrived.set()
        await go_on.wait()

    edge.hub.roster.enter = slow_enter  # type: ignore[method-assign]
    async with raw(edge.socket_url, token="good:a") as client:
        await client.say(f'421["room:join",{{"call_id":"{call_id}"}}]')
        await arrived.wait()
        message = {"kind": "evict", "session_id": client.ready["session_id"], "call_id": str(call_id)}
        await edge.hub.bus.control("node-1", {**message, "reason": "kicked"})
        go_on.set()
        assert (await client.ack(1))["error"]["code"] == "not_in_room"
        await until(lambda: not edge.hub.roster.entries)
        await edge.hub.bus.to_room(call_id, "test:posted", {"text": "x"})
        assert (await client.event())[0] == "room:left"
        await client.silence()


async def test_everybody_is_told_when_the_cluster_is_away_and_back(edge: Node) -> None:
    async with raw(edge.socket_url, token="good:a") as client:
        edge.edge.degraded(True)
        assert await client.event() == ("server:degraded", {"dependencies": ["cluster"]})
        edge.edge.degraded(False)
        assert await client.event() == ("server:degraded", {"dependencies": []})


async def test_a_room_is_told_that_events_are_missing(edge: Node) -> None:
    call_id = uuid4()
    async with raw(edge.socket_url, token="good:a") as client:
        await client.command("room:join", {"call_id": str(call_id)})
        edge.edge.resynced(call_id)
        assert await client.event() == ("room:resynced", {"call_id": str(call_id)})


async def test_connecting_over_and_over_closes(edge: Node) -> None:
    async with raw(edge.socket_url, token="good:a") as client:
        for _ in range(9):
            await client.say("40/other,")
            assert (await client.hear()).startswith("44/other,")
        await client.say("40/other,")
        assert await client.closed(1) == 1002


async def test_only_a_goodbye_on_purpose_is_one(edge: Node) -> None:
    """S-243: a disconnect of the client's or the server's own; not a line that broke, nor a page that is left."""
    goodbyes: list[bool] = []

    class Register:
        def opened(self, session: Session) -> None:
            pass

        def closed(self, session: Session) -> None:
            goodbyes.append(session.goodbye)

    edge.edge._register_of_all = Register()

    async def ended(count: int) -> bool:
        await until(lambda: len(goodbyes) == count)
        return goodbyes[-1]

    async with raw(edge.socket_url, token="good:a") as client:
        await client.say("41")
        assert await ended(1) is True
    async with raw(edge.socket_url, token="good:a") as client:
        await client.websocket.close(code=1000)
        assert await ended(2) is True
    async with raw(edge.socket_url, token="good:a") as client:
        await client.websocket.close(code=1001)
        assert await ended(3) is False
    async with raw(edge.socket_url, token="good:a") as client:
        await client.say("1")
        assert await ended(4) is False
    async with raw(edge.socket_url, token="good:a") as client:
        await client.command("test:close", {"reconnect": False})
        assert await ended(5) is True
    async with raw(edge.socket_url, token="good:a") as client:
        await client.command("test:close", {"reconnect": True})
        assert await ended(6) is False
