"""LiveKit dies: it comes back and the calls go on, or it does not and they end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest

from hub.embedded import LiveKit, Valkey, free_port
from tests.conftest import TestDatabase
from tests.e2e.stage import STEP_S, Person, Stage, eventually


@pytest.fixture
async def stage(
    database: TestDatabase, valkey: Valkey, start_livekit: Callable[..., LiveKit], env_name: str
) -> AsyncIterator[Stage]:
    """With a LiveKit that may be killed. No node runs yet."""
    own = start_livekit(f"http://127.0.0.1:{free_port()}/webhooks/livekit")
    stage = Stage(database, valkey.url, own, env_name)
    try:
        yield stage
    finally:
        await stage.close()


async def call_with_three(stage: Stage) -> tuple[str, Person, dict[str, str]]:
    """Ada watches by her socket; ben is in by media alone, cleo by both."""
    ada, ben, cleo = (stage.person(name) for name in ("ada", "ben", "cleo"))
    call_id: str = (await ada.create())["call_id"]
    await ada.connect()
    await ada.join(call_id)
    ticket = await ben.ticket(call_id)
    await ben.connect_media(ticket)
    await cleo.connect()
    joined = await cleo.join(call_id, media=True)
    ids = {"ben": ticket["participant_id"], "cleo": joined["self"]["participant_id"]}
    await ada.wait_for("room:started")
    for participant_id in ids.values():
        await _seen(ada, participant_id)
    return call_id, ada, ids


async def _seen(watcher: Person, participant_id: str) -> None:
    await watcher.wait_for(
        "media:changed", lambda event: event["participant_id"] == participant_id and event["media"]["camera"]
    )


async def _in_the_new_room(stage: Stage, call_id: str, room_sid: str) -> bool:
    query = "SELECT identity FROM participant_sessions WHERE call_id = $1::uuid AND room_sid <> $2 AND left_at IS NULL"
    return {row["identity"] for row in await stage.rows(query, call_id, room_sid)} == {"ben", "cleo"}


@pytest.mark.slow
@pytest.mark.timeout(150)
async def test_a_call_outlives_a_livekit_that_is_killed_and_comes_back(stage: Stage) -> None:
    """S-189: the room is there again within 5 s, the clients come by themselves, and nobody is told a leave."""
    await stage.node(AURALINK_SWEEP_S="10")
    livekit = stage.livekit
    assert livekit is not None
    call_id, ada, ids = await call_with_three(stage)
    room_sid = (await stage.call(call_id))["livekit_room_sid"]

    livekit.kill()
    await asyncio.sleep(3)
    livekit.start()

    async def made_again() -> bool:
        # Of the hub's own book, since LiveKit knows nothing of before.
        rows = await stage.rows(
            "SELECT 1 FROM call_room_incarnations WHERE call_id = $1::uuid AND room_sid <> $2", call_id, room_sid
        )
        return bool(rows)

    await eventually(made_again, timeout_s=5)
    await eventually(lambda: _in_the_new_room(stage, call_id, room_sid), timeout_s=30)
    call = await stage.call(call_id)
    assert (call["status"], call["ended_at"]) == ("active", None)
    assert await stage.statuses(call_id) == {"ada": "joined", "ben": "joined", "cleo": "joined"}
    assert not [name for name in ada.names() if name in ("participant:left", "room:ended")]
    # And what they publish flows again, in the same call.
    await ada.wait_for(
        "participant:updated",
        lambda event: (
            event["participant"]["participant_id"] == ids["ben"] and event["participant"]["status"] == "joined"
        ),
        timeout_s=STEP_S,
    )
    shown = await ada.rest("GET", f"/rooms/{call_id}/participants")
    assert {one["user_id"] for one in shown.body["items"] if one["status"] == "joined"} == {"ada", "ben", "cleo"}


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_a_livekit_that_stays_away_ends_its_calls_after_the_grace(stage: Stage) -> None:
    """S-189: and then everything is closed, in the database too."""
    grace_s = 5
    await stage.node(AURALINK_ABSENT_ROOM_GRACE_S=str(grace_s))
    livekit = stage.livekit
    assert livekit is not None
    call_id, ada, _ = await call_with_three(stage)
    livekit.kill()
    killed_at = time.monotonic()
    ended = await ada.wait_for("room:ended", timeout_s=30)
    assert time.monotonic() - killed_at >= grace_s
    assert ended["reason"] == "media_lost"
    call = await stage.call(call_id)
    assert (call["status"], call["participant_count"]) == ("ended", 0)
    assert call["ended_at"] is not None
    assert await stage.statuses(call_id) == {"ada": "left", "ben": "left", "cleo": "left"}
    rows = await stage.rows("SELECT left_at, duration_seconds FROM call_participants WHERE call_id = $1::uuid", call_id)
    assert all(row["left_at"] is not None and row["duration_seconds"] is not None for row in rows)
    assert not await stage.rows("SELECT 1 FROM active_calls WHERE call_id = $1::uuid", call_id)
