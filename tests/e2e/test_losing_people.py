"""People who vanish, people who only reconnect, and people who go without a word to the hub."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.e2e.stage import STEP_S, Person, Stage, eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

# The promise is 30 s after the kill, of which LiveKit itself takes about 20.
GONE_S = 30.0


async def call_of(hub: Stage, host: Person) -> str:
    """A call with its host at a socket, listening."""
    call_id: str = (await host.create())["call_id"]
    await host.connect()
    await host.join(call_id)
    return call_id


async def by_media_alone(person: Person, call_id: str) -> str:
    """In the call through LiveKit only; the participant's id."""
    ticket = await person.ticket(call_id)
    await person.connect_media(ticket)
    participant_id: str = ticket["participant_id"]
    return participant_id


@pytest.mark.slow
@pytest.mark.timeout(150)
async def test_who_is_killed_has_left_within_thirty_seconds(hub: Stage) -> None:
    """S-082, S-111: kill -9 of the media client alone, and of socket and media together; a live socket stays in."""
    ada, ben, cleo, dan = (hub.person(name) for name in ("ada", "ben", "cleo", "dan"))
    call_id = await call_of(hub, ada)
    ben_id = await by_media_alone(ben, call_id)
    ids = {}
    for person in (cleo, dan):
        await person.connect()
        ids[person] = (await person.join(call_id, media=True))["self"]["participant_id"]
    await ada.wait_for(
        "participant:joined", lambda event: any(one["participant_id"] == ben_id for one in event["participants"])
    )
    await ada.wait_for(
        "media:changed", lambda event: event["participant_id"] == ids[dan] and event["media"]["microphone"]
    )

    killed_at = time.monotonic()
    for person in (ben, cleo, dan):
        assert person.rtc is not None
        await person.rtc.kill()
    cleo.cut_socket()
    told = [
        await ada.wait_for_left(participant_id, timeout_s=killed_at + GONE_S - time.monotonic())
        for participant_id in (ben_id, ids[cleo])
    ]
    assert [one["left_reason"] for one in told] == ["connection_lost", "connection_lost"]
    statuses = await hub.statuses(call_id)
    assert (statuses["ben"], statuses["cleo"]) == ("left", "left")
    # Whose socket is there is still in the call, but seen and heard no more.
    assert statuses["dan"] == "joined"
    assert not ada.left(ids[dan])
    await ada.wait_for(
        "media:changed", lambda event: event["participant_id"] == ids[dan] and not event["media"]["microphone"]
    )
    assert await hub.rows(
        "SELECT 1 FROM call_participants WHERE call_id = $1::uuid AND identity = 'ben' AND duration_seconds > 0",
        call_id,
    )


@pytest.mark.timeout(120)
async def test_a_full_reconnect_is_never_told_as_a_leave_and_going_is_told_after_two_seconds(hub: Stage) -> None:
    """S-082: LiveKit calls both CLIENT_INITIATED; only one of them is a leave."""
    ada, ben = hub.person("ada"), hub.person("ben")
    call_id = await call_of(hub, ada)
    ben_id = await by_media_alone(ben, call_id)
    assert ben.rtc is not None
    await ada.wait_for("participant:joined", lambda event: event["participants"][0]["participant_id"] == ben_id)

    async def sids() -> list[str]:
        query = "SELECT part_sid FROM participant_sessions WHERE call_id = $1::uuid AND identity = 'ben'"
        return [row["part_sid"] for row in await hub.rows(query, call_id)]

    await ben.rtc.tell("reconnect")
    await ben.rtc.wait_for("reconnected", timeout_s=STEP_S)
    await eventually(lambda: _longer(sids, 1))
    # Longer than any grace for a leave.
    await asyncio.sleep(4)
    assert not ada.left(ben_id)
    assert (await hub.statuses(call_id))["ben"] == "joined"

    left_at = time.monotonic()
    assert await ben.rtc.leave() == 0
    told = await ada.wait_for_left(ben_id, timeout_s=10)
    assert time.monotonic() - left_at >= 1.5
    assert told["left_reason"] == "left"
    assert (await hub.statuses(call_id))["ben"] == "left"


async def _longer(sids: object, than: int) -> bool:
    assert callable(sids)
    return len(await sids()) > than
