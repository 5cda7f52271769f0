"""Presence as people use it: choosing, watching contacts, and what is kept from whom."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from hub.actions import presence
from hub.protocol.presence import Presences
from tests.actions.conftest import OTHER_TENANT, TENANT, Node, eventually


async def know(hub: Node, owner: str, contact: str, status: str = "accepted", tenant: UUID = TENANT) -> None:
    async with hub.db.tenant(tenant, owner) as tx:
        await tx.execute("INSERT INTO tenants (id) VALUES ($1) ON CONFLICT DO NOTHING", tenant)
        for one in (owner, contact):
            await tx.execute("INSERT INTO users (id) VALUES ($1) ON CONFLICT DO NOTHING", one)
        await tx.execute(
            "INSERT INTO contacts (owner_id, contact_user_id, status) VALUES ($1, $2, $3)"
            " ON CONFLICT (tenant_id, owner_id, contact_user_id) DO UPDATE SET status = excluded.status",
            owner,
            contact,
            status,
        )


def online(hub: Node, *user_ids: str, tenant: UUID = TENANT) -> None:
    for user_id in user_ids:
        hub.presence.opened(f"device of {user_id}", tenant, user_id)


async def settled(hub: Node) -> None:
    await eventually(lambda: not hub.presence._owed)
    await asyncio.sleep(0.05)


def statuses(answer: Presences) -> dict[str, str]:
    return {one.user_id: one.status for one in answer.presences}


def told(hub: Node) -> list[tuple[str, str, str]]:
    """session, user, status of everything that watchers heard."""
    heard: list[tuple[str, str, str]] = []

    def tell(session_id: str, news: list[tuple[str, Any]]) -> None:
        heard.extend((session_id, user_id, seen.status) for user_id, seen in news)

    async def may_see(tenant_id: UUID, user_id: str, user_ids: Sequence[str]) -> dict[str, datetime | None]:
        return await presence.may_see(hub.db, tenant_id, user_id, user_ids)

    hub.watching.tell, hub.watching.may_see = tell, may_see
    return heard


async def test_only_accepted_contacts_are_seen_and_everybody_else_looks_offline(hub: Node) -> None:
    """S-243, S-007: by watching and by REST; nothing tells a stranger from somebody who is away."""
    await know(hub, "ben", "anna")
    await know(hub, "ben", "pending", "pending")
    await know(hub, "ben", "blocked", "blocked")
    # That others have ben in their lists gives him no right.
    await know(hub, "stranger", "ben")
    await know(hub, "ben", "anna", tenant=OTHER_TENANT)
    online(hub, "anna", "pending", "blocked", "stranger")
    await settled(hub)
    ben = hub.person("ben")
    asked = ["anna", "pending", "blocked", "stranger", "nobody", "anna"]
    expected = {"anna": "online", **dict.fromkeys(("pending", "blocked", "stranger", "nobody"), "offline")}
    assert statuses(await ben.do("presence:list", user_ids=asked)) == expected
    watched = await ben.socket().do("presence:watch", user_ids=asked)
    assert statuses(watched) == expected
    assert all(one.last_seen is None for one in watched.presences)
    elsewhere = hub.person("ben", tenant=OTHER_TENANT)
    assert statuses(await elsewhere.do("presence:list", user_ids=["anna"])) == {"anna": "offline"}
    assert hub.watching._watchers.keys() == {(TENANT, "anna")}


async def test_who_is_blocked_sees_the_other_go_and_learns_nothing_more(hub: Node) -> None:
    await know(hub, "ben", "anna")
    online(hub, "anna")
    await settled(hub)
    heard = told(hub)
    socket = hub.person("ben").socket()
    await socket.do("presence:watch", user_ids=["anna"])
    await know(hub, "anna", "ben", "blocked")
    await hub.presence.ring(TENANT, ["anna", "ben"])
    await eventually(lambda: heard == [(socket.id, "anna", "offline")])
    (seen,) = (await hub.person("ben").do("presence:list", user_ids=["anna"])).presences
    # As for anybody who went: with a time.
    assert (seen.status, seen.last_seen is not None) == ("offline", True)
    await hub.person("anna").socket().do("presence:set", status="busy", text="gone fishing")
    await asyncio.sleep(0.5)
    assert len(heard) == 1
    await know(hub, "anna", "ben", "accepted")
    await hub.presence.ring(TENANT, ["anna"])
    await eventually(lambda: heard[1:] == [(socket.id, "anna", "busy")])


async def test_a_choice_is_answered_and_heard_by_contacts_and_by_ones_own_other_devices(hub: Node) -> None:
    """S-243: invisible looks offline to all but oneself."""
    await know(hub, "ben", "anna")
    online(hub, "anna")
    await settled(hub)
    heard = told(hub)
    anna, ben = hub.person("anna").socket(), hub.person("ben").socket()
    await ben.do("presence:watch", user_ids=["anna"])
    await anna.do("presence:watch", user_ids=["anna"])
    chosen = await anna.do("presence:set", status="away", text="lunch")
    assert (chosen.presence.status, chosen.presence.text) == ("away", "lunch")
    await eventually(lambda: sorted(heard) == sorted([(ben.id, "anna", "away"), (anna.id, "anna", "away")]))
    heard.clear()
    chosen = await anna.do("presence:set", status="invisible")
    assert (chosen.presence.status, chosen.presence.text) == ("invisible", "lunch")
    await eventually(lambda: sorted(heard) == sorted([(ben.id, "anna", "offline"), (anna.id, "anna", "invisible")]))
    await ben.do("presence:unwatch", user_ids=["anna"])
    heard.clear()
    await anna.do("presence:set", status="online", text=None)
    await eventually(lambda: heard == [(anna.id, "anna", "online")])
    await asyncio.sleep(0.3)
    assert len(heard) == 1


async def test_being_in_a_call_is_seen_as_soon_as_the_roster_knows_it(hub: Node) -> None:
    """S-111: and no longer than that."""
    await know(hub, "ben", "anna")
    socket = hub.person("anna").socket()
    hub.presence.opened(socket.id, TENANT, "anna")
    await settled(hub)
    heard = told(hub)
    ben = hub.person("ben").socket()
    await ben.do("presence:watch", user_ids=["anna"])
    call_id = await hub.person("anna").room()
    await socket.join(call_id)
    await eventually(lambda: heard == [(ben.id, "anna", "in_call")], timeout_s=1)
    await socket.do("room:leave", call_id=call_id)
    await eventually(lambda: heard[1:] == [(ben.id, "anna", "online")], timeout_s=1)


async def test_guests_and_bad_words_are_refused(hub: Node) -> None:
    call_id = await hub.person("anna").room()
    guest = hub.person("guest:1", guest_of=call_id)
    assert await guest.refused("presence:list", user_ids=["anna"]) == "forbidden"
    ben = hub.person("ben")
    assert await ben.refused("presence:list", user_ids=[]) == "validation_failed"
    assert await ben.refused("presence:list", user_ids=[f"u{n}" for n in range(201)]) == "validation_failed"
    assert await ben.refused("presence:watch", user_ids=["anna"]) == "bad_request"
    for fields in ({"status": "offline"}, {"status": "in_call"}, {"status": "busy", "text": "a\nb"}, {}):
        assert not (await ben.socket().ack("presence:set", **fields)).ok
    assert not (await ben.socket().ack("presence:set", status="busy", text="x" * 141)).ok
