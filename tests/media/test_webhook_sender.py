"""The fake's webhook sender keeps LiveKit's rules, for what is tested against it to mean anything."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web
from livekit.protocol import models

from hub.media import webhooks
from hub.media.livekit import LiveKit
from tests.fakes import webhooks as sending
from tests.fakes.livekit import FakeLiveKit
from tests.media.conftest import Receiver


@pytest.fixture
async def room(fake: FakeLiveKit, receiver: Receiver) -> str:
    """A room without a webhook of its own making."""
    fake.open_room(models.Room(name="room_a_1", sid="RM_1", departure_timeout=1000, empty_timeout=1000))
    fake.webhook_urls.append(receiver.url)
    return "room_a_1"


def events(fake: FakeLiveKit, receiver: Receiver) -> list[str]:
    keys = {fake.api_key: fake.api_secret}
    pairs = zip(receiver.bodies, receiver.authorizations, strict=True)
    return [webhooks.verify(body, authorization, keys).event for body, authorization in pairs]


async def test_a_server_error_is_tried_five_times_with_the_same_event_and_holds_up_its_room(
    fake: FakeLiveKit, receiver: Receiver, room: str
) -> None:
    receiver.answers = [web.Response(status=500), web.Response(status=429), web.Response(status=503)]
    started = asyncio.get_running_loop().time()
    fake.join(room, "anna")
    fake.leave(room, "anna")
    await fake.settled()
    assert events(fake, receiver) == ["participant_joined"] * 4 + ["participant_left"]
    assert len(set(receiver.bodies[:4])) == len(set(receiver.authorizations[:4])) == 1
    # 1 + 2 + 4 s at a tenth.
    assert asyncio.get_running_loop().time() - started >= 0.7


async def test_after_five_attempts_an_event_is_lost(fake: FakeLiveKit, receiver: Receiver, room: str) -> None:
    receiver.answers = [web.Response(status=500) for _ in range(5)]
    fake.join(room, "anna")
    fake.leave(room, "anna")
    await fake.settled()
    assert [delivery.outcome for delivery in fake.sender.deliveries[-2:]] == ["given_up", "sent"]
    assert fake.sender.deliveries[-2].statuses == [500] * 5


@pytest.mark.parametrize("status", [301, 401, 404, 413, 501])
async def test_what_is_no_server_error_is_not_tried_again(
    fake: FakeLiveKit, receiver: Receiver, room: str, status: int
) -> None:
    receiver.answers = [web.Response(status=status, headers={"Location": receiver.url})]
    fake.join(room, "anna")
    await fake.settled()
    assert fake.sender.deliveries[-1].outcome == "refused"
    assert len(receiver.bodies) == 1


async def test_a_retry_after_is_obeyed(fake: FakeLiveKit, receiver: Receiver, room: str) -> None:
    receiver.answers = [web.Response(status=503, headers={"Retry-After": "3"})]
    started = asyncio.get_running_loop().time()
    fake.join(room, "anna")
    await fake.settled()
    assert asyncio.get_running_loop().time() - started >= 0.3


async def test_an_event_that_waited_too_long_is_dropped(receiver: Receiver) -> None:
    # 30 s become 0.3 s, and the room's first event needs 0.15 s three times.
    async with FakeLiveKit(time_scale=0.01, webhook_urls=[receiver.url]) as fake:
        fake.faults.webhooks.delay_s = 0.4
        await _create(fake)
        fake.join("room_a_1", "anna")
        await fake.settled()
        assert [delivery.outcome for delivery in fake.sender.deliveries] == ["sent", "too_old"]


async def test_a_queue_takes_two_hundred(fake: FakeLiveKit, receiver: Receiver, room: str) -> None:
    fake.faults.webhooks.delay_s = 0.001
    for _ in range(150):
        fake.join(room, "anna")
        fake.leave(room, "anna")
    outcomes = [delivery.outcome for delivery in fake.sender.deliveries]
    assert outcomes.count("overflow") == 300 - sending.MAX_DEPTH
    await fake.settled()


async def test_another_room_does_not_wait(fake: FakeLiveKit, receiver: Receiver, room: str) -> None:
    # All but the last attempt, 1.5 s later, fail.
    receiver.answers = [web.Response(status=500) for _ in range(4)]
    fake.join(room, "anna")
    while not receiver.bodies:  # noqa: ASYNC110  # the test's own time limit ends it
        await asyncio.sleep(0.01)
    receiver.answers.insert(0, web.Response())
    await _create(fake, "room_b_1")
    await fake.settled()
    assert events(fake, receiver).index("room_started") < 4


async def test_events_are_dropped_doubled_and_swapped_on_demand(
    fake: FakeLiveKit, receiver: Receiver, room: str
) -> None:
    fake.faults.webhooks.drop = {"participant_joined"}
    fake.join(room, "anna")
    fake.faults.webhooks.drop = set()
    fake.faults.webhooks.duplicate = True
    fake.leave(room, "anna")
    fake.faults.webhooks.duplicate = False
    fake.faults.webhooks.reorder = True
    fake.join(room, "ben")
    fake.publish(room, "ben")
    fake.publish(room, "ben")
    await fake.settled()
    assert events(fake, receiver) == [
        *["participant_left"] * 2,
        *["track_published", "participant_joined", "track_published"],
    ]


async def test_a_crash_loses_what_waits_and_says_nothing(fake: FakeLiveKit, receiver: Receiver, room: str) -> None:
    fake.faults.webhooks.delay_s = 0.2
    fake.join(room, "anna")
    await fake.crash()
    await asyncio.sleep(0.3)
    assert receiver.bodies == []
    assert fake.sender.deliveries[-1].outcome == "lost"


async def test_an_empty_room_ends_by_itself(receiver: Receiver) -> None:
    async with FakeLiveKit(time_scale=0.01, webhook_urls=[receiver.url]) as fake:
        await _create(fake, departure_s=5)
        fake.join("room_a_1", "anna")
        fake.leave("room_a_1", "anna")
        async with asyncio.timeout(5):
            while fake.rooms:  # noqa: ASYNC110  # the fake's clock decides
                await asyncio.sleep(0.01)
        await fake.settled()
        assert events(fake, receiver)[-1] == "room_finished"


async def _create(fake: FakeLiveKit, name: str = "room_a_1", *, departure_s: int = 1000) -> None:
    async with LiveKit({"default": fake.server}) as door:
        await door.create_room(name, departure_timeout_s=departure_s)
