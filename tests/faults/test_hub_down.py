"""The hub is away while people come and go: afterwards it knows what LiveKit knows."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from hub.embedded import LiveKit, free_port
from tests.e2e.stage import Person, Stage, eventually
from tests.rtc import RtcClient

pytestmark = pytest.mark.asyncio(loop_scope="module")

SWEEP_S = 2
# Two sweeps are promised; a node that starts needs a moment to lead, and a machine under load another.
RIGHT_AGAIN_S = 2 * SWEEP_S + 8


async def _here(hub: Stage, call_id: str, **wanted: str) -> bool:
    statuses = await hub.statuses(call_id)
    return all(statuses[name] == status for name, status in wanted.items())


@pytest.mark.slow
@pytest.mark.timeout(150)
async def test_without_any_webhook_the_sweep_alone_keeps_the_roster(deaf: Stage) -> None:
    """S-189, S-248: joins and leaves while the hub is killed, and no webhook ever, before or after."""
    # Not where LiveKit reports to.
    node = await deaf.node(port=free_port(), AURALINK_SWEEP_S=str(SWEEP_S))
    ada, ben, cleo, dan = (deaf.person(name) for name in ("ada", "ben", "cleo", "dan"))
    call_id = (await ada.create())["call_id"]
    other_id = (await ada.create(name="Ends meanwhile"))["call_id"]
    await ada.connect()
    await ada.join(call_id)
    tickets = {person: await person.ticket(call_id) for person in (ben, cleo)}
    elsewhere = await dan.ticket(other_id)
    await ben.connect_media(tickets[ben])
    await dan.connect_media(elsewhere)
    await ada.wait_for("participant:joined", timeout_s=RIGHT_AGAIN_S)
    await eventually(lambda: _here(deaf, call_id, ben="joined", cleo="joining"), timeout_s=RIGHT_AGAIN_S)
    await eventually(lambda: _here(deaf, other_id, dan="joined"), timeout_s=RIGHT_AGAIN_S)

    await node.kill()
    assert ben.rtc is not None
    assert dan.rtc is not None
    await ben.rtc.leave()
    await dan.rtc.leave()
    await cleo.connect_media(tickets[cleo])

    await node.start()
    back = deaf.person("ada")
    await back.connect()
    await back.join(call_id)
    await eventually(lambda: _here(deaf, call_id, cleo="joined", ben="left"), timeout_s=RIGHT_AGAIN_S)
    assert not await deaf.rows(
        "SELECT 1 FROM livekit_webhook_inbox WHERE received_at > now() - interval '1 day' AND tenant_id IS NULL"
    )
    assert (await deaf.call(call_id))["status"] == "active"
    shown = await back.rest("GET", f"/rooms/{call_id}")
    assert shown.body["status"] == "active"
    sids = "SELECT identity, left_at IS NULL AS open FROM participant_sessions WHERE call_id = $1::uuid"
    found = {row["identity"]: row["open"] for row in await deaf.rows(sids, call_id)}
    assert found == {"ben": False, "cleo": True}


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.skipif(not os.environ.get("HUB_LONG_TESTS"), reason="takes two minutes; HUB_LONG_TESTS=1 runs it")
async def test_after_a_minute_away_everything_is_right_within_two_sweeps(deaf: Stage, livekit: LiveKit) -> None:
    """S-189: LiveKit gave up on its webhooks long ago, and its room of the call that everybody left is closed."""
    for node in deaf.nodes:
        await node.stop()
    deaf.nodes.clear()
    node = await deaf.node(port=livekit.webhook_port, AURALINK_SWEEP_S=str(SWEEP_S))
    ada, ben, cleo, dan = (deaf.person(name) for name in ("ada", "ben", "cleo", "dan"))
    call_id = (await ada.create())["call_id"]
    empty_id = (await ada.create(name="Everybody goes"))["call_id"]
    tickets = {person: await person.ticket(call_id) for person in (ada, ben, cleo)}
    await ada.connect_media(tickets[ada])
    await ben.connect_media(tickets[ben])
    await dan.connect_media(await dan.ticket(empty_id))
    await eventually(lambda: _here(deaf, call_id, ada="joined", ben="joined"))
    await eventually(lambda: _here(deaf, empty_id, dan="joined"))

    await node.kill()
    down_at = time.monotonic()
    await _leave(ben)
    await _leave(dan)
    await cleo.connect_media(tickets[cleo])
    await asyncio.sleep(down_at + 60 - time.monotonic())
    await node.start()
    await eventually(lambda: _here(deaf, call_id, ada="joined", cleo="joined", ben="left"), timeout_s=RIGHT_AGAIN_S)
    assert (await deaf.call(call_id))["status"] == "active"
    await eventually(lambda: _ended(deaf, empty_id), timeout_s=60 + RIGHT_AGAIN_S)
    assert await deaf.statuses(empty_id) == {"dan": "left"}


async def _leave(person: Person) -> None:
    rtc = person.rtc
    assert isinstance(rtc, RtcClient)
    await rtc.leave()


async def _ended(hub: Stage, call_id: str) -> bool:
    return bool((await hub.call(call_id))["status"] == "ended")
