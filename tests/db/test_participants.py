"""What is written down about people in a call, and who holds a seat."""

from __future__ import annotations

import asyncio
from uuid import uuid4

from db import calls, participants
from db.participants import Participant
from db.pool import Database, Transaction
from tests.db.people import NOW, after, let_in, make_call, set_status, tenant_id


async def _again(tx: Transaction, person: Participant) -> Participant:
    found = await participants.get(tx, person.call_id, person.id)
    assert found is not None
    return found


async def test_one_identity_is_one_row_however_often_it_is_let_in(db: Database) -> None:
    """S-144: the identity is stable; what is not said again stays as it was."""
    async with db.tenant(tenant_id(), "olga") as tx:
        call = await make_call(tx)
        first = await let_in(tx, call, "bob", display_name="Bob", metadata={"role": "engineer"})
        second = await let_in(tx, call, "bob", role="moderator")
        assert (second.id, second.display_name, second.metadata) == (first.id, "Bob", {"role": "engineer"})
        assert second.role == "moderator"
        phone = await let_in(tx, call, "bob", "phone")
        assert (phone.id != first.id, phone.identity) == (True, "bob:phone")
        of_bob = await participants.of_user(tx, call.id, "bob")
        assert {person.id: person for person in of_bob} == {second.id: second, phone.id: phone}
        assert await participants.by_identity(tx, call.id, "bob:phone") == phone
        assert await participants.by_ids(tx, [phone.id, uuid4()]) == [phone]
        assert await participants.get(tx, uuid4(), phone.id) is None


async def test_a_seat_is_taken_by_who_is_there_and_who_may_still_come(db: Database) -> None:
    """S-038: joined, reconnecting, and joining until nobody can come in by the token any more (120 s after it)."""
    async with db.tenant(tenant_id(), "olga") as tx:
        call = await make_call(tx)
        people = {}
        for status in ("invited", "joining", "joined", "reconnecting", "left", "kicked"):
            people[status] = await let_in(tx, call, status)
            await participants.token_issued(tx, people[status].id, NOW, after(300))
            await set_status(tx, people[status], status)
        for seconds, seated in ((0, 3), (419, 3), (420, 2)):
            assert await participants.seats_taken(tx, call.id, after(seconds)) == seated
            assert await participants.seated(tx, people["joining"].id, after(seconds)) == (seated == 3)
        assert await participants.seated(tx, people["joined"].id, after(9999))
        assert not await participants.seated(tx, people["left"].id, NOW)
        assert {person.user_id for person in await participants.in_call(tx, call.id)} == {"joined", "reconnecting"}


async def test_twenty_at_once_for_two_seats_are_two(db: Database) -> None:
    """S-038: the call's row lock makes counting and taking a seat one step."""
    mine = tenant_id()
    async with db.tenant(mine, "olga") as tx:
        call = await make_call(tx, max_participants=2)

    async def join(number: int) -> bool:
        async with db.tenant(mine, f"user{number}") as tx:
            locked = await calls.lock(tx, call.id)
            assert locked is not None
            if await participants.seats_taken(tx, call.id, NOW) >= locked.max_participants:
                return False
            person = await let_in(tx, call, f"user{number}")
            await participants.token_issued(tx, person.id, NOW, after(300))
            await set_status(tx, person, "joining")
            return True

    assert sum(await asyncio.gather(*(join(number) for number in range(20)))) == 2
    async with db.tenant(mine) as tx:
        assert await participants.seats_taken(tx, call.id, NOW) == 2


async def test_an_older_token_that_lives_longer_still_holds_the_seat(db: Database) -> None:
    async with db.tenant(tenant_id(), "olga") as tx:
        person = await let_in(tx, await make_call(tx), "bob")
        await participants.token_issued(tx, person.id, NOW, after(600))
        await participants.token_issued(tx, person.id, after(10), after(310))
        person = await _again(tx, person)
        assert (person.token_issued_at, person.token_expires_at) == (after(10), after(600))


async def test_somebody_is_attached_from_the_first_socket_to_the_last(db: Database) -> None:
    async with db.tenant(tenant_id(), "olga") as tx:
        person = await let_in(tx, await make_call(tx), "bob")
        assert not person.attached
        attached = await participants.attach(tx, person.id, NOW, client_info={"client": "app/1.2.3"})
        assert attached is not None
        assert (attached.attached, attached.hub_joined_at) == (True, NOW)
        again = await participants.attach(tx, person.id, after(5))
        assert again is not None
        assert (again.hub_joined_at, again.client_info) == (NOW, {"client": "app/1.2.3"})
        await participants.raise_hand(tx, person.call_id, person.id, after(6))
        assert await participants.detach(tx, [person.id, uuid4()], after(9), "connection_lost") == [person.id]
        assert await participants.detach(tx, [person.id], after(10), "connection_lost") == []
        gone = await _again(tx, person)
        assert (gone.attached, gone.hub_left_at, gone.hub_left_reason) == (False, after(9), "connection_lost")
        assert (gone.hand_raised_at, gone.leave_requested_at) == (None, None)
        back = await participants.attach(tx, person.id, after(20))
        assert back is not None
        assert (back.attached, back.hub_joined_at, back.hub_left_reason) == (True, after(20), None)


async def test_leaving_is_a_wish_and_the_end_of_the_attachment(db: Database) -> None:
    async with db.tenant(tenant_id(), "olga") as tx:
        call = await make_call(tx)
        there, elsewhere = await let_in(tx, call, "bob"), await let_in(tx, call, "ann")
        await participants.attach(tx, there.id, NOW)
        left = await participants.request_leave(tx, there.id, after(3))
        assert left is not None
        assert (left.leave_requested_at, left.hub_left_at, left.hub_left_reason) == (after(3), after(3), "left")
        # In the call by LiveKit alone.
        left = await participants.request_leave(tx, elsewhere.id, after(3))
        assert left is not None
        assert (left.leave_requested_at, left.hub_left_at, left.hub_left_reason) == (after(3), None, None)
        assert await participants.request_leave(tx, uuid4(), NOW) is None


async def test_a_kick_holds_on_every_device_until_they_are_let_in_again(db: Database) -> None:
    """S-018: reason and author are kept; unbanning and a new admission both end it."""
    async with db.tenant(tenant_id(), "olga") as tx:
        call = await make_call(tx)
        desk, phone = await let_in(tx, call, "bob"), await let_in(tx, call, "bob", "phone")
        await participants.attach(tx, desk.id, NOW)
        kicked = await participants.request_kick(tx, call.id, "bob", after(5), by="olga", reason="noise")
        assert {(each.id, each.kicked) for each in kicked} == {(desk.id, True), (phone.id, True)}
        desk = await _again(tx, desk)
        assert (desk.kick_reason, desk.kicked_by, desk.attached, desk.hub_left_reason) == (
            "noise", "olga", False, "kicked",
        )  # fmt: skip
        assert (await let_in(tx, call, "bob", now=after(6))).kicked is False
        assert [each.id for each in await participants.readmit(tx, call.id, "bob", after(7))] == [phone.id]
        assert await participants.readmit(tx, call.id, "bob", after(8)) == []
        # A clock behind that of the kick lets them in all the same.
        await participants.request_kick(tx, call.id, "bob", after(100), by="olga", reason=None)
        assert [each.kicked for each in await participants.readmit(tx, call.id, "bob", after(50))] == [False, False]


async def test_hands_queue_in_the_order_they_went_up(db: Database) -> None:
    """S-242: a second raise keeps the place; one, several or all are lowered."""
    async with db.tenant(tenant_id(), "olga") as tx:
        call = await make_call(tx)
        ann, bob, cid = [await let_in(tx, call, name) for name in ("ann", "bob", "cid")]
        for seconds, person in ((3, ann), (1, bob), (2, cid)):
            assert await participants.raise_hand(tx, call.id, person.id, after(seconds))
        assert not await participants.raise_hand(tx, call.id, bob.id, after(9))
        assert [person.id for person in await participants.hands(tx, call.id)] == [bob.id, cid.id, ann.id]
        assert await participants.lower_hands(tx, call.id, [cid.id, uuid4()]) == [cid.id]
        assert set(await participants.lower_hands(tx, call.id)) == {ann.id, bob.id}
        assert await participants.hands(tx, call.id) == []


async def test_what_a_person_changes_about_themselves(db: Database) -> None:
    async with db.tenant(tenant_id(), "olga") as tx:
        person = await let_in(tx, await make_call(tx), "bob", metadata={"a": 1})
        changed = await participants.change(tx, person.call_id, person.id, display_name="Robert")
        assert changed is not None
        assert (changed.display_name, changed.metadata) == ("Robert", {"a": 1})
        (promoted,) = await participants.set_role(tx, person.call_id, person.user_id, "host")
        assert (promoted.id, promoted.role) == (person.id, "host")
        assert await participants.set_role(tx, person.call_id, person.user_id, "host") == []
        assert await participants.set_role(tx, uuid4(), person.user_id, "viewer") == []


async def test_a_page_of_participants_goes_on_where_it_stopped(db: Database) -> None:
    async with db.tenant(tenant_id(), "olga") as tx:
        call = await make_call(tx)
        # All of one transaction, so all of one instant: the id breaks the tie.
        people = [await let_in(tx, call, f"user{number}") for number in range(7)]
        found: list[Participant] = []
        while True:
            place = (found[-1].created_at, found[-1].id) if found else None
            page = await participants.page(tx, call.id, after=place, limit=3)
            found += page
            if len(page) < 3:
                break
        assert [person.id for person in found] == sorted((person.id for person in people), reverse=True)
        await set_status(tx, people[0], "joined")
        assert [each.id for each in await participants.page(tx, call.id, status="joined", limit=3)] == [people[0].id]
