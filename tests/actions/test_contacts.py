"""Contacts between two people: asking, agreeing, parting, blocking, and what is kept from whom."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import msgspec
import pytest

from hub.protocol.contacts import ContactView
from hub.protocol.errors import PreconditionFailed
from tests.actions.conftest import OTHER_TENANT, TENANT, Node, Person, Socket, eventually


async def device(person: Person) -> Socket:
    """A socket that hears what is meant for its user."""
    await person.hub.cluster.bus.subscribe_users([(person.actor.tenant_id, person.id)])
    return person.socket()


async def listed(person: Person, **fields: Any) -> list[tuple[str, str]]:
    return [(each.user_id, each.status) for each in (await person.do("contact:list", **fields)).items]


async def friends(one: Person, other: Person) -> tuple[UUID, UUID]:
    """The ids of both rows."""
    await one.do("contact:add", user_id=other.id)
    theirs: ContactView = (await other.do("contact:add", user_id=one.id)).contact
    assert theirs.status == "accepted"
    (mine,) = [each for each in (await one.do("contact:list")).items if each.user_id == other.id]
    return mine.contact_id, theirs.contact_id


async def sees(person: Person, other: str) -> str:
    (seen,) = (await person.do("presence:list", user_ids=[other])).presences
    return str(seen.status)


async def test_a_request_is_agreed_to_and_both_hear_it_on_all_their_devices(hub: Node) -> None:
    """S-007: created, listed and deleted by REST and by socket; each has a row of their own."""
    ann, ben = hub.person("ann"), hub.person("ben")
    at_ann, at_ben = await device(ann), await device(ben)
    made = (await ann.do("contact:add", user_id="ben", display_name="Benny", notes="from school")).contact
    assert (made.status, made.display_name, made.notes, made.profile_name) == ("pending", "Benny", "from school", None)
    await eventually(lambda: at_ben.names() == ["contact:changed"] and at_ann.names() == ["contact:changed"])
    asked = at_ben.heard[0][1]["contact"]
    assert (asked["user_id"], asked["status"], asked["profile_name"]) == ("ann", "requested", "Ann")
    assert (asked["display_name"], asked["notes"]) == (None, None)
    assert await listed(ben, status="requested") == [("ann", "requested")]
    assert await listed(ben, status="pending") == []
    assert await listed(ann, status="pending") == [("ben", "pending")]
    agreed = (await at_ben.do("contact:update", contact_id=asked["contact_id"], accepted=True)).contact
    assert agreed.status == "accepted"
    await eventually(lambda: len(at_ann.heard) == 2 and len(at_ben.heard) == 2)
    assert at_ann.heard[1][1]["contact"]["status"] == "accepted"
    assert at_ann.heard[1][1]["contact"]["contact_id"] == str(made.contact_id)
    assert (await ann.do("contact:get", contact_id=made.contact_id)).contact.status == "accepted"
    await ben.do("contact:remove", contact_id=asked["contact_id"])
    await eventually(lambda: at_ann.names()[2:] == ["contact:removed"] and at_ben.names()[2:] == ["contact:removed"])
    assert at_ann.heard[2][1]["contact_id"] == str(made.contact_id)
    assert await listed(ann) == await listed(ben) == []


async def test_two_who_ask_each_other_at_once_are_contacts(hub: Node) -> None:
    ann, ben = hub.person("ann"), hub.person("ben")
    for _ in range(3):
        await asyncio.gather(ann.do("contact:add", user_id="ben"), ben.do("contact:add", user_id="ann"))
        assert (await listed(ann), await listed(ben)) == ([("ben", "accepted")], [("ann", "accepted")])
        await ann.do("contact:remove", contact_id=(await ann.do("contact:list")).items[0].contact_id)
    assert await hub.value("SELECT count(*) FROM contacts") == 0


async def test_a_contact_is_its_owners_alone_and_there_is_one_of_each(hub: Node) -> None:
    """S-007, S-172: unique by owner and contact; others find nothing there, as where nothing is."""
    ann, ben = hub.person("ann"), hub.person("ben")
    made = (await ann.do("contact:add", user_id="ben")).contact
    for stranger in (ben, hub.person("cid"), hub.person("ann", tenant=OTHER_TENANT)):
        for name, fields in (("get", {}), ("update", {"favorite": True}), ("remove", {})):
            assert await stranger.refused(f"contact:{name}", contact_id=made.contact_id, **fields) == "not_found"
    assert await ann.refused("contact:add", user_id="ben") == "conflict"
    assert await ann.refused("contact:add", user_id="ann") == "validation_failed"
    assert await ann.refused("contact:add", user_id="guest:1") == "validation_failed"
    assert await ann.refused("contact:update", contact_id=made.contact_id, accepted=True) == "conflict"
    assert await hub.person("guest:1", guest_of=await ann.room()).refused("contact:list") == "forbidden"
    assert await listed(hub.person("ben", tenant=OTHER_TENANT)) == []


async def test_what_is_kept_of_a_contact_can_be_changed_and_taken_away(hub: Node) -> None:
    ann = hub.person("ann")
    made = (await ann.do("contact:add", user_id="ben", notes="x", display_name="Ben")).contact
    changed = (await ann.do("contact:update", contact_id=made.contact_id, favorite=True, notes=None)).contact
    assert (changed.favorite, changed.notes, changed.display_name, changed.status) == (True, None, "Ben", "pending")
    said = {"contact_id": changed.contact_id, "notes": "met again"}
    with pytest.raises(PreconditionFailed):
        await hub.do(ann.actor, "contact:update", said, if_match=made.etag)
    assert (await hub.do(ann.actor, "contact:update", said, if_match=changed.etag)).contact.notes == "met again"
    await ann.do("contact:add", user_id="cid")
    assert await listed(ann, favorite=True) == [("ben", "pending")]
    assert await listed(ann, favorite=False) == [("cid", "pending")]


async def test_the_list_comes_in_pages_newest_first(hub: Node) -> None:
    ann = hub.person("ann")
    for number in range(5):
        await ann.do("contact:add", user_id=f"u{number}")
    found, cursor = [], None
    while True:
        page = await ann.do("contact:list", limit=2, **({"cursor": cursor} if cursor else {}))
        found += [each.user_id for each in page.items]
        if (cursor := page.next_cursor) is None:
            break
    assert found == ["u4", "u3", "u2", "u1", "u0"]


async def test_both_see_each_other_from_the_agreement_to_the_parting(hub: Node) -> None:
    """S-243, S-007: whoever watches hears it at once."""
    ann, ben = hub.person("ann"), hub.person("ben")
    for user_id in ("ann", "ben"):
        hub.presence.opened(f"device of {user_id}", TENANT, user_id)
    await eventually(lambda: not hub.presence._owed)
    await ann.do("contact:add", user_id="ben")
    assert (await sees(ann, "ben"), await sees(ben, "ann")) == ("offline", "offline")
    await ben.do("contact:add", user_id="ann")
    assert (await sees(ann, "ben"), await sees(ben, "ann")) == ("online", "online")
    await ben.do("contact:remove", contact_id=(await ben.do("contact:list")).items[0].contact_id)
    assert (await sees(ann, "ben"), await sees(ben, "ann")) == ("offline", "offline")


def told(answer: Any) -> Any:
    """What somebody is answered, without what differs between any two answers."""
    plain = msgspec.to_builtins(answer)
    for each in plain.get("items", [plain.get("contact")]):
        for name in ("contact_id", "created_at", "updated_at", "user_id"):
            each.pop(name)
    return plain


async def test_who_is_blocked_is_answered_as_by_a_stranger_who_does_not_react(hub: Node) -> None:
    """S-007: nothing in any answer, list or event tells ben that ann blocks him, and the others do not."""
    ann, ben = hub.person("ann"), hub.person("ben")
    await ann.do("contact:add", user_id="ben", blocked=True)
    at_ann = await device(ann)
    answers = [told(await ben.do("contact:add", user_id=one)) for one in ("ann", "stranger")]
    assert answers[0] == answers[1]
    assert answers[0]["contact"]["status"] == "pending"
    lists = (await ben.do("contact:list")).items
    assert told(ContactPageOf(lists[:1])) == told(ContactPageOf(lists[1:]))
    assert await sees(ben, "ann") == await sees(ben, "stranger") == "offline"
    changes = [
        told(await ben.do("contact:update", contact_id=each.contact_id, favorite=True)) for each in reversed(lists)
    ]
    assert changes[0] == changes[1]
    await asyncio.sleep(0.2)
    assert at_ann.names() == []
    assert await listed(ann) == [("ben", "blocked")]
    # She asks for nothing by unblocking; his request is there then.
    (mine,) = (await ann.do("contact:list")).items
    assert (await ann.do("contact:update", contact_id=mine.contact_id, blocked=False)).contact.status == "requested"


class ContactPageOf(msgspec.Struct, frozen=True):
    items: list[ContactView]


async def test_a_block_between_contacts_is_silent_and_lifting_it_brings_back_what_was(hub: Node) -> None:
    ann, ben = hub.person("ann"), hub.person("ben")
    hub.presence.opened("device of ann", TENANT, "ann")
    await eventually(lambda: not hub.presence._owed)
    mine, theirs = await friends(ann, ben)
    at_ben = await device(ben)
    before = await ben.do("contact:get", contact_id=theirs)
    blocked = (await ann.do("contact:update", contact_id=mine, blocked=True)).contact
    assert (blocked.status, blocked.profile_name) == ("blocked", None)
    assert await ben.do("contact:get", contact_id=theirs) == before
    assert await sees(ben, "ann") == "offline"
    (gone,) = (await ben.do("presence:list", user_ids=["ann"])).presences
    await ann.do("contact:update", contact_id=mine, notes="still blocked")
    assert (await ben.do("presence:list", user_ids=["ann"])).presences == [gone]
    assert (await ann.do("contact:update", contact_id=mine, blocked=False)).contact.status == "accepted"
    assert await sees(ben, "ann") == "online"
    await asyncio.sleep(0.2)
    assert at_ben.names() == []


async def test_lifting_a_block_brings_nobody_back_who_went_meanwhile(hub: Node) -> None:
    ann, ben = hub.person("ann"), hub.person("ben")
    mine, theirs = await friends(ann, ben)
    await ann.do("contact:update", contact_id=mine, blocked=True)
    at_ann = await device(ann)
    await ben.do("contact:remove", contact_id=theirs)
    await asyncio.sleep(0.1)
    assert at_ann.names() == []
    assert (await ann.do("contact:update", contact_id=mine, blocked=False)).contact is None
    await eventually(lambda: at_ann.names() == ["contact:removed"])
    assert await listed(ann) == []


async def test_two_who_block_each_other_learn_nothing_by_lifting_it(hub: Node) -> None:
    ann, ben = hub.person("ann"), hub.person("ben")
    mine, theirs = await friends(ann, ben)
    await ann.do("contact:update", contact_id=mine, blocked=True)
    await ben.do("contact:update", contact_id=theirs, blocked=True)
    assert (await ann.do("contact:update", contact_id=mine, blocked=False)).contact.status == "accepted"
    assert await sees(ann, "ben") == "offline"


async def test_a_list_and_what_arrives_in_it_have_an_end(hub: Node) -> None:
    """More requests than anybody can look through do not arrive, and whoever sent them is answered as ever."""
    hub.rules = msgspec.structs.replace(hub.rules, contacts_per_user=2, contact_requests_per_user=2)
    for number in range(3):
        made = await hub.person(f"u{number}").do("contact:add", user_id="ann")
        assert made.contact.status == "pending"
    ann = hub.person("ann")
    assert await listed(ann) == [("u1", "requested"), ("u0", "requested")]
    u0 = hub.person("u0")
    await u0.do("contact:add", user_id="x")
    assert await u0.refused("contact:add", user_id="y") == "conflict"
    # The third asked all the same: when ann asks, too, they are contacts.
    hub.rules = msgspec.structs.replace(hub.rules, contacts_per_user=9)
    assert (await ann.do("contact:add", user_id="u2")).contact.status == "accepted"
    assert await listed(hub.person("u2")) == [("ann", "accepted")]
