"""What only a real LiveKit shows: media, reconnects, crashes. The facts here are what the hub's fold is built on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest

from hub import embedded
from hub.media.livekit import LiveKit
from hub.media.values import Grant, Server
from hub.protocol.errors import MediaError, MediaUnavailable
from tests.media.worlds import RealWorld, World
from tests.rtc import RtcClient


@pytest.fixture
async def world(livekit: embedded.LiveKit) -> AsyncIterator[World]:
    async with RealWorld(livekit) as world:
        await world.door.create_room(world.room)
        yield world


async def test_sound_and_picture_go_both_ways(world: World) -> None:
    """S-130: tokens that the hub minted open a real room, and what they grant is sent and received."""
    url = world.door.public_url()
    async with (
        await RtcClient.start(url, world.token("anna"), audio=True, video=True) as anna,
        await RtcClient.start(url, world.token("ben"), audio=True, video=True) as ben,
    ):
        for client, other in ((anna, "ben"), (ben, "anna")):
            for kind in ("audio", "video"):
                assert (await client.wait_for("frames", by=other, kind=kind, timeout_s=30))["count"] > 0
        assert await anna.leave() == 0
        assert await ben.leave() == 0


async def test_a_viewer_hears_and_sends_nothing(world: World) -> None:
    """S-019: can_publish false holds in the SFU."""
    url = world.door.public_url()
    async with (
        await RtcClient.start(url, world.token("anna"), audio=True) as anna,
        await RtcClient.start(url, world.token("vera", Grant()), audio=True) as vera,
    ):
        await vera.wait_for("frames", by="anna", kind="audio", timeout_s=30)
        assert not anna.seen("track_subscribed")
        assert (await world.door.get_participant(world.room, "vera")).tracks == ()


async def test_a_full_reconnect_looks_like_a_leave_and_a_join_with_a_new_sid(world: World) -> None:
    url = world.door.public_url()
    async with await RtcClient.start(url, world.token("anna")) as anna:
        first = await world.event("participant_joined")
        await anna.tell("reconnect")
        assert first.participant is not None
        old = first.participant.sid
        left = await world.event("participant_left")
        again = await world.event(
            "participant_joined", lambda event: event.participant is not None and event.participant.sid != old
        )
        assert left.participant is not None
        assert again.participant is not None
        assert (left.participant.sid, left.participant.disconnect_reason) == (old, "CLIENT_INITIATED")
        await anna.wait_for("reconnected")


async def test_a_removed_person_comes_back_with_the_old_token(world: World) -> None:
    """Why a kick only holds where the hub removes them again at each participant_joined."""
    token = world.token("anna")
    first = await world.join("anna", token=token)
    await world.door.remove_participant(world.room, "anna")
    assert await first.gone() == "PARTICIPANT_REMOVED"
    world.events.clear()
    second = await world.join("anna", token=token)
    await world.door.remove_participant(world.room, "anna", just_joined=True)
    assert await second.gone() == "PARTICIPANT_REMOVED"


@pytest.mark.slow
async def test_a_killed_client_is_gone_within_half_a_minute(world: World) -> None:
    async with await RtcClient.start(world.door.public_url(), world.token("anna"), audio=True) as anna:
        await world.event("track_published")
        await anna.kill()
        killed_at = time.monotonic()
        left = await world.event("participant_left", timeout_s=30)
        assert left.participant is not None
        assert left.participant.disconnect_reason == "CONNECTION_TIMEOUT"
        assert 10 < time.monotonic() - killed_at < 30


async def test_a_frozen_server_costs_the_deadline_and_then_nothing(
    start_livekit: Callable[..., embedded.LiveKit],
) -> None:
    server = start_livekit()
    async with LiveKit({"default": _server(server)}, timeout_s=0.3) as door:
        await door.create_room("room_a_1")
        server.freeze()
        try:
            for index in range(4):
                started = time.monotonic()
                with pytest.raises(MediaUnavailable):
                    await door.create_room("room_a_1")
                took_s = time.monotonic() - started
                assert 0.25 < took_s < 2 if index < 3 else took_s < 0.2
        finally:
            server.thaw()
        await asyncio.sleep(1.1)
        await door.create_room("room_a_1")


async def test_unmuting_is_refused_where_the_server_says_so(start_livekit: Callable[..., embedded.LiveKit]) -> None:
    """S-022: the remote-unmute policy is an explicit error."""
    async with RealWorld(start_livekit(room={"enable_remote_unmute": False})) as world:
        await world.door.create_room(world.room)
        anna = await world.join("anna")
        sid = await anna.publish("microphone")
        await world.door.mute(world.room, "anna", sid, True)
        with pytest.raises(MediaError, match="remote unmute not enabled") as caught:
            await world.door.mute(world.room, "anna", sid, False)
        assert caught.value.details is not None
        assert caught.value.details["code"] == "failed_precondition"


@pytest.mark.slow
async def test_after_a_crash_people_return_to_a_room_that_is_made_again(
    start_livekit: Callable[..., embedded.LiveKit],
) -> None:
    """No room survives and no webhook tells; made again at once, it has its people back by themselves."""
    server = start_livekit()
    async with RealWorld(server) as world:
        first = await world.door.create_room(world.room)
        await world.join("anna")
        server.kill()
        world.events.clear()
        with pytest.raises(MediaUnavailable):
            await world.door.list_rooms()
        server.start()
        assert await world.door.list_rooms() == ()
        again = await world.door.create_room(world.room)
        assert again.sid != first.sid
        back = await world.event("participant_joined")
        assert back.room_sid == again.sid
        (who,) = await world.door.list_participants(world.room)
        assert (who.identity, who.state) == ("anna", "active")
        assert not [event for event in world.events if event.event == "participant_left"]


def _server(server: embedded.LiveKit) -> Server:
    return Server(url=server.url, api_key=server.api_key, api_secret=server.api_secret)
