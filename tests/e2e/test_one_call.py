"""A real call through a real hub: sockets, REST, WebRTC, webhooks, database."""

from __future__ import annotations

import re
from typing import Any

import asyncpg

from tests.e2e.stage import Stage, eventually

BRIEF_CREATE = {
    "name": "Team Standup",
    "call_type": "group",
    "max_participants": 10,
    "recording_enabled": False,
    "screen_sharing_enabled": True,
    "file_sharing_enabled": True,
    "metadata": {"project": "AuraLink", "team": "Engineering"},
}


async def test_the_briefs_bodies_are_answered_with_the_briefs_keys(stage: Stage) -> None:
    """S-032, S-036, S-141, S-142, S-143, S-144: bodies verbatim, exact keys, against a real LiveKit."""
    await stage.node()
    ada = stage.person("ada")
    created = await ada.rest("POST", "/rooms", BRIEF_CREATE)
    assert created.status == 201
    assert set(created.body) == {"call_id", "room_id", "room_name", "status", "created_at"}
    assert re.fullmatch(r"room_[a-z0-9]+_\d+", created.body["room_name"])
    assert created.body["status"] == "waiting"
    assert created.body["room_id"].startswith("RM_")
    assert created.body["created_at"].endswith("Z")
    assert created.headers["Location"] == f"/api/v1/rooms/{created.body['call_id']}"

    shown = await ada.rest("GET", f"/rooms/{created.body['call_id']}")
    assert {name: shown.body[name] for name in BRIEF_CREATE} == BRIEF_CREATE

    token = await ada.rest(
        "POST",
        f"/rooms/{created.body['room_name']}/token",
        {"display_name": "John Doe", "metadata": '{"role":"engineer"}'},
    )
    assert token.status == 200
    assert {"token", "call_id", "room_name", "identity", "participant_id"} <= set(token.body)
    assert token.body["identity"] == "ada"


async def test_a_call_goes_from_waiting_to_active_to_ended_with_real_media(stage: Stage) -> None:
    """S-001…S-003, S-040, S-041, S-079…S-084, S-110, S-127, S-210, S-211, S-242: one call, end to end."""
    await stage.node()
    ada, ben = stage.person("ada"), stage.person("ben")
    call = await ada.create()
    await ada.connect()
    await ben.connect()
    await ada.join(call["call_id"], media=True)
    started = await ada.wait_for("room:started")
    assert started["call"]["status"] == "active"
    joined = await ben.join(call["call_id"], media=True)
    assert {one["user_id"] for one in joined["participants"]} == {"ada", "ben"}
    assert joined["position"]["offset"] >= started["offset"]
    assert ada.rtc is not None
    assert ben.rtc is not None
    for person, other in ((ada, "ben"), (ben, "ada")):
        assert person.rtc is not None
        await person.rtc.wait_for("frames", by=other, kind="audio")
        await person.rtc.wait_for("frames", by=other, kind="video")
    await ada.wait_for(
        "media:changed",
        lambda event: event["participant_id"] == joined["self"]["participant_id"] and event["media"]["camera"],
    )
    await ben.ask("room:leave", call_id=call["call_id"])
    left = await ada.wait_for("participant:left")
    assert [one["user_id"] for one in left["participants"]] == ["ben"]
    await ada.ask("room:end", call_id=call["call_id"])
    await ada.wait_for("room:ended")

    shown = await ada.rest("GET", f"/rooms/{call['call_id']}")
    assert (shown.body["status"], shown.body["participant_count"]) == ("ended", 0)
    assert shown.body["duration_s"] > 0
    offsets = [payload["offset"] for _, payload in ada.heard if "offset" in payload]
    assert offsets == sorted(set(offsets))
    await _rows_are_right(stage, call)


async def _rows_are_right(stage: Stage, call: dict[str, Any]) -> None:
    connection = await asyncpg.connect(stage.database.admin_dsn)
    try:
        row = await connection.fetchrow("SELECT * FROM calls WHERE id = $1::uuid", call["call_id"])
        assert row is not None
        assert (row["status"], row["owner_id"], row["livekit_room_name"]) == ("ended", "ada", call["room_name"])
        assert row["ended_at"] >= row["started_at"] >= row["created_at"]
        people = await connection.fetch("SELECT * FROM call_participants WHERE call_id = $1::uuid", call["call_id"])
        assert {one["user_id"]: one["status"] for one in people} == {"ada": "left", "ben": "left"}
        assert all(one["duration_seconds"] > 0 for one in people)

        async def all_done() -> bool:
            pending = await connection.fetchval(
                "SELECT count(*) FROM livekit_webhook_inbox WHERE room_name = $1 AND status <> 'done'",
                call["room_name"],
            )
            return bool(pending == 0)

        await eventually(all_done)
    finally:
        await connection.close()


async def test_a_stranger_and_another_tenant_see_no_call(stage: Stage) -> None:
    """S-034, S-126, S-172: foreign and missing are the same answer."""
    await stage.node()
    ada = stage.person("ada", tenant="acme")
    eve = stage.person("eve", tenant="evil", admin=True)
    call = await ada.create()
    missing = await eve.rest("GET", "/rooms/00000000-0000-4000-8000-000000000000", X_Request_Id="r")
    foreign = await eve.rest("GET", f"/rooms/{call['call_id']}", X_Request_Id="r")
    named = await eve.rest("GET", f"/rooms/{call['room_name']}", X_Request_Id="r")
    assert missing.status == 404
    assert foreign.body == missing.body == named.body
