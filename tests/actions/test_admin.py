"""What operators see and do, and what a session is told about itself."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from hub.cluster.sessions import SessionInfo
from hub.protocol.errors import InvalidCursor, NotFound, TokenInvalid
from tests.actions.conftest import OTHER_TENANT, TENANT, Node


async def test_admin_is_for_admins(hub: Node) -> None:
    """S-247: a user is refused with `forbidden`, whatever they ask."""
    call_id = await hub.person("ann").room()
    fields: dict[str, dict[str, Any]] = {
        "admin:end_room": {"call_id": call_id},
        "admin:close_session": {"session_id": "x"},
        "admin:retry_inbox": {"id": "x"},
        "admin:drain_node": {"node_id": "x"},
        "admin:undrain_node": {"node_id": "x"},
        "admin:announce": {"message": "x"},
    }
    for command in hub.dispatcher.commands:
        if command.noun == "admin":
            assert command.needs in ("admin", "operator")
            outcome = await hub.person("ann").refused(command.name, **fields.get(command.name, {}))
            assert outcome == "forbidden", command.name


async def test_the_overview_counts_ones_own_tenant(hub: Node) -> None:
    ann, boss = hub.person("ann"), hub.person("boss", admin=True)
    first, second = await ann.room(), await ann.room()
    await ann.do("room:end", call_id=second)
    await ann.socket().join(first)
    await hub.person("eve", tenant=OTHER_TENANT).room()
    seen = await boss.do("admin:overview")
    assert (seen.calls["waiting"], seen.calls["active"], seen.participants) == (1, 0, 1)
    assert seen.inbox == {"pending": 0, "dead": 0}
    assert seen.nodes == {"ready": 1}
    assert {call.call_id for call in (await boss.do("admin:rooms")).items} == {first, second}
    assert [call.call_id for call in (await boss.do("admin:rooms", status="waiting")).items] == [first]


@pytest.mark.parametrize("name", ["admin:nodes", "admin:config", "admin:reconcile"])
async def test_the_installation_is_shown_to_its_operators_and_to_no_tenants_admin(hub: Node, name: str) -> None:
    """Its numbers are those of all tenants."""
    assert await hub.person("boss", admin=True).refused(name) == "forbidden"
    assert hub.reconcile.asked == []
    assert await hub.person("cli", operator=True).refused(name) == "ok"


async def test_operators_see_the_nodes(hub: Node) -> None:
    (node,) = (await hub.person("cli", operator=True).do("admin:nodes")).items
    assert (node.node_id, node.status) == (hub.node_id, "ready")


async def test_ending_a_room_is_written_down(hub: Node) -> None:
    call_id = await hub.person("ann").room()
    boss = hub.person("boss", admin=True)
    ended = await boss.do("admin:end_room", call_id=call_id, reason="too loud")
    assert (ended.call.status, ended.call.end_reason) == ("ended", "ended_by_admin")
    (entry,) = (await boss.do("admin:audit", target_id=str(call_id))).items
    assert (entry.actor, entry.action, entry.reason) == ("boss", "room:end", "too loud")
    assert (await hub.person("spy", tenant=OTHER_TENANT, admin=True).do("admin:audit")).items == []


async def test_the_audit_comes_in_pages(hub: Node) -> None:
    ann, boss = hub.person("ann"), hub.person("boss", admin=True)
    for _ in range(3):
        await ann.do("room:end", call_id=await ann.room())
    first = await boss.do("admin:audit", limit=2)
    second = await boss.do("admin:audit", limit=2, cursor=first.next_cursor)
    ids = [int(entry.id) for entry in (*first.items, *second.items)]
    assert len(ids) == 3
    assert ids == sorted(ids, reverse=True)
    assert second.next_cursor is None
    with pytest.raises(InvalidCursor):
        await boss.do("admin:audit", cursor="x")


async def test_a_session_of_the_tenant_can_be_closed(hub: Node) -> None:
    for session_id, tenant in (("one", TENANT), ("two", OTHER_TENANT)):
        info = SessionInfo(session_id, tenant, "ann", datetime.now(UTC), hub.node_id, hub.incarnation, "app/1")
        hub.cluster.sessions.opened(info)
    boss = hub.person("boss", admin=True)
    # Told to the others in batches.
    async with asyncio.timeout(5):
        while not (listed := await boss.do("admin:sessions")).items:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.05)
    assert [(each.session_id, each.client) for each in listed.items] == [("one", "app/1")]
    await boss.do("admin:close_session", session_id="one", reason="leaving")
    assert hub.controls[-1]["kind"] == "close"
    assert hub.controls[-1]["session_id"] == "one"
    with pytest.raises(NotFound):
        await boss.do("admin:close_session", session_id="two")
    (entry,) = (await boss.do("admin:audit")).items
    assert (entry.action, entry.target_id, entry.reason) == ("session:close", "one", "leaving")


async def test_the_inbox_shows_ones_own_calls_webhooks(hub: Node) -> None:
    ann, boss = hub.person("ann"), hub.person("boss", admin=True)
    room_name = (await ann.do("room:get", call_id=await ann.room())).room_name
    for event_id, room in (("EV_1", room_name), ("EV_2", room_name), ("EV_3", "room_other_1")):
        await hub.rows(
            "SELECT inbox_store($1, 'room_started', $2, 'RM_1', NULL, NULL, now(), ''::bytea)", event_id, room
        )
    await hub.rows("UPDATE livekit_webhook_inbox SET status = 'dead', last_error = 'bad' WHERE event_id = 'EV_1'")
    seen = await boss.do("admin:inbox")
    assert [entry.id for entry in seen.items] == ["EV_2", "EV_1"]
    (dead,) = (await boss.do("admin:inbox", status="dead")).items
    assert (dead.id, dead.error) == ("EV_1", "bad")
    await boss.do("admin:retry_inbox", id="EV_1")
    assert await hub.value("SELECT status FROM livekit_webhook_inbox WHERE event_id = 'EV_1'") == "pending"
    for missing in ("EV_3", "EV_9"):
        with pytest.raises(NotFound):
            await boss.do("admin:retry_inbox", id=missing)


async def test_reconcile_asks_for_a_sweep(hub: Node) -> None:
    answer = await hub.person("cli", operator=True).do("admin:reconcile", dry_run=True)
    assert (hub.reconcile.asked, answer.corrections["participant:left"], answer.dry_run) == ([True], 2, True)


async def test_the_config_is_what_the_node_shows(hub: Node) -> None:
    shown = await hub.person("cli", operator=True).do("admin:config")
    assert shown.settings["AURALINK_JWT_SECRET"] == "***"


async def test_a_session_goes_on_under_a_new_token_of_the_same_person(hub: Node) -> None:
    ann, bob = hub.person("ann"), hub.person("bob")
    later = msgspec.structs.replace(ann.actor, expires_at=ann.actor.expires_at + timedelta(hours=1))
    hub.tokens.actors = {"new": later, "bobs": bob.actor}
    socket = ann.socket()
    assert (await socket.do("session:refresh", token="new")).expires_at == later.expires_at
    assert socket.actor == later
    for token in ("bobs", "nonsense"):
        with pytest.raises(TokenInvalid):
            await socket.do("session:refresh", token=token)


async def test_one_is_told_who_one_is_and_what_the_limits_are(hub: Node) -> None:
    ann = hub.person("ann")
    me = await ann.do("session:me")
    assert (me.user_id, me.tenant_id, me.role, me.call_id) == ("ann", TENANT, "authenticated", None)
    guest = hub.person("guest:1", guest_of=uuid4())
    assert (await guest.do("session:me")).call_id == guest.actor.guest.call_id  # type: ignore[union-attr]
    limits = await ann.do("session:limits")
    assert limits.limits["data_bytes"] == 15_360
    assert set(limits.rates) == {command.name for command in hub.dispatcher.commands}
    pong = await ann.socket().do("session:ping", client_time=1)
    assert pong.node_id == hub.node_id
