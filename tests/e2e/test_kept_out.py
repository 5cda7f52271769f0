"""Kick, ban and roles hold in the SFU too, also against a LiveKit token that was given out before."""

from __future__ import annotations

import asyncio

import jwt
import pytest

from tests.e2e.stage import STEP_S, Stage, eventually
from tests.rtc import RtcClient

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.timeout(120)
async def test_who_was_kicked_is_removed_again_when_they_come_back_with_the_old_token(hub: Stage) -> None:
    """S-018: a kick holds against tokens that LiveKit still takes; a new one lets them in again, unless banned."""
    ada, ben, cleo = (hub.person(name) for name in ("ada", "ben", "cleo"))
    call_id = (await ada.create())["call_id"]
    await ada.connect()
    await ada.join(call_id)
    tickets, ids = {}, {}
    for person in (ben, cleo):
        await person.connect()
        joined = await person.join(call_id, media=True)
        tickets[person], ids[person] = joined["media"], joined["self"]["participant_id"]

    await ada.ask("participant:kick", call_id=call_id, participant_id=ids[ben], reason="noise")
    await ada.ask("participant:kick", call_id=call_id, participant_id=ids[cleo], ban_s=600)
    for person, reason in ((ben, "kicked"), (cleo, "banned")):
        assert (await person.wait_for("room:left"))["reason"] == reason
        assert person.rtc is not None
        await person.rtc.wait_for("disconnected", reason="PARTICIPANT_REMOVED", timeout_s=STEP_S)
        await ada.wait_for_left(ids[person], timeout_s=STEP_S)
    before = len(ada.heard)

    for person in (ben, cleo):
        ticket = tickets[person]
        async with await RtcClient.start(ticket["url"], ticket["token"], audio=True) as again:
            await again.wait_for("connected", timeout_s=STEP_S)
            await again.wait_for("disconnected", reason="PARTICIPANT_REMOVED", timeout_s=STEP_S)
    assert await hub.statuses(call_id) == {"ada": "joined", "ben": "kicked", "cleo": "kicked"}
    assert not [name for name, _ in ada.heard[before:] if name == "participant:joined"]

    refused = await cleo.rest("POST", f"/rooms/{call_id}/token", {})
    assert (refused.status, refused.body["code"]) == (403, "banned")
    assert (await cleo.ack("room:join", call_id=call_id))["error"]["code"] == "banned"
    ticket = await ben.ticket(call_id)
    await ben.connect_media(ticket)
    await eventually(lambda: _status(hub, call_id, "ben", "joined"))


@pytest.mark.timeout(120)
async def test_a_viewer_cannot_publish_in_the_sfu(hub: Stage) -> None:
    """S-242: losing the right takes down what is published, and a viewer's token never allows it."""
    ada, ben = hub.person("ada"), hub.person("ben")
    call_id = (await ada.create())["call_id"]
    for person in (ada, ben):
        await person.connect()
    await ada.join(call_id, media=True)
    ben_id = (await ben.join(call_id, media=True))["self"]["participant_id"]
    assert ada.rtc is not None
    assert ben.rtc is not None
    await ada.rtc.wait_for("track_subscribed", by="ben", source="microphone", timeout_s=STEP_S)
    await ada.wait_for(
        "media:changed", lambda event: event["participant_id"] == ben_id and event["media"]["microphone"]
    )

    await ada.ask("participant:set_role", call_id=call_id, participant_id=ben_id, role="viewer")
    await ben.rtc.wait_for("permissions", identity="ben", can_publish=False, timeout_s=STEP_S)
    await ada.rtc.wait_for("track_unsubscribed", by="ben", source="microphone", timeout_s=STEP_S)
    revoked = await ben.wait_for("media:revoked")
    assert revoked["participant_id"] == ben_id
    await ben.rtc.kill()

    ticket = await ben.ticket(call_id)
    assert jwt.decode(ticket["token"], options={"verify_signature": False})["video"]["canPublish"] is False
    viewer = await ben.connect_media(ticket, video=False)
    # The client library gives up after some ten seconds: the SFU does not answer.
    await viewer.wait_for("error", timeout_s=30)
    assert not viewer.seen("track_published")
    (row,) = await hub.rows("SELECT is_audio_enabled FROM call_participants WHERE id = $1::uuid", ben_id)
    assert row["is_audio_enabled"] is False


async def _status(hub: Stage, call_id: str, identity: str, wanted: str) -> bool:
    await asyncio.sleep(0)
    return (await hub.statuses(call_id))[identity] == wanted
