"""REST: from a request to a command and back, and every refusal in one shape."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

import aiohttp
import asyncpg
import msgspec
import pytest
import structlog
from structlog.testing import capture_logs

from db.pool import Database
from hub.dispatch import invalid
from hub.protocol import errors
from hub.protocol.names import NAME
from hub.protocol.participants import MuteParticipant
from hub.protocol.problems import HttpProblem
from hub.protocol.rooms import CreateRoom
from hub.transport import middleware
from tests.conftest import TestDatabase
from tests.transport.door import ORIGIN, Door, opened


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    async with opened() as door:
        yield door


@pytest.fixture
async def db(database: TestDatabase) -> AsyncIterator[Database]:
    pool = await Database.open(database.app_dsn)
    yield pool
    await pool.close()


@pytest.fixture
async def stored(db: Database) -> AsyncIterator[Door]:
    """With a database, for what is kept."""
    async with opened(db) as door:
        yield door


async def refused(response: aiohttp.ClientResponse, status: int, code: str) -> HttpProblem:
    """The problem of `response`, which is one in every part."""
    text = await response.read()
    assert (response.status, text and json.loads(text)["code"]) == (status, code)
    assert response.content_type == "application/problem+json"
    problem = msgspec.json.decode(text, type=HttpProblem)
    known = errors.TABLE[code]
    assert (problem.status, problem.retryable, problem.request_id) == (
        status,
        known.retryable,
        response.headers["X-Request-Id"],
    )
    assert problem.detail == problem.message and problem.title and problem.type == f"/docs#error-{code}"
    assert {"type", "title", "status", "detail", "code", "message", "retryable", "errors", "request_id"} <= set(
        json.loads(text)
    )
    return problem


# A request becomes a message.


async def test_a_body_becomes_the_message_and_201_says_where_the_thing_is(door: Door) -> None:
    """S-193, S-194"""
    response = await door.ask("POST", "/api/v1/things", json={"name": "a", "count": 3.0, "metadata": {"deep": [1.0]}})
    assert response.status == 201
    thing = await response.json()
    assert (thing["name"], thing["count"]) == ("a", 3)
    assert response.headers["Location"] == f"/api/v1/things/{thing['thing_id']}"
    assert response.headers["ETag"] == '"61-3"'
    again = await door.ask("GET", response.headers["Location"])
    assert await again.json() == thing


async def test_query_parameters_are_read_by_the_type_of_their_field(door: Door) -> None:
    query = "from=2026-01-05T09:30:00Z&limit=7&sizes=small,large&sizes=small&big=true&q=null"
    response = await door.ask("GET", f"/api/v1/things?{query}")
    assert (await response.json())["asked"] == {
        "from": "2026-01-05T09:30:00Z",
        "limit": 7,
        "sizes": ["small", "large", "small"],
        "big": True,
        "q": "null",
    }


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=x", "limit"),
        ("limit=null", "limit"),
        ("from=null", "from"),
        ("big=null", "big"),
        ("limit=1&limit=2", "limit"),
        ("sizes=medium", "sizes"),
        ("nonsense=1", "nonsense"),
        ("from_=2026-01-05T09:30:00Z", "from_"),
        ("from=yesterday", "from"),
        ("from=1767605400", "from"),
        ("op_id=7b7c1f0a-5d0e-4d0c-9c3e-2f1a6b8d4e10", "op_id"),
        ("q=a%00b", "q"),
    ],
)
async def test_a_bad_or_unknown_query_parameter_is_named(door: Door, query: str, field: str) -> None:
    """S-179, S-032"""
    problem = await refused(await door.ask("GET", f"/api/v1/things?{query}"), 422, "validation_failed")
    assert [error.path for error in problem.errors] == [field]


async def test_a_refused_field_says_what_it_may_be(door: Door) -> None:
    """In words: neither a pattern nor what was sent."""
    problem = await refused(
        await door.ask("POST", "/api/v1/things", json={"name": "a", "size": "<evil>"}), 422, "validation_failed"
    )
    assert problem.message == "size: one of large, small"
    problem = await refused(await door.ask("GET", "/api/v1/things?sizes=small,medium"), 422, "validation_failed")
    assert problem.message == "sizes: one of large, small"
    nested = invalid("Invalid enum value 'mic' - at `$.sources[0]`", MuteParticipant)
    assert nested.message == "sources[0]: one of camera, microphone, screen_share"
    name = invalid(f"Expected `str` matching regex {NAME!r} - at `$.name`", CreateRoom)
    assert name.message.startswith("name: one line that shows something")
    other = invalid("Expected `str` matching regex '^[a-z]+$' - at `$.x`")
    assert other.message == "x: has characters that are not allowed"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "a", "count": 1.5}, "count"),
        ({"name": "a", "count": True}, "count"),
        ({"name": "a", "count": "1"}, "count"),
        ({"name": "a", "tags": ["x" * 21]}, "tags[0]"),
        ({"name": "a", "nonsense": 1}, "nonsense"),
        ({"name": "a", "op_id": str(uuid4())}, "op_id"),
        ({"name": "a\x00b"}, "name"),
        ({"name": "a", "metadata": {"k": ["\x00"]}}, "metadata.k[0]"),
        ({"name": "a", "at": "2026-01-05T09:30:00"}, "at"),
    ],
)
async def test_a_bad_field_of_a_body_is_named(door: Door, body: dict[str, Any], field: str) -> None:
    """S-179, S-032: 422 with field errors, NUL included, which PostgreSQL could not hold."""
    problem = await refused(await door.ask("POST", "/api/v1/things", json=body), 422, "validation_failed")
    assert [error.path for error in problem.errors] == [field]
    assert door.world.made == 0


@pytest.mark.parametrize(
    "body", [b"{", b"nonsense", b"\xff\xfe", b"[" * 60_000, b'{"name": NaN}', b'"\\ud800"', b'{"count": 1e999}']
)
async def test_what_is_no_json_is_a_bad_request(door: Door, body: bytes) -> None:
    """S-179, S-194: 400"""
    response = await door.ask("POST", "/api/v1/things", data=body, headers={"Content-Type": "application/json"})
    await refused(response, 400, "bad_request")


@pytest.mark.parametrize("body", [b"[]", b"7", b"null", b'"text"'])
async def test_a_body_is_one_object(door: Door, body: bytes) -> None:
    response = await door.ask("POST", "/api/v1/things", data=body, headers={"Content-Type": "application/json"})
    await refused(response, 422, "validation_failed")


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
@pytest.mark.parametrize("body", [b'{"name": "a"}', b""])
async def test_only_json_is_taken_so_no_foreign_form_can_do_anything(
    door: Door, content_type: str, body: bytes
) -> None:
    """S-194: 415"""
    response = await door.ask("POST", "/api/v1/things", data=body, headers={"Content-Type": content_type})
    await refused(response, 415, "unsupported_media_type")
    assert door.world.made == 0


async def test_json_under_another_name_is_refused(door: Door) -> None:
    """S-194: 415"""
    for content_type in ("text/json", "application/octet-stream", "application/jsonp"):
        headers = {"Content-Type": content_type}
        response = await door.ask("POST", "/api/v1/things", data=b'{"name": "a"}', headers=headers)
        await refused(response, 415, "unsupported_media_type")


async def test_a_compressed_body_is_refused(door: Door) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    response = await door.ask("POST", "/api/v1/things", data=gzip.compress(b'{"name": "a"}'), headers=headers)
    await refused(response, 415, "unsupported_media_type")


async def test_a_large_body_is_refused_whether_it_says_its_length_or_not(door: Door) -> None:
    """S-194: 413"""
    large = json.dumps({"name": "a", "metadata": {"k": "x" * 64 * 1024}}).encode()
    headers = {"Content-Type": "application/json"}

    async def trickle() -> AsyncIterator[bytes]:
        for start in range(0, len(large), 8192):
            yield large[start : start + 8192]

    for data in (large, trickle()):
        await refused(await door.ask("POST", "/api/v1/things", data=data, headers=headers), 413, "payload_too_large")


async def test_a_body_that_never_ends_is_answered_at_the_deadline(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """S-195: nobody keeps a handler for ever."""
    monkeypatch.setattr(middleware.read_body, "__defaults__", (middleware.BODY_BYTES, 0.2))

    async def stalls() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(5)

    headers = {"Content-Type": "application/json"}
    response = await asyncio.wait_for(door.ask("POST", "/api/v1/things", data=stalls(), headers=headers), 3)
    await refused(response, 503, "timeout")


async def test_the_body_may_not_say_what_the_path_says(door: Door) -> None:
    thing = await (await door.ask("POST", "/api/v1/things", json={"name": "a"})).json()
    path = f"/api/v1/things/{thing['thing_id']}"
    problem = await refused(
        await door.ask("PATCH", path, json={"thing_id": str(uuid4()), "name": "b"}), 422, "validation_failed"
    )
    assert problem.errors[0].path == "thing_id"
    assert (await (await door.ask("PATCH", path, json={"name": "b"})).json())["name"] == "b"


# Missing, hidden, wrong method.


async def test_what_is_missing_hidden_or_unnameable_is_the_same_answer_to_the_byte(door: Door) -> None:
    """S-194: 404, and no difference between them."""
    bodies = set()
    for name in (str(uuid4()), str(UUID(int=0)), "nonsense", "..%2f..", "%00", "x\r\nFLUSHALL", "*", "a" * 600):
        response = await door.ask("GET", f"/api/v1/things/{name}", headers={"X-Request-Id": "same"})
        await refused(response, 404, "not_found")
        bodies.add(await response.read())
    assert len(bodies) == 1


async def test_an_unknown_path_and_a_wrong_method_are_problems_too(door: Door) -> None:
    """S-194: 404, 405; S-192"""
    await refused(await door.ask("GET", "/api/v1/nonsense"), 404, "not_found")
    await refused(await door.ask("GET", "/nonsense"), 404, "not_found")
    response = await door.ask("PUT", "/api/v1/things")
    await refused(response, 405, "method_not_allowed")
    assert set(response.headers["Allow"].split(",")) == {"GET", "HEAD", "POST"}


@pytest.mark.parametrize("code", sorted(code for code, error in errors.TABLE.items() if error.status))
async def test_every_refusal_has_its_status_and_one_shape(door: Door, code: str) -> None:
    """S-192, S-194: one table, one schema."""
    response = await door.ask("POST", f"/api/v1/refusals/{code}")
    problem = await refused(response, errors.TABLE[code].status, code)
    if code != "not_found":
        assert (problem.message, problem.details) == ("because", {"a": 1})
    if response.status == 503:
        assert int(response.headers["Retry-After"]) >= 1


async def test_a_bug_is_answered_without_its_details(door: Door) -> None:
    """S-192: 500 in the same schema."""
    with capture_logs() as lines:
        response = await door.ask("POST", "/api/v1/crash")
    problem = await refused(response, 500, "internal")
    assert b"secret detail" not in await response.read()
    crash = next(line for line in lines if line["event"] == "command_crashed")
    assert (crash["request_id"], crash["exc_info"]) == (problem.request_id, True)


async def test_an_ordinary_user_is_not_an_operator(door: Door) -> None:
    await refused(await door.ask("GET", "/api/v1/admin/things"), 403, "forbidden")
    admin = door.hub.tokens.issue("root", hub_role="admin").token
    assert (await door.ask("GET", "/api/v1/admin/things", token=admin)).status == 200


async def test_a_refused_rate_says_the_policy_and_when_to_come_again(door: Door) -> None:
    """S-194: 429"""
    assert (await door.ask("POST", "/api/v1/rare")).status == 204
    response = await door.ask("POST", "/api/v1/rare")
    problem = await refused(response, 429, "rate_limited")
    assert problem.retry_after_ms is not None and 0 < problem.retry_after_ms <= 60_000
    assert 1 <= int(response.headers["Retry-After"]) <= 60
    assert response.headers["RateLimit-Policy"] == '"thing:rare";q=1;w=60'
    assert response.headers["RateLimit"].startswith('"thing:rare";r=0;t=')


# Deadlines and clients that go away.


async def test_a_command_that_is_too_slow_is_ended_and_answered(door: Door) -> None:
    """S-195: the deadline of the command."""
    await refused(await door.ask("POST", "/api/v1/slow"), 503, "timeout")
    assert door.world.cancelled.is_set()


async def test_a_client_that_goes_away_takes_its_work_along() -> None:
    """S-195: nothing is done for somebody who is not there any more."""
    async with opened() as door:
        with pytest.raises(asyncio.TimeoutError):
            await door.ask("POST", "/api/v1/long", timeout=aiohttp.ClientTimeout(total=0.3))
        await asyncio.wait_for(door.world.cancelled.wait(), 3)


async def test_what_is_decided_is_told_also_when_the_client_goes_away(stored: Door) -> None:
    asking = asyncio.create_task(stored.ask("POST", "/api/v1/decisions"))
    await asyncio.wait_for(stored.world.decided.wait(), 3)
    asking.cancel()
    await asyncio.wait_for(stored.world.told.wait(), 3)


async def test_whoever_asked_is_answered_in_time_while_what_was_decided_is_told(stored: Door) -> None:
    """S-184: and a repeat under the same key is given the answer that was kept."""
    headers = {"Idempotency-Key": "late-1"}
    await refused(await stored.ask("POST", "/api/v1/late", headers=headers), 503, "timeout")
    assert stored.world.decided.is_set() and not stored.world.told.is_set()
    await asyncio.wait_for(stored.world.told.wait(), 3)
    again = await stored.ask("POST", "/api/v1/late", headers=headers)
    assert (again.status, again.headers["Idempotency-Replayed"]) == (200, "true")


# Tags.


async def test_a_stale_tag_changes_nothing(door: Door) -> None:
    """S-194: 412"""
    made = await door.ask("POST", "/api/v1/things", json={"name": "a"})
    path, tag = made.headers["Location"], made.headers["ETag"]
    changed = await door.ask("PATCH", path, json={"count": 2}, headers={"If-Match": tag})
    assert (changed.status, changed.headers["ETag"]) == (200, '"61-2"')
    await refused(
        await door.ask("PATCH", path, json={"count": 3}, headers={"If-Match": tag}), 412, "precondition_failed"
    )
    assert (await door.ask("PATCH", path, json={"count": 3}, headers={"If-Match": "*"})).status == 200


async def test_a_deleted_thing_is_gone_with_an_empty_answer(door: Door) -> None:
    """S-194: 204"""
    path = (await door.ask("POST", "/api/v1/things", json={"name": "a"})).headers["Location"]
    response = await door.ask("DELETE", path)
    assert (response.status, await response.read()) == (204, b"")
    await refused(await door.ask("DELETE", path), 404, "not_found")


# Idempotency.


async def test_the_same_key_has_one_effect_and_one_answer(stored: Door) -> None:
    """S-194: Idempotency-Key, kept in the database."""
    headers = {"Idempotency-Key": "once"}
    first = await stored.ask("POST", "/api/v1/things", json={"name": "a"}, headers=headers)
    again = await stored.ask("POST", "/api/v1/things", json={"name": "a"}, headers=headers)
    assert (first.status, again.status, stored.world.made) == (201, 201, 1)
    assert await first.read() == await again.read()
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    assert [again.headers[name] for name in ("Location", "ETag")] == [
        first.headers[name] for name in ("Location", "ETag")
    ]


async def test_ten_at_once_under_one_key_have_one_effect(stored: Door) -> None:
    async def one() -> bytes:
        response = await stored.ask(
            "POST", "/api/v1/things", json={"name": "a"}, headers={"Idempotency-Key": '"quoted"'}
        )
        assert response.status == 201
        return await response.read()

    assert len(set(await asyncio.gather(*(one() for _ in range(10))))) == 1
    assert stored.world.made == 1


async def test_a_key_stands_for_one_body_of_one_user(stored: Door) -> None:
    headers = {"Idempotency-Key": "once"}
    await stored.ask("POST", "/api/v1/things", json={"name": "a"}, headers=headers)
    other = await stored.ask("POST", "/api/v1/things", json={"name": "b"}, headers=headers)
    await refused(other, 409, "op_id_conflict")
    eve = stored.hub.tokens.issue("eve").token
    hers = await stored.ask("POST", "/api/v1/things", json={"name": "b"}, headers=headers, token=eve)
    assert (hers.status, stored.world.made) == (201, 2)


async def test_a_refused_command_may_be_tried_again_under_its_key(stored: Door) -> None:
    headers = {"Idempotency-Key": "once"}
    for _ in range(2):
        response = await stored.ask("POST", "/api/v1/refusals/room_full", headers=headers)
        await refused(response, 409, "room_full")


async def test_two_calls_at_once_in_two_tenants_do_not_share_a_key(stored: Door) -> None:
    headers = {"Idempotency-Key": "once"}
    for tenant in (uuid4(), uuid4()):
        token = stored.hub.tokens.issue("ada", tenant=tenant).token
        made = await stored.ask("POST", "/api/v1/things", json={"name": "a"}, headers=headers, token=token)
        assert "Idempotency-Replayed" not in made.headers
    assert stored.world.made == 2


@pytest.mark.parametrize("key", ["", " ", "x" * 129, "a b", "ключ"])
async def test_a_key_is_short_and_visible(door: Door, key: str) -> None:
    response = await door.ask("POST", "/api/v1/things", json={"name": "a"}, headers={"Idempotency-Key": key})
    await refused(response, 400, "bad_request")


# A room's name in a path.


async def test_a_path_takes_the_name_of_a_room_for_its_call(stored: Door, database: TestDatabase) -> None:
    """S-036: works with call_id and with room_name as path id; not across tenants."""
    tenant, call_id, name = uuid4(), uuid4(), "room_abcdefgh1234_1767605400"
    admin = await asyncpg.connect(database.admin_dsn)
    try:
        await admin.execute("INSERT INTO tenants (id) VALUES ($1)", tenant)
        await admin.execute("INSERT INTO users (tenant_id, id) VALUES ($1, 'ada')", tenant)
        await admin.execute(
            "INSERT INTO calls (id, tenant_id, owner_id, name, livekit_room_name) VALUES ($1, $2, 'ada', 'a', $3)",
            call_id,
            tenant,
            name,
        )
    finally:
        await admin.close()
    token = stored.hub.tokens.issue("ada", tenant=tenant).token
    by_name = await stored.ask("GET", f"/api/v1/calls/{name}", token=token)
    assert (await by_name.json())["call_id"] == str(call_id)
    bodies = set()
    for path in (name, "room_abcdefgh1234_1", "room_ABC_1", "nonsense"):
        response = await stored.ask("GET", f"/api/v1/calls/{path}", headers={"X-Request-Id": "same"})
        assert response.status == 404
        bodies.add(await response.read())
    assert len(bodies) == 1


async def test_a_name_cannot_be_looked_up_in_a_database_that_is_gone(db: Database) -> None:
    """S-194: 503"""
    async with opened(db) as door:
        await db.close()
        await refused(await door.ask("GET", "/api/v1/calls/room_abcdefgh1234_1767605400"), 503, "database_unavailable")


# Headers.


async def test_every_answer_has_its_id_and_is_not_to_be_kept_framed_or_guessed(door: Door) -> None:
    for path in ("/api/v1/things", "/api/v1/nonsense", "/docs", "/openapi.json"):
        response = await door.ask("GET", path)
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Referrer-Policy"] == "no-referrer"
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
        assert len(response.headers["X-Request-Id"]) == 32
        assert "Server" not in response.headers and "Set-Cookie" not in response.headers
        assert "Strict-Transport-Security" not in response.headers
    assert (await door.ask("GET", "/api/v1/things")).headers["Cache-Control"] == "no-store"


async def test_browsers_are_told_to_stay_with_https_where_the_hub_is_behind_it() -> None:
    async with opened(https=True) as door:
        response = await door.ask("GET", "/api/v1/things")
        assert response.headers["Strict-Transport-Security"].startswith("max-age=31536000")


@pytest.mark.parametrize(
    ("given", "kept"), [("abc-1.2_3", True), ("x" * 64, True), ("x" * 65, False), ("a b", False), ("é", False)]
)
async def test_a_good_request_id_is_kept_and_a_bad_one_replaced(door: Door, given: str, kept: bool) -> None:
    response = await door.ask("GET", "/api/v1/things", headers={"X-Request-Id": given})
    assert (response.headers["X-Request-Id"] == given) is kept


async def test_a_request_leaves_one_line_without_ids_queries_and_tokens(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    structlog.reset_defaults()
    with capture_logs() as lines:
        await door.ask("GET", f"/api/v1/things/{uuid4()}?secret=hunter2")
    http = [line for line in lines if line["event"] == "http"]
    assert len(http) == 1
    assert (http[0]["route"], http[0]["status"], http[0]["method"]) == ("/api/v1/things/{thing_id}", 422, "GET")
    assert "hunter2" not in str(lines) and door.token not in str(lines)


async def test_what_is_no_http_is_counted_and_leaves_no_traceback(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    before = middleware.MALFORMED._value.get()
    for request in (b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n", b"GET /" + b"a" * 9000):
        reader, writer = await asyncio.open_connection("127.0.0.1", door.client.port)
        writer.write(request)
        assert (await asyncio.wait_for(reader.readline(), 3)).startswith(b"HTTP/1.0 400")
        writer.close()
    # aiohttp itself is silent about the first: a port scanner's.
    assert middleware.MALFORMED._value.get() == before + 2
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("path", [b"/livez", b"/api/v1/things"])
@pytest.mark.parametrize("encoding", [b"gzip", b"deflate", b"br"])
async def test_a_body_that_is_not_what_it_says_leaves_no_traceback(
    door: Door, caplog: pytest.LogCaptureFixture, path: bytes, encoding: bytes
) -> None:
    before = middleware.MALFORMED._value.get()
    for token in (b"", b"Authorization: Bearer " + door.token.encode() + b"\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", door.client.port)
        head = b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Encoding: %b\r\n%bContent-Length: 20\r\n\r\n"
        writer.write(head % (path, encoding, token) + b"x" * 20)
        assert (await asyncio.wait_for(reader.read(), 5)).split(b" ")[1] in (b"400", b"401", b"404", b"415")
        writer.close()
    assert middleware.MALFORMED._value.get() == before + 2
    assert "Traceback" not in caplog.text


async def test_what_is_no_http_is_answered_without_an_echo_or_a_version(door: Door) -> None:
    for request in (
        b"GE T /<evil> HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHo <evil>: a\r\n\r\n",
        b"POST /livez HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz<evil>\r\n\r\n",
        b"GET /<evil>" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n",
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", door.client.port)
        writer.write(request)
        answer = await asyncio.wait_for(reader.readuntil(b"}"), 5)
        assert b" 400 " in answer
        assert b"evil" not in answer and b"aiohttp" not in answer and b"Python" not in answer
        assert b"application/problem+json" in answer and b"nosniff" in answer
        writer.close()


async def test_head_is_get_without_a_body(door: Door) -> None:
    for path, token in (("/api/v1/things", ""), ("/api/v1/things", None), ("/api/v1/things?limit=0", "")):
        got, head = await door.ask("GET", path, token=token), await door.ask("HEAD", path, token=token)
        assert (head.status, head.headers["Content-Type"]) == (got.status, got.headers["Content-Type"])
        assert await head.read() == b""
    response = await door.ask(
        "OPTIONS", "/api/v1/things", headers={"Origin": ORIGIN, "Access-Control-Request-Method": "HEAD"}
    )
    assert "HEAD" in response.headers["Access-Control-Allow-Methods"]


async def test_a_request_that_two_proxies_would_read_differently_is_refused(door: Door) -> None:
    """Content-Length against Transfer-Encoding, and a second request hidden behind the first."""
    head = b"POST /api/v1/things HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    for extra in (
        b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /docs HTTP/1.1\r\nHost: a\r\n\r\n",
        b"Content-Length: 0\r\nContent-Length: 5\r\n\r\nhello",
        b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", door.client.port)
        writer.write(head + extra)
        answer = await asyncio.wait_for(reader.read(), 5)
        assert answer.startswith(b"HTTP/1.0 400") and answer.count(b"HTTP/1.") == 1
        writer.close()


# Pages of others.


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", f"{ORIGIN}.evil.example", "http://app.example.com", f"{ORIGIN}:8443", ""]
)
async def test_a_foreign_page_gets_nothing(door: Door, origin: str) -> None:
    """S-194: 403, whatever Host or X-Forwarded-Host say."""
    headers = {"Origin": origin, "X-Forwarded-Host": "evil.example", "Host": "evil.example"}
    for method in ("GET", "OPTIONS"):
        response = await door.ask(
            method, "/api/v1/things", headers={**headers, "Access-Control-Request-Method": "POST"}
        )
        await refused(response, 403, "forbidden")
        assert "Access-Control-Allow-Origin" not in response.headers


async def test_an_allowed_page_gets_its_answer_without_credentials(door: Door) -> None:
    response = await door.ask("GET", "/api/v1/things", headers={"Origin": ORIGIN})
    assert (response.status, response.headers["Access-Control-Allow-Origin"]) == (200, ORIGIN)
    assert "Access-Control-Allow-Credentials" not in response.headers
    assert "Origin" in response.headers["Vary"]
    for name in ("ETag", "Location", "Retry-After", "X-Request-Id"):
        assert name in response.headers["Access-Control-Expose-Headers"]
    preflight = await door.ask(
        "OPTIONS",
        f"/api/v1/things/{uuid4()}",
        token=None,
        headers={
            "Origin": ORIGIN,
            "Access-Control-Request-Method": "PATCH",
            "Access-Control-Request-Headers": "authorization, content-type",
        },
    )
    assert preflight.status == 204
    assert "PATCH" in preflight.headers["Access-Control-Allow-Methods"]
    assert "Authorization" in preflight.headers["Access-Control-Allow-Headers"]
    # A refusal too, or the page could not read why.
    refusal = await door.ask("GET", "/api/v1/things", token="nonsense", headers={"Origin": ORIGIN})
    assert (refusal.status, refusal.headers["Access-Control-Allow-Origin"]) == (401, ORIGIN)


async def test_an_app_without_an_origin_is_fine(door: Door) -> None:
    assert (await door.ask("GET", "/api/v1/things")).status == 200


async def test_injection_corpus_in_every_string_is_data(stored: Door) -> None:
    """S-182"""
    corpus = [
        "' OR '1'='1",
        "'; DROP TABLE calls; --",
        "1; SELECT pg_sleep(5)",
        "\\'; --",
        "%27%20OR%201=1",
        "$1",
        "{{7*7}}",
        "../../etc/passwd",
        "\u02bc OR 1=1",
    ]
    for text in corpus:
        made = await stored.ask("POST", "/api/v1/things", json={"name": text[:40], "metadata": {text: text}})
        assert (made.status, (await made.json())["name"]) == (201, text[:40])
        found = await stored.ask("GET", "/api/v1/things", params={"q": text})
        assert (await found.json())["asked"]["q"] == text
        replayed = await stored.ask(
            "POST", "/api/v1/things", json={"name": "a"}, headers={"Idempotency-Key": text.replace(" ", "")[:40]}
        )
        assert replayed.status in (201, 400)
        assert (await stored.ask("GET", f"/api/v1/calls/{quote(text, safe='')}")).status == 404
