"""What binds those who came by a link: changes of it, evictions, bans, the lobby, and what became of its creator."""

from __future__ import annotations

import asyncio
from uuid import UUID

import asyncpg
import msgspec
import pytest

from db.errors import DatabaseUnavailable
from hub.actions import entering
from hub.protocol.errors import Banned, HubError, LinkExpired, LobbyRequired, NotFound, RoomLocked
from tests.actions.conftest import Node, Person
from tests.actions.test_links_entering import SECRET, a_link, as_guest, signed_in, validate


async def a_guest(hub: Node, link: object, **fields: object) -> Person:
    return await as_guest(hub, await validate(hub.passerby(), link, **fields))


@pytest.mark.parametrize(
    "change",
    [
        {"password": "another one"},
        {"access_type": "public"},
        {"access_type": "restricted", "allowed_user_ids": ["bob"]},
        {"evict": True},
    ],
)
async def test_what_a_link_gave_before_it_was_bound_anew_lets_nobody_in(hub: Node, change: dict[str, object]) -> None:
    """S-062: a password that got around is no way in after it was changed."""
    ann = hub.person("ann")
    call_id = await ann.room()
    link = await a_link(hub, call_id, access_type="password", password=SECRET)
    guest, seated, inside = [await a_guest(hub, link, password=SECRET) for _ in range(3)]
    await seated.do("room:token", call_id=call_id)
    await inside.socket().join(call_id)
    await ann.do("link:update", link_id=link.link_id, **change)
    for who in (guest, seated):
        for refused in (who.socket().join(call_id), who.do("room:token", call_id=call_id), who.do("link:renew")):
            with pytest.raises(LinkExpired):
                await refused
    if "evict" in change:
        with pytest.raises(LinkExpired):
            await inside.socket().join(call_id)
        again = await a_guest(hub, link, password=SECRET)
        await again.do("link:renew")
        assert (await again.socket().join(call_id)).self.role == "participant"
    else:
        # Who is in stays in.
        await inside.socket().join(call_id)
    assert await hub.value("SELECT status FROM call_participants WHERE user_id = $1", seated.id) == "kicked"


async def test_other_changes_leave_what_a_link_gave(hub: Node) -> None:
    ann = hub.person("ann")
    call_id = await ann.room()
    link = await a_link(hub, call_id)
    guest = await a_guest(hub, link)
    await ann.do("link:update", link_id=link.link_id, title="Other", max_uses=5)
    await guest.socket().join(call_id)


async def test_an_expired_link_lets_in_again_only_who_was_in(hub: Node) -> None:
    ann = hub.person("ann")
    call_id = await ann.room()
    link = await a_link(hub, call_id)
    late, known = [await a_guest(hub, link) for _ in range(2)]
    socket = known.socket()
    await socket.join(call_id)
    await socket.do("room:leave", call_id=call_id)
    await hub.rows("UPDATE shareable_links SET expires_at = now() - interval '1 second'")
    with pytest.raises(LinkExpired):
        await late.socket().join(call_id)
    await known.socket().join(call_id)


async def test_an_eviction_takes_back_the_yes_of_the_lobby(hub: Node) -> None:
    """S-077: of who is in, and of who was let in and has not come yet."""
    ann = hub.person("ann")
    call_id = await ann.room()
    link = await a_link(hub, call_id, require_approval=True)
    people = [await as_guest(hub, await validate(hub.person(name), link)) for name in ("bob", "cat", "dan")]
    for person in people[:2]:
        await person.socket().do("lobby:knock", call_id=call_id, display_name="Zoe")
    await ann.do("lobby:admit", call_id=call_id, all=True)
    await people[0].socket().join(call_id)
    await people[2].socket().do("lobby:knock", call_id=call_id, display_name="Dan")
    await ann.do("link:update", link_id=link.link_id, evict=True)
    assert (await ann.do("lobby:list", call_id=call_id)).items == []
    for name in ("bob", "cat"):
        again = await as_guest(hub, await validate(hub.person(name), link))
        with pytest.raises(LobbyRequired):
            await again.socket().join(call_id)


async def test_who_waited_by_a_revoked_link_knocks_by_another_at_once(hub: Node) -> None:
    ann, bob = hub.person("ann"), hub.person("bob")
    call_id = await ann.room()
    gone, other = [await a_link(hub, call_id, require_approval=True) for _ in range(2)]
    await (await as_guest(hub, await validate(bob, gone))).socket().do("lobby:knock", call_id=call_id)
    await ann.do("link:revoke", link_id=gone.link_id)
    again = await as_guest(hub, await validate(bob, other))
    assert (await again.socket().do("lobby:knock", call_id=call_id)).status == "waiting"


async def test_whoever_is_banned_does_not_come_as_a_guest(hub: Node) -> None:
    """S-067: no use is taken."""
    ann, bob = hub.person("ann"), signed_in(hub, "bob")
    call_id = await ann.room()
    link = await a_link(hub, call_id, access_type="restricted", allowed_user_ids=["bob"])
    mine = (await bob.socket().join(call_id)).self.participant_id
    await ann.do("participant:kick", call_id=call_id, participant_id=mine, ban_s=3600)
    with pytest.raises(Banned):
        await validate(bob, link)
    assert await hub.value("SELECT use_count FROM shareable_links") == 0


async def test_the_heads_of_a_call_see_and_revoke_its_links(hub: Node) -> None:
    """S-060: and nobody else; who did it is in the audit log."""
    ann, bob, boss = hub.person("ann"), hub.person("bob"), hub.person("boss", admin=True)
    call_id, other = await ann.room(), await bob.room()
    await bob.socket().join(call_id)
    made = [await a_link(hub, call_id, owner="bob", title=title) for title in ("One", "Two", "Three")]
    await a_link(hub, other, owner="bob")
    for head in (ann, boss):
        first = await head.do("link:list", call_id=call_id, limit=2)
        rest = await head.do("link:list", call_id=call_id, limit=2, cursor=first.next_cursor)
        listed = [(each.title, each.creator_id) for each in (*first.items, *rest.items)]
        assert listed == [("Three", "bob"), ("Two", "bob"), ("One", "bob")]
        assert (await head.do("link:list")).items == []
    assert (await ann.do("link:list", call_id=other)).items == []
    assert (await hub.person("cat").do("link:list", call_id=call_id)).items == []
    with pytest.raises(NotFound):
        await hub.person("cat").do("link:revoke", link_id=made[0].link_id)
    await ann.do("link:revoke", link_id=made[0].link_id)
    await boss.do("link:revoke", link_id=made[1].link_id)
    left = await bob.do("link:list", call_id=call_id)
    assert [each.title for each in left.items] == ["Three"]
    with pytest.raises(LinkExpired):
        await validate(hub.passerby(), made[0])
    noted = await hub.rows("SELECT actor, details FROM audit_log WHERE action = 'link:revoke' ORDER BY id")
    assert [(row["actor"], msgspec.json.decode(row["details"])["creator_id"]) for row in noted] == [
        ("ann", "bob"),
        ("boss", "bob"),
    ]


async def test_the_link_of_an_admin_who_was_put_out_is_closed(hub: Node) -> None:
    ann, boss = hub.person("ann"), hub.person("boss", admin=True)
    call_id = await ann.room()
    link = await boss.do("link:create", call_id=call_id)
    given = await a_guest(hub, link)
    mine = (await boss.socket().join(call_id)).self.participant_id
    await ann.do("participant:kick", call_id=call_id, participant_id=mine)
    with pytest.raises(LinkExpired):
        await validate(hub.passerby(), link)
    with pytest.raises(LinkExpired):
        await given.socket().join(call_id)


async def test_what_becomes_of_the_creator_reaches_tokens_that_are_out(hub: Node) -> None:
    """S-078."""
    ann, bob = hub.person("ann"), hub.person("bob")
    call_id = await ann.room()
    mine = (await bob.socket().join(call_id)).self.participant_id
    await ann.do("participant:edit", call_id=call_id, participant_id=mine, role="moderator")
    link = await a_link(hub, call_id, owner="bob", default_role="moderator")
    one, two = [await a_guest(hub, link) for _ in range(2)]
    await ann.do("participant:edit", call_id=call_id, participant_id=mine, role="viewer")
    assert (await one.socket().join(call_id)).self.role == "viewer"
    await ann.do("participant:kick", call_id=call_id, participant_id=mine)
    with pytest.raises(LinkExpired):
        await two.socket().join(call_id)


async def test_a_token_for_the_media_is_no_way_past_a_lock_or_a_lobby(hub: Node) -> None:
    """Who is in passes; who only has a seat held has to be let in as everybody."""
    ann, bob = hub.person("ann"), hub.person("bob")
    call_id = await ann.room()
    await bob.do("room:token", call_id=call_id)
    await ann.do("room:update", call_id=call_id, lobby_enabled=True)
    with pytest.raises(LobbyRequired):
        await bob.socket().join(call_id)
    await ann.do("room:update", call_id=call_id, lobby_enabled=False)
    await ann.do("room:update", call_id=call_id, locked=True)
    with pytest.raises(RoomLocked):
        await bob.do("room:token", call_id=call_id)


async def test_revoking_gives_back_the_seats_that_nobody_has_taken_yet(hub: Node) -> None:
    ann = hub.person("ann")
    call_id = await ann.room(max_participants=1)
    link = await a_link(hub, call_id, auto_join=True)
    passed = await validate(hub.passerby(), link)
    assert passed.media is not None
    await ann.do("link:revoke", link_id=link.link_id)
    assert await hub.value("SELECT status FROM call_participants") == "kicked"
    await ann.socket().join(call_id)


async def test_one_use_is_one_seat_whatever_device_is_named(hub: Node) -> None:
    call_id = await hub.person("ann").room()
    guest = await a_guest(hub, await a_link(hub, call_id, max_uses=1))
    tokens = [await guest.do("room:token", call_id=call_id, device_id=name) for name in ("one", "two", "three")]
    assert {token.identity for token in tokens} == {guest.id}
    assert await hub.value("SELECT count(*) FROM call_participants WHERE user_id = $1", guest.id) == 1


async def test_the_audit_log_tells_what_a_change_changed_and_whom_it_met(hub: Node) -> None:
    ann = hub.person("ann")
    call_id = await ann.room()
    link = await a_link(hub, call_id, title="One", require_approval=True)
    waits = await a_guest(hub, link)
    await waits.socket().do("lobby:knock", call_id=call_id, display_name="Zoe")
    await ann.do("link:update", link_id=link.link_id, title="Two", require_approval=False)
    inside = await a_guest(hub, link)
    await inside.socket().join(call_id)
    await ann.do("link:update", link_id=link.link_id, access_type="password", password=SECRET, evict=True)
    rows = await hub.rows("SELECT details FROM audit_log WHERE action = 'link:update' ORDER BY id")
    first, second = [msgspec.json.decode(row["details"]) for row in rows]
    assert (first["was"], first["now"]) == (
        {"title": "One", "require_approval": True},
        {"title": "Two", "require_approval": False},
    )
    assert (second["was"], second["now"]) == ({"access_type": "public"}, {"access_type": "password"})
    assert (second["password"], second["evicted"], second["denied"]) == (True, [inside.id], [waits.id])
    assert SECRET not in str(rows)


async def test_a_use_is_not_lost_with_the_seat_of_auto_join(hub: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    async def gone(*_: object) -> None:
        raise DatabaseUnavailable("the server is restarting")

    link = await a_link(hub, auto_join=True)
    monkeypatch.setattr(entering, "token", gone)
    passed = await validate(hub.passerby(), link)
    assert (passed.next_step, passed.media) == ("join", None) and passed.guest_token


async def test_a_crowd_at_one_link_does_not_hold_up_the_others(hub: Node) -> None:
    """They wait for the row of their link, and for nothing that the others need."""
    busy, other = await a_link(hub), await a_link(hub)
    connection = await asyncpg.connect(hub.admin_dsn)
    crowd: list[asyncio.Task[object]] = []
    try:
        held = connection.transaction()
        await held.start()
        await connection.execute("SELECT 1 FROM shareable_links WHERE id = $1 FOR UPDATE", UUID(str(busy.link_id)))
        crowd = [asyncio.create_task(_tries(hub, busy, place)) for place in range(8)]
        await asyncio.sleep(0.5)
        async with asyncio.timeout(3):
            assert (await validate(hub.passerby("203.0.113.77"), other)).guest_token
        await held.rollback()
        await asyncio.gather(*crowd)
    finally:
        for task in crowd:
            task.cancel()
        await connection.close()


async def _tries(hub: Node, link: object, place: int) -> None:
    try:
        await validate(hub.passerby(f"198.51.100.{place}"), link)
    except (HubError, DatabaseUnavailable):
        # The machine may be slower than a statement may take.
        return
