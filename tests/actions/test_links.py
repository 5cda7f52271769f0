"""Links as their creators have them: made, found, changed, revoked."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from hub.actions import links
from hub.protocol.errors import Conflict, Forbidden, HubError, NotFound, PreconditionFailed, ValidationFailed
from tests.actions.conftest import OTHER_TENANT, TENANT, Node, Person

BRIEF = {
    "link_type": "call",
    "title": "Join Our Meeting",
    "access_type": "password",
    "password": "secret123",
    "expires_in_hours": 24,
    "enable_recording": False,
    "default_role": "participant",
}


async def made(person: Person, call_id: UUID, **fields: Any) -> Any:
    return await person.do("link:create", call_id=call_id, **fields)


async def test_the_briefs_body_makes_a_link(hub: Node) -> None:
    """S-005, S-058, S-146, S-147: the brief's keys in the answer, and in the row no plain password."""
    ann = hub.person("ann")
    call_id = await ann.room()
    created = msgspec.to_builtins(await made(ann, call_id, **BRIEF))
    assert set(created) == {"link_id", "short_code", "url", "created_at"}
    assert re.fullmatch(r"[A-Za-z0-9_-]{8}", created["short_code"])
    assert created["url"] == f"{hub.rules.public_url}/join/{created['short_code']}"
    row = (await hub.rows("SELECT * FROM shareable_links"))[0]
    assert re.fullmatch(r"\$2b\$\d\d\$.{53}", row["password_hash"])
    assert row["expires_at"] - row["created_at"] - timedelta(hours=24) < timedelta(seconds=2)
    shown = msgspec.to_builtins(await ann.do("link:get", link_id=created["link_id"]))
    for name in ("link_type", "title", "access_type", "enable_recording", "default_role"):
        assert shown[name] == BRIEF[name], name
    assert (shown["has_password"], shown["use_count"], shown["click_count"], shown["unique_visitors"]) == (
        True,
        0,
        0,
        0,
    )
    assert "hash" not in str(shown) and "secret123" not in str(shown)
    assert "secret123" not in str(await hub.rows("SELECT * FROM audit_log"))


def test_codes_are_eight_url_safe_characters_and_differ() -> None:
    """S-064, S-121: a hundred thousand of them."""
    codes = {links.short_code() for _ in range(100_000)}
    assert len(codes) == 100_000
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{8}", code) for code in codes)


async def test_a_code_that_is_taken_is_not_taken_again(hub: Node) -> None:
    """S-064: also where another tenant has it."""
    eve = hub.person("eve", tenant=OTHER_TENANT)
    taken = (await made(eve, await eve.room())).short_code
    ann = hub.person("ann")
    call_id = await ann.room()
    fields = msgspec.structs.asdict(await ann.do("link:get", link_id=(await made(ann, call_id)).link_id))
    names = (
        *("call_id", "link_type", "title", "access_type", "allowed_user_ids", "allowed_emails", "allowed_domains"),
        *("default_role", "max_uses", "enable_recording", "enable_screen_share", "enable_chat", "enable_files"),
        *("auto_join", "require_approval", "metadata", "active_from", "expires_at"),
    )
    settings = {name: fields[name] for name in names} | {
        "creator_id": "ann",
        "password_hash": None,
        "granted_as": "host",
    }
    codes = iter([taken, taken, "fresh_-1"])
    async with hub.db.tenant(TENANT, "ann") as tx:
        link = await links.add(tx, lambda: next(codes), **settings)
    assert link.short_code == "fresh_-1"
    async with hub.db.tenant(TENANT, "ann") as tx:
        with pytest.raises(HubError):
            await links.add(tx, lambda: taken, **settings)


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"access_type": "password"}, "password"),
        ({"password": "secret123"}, "password"),
        ({"access_type": "password", "password": "ä" * 37}, "password"),
        ({"access_type": "password", "password": "abc"}, "password"),
        ({"access_type": "restricted"}, "allowed_user_ids"),
        ({"access_type": "restricted", "allowed_emails": ["nobody"]}, "allowed_emails[0]"),
        ({"access_type": "restricted", "allowed_domains": ["a@b.c"]}, "allowed_domains[0]"),
        ({"expires_in_hours": 0}, "expires_in_hours"),
        ({"expires_in_hours": 1, "expires_at": "2099-01-01T00:00:00Z"}, "expires_at"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"active_from": "2099-01-01T00:00:00Z", "expires_in_hours": 1}, "active_from"),
        ({"max_uses": 0}, "max_uses"),
        ({"link_type": "file"}, "link_type"),
        ({"default_role": "owner"}, "default_role"),
        ({"colour": "red"}, "colour"),
    ],
)
async def test_a_bad_link_is_refused_by_its_field(hub: Node, fields: dict[str, Any], path: str) -> None:
    """S-146, S-068: and nothing is made."""
    ann = hub.person("ann")
    call_id = await ann.room()
    with pytest.raises(ValidationFailed) as refused:
        await made(ann, call_id, **fields)
    assert refused.value.errors[0].path == path
    assert await hub.rows("SELECT id FROM shareable_links") == []


async def test_nobody_gives_more_than_they_have(hub: Node) -> None:
    """S-078: a participant makes links for participants, a viewer and a guest none."""
    ann, bob = hub.person("ann"), hub.person("bob")
    call_id = await ann.room()
    mine = (await bob.socket().join(call_id)).self.participant_id
    await made(bob, call_id, default_role="participant")
    for role in ("moderator", "host"):
        with pytest.raises(Forbidden):
            await made(bob, call_id, default_role=role)
    link = (await made(bob, call_id, default_role="viewer")).link_id
    with pytest.raises(Forbidden):
        await bob.do("link:update", link_id=link, default_role="moderator")
    await made(ann, call_id, default_role="host")
    await ann.do("participant:edit", call_id=call_id, participant_id=mine, role="viewer")
    with pytest.raises(Forbidden):
        await made(bob, call_id)
    guest = hub.person("guest:1", guest_of=call_id, role="host")
    await guest.socket().join(call_id)
    with pytest.raises(Forbidden):
        await made(guest, call_id)
    with pytest.raises(NotFound):
        await made(hub.person("stranger"), call_id)


async def test_only_its_creator_sees_and_changes_a_link(hub: Node) -> None:
    """S-059, S-060, S-173: for others of the tenant and other tenants it is not there; admins may revoke it."""
    ann = hub.person("ann")
    link_id = (await made(ann, await ann.room(), title="Mine")).link_id
    for other in (
        hub.person("bob"),
        hub.person("boss", admin=True),
        hub.person("ann", tenant=OTHER_TENANT),
    ):
        assert (await other.do("link:list")).items == []
        for name in ("link:get", "link:update", "link:revoke", "link:analytics", "link:picture"):
            for asked in (link_id, uuid4()):
                if name == "link:revoke" and other.actor.admin and asked == link_id:
                    continue
                with pytest.raises(NotFound) as refused:
                    await other.do(name, link_id=asked)
                assert refused.value.problem() == NotFound().problem(), name
    assert [each.title for each in (await ann.do("link:list")).items] == ["Mine"]


async def test_a_list_is_complete_and_filtered(hub: Node) -> None:
    """S-059: page by page, newest first, while links are made; by call, access and title."""
    ann = hub.person("ann")
    first, second = await ann.room(), await ann.room()
    wanted = [(await made(ann, first, title=f"Talk {number}")).link_id for number in range(5)]
    other = (await made(ann, second, access_type="password", password="secret123")).link_id
    seen, cursor = [], None
    while True:
        page = await ann.do("link:list", limit=2, **({"cursor": cursor} if cursor else {}))
        seen += [each.link_id for each in page.items]
        await made(ann, second)
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == [other, *reversed(wanted)]
    for fields, found in (
        ({"call_id": first}, list(reversed(wanted))),
        ({"access_type": "password"}, [other]),
        ({"q": "talk 3"}, [wanted[3]]),
    ):
        assert [each.link_id for each in (await ann.do("link:list", **fields)).items] == found


async def test_a_change_changes_what_it_names(hub: Node) -> None:
    """S-062: null takes away, absent stays; the tag tells who was faster."""
    ann = hub.person("ann")
    link = await made(ann, await ann.room(), **BRIEF, max_uses=3, metadata={"a": 1, "b": 2})
    before = await ann.do("link:get", link_id=link.link_id)
    after = await hub.do(
        ann.actor,
        "link:update",
        {"link_id": link.link_id, "title": None, "max_uses": 5, "metadata": {"a": None, "c": 3}},
        if_match=before.etag,
    )
    assert (after.title, after.max_uses, after.metadata) == (None, 5, {"b": 2, "c": 3})
    same = ("access_type", "has_password", "expires_at", "default_role", "enable_recording", "short_code")
    assert all(getattr(after, name) == getattr(before, name) for name in same)
    with pytest.raises(PreconditionFailed):
        await hub.do(ann.actor, "link:update", {"link_id": link.link_id, "title": "Late"}, if_match=before.etag)
    after = await ann.do("link:update", link_id=link.link_id, access_type="public", expires_at=None)
    assert (after.has_password, after.expires_at, after.status) == (False, None, "active")
    with pytest.raises(ValidationFailed):
        await ann.do("link:update", link_id=link.link_id, access_type="password")
    with pytest.raises(ValidationFailed):
        await ann.do("link:update", link_id=link.link_id, access_type="restricted")


async def test_a_revoked_link_is_gone(hub: Node) -> None:
    """S-063: listed and shown no more, to its creator either."""
    ann = hub.person("ann")
    link_id = (await made(ann, await ann.room())).link_id
    await ann.do("link:revoke", link_id=link_id)
    assert (await ann.do("link:list")).items == []
    for name in ("link:get", "link:revoke", "link:update"):
        assert await ann.refused(name, link_id=link_id) == "not_found"


async def test_a_person_has_so_many_links_to_a_call(hub: Node) -> None:
    hub.rules = msgspec.structs.replace(hub.rules, links_per_call=2)
    ann = hub.person("ann")
    call_id = await ann.room()
    gone = await made(ann, call_id)
    await made(ann, call_id)
    with pytest.raises(Conflict):
        await made(ann, call_id)
    await ann.do("link:revoke", link_id=gone.link_id)
    await made(ann, call_id)


async def test_what_was_done_to_a_link_is_in_the_audit_log(hub: Node) -> None:
    ann = hub.person("ann")
    link_id = (await made(ann, await ann.room())).link_id
    await ann.do("link:update", link_id=link_id, title="Other")
    await ann.do("link:update", link_id=link_id, title="Other")
    await ann.do("link:revoke", link_id=link_id)
    rows = await hub.rows("SELECT action, actor, target_id FROM audit_log WHERE target_type = 'link' ORDER BY id")
    assert [tuple(row) for row in rows] == [
        (f"link:{act}", "ann", str(link_id)) for act in ("create", "update", "revoke")
    ]


async def test_a_repeated_creation_makes_one_link_and_keeps_nothing_of_its_password(hub: Node) -> None:
    """S-251: what is kept for the repetition is no hash of the password either."""
    ann = hub.person("ann")
    call_id = await ann.room()
    op_id = str(uuid4())
    one, two = [await made(ann, call_id, **BRIEF, op_id=op_id) for _ in range(2)]
    assert msgspec.json.decode(two)["link_id"] == str(one.link_id)
    other = await made(ann, call_id, **(BRIEF | {"password": "another one"}), op_id=op_id)
    assert msgspec.json.decode(other)["link_id"] == str(one.link_id)
    assert await hub.value("SELECT count(*) FROM shareable_links") == 1


async def test_a_link_is_drawn_as_a_qr_code(hub: Node) -> None:
    ann = hub.person("ann")
    link = await made(ann, await ann.room())
    drawn = (await ann.do("link:picture", link_id=link.link_id)).body.decode()
    assert drawn.startswith("<svg") and drawn.rstrip().endswith("</svg>")
    assert link.url in drawn
    assert "<script" not in drawn


async def test_the_status_follows_the_clock(hub: Node) -> None:
    ann = hub.person("ann")
    call_id = await ann.room()
    soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    link_id = (await made(ann, call_id, active_from=soon, expires_in_hours=2)).link_id
    seen = []
    for hours in (0, 1.5, 2.5):
        hub.ahead = timedelta(hours=hours)
        seen.append((await ann.do("link:get", link_id=link_id)).status)
    assert seen == ["scheduled", "active", "expired"]
