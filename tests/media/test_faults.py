"""The door while LiveKit hangs, breaks, refuses or talks nonsense: bounded, and always one of three errors."""

from __future__ import annotations

import asyncio
import json
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web

from hub.context import Media
from hub.media.livekit import LiveKit
from hub.media.regions import Breaker
from hub.media.values import SOURCES, Grant, Server
from hub.protocol.errors import HubError, MediaError, MediaUnavailable, NotFound, PayloadTooLarge, ValidationFailed
from tests.fakes.livekit import FakeLiveKit

EVERY_CALL: dict[str, Callable[[LiveKit, str], Awaitable[object]]] = {
    "create_room": lambda door, room: door.create_room(room),
    "delete_room": lambda door, room: door.delete_room(room),
    "list_rooms": lambda door, room: door.list_rooms(),
    "update_room_metadata": lambda door, room: door.update_room_metadata(room, {"a": 1}),
    "list_participants": lambda door, room: door.list_participants(room),
    "get_participant": lambda door, room: door.get_participant(room, "anna"),
    "remove_participant": lambda door, room: door.remove_participant(room, "anna", just_joined=True),
    "update_participant": lambda door, room: door.update_participant(room, "anna", name="A"),
    "set_permissions": lambda door, room: door.set_permissions(room, "anna", Grant()),
    "mute": lambda door, room: door.mute(room, "anna", "TR_1", True),
    "update_subscriptions": lambda door, room: door.update_subscriptions(room, "anna", ["TR_1"], True),
    "send_data": lambda door, room: door.send_data(room, b"x", topic="t"),
    "ping": lambda door, room: door.ping(),
}
each_call = pytest.mark.parametrize("name", EVERY_CALL)


@pytest.fixture
async def room(door: LiveKit, fake: FakeLiveKit) -> str:
    await door.create_room("room_a_1")
    fake.join("room_a_1", "anna")
    return "room_a_1"


async def failed(call: Awaitable[object]) -> tuple[HubError, float]:
    """The error and the seconds it took."""
    started = time.monotonic()
    with pytest.raises(HubError) as caught:
        await call
    return caught.value, time.monotonic() - started


@each_call
async def test_a_livekit_that_hangs_costs_the_deadline_and_no_more(
    hasty: LiveKit, fake: FakeLiveKit, room: str, name: str
) -> None:
    fake.faults.hang.add("*")
    error, took_s = await failed(EVERY_CALL[name](hasty, room))
    assert isinstance(error, MediaUnavailable)
    assert 0.15 < took_s < 1.5


@each_call
async def test_a_proxys_error_page_is_media_unavailable(door: LiveKit, fake: FakeLiveKit, room: str, name: str) -> None:
    fake.faults.html_502 = True
    error, _ = await failed(EVERY_CALL[name](door, room))
    assert isinstance(error, MediaUnavailable)
    assert error.details == {"code": "unknown", "status": 502}


@each_call
async def test_a_cut_connection_is_media_unavailable(door: LiveKit, fake: FakeLiveKit, room: str, name: str) -> None:
    fake.faults.cut = True
    error, _ = await failed(EVERY_CALL[name](door, room))
    assert isinstance(error, MediaUnavailable)


@each_call
async def test_a_refused_connection_is_media_unavailable(
    door: LiveKit, fake: FakeLiveKit, room: str, name: str
) -> None:
    await fake.crash()
    error, _ = await failed(EVERY_CALL[name](door, room))
    assert isinstance(error, MediaUnavailable)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("not_found", NotFound),
        ("unavailable", MediaUnavailable),
        ("deadline_exceeded", MediaUnavailable),
        ("resource_exhausted", MediaUnavailable),
        ("internal", MediaError),
        ("invalid_argument", MediaError),
        ("failed_precondition", MediaError),
        ("unauthenticated", MediaError),
        ("unimplemented", MediaError),
    ],
)
async def test_each_of_livekits_codes_has_its_error(
    door: LiveKit, fake: FakeLiveKit, code: str, kind: type[HubError]
) -> None:
    fake.faults.fail_next("CreateRoom", code)
    error, _ = await failed(door.create_room("room_a_1"))
    assert type(error) is kind
    # It was an answer: nothing is wrong with the way there.
    await door.create_room("room_a_1")


async def test_a_kept_connection_that_died_with_livekit_is_no_error(door: LiveKit, fake: FakeLiveKit) -> None:
    """After a restart the hub makes its rooms again at once, by connections the old process had open."""
    await door.create_room("room_a_1")
    await fake.crash()
    await fake.restart()
    await door.create_room("room_a_1")
    assert list(fake.rooms) == ["room_a_1"]


async def test_a_lost_answer_is_asked_for_again_but_data_is_not_sent_twice(
    door: LiveKit, fake: FakeLiveKit, room: str
) -> None:
    fake.faults.lose_answer = {"CreateRoom", "SendData"}
    assert isinstance((await failed(door.create_room("room_b_1")))[0], MediaUnavailable)
    assert fake.methods.count("CreateRoom") == 3  # one by the fixture
    assert isinstance((await failed(door.send_data(room, b"once", topic="t")))[0], MediaUnavailable)
    assert fake.received(room, "anna") == [b"once"]


async def test_every_call_goes_to_the_one_server_with_the_least_grant_that_does(
    door: LiveKit, fake: FakeLiveKit, room: str
) -> None:
    """S-015: authenticated calls to one configurable place. S-150: another URL redirects all of it."""
    sid = fake.publish(room, "anna")
    calls = EVERY_CALL | {"mute": lambda door, room: door.mute(room, "anna", sid, True)}
    ends = ["set_permissions", "remove_participant", "delete_room"]
    for name in sorted(calls, key=lambda name: ends.index(name) if name in ends else -1):
        await calls[name](door, room)
    assert all(call.grants is not None and not call.code for call in fake.calls)
    for call in fake.calls:
        assert call.grants is not None
        if call.method in ("CreateRoom", "DeleteRoom"):
            assert (call.grants.room_create, call.grants.room_admin) == (True, None)
        elif call.method == "ListRooms":
            assert (call.grants.room_list, call.grants.room_admin) == (True, None)
        else:
            assert (call.grants.room_admin, call.grants.room, call.grants.room_create) == (True, room, None)
    async with FakeLiveKit() as other, LiveKit({"default": other.server}) as elsewhere:
        before = len(fake.calls)
        await elsewhere.create_room("room_c_1")
        assert (other.methods, len(fake.calls)) == (["CreateRoom"], before)


async def test_a_wrong_secret_is_told_without_any_token(fake: FakeLiveKit) -> None:
    """S-152: LiveKit's own message repeats the whole token; it gets into neither the message nor the traceback."""
    wrong = Server(url=fake.url, api_key=fake.api_key, api_secret="another-secret-of-more-than-32-characters")
    async with LiveKit({"default": wrong}) as door:
        with pytest.raises(MediaError, match="does not accept this hub's API key") as caught:
            await door.create_room("room_a_1")
    told = "".join(traceback.format_exception(caught.value)) + json.dumps(caught.value.details)
    assert "eyJ" not in told
    assert fake.rooms == {}


async def test_somebody_who_just_joined_is_waited_for_if_asked(door: LiveKit, fake: FakeLiveKit, room: str) -> None:
    fake.faults.fail_next("RemoveParticipant", "not_found", times=2)
    error, _ = await failed(door.remove_participant(room, "anna"))
    assert isinstance(error, NotFound)
    async with LiveKit({"default": fake.server}) as patient:
        await patient.remove_participant(room, "anna", just_joined=True)
        assert fake.methods.count("RemoveParticipant") == 3
        started = time.monotonic()
        with pytest.raises(NotFound):
            await patient.remove_participant(room, "anna", just_joined=True)
    assert fake.methods.count("RemoveParticipant") == 7
    assert 0.5 < time.monotonic() - started < 2.5


async def test_unmuting_where_the_server_forbids_it_says_so(fake: FakeLiveKit, door: LiveKit, room: str) -> None:
    """S-022: the remote-unmute policy is an explicit error."""
    fake.remote_unmute = False
    sid = fake.publish(room, "anna")
    await door.mute(room, "anna", sid, True)
    with pytest.raises(MediaError, match="remote unmute not enabled") as caught:
        await door.mute(room, "anna", sid, False)
    assert caught.value.details == {"code": "failed_precondition", "status": 412}


async def test_permissions_that_a_grant_does_not_speak_of_stay(door: LiveKit, fake: FakeLiveKit, room: str) -> None:
    permission = fake.rooms[room].participants["anna"].info.permission
    permission.can_update_metadata = permission.can_subscribe_metrics = permission.recorder = True
    await door.set_permissions(room, "anna", Grant(can_publish_sources=SOURCES, can_publish_data=False))
    now = fake.rooms[room].participants["anna"].info.permission
    assert (now.can_update_metadata, now.can_subscribe_metrics, now.recorder) == (True, True, True)
    assert (now.can_publish, now.can_publish_data, len(now.can_publish_sources)) == (True, False, 4)


async def test_what_livekit_would_silently_ignore_is_refused_before(door: LiveKit, fake: FakeLiveKit) -> None:
    with pytest.raises(ValidationFailed):
        await door.update_participant("room_a_1", "anna", name="")
    with pytest.raises(PayloadTooLarge):
        await door.send_data("room_a_1", b"x" * 15_361, topic="t")
    assert fake.calls == []


# Whatever else may listen at that address


@pytest.fixture
async def stranger() -> AsyncIterator[tuple[LiveKit, dict[str, web.Response]]]:
    """A door to something that is no LiveKit, and what that answers."""
    answers: dict[str, web.Response] = {}

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        return answers["any"]

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with LiveKit({"default": Server(url=url, api_key="k", api_secret="s" * 32)}, timeout_s=1) as door:
        yield door, answers
    await runner.cleanup()


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (200, "<html>Welcome</html>", MediaError),
        (404, "<html>Not here</html>", MediaError),
        (404, '{"code": "bad_route", "msg": "no handler"}', MediaError),
        (502, "[]", MediaUnavailable),
        (503, '"busy"', MediaUnavailable),
        (503, "", MediaUnavailable),
        (500, "{}", MediaUnavailable),
    ],
)
async def test_what_is_no_livekit_is_an_error_of_ours_too(
    stranger: tuple[LiveKit, dict[str, web.Response]], status: int, body: str, kind: type[HubError]
) -> None:
    door, answers = stranger
    answers["any"] = web.Response(status=status, text=body, content_type="application/json")
    # Also for a deletion: a missing page is not a missing room.
    error, _ = await failed(door.delete_room("room_a_1"))
    assert type(error) is kind


# The breaker


async def test_three_failures_make_the_next_call_fail_at_once_until_it_is_back(
    hasty: LiveKit, fake: FakeLiveKit
) -> None:
    fake.faults.hang.add("*")
    for _ in range(3):
        await failed(hasty.create_room("room_a_1"))
    called = len(fake.calls)
    error, took_s = await failed(hasty.create_room("room_a_1"))
    assert isinstance(error, MediaUnavailable)
    assert took_s < 0.2
    assert error.retry_after_ms is not None
    assert len(fake.calls) == called
    fake.faults.hang.clear()
    await asyncio.sleep(1.05)
    await hasty.create_room("room_a_1")
    await hasty.create_room("room_b_1")


async def test_one_region_that_is_down_leaves_the_others_alone(fake: FakeLiveKit) -> None:
    nowhere = Server(url="http://127.0.0.1:1", api_key="k", api_secret="s" * 32)
    async with LiveKit({"default": fake.server, "eu": nowhere}) as door:
        for _ in range(4):
            await failed(door.create_room("room_a_1", region="eu"))
        await door.create_room("room_a_1", region="us")
        await door.create_room("room_b_1")
    assert set(fake.rooms) == {"room_a_1", "room_b_1"}


async def test_rooms_nobody_answers_for_do_not_stop_the_others(hasty: LiveKit, fake: FakeLiveKit, room: str) -> None:
    """LiveKit is silent for 3 s about a room whose node died, while it serves everybody else."""
    for _ in range(4):
        error, _ = await failed(hasty.list_participants("room_of_a_dead_node_1"))
        assert isinstance(error, MediaUnavailable)
    # Admitted, and answered: to three seconds of silence there was one room.
    assert len(await hasty.list_participants(room)) == 1


async def test_calls_are_observed_by_name_and_outcome(fake: FakeLiveKit) -> None:
    seen: list[tuple[str, str]] = []
    async with LiveKit({"default": fake.server}, observe=lambda name, outcome, _: seen.append((name, outcome))) as door:
        await door.create_room("room_a_1")
        await failed(door.get_participant("room_a_1", "nobody"))
        await fake.crash()
        for _ in range(4):
            await failed(door.ping())
        fake.faults.hang.add("*")
    assert seen == [
        ("create_room", "ok"),
        ("get_participant", "not_found"),
        *[("ping", "media_unavailable")] * 3,
        ("ping", "refused_early"),
    ]


async def test_a_caller_that_gives_up_while_trying_again_does_not_keep_the_door_shut(
    door: LiveKit, fake: FakeLiveKit
) -> None:
    fake.faults.cut = True
    for _ in range(3):
        await failed(door.ping())
    await asyncio.sleep(1.05)
    fake.faults.cut = False
    fake.faults.hang.add("*")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await door.ping()
    fake.faults.hang.clear()
    await door.ping()


def test_the_breaker_opens_tries_one_and_closes() -> None:
    breaker = Breaker()
    for _ in range(2):
        breaker.failed(0.0, None)
    breaker.succeeded()
    for _ in range(2):
        breaker.failed(0.0, None)
    breaker.admit(0.0)
    breaker.failed(0.0, None)
    with pytest.raises(MediaUnavailable):
        breaker.admit(0.9)
    breaker.admit(1.0)
    with pytest.raises(MediaUnavailable):
        breaker.admit(1.0)
    breaker.failed(1.0, None)
    with pytest.raises(MediaUnavailable):
        breaker.admit(1.9)
    breaker.admit(2.0)
    breaker.succeeded()
    breaker.admit(2.0)
    breaker.admit(2.0)


def test_the_breaker_counts_a_silent_room_once() -> None:
    breaker = Breaker()
    for _ in range(5):
        breaker.failed(0.0, "room_a_1")
    breaker.failed(0.0, "room_b_1")
    breaker.admit(0.0)
    breaker.failed(0.0, "room_c_1")
    with pytest.raises(MediaUnavailable):
        breaker.admit(0.0)


async def test_the_door_is_what_actions_ask_for(door: LiveKit) -> None:
    # The type checker reads this line; there is nothing to see while it runs.
    port: Media = door
    assert port.has_region("default")
