"""Ringing: who is called, who answers, what everybody hears of it, and what is kept from whom."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from hub.background.ringing import Latecomers, Ringing
from hub.commands import Event
from hub.protocol.errors import AnsweredElsewhere, HubError, InviteEnded, RateLimited
from tests.actions.conftest import OTHER_TENANT, TENANT, Node, Person, Socket, eventually


async def device(person: Person, device_id: str | None = None) -> Socket:
    """A socket that hears what is meant for its user."""
    await person.hub.cluster.bus.subscribe_users([(person.actor.tenant_id, person.id)])
    return person.socket(device_id)


class Scene:
    """ann in a call, on a socket that hears what comes to her."""

    def __init__(self, hub: Node, ann: Person, call_id: UUID, socket: Socket) -> None:
        self.hub, self.ann, self.call_id, self.socket = hub, ann, call_id, socket

    async def ring(self, *user_ids: str, **fields: Any) -> UUID:
        sent = await self.socket.do("invite:send", call_id=self.call_id, user_ids=user_ids, **fields)
        invite_id: UUID = sent.invite_id
        return invite_id

    async def later(self, seconds: float) -> int:
        self.hub.ahead += timedelta(seconds=seconds)
        return await Ringing(self.hub).once()

    async def log(self, who: Person | None = None, **fields: Any) -> list[tuple[str, str, str]]:
        page = await (who or self.ann).do("invite:list", **fields)
        return [(each.direction, each.user_id, each.status) for each in page.items]


@pytest.fixture
async def scene(hub: Node) -> Scene:
    ann = hub.person("ann")
    call_id = await ann.room()
    socket = await device(ann)
    await socket.join(call_id)
    return Scene(hub, ann, call_id, socket)


def of(socket: Socket, noun: str = "invite") -> list[tuple[str, dict[str, Any]]]:
    return [(name, data) for name, data in socket.heard if name.startswith(f"{noun}:")]


def names(socket: Socket) -> list[str]:
    return [name for name, _ in of(socket)]


async def heard(socket: Socket, *expected: str) -> None:
    await eventually(lambda: names(socket) == list(expected))


async def test_all_devices_ring_and_the_first_answer_silences_the_others(scene: Scene) -> None:
    ben = scene.hub.person("ben")
    phone, laptop = await device(ben, "phone"), await device(ben, "laptop")
    invite_id = await scene.ring("ben")
    await heard(phone, "invite:received")
    await heard(laptop, "invite:received")
    (_, received) = of(phone)[0]
    assert received["invite_id"] == str(invite_id)
    assert received["call"] == {"call_id": str(scene.call_id), "name": "Team Standup", "call_type": "group"}
    assert received["caller"] == {"user_id": "ann", "display_name": "Ann", "avatar_url": ""}
    answered = await phone.do("invite:accept", invite_id=invite_id)
    assert answered.call.call_id == scene.call_id
    await heard(laptop, "invite:received", "invite:canceled")
    canceled = of(laptop)[1][1]
    assert canceled["reason"] == "answered_elsewhere"
    assert canceled["answered_by"] == {"session_id": phone.id, "device_id": "phone"}
    await heard(scene.socket, "invite:accepted")
    accepted = of(scene.socket)[0][1]
    # The call is not named beside the position, which is one of her own log.
    assert (accepted["user_id"], accepted["call"]) == ("ben", {"call_id": str(scene.call_id)})
    assert "call_id" not in accepted
    with pytest.raises(AnsweredElsewhere):
        await laptop.do("invite:accept", invite_id=invite_id)
    with pytest.raises(AnsweredElsewhere):
        await laptop.do("invite:decline", invite_id=invite_id)
    # The one that has it asks again, after a reconnect say: the same answer, and nobody hears anything.
    again = await (await device(ben, "phone")).do("invite:accept", invite_id=invite_id)
    assert again.call.call_id == scene.call_id
    assert await scene.later(600) == 0
    assert await scene.log() == [("outgoing", "ben", "accepted")]
    assert await scene.log(ben) == [("incoming", "ben", "accepted")]
    await phone.join(scene.call_id)
    assert names(scene.socket) == ["invite:accepted"]


async def test_of_many_devices_that_answer_at_once_exactly_one_wins(scene: Scene) -> None:
    ben = scene.hub.person("ben")
    devices = [await device(ben, f"device{number}") for number in range(8)]
    invite_id = await scene.ring("ben")

    async def answer(socket: Socket) -> str:
        try:
            await socket.do("invite:accept", invite_id=invite_id)
        except HubError as error:
            return error.code
        return "ok"

    assert sorted(await asyncio.gather(*map(answer, devices))) == ["answered_elsewhere"] * 7 + ["ok"]
    await heard(scene.socket, "invite:accepted")


async def test_of_an_answer_and_a_caller_who_gives_up_at_once_one_counts(scene: Scene) -> None:
    """Whichever it is, both sides are told the same, and the log says it."""
    for number in range(4):
        callee = scene.hub.person(f"u{number}")
        at_callee = await device(callee)
        invite_id = await scene.ring(callee.id)
        asked = [
            at_callee.ack("invite:accept", invite_id=invite_id),
            scene.socket.ack("invite:cancel", invite_id=invite_id),
        ]
        answered, gave_up = await asyncio.gather(*(asked if number % 2 else reversed(asked)))
        answered, gave_up = (answered, gave_up) if number % 2 else (gave_up, answered)
        assert gave_up.ok
        ((_, _, status),) = [row for row in await scene.log() if row[1] == callee.id]
        assert status == ("accepted" if answered.ok else "canceled")
        await eventually(lambda: len(of(at_callee)) == 2)  # noqa: B023
        reason = of(at_callee)[1][1]["reason"]
        assert reason == ("answered_elsewhere" if answered.ok else "canceled")
    await eventually(lambda: len(of(scene.socket)) == 4)


@pytest.mark.parametrize("reason", ["declined", "busy"])
async def test_who_declines_is_told_of_with_the_reason_and_rings_nowhere_any_more(scene: Scene, reason: str) -> None:
    ben = scene.hub.person("ben")
    phone, laptop = await device(ben), await device(ben)
    invite_id = await scene.ring("ben")
    for _ in range(2):
        await phone.do("invite:decline", invite_id=invite_id, reason=reason)
    await heard(scene.socket, "invite:declined")
    assert of(scene.socket)[0][1]["reason"] == reason
    await heard(laptop, "invite:received", "invite:canceled")
    assert of(laptop)[1][1]["reason"] == "declined_elsewhere"
    with pytest.raises(InviteEnded) as refused:
        await laptop.do("invite:accept", invite_id=invite_id)
    assert refused.value.details == {"status": reason}
    assert await scene.log(ben, direction="incoming") == [("incoming", "ben", reason)]


async def test_the_caller_gives_up(scene: Scene) -> None:
    ben, cid = scene.hub.person("ben"), scene.hub.person("cid")
    at_ben, at_cid = await device(ben), await device(cid)
    invite_id = await scene.ring("ben", "cid")
    await at_cid.do("invite:accept", invite_id=invite_id)
    assert await ben.refused("invite:cancel", invite_id=invite_id) == "not_found"
    for _ in range(2):
        await scene.socket.do("invite:cancel", invite_id=invite_id)
    await heard(at_ben, "invite:received", "invite:canceled")
    assert of(at_ben)[1][1]["reason"] == "canceled"
    # Who has answered is not called back.
    await asyncio.sleep(0.1)
    assert of(at_cid)[1][1]["reason"] == "answered_elsewhere"
    assert len(of(at_cid)) == 2
    assert await ben.refused("invite:accept", invite_id=invite_id) == "invite_ended"
    assert sorted(await scene.log()) == [("outgoing", "ben", "canceled"), ("outgoing", "cid", "accepted")]


async def test_what_nobody_answers_in_time_is_missed_once(scene: Scene) -> None:
    ben = scene.hub.person("ben")
    phone = await device(ben)
    invite_id = await scene.ring("ben", timeout_s=30)
    assert await scene.later(29) == 0
    scene.hub.ahead += timedelta(seconds=2)
    # Not marked yet, and over all the same.
    assert await ben.refused("invite:accept", invite_id=invite_id) == "invite_ended"
    assert sorted(await asyncio.gather(*(Ringing(scene.hub).once() for _ in range(3)))) == [0, 0, 1]
    await heard(phone, "invite:received", "invite:missed")
    await heard(scene.socket, "invite:missed")
    assert await scene.log(ben, status="missed") == [("incoming", "ben", "missed")]


async def test_with_the_call_the_ringing_ends(scene: Scene) -> None:
    ben = scene.hub.person("ben")
    phone = await device(ben)
    invite_id = await scene.ring("ben")
    await scene.socket.do("room:end", call_id=scene.call_id)
    assert await ben.refused("invite:accept", invite_id=invite_id) == "call_ended"
    assert await scene.later(0) == 1
    await heard(phone, "invite:received", "invite:canceled")
    assert of(phone)[1][1]["reason"] == "call_ended"


def latecomers(hub: Node) -> tuple[Latecomers, list[tuple[str, Event]]]:
    told: list[tuple[str, Event]] = []
    return Latecomers(hub.db, lambda session_id, event: told.append((session_id, event))), told


async def test_who_comes_while_it_rings_is_told(scene: Scene) -> None:
    """Several who come at once are looked up together; each is told what rings for them, and nobody else."""
    invite_id = await scene.ring("ben")
    late, told = latecomers(scene.hub)
    for session_id, tenant_id, user_id in (
        *(("b1", TENANT, "ben"), ("b2", TENANT, "ben"), ("c", TENANT, "cid")),
        ("x", OTHER_TENANT, "ben"),
    ):
        late.came(session_id, tenant_id, user_id)
    assert await late.once() == 2
    assert await late.once() == 0
    assert [session_id for session_id, _ in told] == ["b1", "b2"]
    event = msgspec.to_builtins(told[0][1])
    assert (event["invite_id"], event["caller"]["display_name"], event["call"]["name"]) == (
        *(str(invite_id), "Ann"),
        "Team Standup",
    )
    ben = scene.hub.person("ben")
    assert await scene.log(ben, status="ringing") == [("incoming", "ben", "ringing")]
    await ben.do("invite:decline", invite_id=invite_id)
    late.came("b3", TENANT, "ben")
    assert await late.once() == 0


def normal(answer: Any) -> Any:
    """Without what differs between any two."""
    plain = msgspec.to_builtins(answer)
    for each in plain.get("items", [plain]):
        for name in ("id", "invite_id", "created_at", "expires_at", "ended_at", "user_id"):
            each.pop(name, None)
    return plain


async def test_who_is_blocked_rings_for_themselves_alone(scene: Scene) -> None:
    """S-007: nothing tells them from somebody who calls a person that is not there, or that nobody knows."""
    ben = scene.hub.person("ben")
    phone = await device(ben)
    await ben.do("contact:add", user_id="ann", blocked=True)
    answers = [
        await scene.socket.do("invite:send", call_id=scene.call_id, user_ids=[one]) for one in ("ben", "stranger")
    ]
    assert normal(answers[0]) == normal(answers[1])
    again = {
        await scene.ann.refused("invite:send", call_id=scene.call_id, user_ids=[one]) for one in ("ben", "stranger")
    }
    assert again == {"conflict"}
    late, _ = latecomers(scene.hub)
    late.came("b", TENANT, "ben")
    assert await late.once() == 0
    invite_id = answers[0].invite_id
    assert await ben.refused("invite:accept", invite_id=invite_id) == "not_found"
    assert await ben.refused("invite:decline", invite_id=invite_id) == "not_found"
    assert await scene.later(60) == 2
    await heard(scene.socket, "invite:missed", "invite:missed")
    assert (
        normal(await scene.ann.do("invite:list"))["items"][0] == normal(await scene.ann.do("invite:list"))["items"][1]
    )
    assert await scene.log(ben) == []
    assert of(phone) == []
    # Somebody else's call for him goes through, at the same time and for the same call.
    cid = await device(scene.hub.person("cid"))
    await cid.join(scene.call_id)
    await scene.ring("ben")
    await cid.do("invite:send", call_id=scene.call_id, user_ids=["ben"])
    await heard(phone, "invite:received")


async def test_an_invite_of_who_may_let_in_opens_lock_and_lobby_and_no_other_does(scene: Scene) -> None:
    hub, call_id = scene.hub, scene.call_id
    ben, cid = hub.person("ben"), hub.person("cid")
    await (guest := await device(ben)).join(call_id)
    await scene.socket.do("room:update", call_id=call_id, locked=True, lobby_enabled=True)
    by_ben = (await guest.do("invite:send", call_id=call_id, user_ids=["cid"])).invite_id
    await cid.do("invite:accept", invite_id=by_ben)
    assert await cid.refused("room:token", call_id=call_id) == "room_locked"
    await scene.socket.do("room:update", call_id=call_id, locked=False)
    assert await cid.refused("room:token", call_id=call_id) == "lobby_required"
    await scene.socket.do("room:update", call_id=call_id, locked=True)
    by_ann = await scene.ring("cid")
    assert await cid.refused("room:token", call_id=call_id) == "room_locked"
    await cid.do("invite:accept", invite_id=by_ann)
    at_cid = await device(cid)
    assert (await at_cid.do("lobby:knock", call_id=call_id, display_name="Cid")).status == "admitted"
    came = await at_cid.join(call_id)
    assert came.self.role == "participant"
    (row,) = await hub.rows("SELECT actor, details FROM audit_log WHERE action = 'invite:send'")
    assert (row["actor"], "cid" in row["details"]) == ("ann", True)
    # Put out, that invite opens nothing any more; the next one does.
    await scene.socket.do("participant:kick", call_id=call_id, participant_id=came.self.participant_id)
    assert (await at_cid.ack("room:join", call_id=call_id)).error.code == "room_locked"  # type: ignore[union-attr]
    await cid.do("invite:accept", invite_id=await scene.ring("cid"))
    await at_cid.join(call_id)


async def test_who_may_not_be_called_and_who_may_not_call(scene: Scene) -> None:
    hub, call_id = scene.hub, scene.call_id
    ben = hub.person("ben")
    at_ben = await device(ben)
    came = await at_ben.join(call_id)

    async def refused(socket: Socket, *user_ids: str, **fields: Any) -> str:
        ack = await socket.ack("invite:send", call_id=call_id, user_ids=user_ids, **fields)
        return ack.error.code if ack.error else "ok"

    assert await refused(scene.socket, "ben", "cid") == "already_in_room"
    assert await refused(scene.socket, "ann") == "validation_failed"
    assert await refused(scene.socket, "guest:1") == "validation_failed"
    assert await refused(scene.socket) == "validation_failed"
    assert await refused(scene.socket, *(f"u{number}" for number in range(21))) == "validation_failed"
    assert await refused(scene.socket, "cid", timeout_s=4) == "validation_failed"
    assert await refused(hub.person("eve").socket(), "cid") == "not_found"
    assert await refused(hub.person("ann", tenant=OTHER_TENANT).socket(), "cid") == "not_found"
    await scene.socket.do(
        "participant:set_role", call_id=call_id, participant_id=came.self.participant_id, role="viewer"
    )
    assert await refused(at_ben, "cid") == "forbidden"
    await scene.socket.do("participant:kick", call_id=call_id, participant_id=came.self.participant_id, ban_s=60)
    assert await refused(scene.socket, "ben") == "conflict"
    # Banned while it rang.
    await scene.ring("cid")
    await hub.rows(
        "INSERT INTO call_bans (tenant_id, call_id, user_id, banned_by) VALUES ($1, $2, 'cid', 'x')", TENANT, call_id
    )
    (ringing,) = (await hub.person("cid").do("invite:list", status="ringing")).items
    assert await hub.person("cid").refused("invite:accept", invite_id=ringing.invite_id) == "banned"
    for name in ("accept", "decline", "cancel"):
        assert await ben.refused(f"invite:{name}", invite_id=uuid4()) == "not_found"
        foreign = hub.person("cid", tenant=OTHER_TENANT)
        assert await foreign.refused(f"invite:{name}", invite_id=ringing.invite_id) == "not_found"


async def test_nobody_is_rung_up_all_the_time(scene: Scene) -> None:
    for _ in range(6):
        await scene.socket.do("invite:cancel", invite_id=await scene.ring("ben"))
    with pytest.raises(RateLimited) as refused:
        await scene.ring("ben")
    assert (refused.value.retry_after_ms or 0) > 0
    await scene.ring("cid")


async def test_the_call_log_has_both_directions_in_pages_newest_first(scene: Scene) -> None:
    ben = await device(scene.hub.person("ben"))
    await ben.join(scene.call_id)
    calls: list[Callable[[], Any]] = [
        lambda: scene.ring("u0"),
        lambda: scene.ring("u1"),
        lambda: ben.do("invite:send", call_id=scene.call_id, user_ids=["u2"]),
    ]
    for call in calls:
        await call()
    await scene.socket.do("room:leave", call_id=scene.call_id)
    await ben.do("invite:send", call_id=scene.call_id, user_ids=["ann"])
    found, cursor = [], None
    while True:
        page = await scene.ann.do("invite:list", limit=1, **({"cursor": cursor} if cursor else {}))
        found += [(each.direction, each.caller_id, each.user_id) for each in page.items]
        if (cursor := page.next_cursor) is None:
            break
    assert found == [("incoming", "ben", "ann"), ("outgoing", "ann", "u1"), ("outgoing", "ann", "u0")]
    assert await scene.log(direction="outgoing", call_id=scene.call_id) == [
        ("outgoing", "u1", "ringing"),
        ("outgoing", "u0", "ringing"),
    ]
    assert await scene.log(call_id=uuid4()) == []


async def test_guests_ring_up_nobody_unless_they_moderate(scene: Scene) -> None:
    for role, code in (("participant", "forbidden"), ("moderator", None)):
        guest = scene.hub.person(f"guest:{role}", guest_of=scene.call_id, role=role).socket()  # type: ignore[arg-type]
        await guest.join(scene.call_id)
        ack = await guest.ack("invite:send", call_id=scene.call_id, user_ids=["cid"])
        assert (ack.error.code if ack.error else None) == code
