"""Waiting at the door of a call: who has to, who hears of it, who lets them in, and when it comes to nothing."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from hub.background.lobbies import Lobbies
from hub.protocol.errors import (
    Banned,
    CallEnded,
    Forbidden,
    HubError,
    LobbyDenied,
    LobbyRequired,
    NotFound,
    RoomFull,
    RoomLocked,
    ValidationFailed,
)
from tests.actions.conftest import OTHER_TENANT, Node, Socket


async def waiting(hub: Node, *names: str, **fields: Any) -> tuple[UUID, Socket, list[Socket]]:
    """A call with a lobby, its owner in it, and these people at its door."""
    ann = await hub.person("ann").listening()
    call_id = await hub.person("ann").room(lobby_enabled=True, **fields)
    await ann.join(call_id)
    people = []
    for number, name in enumerate(names, 1):
        people.append(await hub.person(name).listening())
        await people[-1].do("lobby:knock", call_id=call_id)
        await ann.hears("lobby:knocked", number)
    return call_id, ann, people


def tickets(ann: Socket) -> list[str]:
    return [event["entry"]["ticket"] for event in ann.told("lobby:knocked")]


async def test_a_knock_is_heard_by_the_owner_and_the_moderators_and_by_nobody_else(hub: Node) -> None:
    """S-077"""
    call_id, ann, _ = await waiting(hub)
    mod, bob = await hub.person("mod").listening(), await hub.person("bob").listening()
    await ann.do("room:update", call_id=call_id, lobby_enabled=False)
    his = (await mod.join(call_id)).self.participant_id
    await bob.join(call_id)
    await ann.do("participant:set_role", call_id=call_id, participant_id=his, role="moderator")
    await ann.do("room:update", call_id=call_id, lobby_enabled=True)
    eve = await hub.person("eve").listening()
    answer = await eve.do("lobby:knock", call_id=call_id, display_name="Eve of Sales")
    assert (answer.status, answer.position, answer.timeout_s) == ("waiting", 1, hub.rules.lobby_timeout_s)
    for host in (ann, mod):
        event = await host.hears("lobby:knocked")
        assert (event["entry"]["display_name"], event["entry"]["user_id"]) == ("Eve of Sales", "eve")
        assert (event["entry"]["call_id"], event["waiting"]) == (str(call_id), 1)
        # It has its place in the person's own log, not in the room's.
        assert "call_id" not in event and event["offset"] >= 1
    assert not [name for name in bob.names() + eve.names() if name.startswith("lobby:")]


async def test_nobody_gets_a_token_before_being_let_in(hub: Node) -> None:
    """S-077: neither by REST nor with the join; then both."""
    call_id, ann, (bob,) = await waiting(hub, "bob")
    for refused in (
        bob.join(call_id),
        hub.person("bob").do("room:token", call_id=call_id),
        bob.join(call_id, device_id="x"),
    ):
        with pytest.raises(LobbyRequired):
            await refused
    assert await hub.value("SELECT count(*) FROM call_participants WHERE user_id = 'bob'") == 0
    assert (await ann.do("lobby:admit", call_id=call_id, tickets=tickets(ann))).count == 1
    admitted = await bob.hears("lobby:admitted")
    assert (admitted["entry"]["ticket"], admitted["entry"]["status"]) == (tickets(ann)[0], "admitted")
    assert (await bob.join(call_id)).media.token
    left = await ann.hears("lobby:updated")
    assert ([entry["user_id"] for entry in left["entries"]], left["waiting"]) == (["bob"], 0)


async def test_positions_are_live_and_asking_again_keeps_ones_place(hub: Node) -> None:
    call_id, ann, (bob, cleo, dan) = await waiting(hub, "bob", "cleo", "dan")
    again = await dan.do("lobby:knock", call_id=call_id)
    assert (str(again.ticket), again.position) == (tickets(ann)[2], 3)
    # The hosts hear it again: who took the first knock may not have lived to tell it.
    assert (await ann.hears("lobby:knocked", 4))["entry"]["ticket"] == tickets(ann)[2]
    await ann.do("lobby:admit", call_id=call_id, tickets=[tickets(ann)[0]])
    assert (await cleo.hears("lobby:updated"))["entries"][0]["position"] == 1
    assert (await dan.hears("lobby:updated"))["entries"][0]["position"] == 2
    await cleo.do("lobby:cancel", call_id=call_id)
    moved = await dan.hears("lobby:updated", 2)
    assert (moved["entries"][0]["position"], moved["waiting"]) == (1, 1)
    assert (await ann.hears("lobby:updated", 2))["entries"][0]["status"] == "canceled"
    # Canceling twice, and without having knocked, is no news.
    await cleo.do("lobby:cancel", call_id=call_id)
    await bob.do("lobby:cancel", call_id=call_id)
    listed = (await ann.do("lobby:list", call_id=call_id)).items
    assert [(entry.user_id, entry.position) for entry in listed] == [("dan", 1)]
    # Whoever knocks anew stands at the end.
    assert (await cleo.do("lobby:knock", call_id=call_id)).position == 2


async def test_many_and_all_are_let_in_at_once(hub: Node) -> None:
    call_id, ann, people = await waiting(hub, "p1", "p2", "p3", "p4")
    first = await ann.do("lobby:admit", call_id=call_id, tickets=[*tickets(ann)[:2], uuid4()])
    assert first.count == 2
    assert (await ann.do("lobby:admit", call_id=call_id, all=True)).count == 2
    assert (await ann.do("lobby:admit", call_id=call_id, all=True)).count == 0
    for person in people:
        await person.hears("lobby:admitted")
        await person.join(call_id)
    rows = await hub.rows("SELECT details FROM audit_log WHERE action = 'lobby:admit' ORDER BY id")
    assert [msgspec.json.decode(row["details"])["user_ids"] for row in rows] == [["p1", "p2"], ["p3", "p4"]]
    for wrong in ({}, {"all": True, "tickets": tickets(ann)}):
        with pytest.raises(ValidationFailed):
            await ann.do("lobby:deny", call_id=call_id, **wrong)


async def test_two_hosts_who_decide_at_once_decide_once(hub: Node) -> None:
    call_id, ann, (bob,) = await waiting(hub, "bob")
    other = hub.person("boss", admin=True)
    counts = await asyncio.gather(
        ann.do("lobby:admit", call_id=call_id, all=True),
        other.do("lobby:deny_one", call_id=call_id, ticket=tickets(ann)[0]),
    )
    assert sorted(answer.count for answer in counts) == [0, 1]
    await asyncio.sleep(0.1)
    assert len(bob.told("lobby:admitted")) + len(bob.told("lobby:denied")) == 1


async def test_a_denial_is_told_and_holds_for_a_while(hub: Node) -> None:
    """S-077: a coded denial."""
    call_id, ann, (bob,) = await waiting(hub, "bob")
    await ann.do("lobby:deny", call_id=call_id, tickets=tickets(ann), reason="Wrong meeting")
    told = await bob.hears("lobby:denied")
    assert (told["why"], told["reason"], told["retry_after_ms"]) == ("denied", "Wrong meeting", 60_000)
    for refused in (bob.do("lobby:knock", call_id=call_id), bob.join(call_id)):
        with pytest.raises(LobbyDenied) as denied:
            await refused
        assert 0 < (denied.value.retry_after_ms or 0) <= 60_000
    hub.ahead = timedelta(seconds=61)
    assert (await bob.do("lobby:knock", call_id=call_id)).position == 1
    assert len(set(tickets(ann)) | {(await ann.hears("lobby:knocked", 2))["entry"]["ticket"]}) == 2


async def test_a_knock_that_nobody_answers_is_denied_in_time(hub: Node) -> None:
    """S-077: the default is no."""
    call_id, ann, (bob,) = await waiting(hub, "bob")
    lobbies = Lobbies(hub)
    assert await lobbies.once() == 0
    hub.ahead = timedelta(seconds=hub.rules.lobby_timeout_s + 1)
    cleo = await hub.person("cleo").listening()
    # Nobody waits behind somebody whose time is over.
    assert (await cleo.do("lobby:knock", call_id=call_id)).position == 1
    assert (await bob.hears("lobby:denied"))["why"] == "timed_out"
    assert await lobbies.once() == 0
    hub.ahead *= 2
    assert await lobbies.once() == 1
    assert (await cleo.hears("lobby:denied"))["why"] == "timed_out"
    assert (await ann.hears("lobby:updated", 2))["entries"][0]["status"] == "timed_out"
    # A timeout is no denial: they may knock at once.
    assert (await bob.do("lobby:knock", call_id=call_id)).status == "waiting"


async def test_the_end_of_the_call_ends_the_waiting(hub: Node) -> None:
    """S-024: by command at once, by itself within a second; also where the call is deleted with all its rows."""
    call_id, ann, (bob,) = await waiting(hub, "bob")
    await ann.do("room:end", call_id=call_id)
    told = await bob.hears("lobby:denied")
    assert (told["why"], told["retry_after_ms"]) == ("call_ended", None)
    with pytest.raises(CallEnded):
        await bob.do("lobby:knock", call_id=call_id)
    other = await hub.person("ann").room(lobby_enabled=True)
    await bob.do("lobby:knock", call_id=other)
    await hub.person("ann").do("room:delete", call_id=other)
    await bob.hears("lobby:denied", 2)
    third = await hub.person("ann").room(lobby_enabled=True)
    await bob.do("lobby:knock", call_id=third)
    await hub.rows("UPDATE calls SET status = 'ended' WHERE id = $1", third)
    assert await Lobbies(hub).once() == 1
    await bob.hears("lobby:denied", 3)
    assert await hub.value("SELECT count(*) FROM lobby_entries WHERE status = 'waiting'") == 0


async def test_a_room_switches_its_lobby_on_and_off_in_mid_call(hub: Node) -> None:
    ann, bob = await hub.person("ann").listening(), await hub.person("bob").listening()
    call_id = await hub.person("ann").room()
    await ann.join(call_id)
    await bob.join(call_id)
    await ann.do("room:update", call_id=call_id, lobby_enabled=True)
    assert "room:updated" in bob.names()
    eve = await hub.person("eve").listening()
    with pytest.raises(LobbyRequired):
        await eve.join(call_id)
    # Who is in stays, and comes back after leaving.
    await bob.do("room:leave", call_id=call_id)
    await bob.join(call_id)
    await eve.do("lobby:knock", call_id=call_id)
    guest = await hub.person("guest:1", guest_of=call_id, approval=True).listening()
    await guest.do("lobby:knock", call_id=call_id)
    await ann.do("room:update", call_id=call_id, lobby_enabled=False)
    await eve.hears("lobby:admitted")
    await eve.join(call_id)
    # Whom the link sends to the lobby goes on waiting.
    with pytest.raises(LobbyRequired):
        await guest.join(call_id)
    assert (await guest.hears("lobby:updated"))["entries"][0]["position"] == 1
    assert (await bob.do("lobby:knock", call_id=call_id)).status == "admitted"


async def test_whoever_was_let_in_comes_again_and_whoever_was_put_out_knocks_again(hub: Node) -> None:
    call_id, ann, (bob,) = await waiting(hub, "bob")
    await ann.do("lobby:admit", call_id=call_id, all=True)
    his = (await bob.join(call_id)).self.participant_id
    await bob.do("room:leave", call_id=call_id)
    assert (await bob.do("lobby:knock", call_id=call_id)).status == "admitted"
    await bob.join(call_id)
    await ann.do("participant:kick", call_id=call_id, participant_id=his)
    with pytest.raises(LobbyRequired):
        await bob.join(call_id)
    assert (await bob.do("lobby:knock", call_id=call_id)).status == "waiting"
    await ann.do("lobby:admit", call_id=call_id, all=True)
    await bob.join(call_id)
    await ann.do("participant:kick", call_id=call_id, participant_id=his, ban_s=60)
    with pytest.raises(Banned):
        await bob.do("lobby:knock", call_id=call_id)


async def test_a_guest_whose_link_asks_for_approval_waits_in_a_call_without_a_lobby(hub: Node) -> None:
    """S-077"""
    ann = await hub.person("ann").listening()
    call_id = await hub.person("ann").room()
    await ann.join(call_id)
    guest = await hub.person("guest:1", guest_of=call_id, role="moderator", approval=True).listening()
    with pytest.raises(LobbyRequired):
        await guest.join(call_id)
    await guest.do("lobby:knock", call_id=call_id)
    # In the lobby a guest knows nothing of the call and decides nothing.
    for name in ("room:get", "lobby:list", "participant:list"):
        with pytest.raises(NotFound):
            await hub.do(guest.actor, name, {"call_id": call_id})
    with pytest.raises(NotFound):
        await guest.do("lobby:admit", call_id=call_id, all=True)
    ticket = (await ann.hears("lobby:knocked"))["entry"]["ticket"]
    rest = hub.person("ann")
    assert [entry.user_id for entry in (await rest.do("lobby:list", call_id=call_id)).items] == ["guest:1"]
    assert (await rest.do("lobby:admit_one", call_id=call_id, ticket=ticket)).count == 1
    assert (await rest.do("lobby:admit_one", call_id=call_id, ticket=ticket)).count == 0
    assert await rest.refused("lobby:admit_one", call_id=call_id, ticket=uuid4()) == "not_found"
    await guest.hears("lobby:admitted")
    assert (await guest.join(call_id)).self.role == "moderator"


async def test_who_need_not_knock_is_told_so(hub: Node) -> None:
    call_id, ann, _ = await waiting(hub)
    assert (await ann.do("lobby:knock", call_id=call_id)).status == "admitted"
    boss = hub.person("boss", admin=True).socket()
    assert (await boss.do("lobby:knock", call_id=call_id)).ticket is None
    await boss.join(call_id)


async def test_doors_that_are_shut_are_not_knocked_at(hub: Node) -> None:
    call_id, ann, (bob,) = await waiting(hub, "bob")
    await ann.do("room:update", call_id=call_id, locked=True)
    with pytest.raises(RoomLocked):
        await hub.person("eve").socket().do("lobby:knock", call_id=call_id)
    with pytest.raises(RoomLocked):
        await ann.do("lobby:admit", call_id=call_id, all=True)
    await ann.do("lobby:deny", call_id=call_id, all=True)
    await bob.hears("lobby:denied")
    for stranger in (hub.person("eve", tenant=OTHER_TENANT), hub.person("guest:9", guest_of=uuid4())):
        with pytest.raises(NotFound):
            await stranger.socket().do("lobby:knock", call_id=call_id)


async def test_a_lobby_has_so_many_places(hub: Node) -> None:
    hub.rules = msgspec.structs.replace(hub.rules, lobby_seats=2)
    call_id, ann, _ = await waiting(hub, "p1", "p2")
    eve = hub.person("eve").socket()
    with pytest.raises(RoomFull):
        await eve.do("lobby:knock", call_id=call_id)
    await ann.do("lobby:admit", call_id=call_id, tickets=tickets(ann)[:1])
    await eve.do("lobby:knock", call_id=call_id)


async def test_a_host_who_comes_back_sees_who_waits_and_others_do_not(hub: Node) -> None:
    call_id, ann, (bob, cleo) = await waiting(hub, "bob", "cleo")
    again = await ann.join(call_id)
    assert [(entry.user_id, entry.position) for entry in again.lobby] == [("bob", 1), ("cleo", 2)]
    await ann.do("lobby:admit", call_id=call_id, tickets=tickets(ann)[:1])
    assert (await bob.join(call_id)).lobby is None
    for name, fields in (("lobby:list", {}), ("lobby:admit", {"all": True}), ("lobby:deny", {"all": True})):
        with pytest.raises(Forbidden):
            await bob.do(name, call_id=call_id, **fields)
    # A host who was away with the socket asks the log of what they missed.
    position = hub.cluster.bus.position_of_user(ann.actor.tenant_id, "ann")
    assert position is not None
    await cleo.do("lobby:cancel", call_id=call_id)
    await ann.hears("lobby:updated", 2)
    missed = await hub.cluster.bus.missed_by_user(ann.actor.tenant_id, "ann", position)
    assert missed is not None
    assert [each.event for each in missed] == ["lobby:updated"]


async def test_what_a_node_decided_and_did_not_live_to_tell_is_told_by_another(hub: Node) -> None:
    hub.still = datetime.now(UTC)
    call_id, ann, (bob, cleo, _) = await waiting(hub, "bob", "cleo", "dan")
    real = hub.bus

    class Dying:
        """Between the commit and the telling."""

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        async def to_user(self, *args: Any, **kwargs: Any) -> None:
            raise RuntimeError("the node is gone")

    hub.bus = Dying()  # type: ignore[assignment]
    for name, socket in (("lobby:admit", bob), ("lobby:deny", cleo)):
        ticket = next(
            e["entry"]["ticket"] for e in ann.told("lobby:knocked") if e["entry"]["user_id"] == socket.actor.user_id
        )
        with pytest.raises(HubError):
            await ann.do(name, call_id=call_id, tickets=[ticket], reason="Because")
    hub.bus = real
    lobbies = Lobbies(hub)
    assert await lobbies.once() == 0
    hub.ahead = timedelta(seconds=6)
    assert await lobbies.once() == 1
    assert (await bob.hears("lobby:admitted"))["entry"]["status"] == "admitted"
    denied = await cleo.hears("lobby:denied")
    assert denied["reason"] == "Because"
    assert 0 < denied["retry_after_ms"] <= 54_000
    assert len((await ann.hears("lobby:updated"))["entries"]) == 2
    await bob.join(call_id)
    # Once, and not what was told in time.
    await ann.do("lobby:admit", call_id=call_id, all=True)
    hub.ahead *= 3
    assert await lobbies.once() == 0
    assert len(bob.told("lobby:admitted")) == 1


class _Mute:
    """A bus of a node that dies between the commit and the telling."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def to_user(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("the node is gone")


@pytest.mark.parametrize(
    ("name", "fields", "heard", "why"),
    [
        ("room:update", {"lobby_enabled": False}, "lobby:admitted", None),
        ("room:end", {}, "lobby:denied", "call_ended"),
    ],
)
async def test_whatever_ended_the_waiting_is_told_by_another_node(
    hub: Node, name: str, fields: dict[str, Any], heard: str, why: str | None
) -> None:
    call_id, ann, (bob,) = await waiting(hub, "bob")
    real, hub.bus = hub.bus, _Mute(hub.bus)  # type: ignore[assignment]
    with pytest.raises(HubError):
        await ann.do(name, call_id=call_id, **fields)
    hub.bus = real
    hub.ahead = timedelta(seconds=6)
    assert await Lobbies(hub).once() == 1
    assert (await bob.hears(heard)).get("why") == why
    hub.ahead *= 3
    assert await Lobbies(hub).once() == 0


async def test_a_knock_that_ended_in_time_is_told_again_by_whoever_comes_next(hub: Node) -> None:
    _, _, (bob,) = await waiting(hub, "bob")
    hub.ahead = timedelta(seconds=hub.rules.lobby_timeout_s + 1)
    real, hub.bus = hub.bus, _Mute(hub.bus)  # type: ignore[assignment]
    assert await Lobbies(hub).once() == 0
    hub.bus = real
    hub.ahead += timedelta(seconds=6)
    assert await Lobbies(hub).once() == 1
    assert (await bob.hears("lobby:denied"))["why"] == "timed_out"
    assert await Lobbies(hub).once() == 0
