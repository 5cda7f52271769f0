"""Coming by a link: who may, as what, how often, and what it tells of the links that are none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import jwt
import msgspec
import pytest
from asyncpg.connection import LoggedQuery

from db import links
from db.pool import Database
from hub.actions import links_guessing
from hub.cluster import Cluster
from hub.context import Actor
from hub.embedded import Valkey
from hub.policy import ROLE_PERMISSIONS, ROLES, Role
from hub.protocol.errors import (
    Forbidden,
    LinkExhausted,
    LinkExpired,
    LinkPasswordInvalid,
    LinkPasswordRequired,
    LinkRestricted,
    LobbyRequired,
    Unauthenticated,
)
from tests.actions.conftest import OTHER_TENANT, TENANT, Node, Person

SECRET = "secret123"


async def a_link(hub: Node, call_id: UUID | None = None, owner: str = "ann", **fields: Any) -> Any:
    ann = hub.person(owner)
    return await ann.do("link:create", call_id=call_id or await ann.room(), **fields)


async def validate(person: Person, link: Any, **fields: Any) -> Any:
    return await person.do("link:validate", short_code=getattr(link, "short_code", link), **fields)


async def as_guest(hub: Node, passed: Any) -> Person:
    """The bearer of the token, as the doors would have it."""
    return Person(hub, await hub.tokens.real.verify(passed.guest_token))


def signed_in(hub: Node, user_id: str, *, email: str = "", tenant: UUID = TENANT) -> Person:
    person = hub.person(user_id, tenant=tenant)
    person.actor = msgspec.structs.replace(person.actor, email=email)
    return person


async def test_a_public_link_lets_anybody_in(hub: Node) -> None:
    """S-065, S-061, S-120: without credentials, into the right call, with a token that works on sockets and by REST."""
    link = await a_link(hub, title="Join Our Meeting")
    passed = await validate(hub.passerby(), link, display_name="Zoe")
    assert (passed.title, passed.role, passed.lobby, passed.next_step, passed.media) == (
        "Join Our Meeting",
        "participant",
        False,
        "join",
        None,
    )
    assert passed.call.name == "Team Standup"
    guest = await as_guest(hub, passed)
    assert guest.id == passed.user_id and guest.id.startswith("guest:")
    joined = await guest.socket().join(passed.call.call_id)
    assert (joined.self.display_name, joined.self.role) == ("Zoe", "participant")
    assert (await guest.do("room:token", call_id=passed.call.call_id)).participant_id == joined.self.participant_id
    assert await hub.value("SELECT via_link_id FROM call_participants") == link.link_id
    noted = await hub.rows("SELECT actor, target_id FROM audit_log WHERE action = 'link:validate'")
    assert [tuple(row) for row in noted] == [(guest.id, str(link.link_id))]
    assert await guest.refused("room:get", call_id=await hub.person("ann").room()) == "not_found"


async def test_a_look_tells_what_to_bring_and_no_more(hub: Node) -> None:
    """S-061: the next step; nothing of the call, the password or the people."""
    for fields, step in (
        ({}, "validate"),
        ({"access_type": "password", "password": SECRET}, "password"),
        ({"access_type": "restricted", "allowed_emails": ["zoe@example.com"]}, "sign_in"),
    ):
        link = await a_link(hub, title="Join Our Meeting", **fields)
        seen = msgspec.to_builtins(await hub.passerby().do("link:resolve", short_code=link.short_code))
        assert (seen["next_step"], seen["title"], seen["url"]) == (step, "Join Our Meeting", link.url)
        assert set(seen) == {
            *("short_code", "url", "link_type", "title", "access_type", "next_step", "require_approval", "auto_join"),
        }


async def test_a_password_is_asked_for_and_checked(hub: Node) -> None:
    """S-066: missing, wrong, right."""
    link = await a_link(hub, access_type="password", password=SECRET)
    with pytest.raises(LinkPasswordRequired):
        await validate(hub.passerby(), link)
    for wrong in ("secret124", "", SECRET * 20):
        with pytest.raises(LinkPasswordInvalid):
            await validate(hub.passerby(), link, password=wrong)
    assert (await validate(hub.passerby(), link, password=SECRET)).next_step == "join"
    assert await hub.value("SELECT use_count FROM shareable_links") == 1


async def test_a_restricted_link_is_for_those_it_names(hub: Node) -> None:
    """S-067: users of the tenant, addresses and domains that the identity provider vouches for."""
    link = await a_link(
        hub,
        access_type="restricted",
        allowed_user_ids=["bob"],
        allowed_emails=["Zoe@Example.com"],
        allowed_domains=["auralink.example"],
    )
    with pytest.raises(Unauthenticated):
        await validate(hub.passerby(), link)
    for person in (
        signed_in(hub, "bob"),
        signed_in(hub, "ann"),
        signed_in(hub, "x", email="zoe@example.com"),
        signed_in(hub, "y", email="y@auralink.example", tenant=OTHER_TENANT),
    ):
        assert (await validate(person, link)).call.name == "Team Standup"
    for person in (
        signed_in(hub, "carol"),
        signed_in(hub, "bob", tenant=OTHER_TENANT),
        signed_in(hub, "carol", email="zoe@example.com.evil.example"),
        signed_in(hub, "carol", email="carol@sub.auralink.example"),
    ):
        with pytest.raises(LinkRestricted):
            await validate(person, link)
    guest = hub.person("guest:1", guest_of=uuid4())
    with pytest.raises(Unauthenticated):
        await validate(guest, link)


async def test_a_user_is_the_same_guest_each_time(hub: Node) -> None:
    link = await a_link(hub)
    bob = hub.person("bob")
    one, two = [(await validate(bob, link)).user_id for _ in range(2)]
    assert one == two
    again = await as_guest(hub, await validate(hub.passerby(), link))
    assert (await validate(again, link)).user_id == again.id
    assert (await validate(hub.passerby(), link)).user_id not in (one, again.id)


@pytest.mark.parametrize("role", ROLES)
async def test_the_role_of_a_link_is_the_role_of_who_comes(hub: Node, role: Role) -> None:
    """S-078: exactly that role's rights, and in LiveKit the same."""
    passed = await validate(hub.passerby(), await a_link(hub, default_role=role))
    assert passed.role == role
    # Calls are made with recording off.
    assert set(passed.permissions) == ROLE_PERMISSIONS[role] - {"recording_control"}
    guest = await as_guest(hub, passed)
    grant = video(await guest.do("room:token", call_id=passed.call.call_id))
    assert grant["canSubscribe"]
    assert (grant.get("canPublish", False), grant.get("canPublishData", False)) == ((role != "viewer"),) * 2


def video(token: Any) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(token.token, options={"verify_signature": False})["video"]
    return claims


async def test_what_a_link_takes_away_is_taken_away_everywhere(hub: Node) -> None:
    """S-073, S-074, S-075: in the answer, in commands, and in LiveKit's grant."""
    ann = hub.person("ann")
    call_id = await ann.room(recording_enabled=True)
    everything = await validate(hub.passerby(), await a_link(hub, call_id, default_role="moderator"))
    assert set(everything.permissions) == ROLE_PERMISSIONS["moderator"]
    link = await a_link(
        hub,
        call_id,
        default_role="moderator",
        enable_recording=False,
        enable_screen_share=False,
        enable_chat=False,
        enable_files=False,
    )
    passed = await validate(hub.passerby(), link)
    assert msgspec.to_builtins(passed.features) == dict.fromkeys(("recording", "screen_share", "chat", "files"), False)
    lost = {"recording_control", "publish_screen_share", "chat_post", "file_send", "file_download"}
    assert set(everything.permissions) - set(passed.permissions) == lost
    guest = await as_guest(hub, passed)
    grant = video(await guest.do("room:token", call_id=call_id))
    assert set(grant["canPublishSources"]) == {"microphone", "camera"}
    assert not grant.get("canPublishData", False)
    socket = guest.socket()
    await socket.join(call_id)
    share = await socket.ack("media:set", call_id=call_id, microphone=True, camera=False, screen_share=True)
    data = await socket.ack("data:send", call_id=call_id, topic="lk.chat", data="hello")
    chat = await socket.ack("chat:post", call_id=call_id, text="hello")
    assert [ack.error and ack.error.code for ack in (share, data, chat)] == ["forbidden"] * 3


async def test_a_change_binds_those_who_are_in_at_once(hub: Node) -> None:
    """S-062: their rights in commands and in LiveKit follow the link; what they show without one goes."""
    ann = hub.person("ann")
    call_id = await ann.room()
    link = await a_link(hub, call_id)
    guest = await as_guest(hub, await validate(hub.passerby(), link))
    socket = guest.socket()
    token = await guest.do("room:token", call_id=call_id)
    await socket.join(call_id)
    await hub.connects(call_id, token.identity, token=token.token)
    await hub.publishes(call_id, token.identity, "screen_share")
    await ann.do("link:update", link_id=link.link_id, enable_screen_share=False, enable_chat=False)
    await hub.delivered()
    room = next(iter(hub.livekit.rooms.values()))
    permission = room.participants[token.identity].info.permission
    assert len(permission.can_publish_sources) == 2 and not permission.can_publish_data
    assert "media:revoked" in socket.names()
    refused = await socket.ack("media:set", call_id=call_id, microphone=True, camera=False, screen_share=True)
    assert refused.error is not None and refused.error.code == "forbidden"
    await ann.do("link:update", link_id=link.link_id, enable_screen_share=True, enable_chat=True)
    allowed = await socket.ack("media:set", call_id=call_id, microphone=True, camera=False, screen_share=True)
    assert allowed.ok
    permission = room.participants[token.identity].info.permission
    assert len(permission.can_publish_sources) == 4 and permission.can_publish_data


async def test_a_token_from_before_a_change_gives_no_more_than_the_link_now(hub: Node) -> None:
    """S-062, S-078: a lower role, an approval, a revocation hold for those who have a token and did not come yet."""
    ann = hub.person("ann")
    call_id = await ann.room()
    link = await a_link(hub, call_id, default_role="moderator")
    guests = [await as_guest(hub, await validate(hub.passerby(), link)) for _ in range(3)]
    await ann.do("link:update", link_id=link.link_id, default_role="viewer")
    assert (await guests[0].socket().join(call_id)).self.role == "viewer"
    await ann.do("link:update", link_id=link.link_id, require_approval=True)
    with pytest.raises(LobbyRequired):
        await guests[1].socket().join(call_id)
    await ann.do("link:revoke", link_id=link.link_id)
    for name in ("room:token", "link:renew"):
        with pytest.raises(LinkExpired):
            await guests[2].do(name, **({"call_id": call_id} if name == "room:token" else {}))
    # Who is in already stays, and can renew what lets them reconnect.
    assert (await guests[0].do("link:renew")).guest_token
    assert (await guests[0].socket().join(call_id)).self.status in ("joining", "joined")


async def test_a_guest_renews_their_token_without_taking_a_use(hub: Node) -> None:
    link = await a_link(hub, max_uses=1, default_role="viewer")
    guest = await as_guest(hub, await validate(hub.passerby(), link, display_name="Zoe"))
    renewed = await hub.tokens.real.verify((await guest.do("link:renew")).guest_token)
    assert (renewed.user_id, renewed.guest, renewed.display_name) == (guest.id, guest.actor.guest, "Zoe")
    assert await hub.value("SELECT use_count FROM shareable_links") == 1
    with pytest.raises(Forbidden):
        await hub.person("bob").do("link:renew")


async def test_revoking_can_put_out_those_who_came_by_the_link(hub: Node) -> None:
    """S-062, S-063: sockets, LiveKit and the door; nobody else."""
    ann = hub.person("ann")
    call_id = await ann.room()
    link, other = await a_link(hub, call_id), await a_link(hub, call_id)
    gone, kept = [await as_guest(hub, await validate(hub.passerby(), each)) for each in (link, other)]
    out, inside = gone.socket(), kept.socket()
    for socket in (out, inside):
        await socket.join(call_id)
        await hub.connects(call_id, socket.actor.user_id)
    await ann.do("link:revoke", link_id=link.link_id, evict=True)
    assert out.heard[-1] == ("room:left", {"reason": "kicked", "message": "the link was revoked"})
    assert call_id not in out.joined and call_id in inside.joined
    room = next(iter(hub.livekit.rooms.values()))
    assert set(room.participants) == {kept.id}
    with pytest.raises(LinkExpired):
        await gone.socket().join(call_id)
    statuses = dict(await hub.rows("SELECT user_id, status FROM call_participants"))
    assert statuses == {gone.id: "kicked", kept.id: "joined"}


async def test_a_participant_puts_nobody_out_by_their_link(hub: Node) -> None:
    ann, bob = hub.person("ann"), hub.person("bob")
    call_id = await ann.room()
    await bob.socket().join(call_id)
    link = await a_link(hub, call_id, owner="bob")
    with pytest.raises(Forbidden):
        await bob.do("link:revoke", link_id=link.link_id, evict=True)
    await bob.do("link:revoke", link_id=link.link_id)


async def test_who_knocked_by_a_revoked_link_waits_no_longer(hub: Node) -> None:
    ann = hub.person("ann")
    call_id = await ann.room()
    link = await a_link(hub, call_id, require_approval=True)
    guest = await as_guest(hub, await validate(hub.passerby(), link))
    assert (await guest.socket().do("lobby:knock", call_id=call_id, display_name="Zoe")).status == "waiting"
    await ann.do("link:revoke", link_id=link.link_id)
    assert (await ann.do("lobby:list", call_id=call_id)).items == []


async def test_approval_leads_to_the_lobby_whatever_the_role(hub: Node) -> None:
    """S-077, S-076: with auto_join, too, and no LiveKit token before somebody said yes."""
    ann = hub.person("ann")
    call_id = await ann.room()
    link = await a_link(hub, call_id, require_approval=True, auto_join=True, default_role="host")
    passed = await validate(hub.passerby(), link)
    assert (passed.lobby, passed.next_step, passed.media) == (True, "lobby", None)
    guest = await as_guest(hub, passed)
    for name in ("room:token", "room:join"):
        with pytest.raises(LobbyRequired):
            await (guest.socket() if name == "room:join" else guest).do(name, call_id=call_id)
    await guest.socket().do("lobby:knock", call_id=call_id, display_name="Zoe")
    await ann.do(
        "lobby:admit_one", call_id=call_id, ticket=(await ann.do("lobby:list", call_id=call_id)).items[0].ticket
    )
    assert (await guest.do("room:token", call_id=call_id)).token


async def test_auto_join_answers_with_a_seat(hub: Node) -> None:
    """S-076: LiveKit's token at once; without it a step of its own. Where no seat is free, the step tells why."""
    ann = hub.person("ann")
    call_id = await ann.room(max_participants=1)
    link = await a_link(hub, call_id, auto_join=True)
    passed = await validate(hub.passerby(), link)
    assert passed.next_step == "joined"
    assert video(passed.media)["room"] == passed.media.room_name
    assert passed.media.identity == passed.user_id
    assert await hub.value("SELECT status FROM call_participants") == "joining"
    late = await validate(hub.passerby(), link)
    assert (late.next_step, late.media) == ("join", None)
    assert await (await as_guest(hub, late)).refused("room:token", call_id=call_id) == "room_full"


async def test_a_link_gives_no_more_than_its_creator_has_by_now(hub: Node) -> None:
    """S-078: demoted, their link is; put out, it is closed."""
    ann, bob = hub.person("ann"), hub.person("bob")
    call_id = await ann.room()
    mine = (await bob.socket().join(call_id)).self.participant_id
    await ann.do("participant:edit", call_id=call_id, participant_id=mine, role="moderator")
    link = await a_link(hub, call_id, owner="bob", default_role="moderator")
    boss = hub.person("boss", admin=True)
    admins = await boss.do("link:create", call_id=call_id, default_role="host")
    assert (await validate(hub.passerby(), link)).role == "moderator"
    await ann.do("participant:edit", call_id=call_id, participant_id=mine, role="viewer")
    assert (await validate(hub.passerby(), link)).role == "viewer"
    await ann.do("participant:kick", call_id=call_id, participant_id=mine)
    with pytest.raises(LinkExpired):
        await validate(hub.passerby(), link)
    assert (await validate(hub.passerby(), admins)).role == "host"


DEAD = {
    "unknown": None,
    "no code at all": None,
    "expired": "UPDATE shareable_links SET expires_at = now() - interval '1 second'",
    "not open yet": "UPDATE shareable_links SET active_from = now() + interval '1 hour'",
    "revoked": "UPDATE shareable_links SET revoked_at = now()",
    "of a call that ended": "UPDATE calls SET status = 'ended'",
}


@pytest.mark.parametrize("name", DEAD)
async def test_links_that_lead_nowhere_are_all_alike(hub: Node, name: str) -> None:
    """S-061, S-063, S-070, S-124: one answer, be it unknown, expired, not open, revoked or of an ended call."""
    link = await a_link(hub, access_type="password", password=SECRET)
    code = {"unknown": "AAAAAAAA", "no code at all": "%00/é"}.get(name, link.short_code)
    change = DEAD[name]
    if change is not None:
        await hub.rows(change)
    for command, fields in (("resolve", {}), ("validate", {}), ("validate", {"password": SECRET})):
        with pytest.raises(LinkExpired) as refused:
            await hub.passerby().do(f"link:{command}", short_code=code, **fields)
        assert refused.value.problem() == LinkExpired("no such link, or it is not open").problem()
    assert await hub.value("SELECT use_count + click_count FROM shareable_links") == 0


async def test_an_expiry_that_is_moved_opens_the_link_again(hub: Node) -> None:
    """S-062, S-070: on the next validation."""
    ann = hub.person("ann")
    link = await a_link(hub, expires_in_hours=1)
    await hub.rows("UPDATE shareable_links SET expires_at = now() - interval '1 second'")
    with pytest.raises(LinkExpired):
        await validate(hub.passerby(), link)
    await ann.do("link:update", link_id=link.link_id, expires_in_hours=1)
    await validate(hub.passerby(), link)
    await ann.do("link:update", link_id=link.link_id, access_type="password", password=SECRET, max_uses=2)
    with pytest.raises(LinkPasswordRequired):
        await validate(hub.passerby(), link)
    await validate(hub.passerby(), link, password=SECRET)
    with pytest.raises(LinkExhausted):
        await validate(hub.passerby(), link, password=SECRET)


@pytest.fixture
async def second(hub: Node, valkey: Valkey, env_name: str) -> AsyncIterator[Node]:
    """Another node of the same hub."""
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(
            Cluster.open(valkey.url, env=env_name, secret=b"a secret of the tests, long enough to be one", node_id="b")
        )
        node = Node(hub.db, cluster, hub.media, hub.livekit, hub.store, hub.pours, hub.admin_dsn)
        stack.callback(node.passwords.close)
        cluster.bus.listen(node)
        yield node


async def test_the_last_use_is_given_once(hub: Node, second: Node) -> None:
    """S-069, S-186: 200 validations at once over two nodes of a link that is good for ten: exactly ten."""
    link = await a_link(hub, max_uses=10)

    async def one(number: int) -> str:
        person = (hub, second)[number % 2].passerby(f"192.0.2.{number % 50}")
        # A machine on which the database takes seconds says so, and is asked again.
        for _ in range(10):
            outcome = await person.refused("link:validate", short_code=link.short_code)
            if outcome not in ("database_unavailable", "timeout"):
                break
        return outcome

    outcomes = await asyncio.gather(*(one(number) for number in range(200)))
    assert {outcome: outcomes.count(outcome) for outcome in set(outcomes)} == {"ok": 10, "link_exhausted": 190}
    assert await hub.value("SELECT use_count FROM shareable_links") == 10


async def test_who_guesses_codes_is_refused_before_long(hub: Node, second: Node) -> None:
    """S-061: 1,000 random codes from one address, over two nodes: after ten misses next to nothing gets through.

    Then a real code is refused from there too, and from elsewhere it is not.
    """
    link = await a_link(hub)

    async def guess(number: int) -> str:
        person = (hub, second)[number % 2].passerby("2001:db8:1:2::/64")
        return await person.refused("link:validate", short_code=f"guess{number:03}")

    started = time.monotonic()
    outcomes = [outcome for step in range(0, 1000, 50) for outcome in await _together(guess, step)]
    # One more is let through every half minute.
    spared = 1 + int((time.monotonic() - started) / 30)
    assert set(outcomes) == {"link_expired", "rate_limited"}
    # Ten, what was under way on two nodes when the tenth was counted, and what time gave back.
    assert outcomes.count("link_expired") <= 10 + 2 * 8 + spared
    assert outcomes.count("rate_limited") >= 900
    for name in ("link:validate", "link:resolve"):
        assert await hub.passerby("2001:db8:1:2::/64").refused(name, short_code=link.short_code) == "rate_limited"
        assert await hub.passerby("2001:db8:1:3::/64").refused(name, short_code=link.short_code) == "ok"


async def _together(guess: Any, step: int) -> list[str]:
    return list(await asyncio.gather(*(guess(number) for number in range(step, step + 50))))


async def test_wrong_passwords_from_everywhere_slow_the_code_and_shut_out_nobody_without(hub: Node) -> None:
    """S-066: thirty in a minute, then one every two seconds; other links do not notice."""
    link = await a_link(hub, access_type="password", password=SECRET)
    other = await a_link(hub, access_type="password", password=SECRET)

    async def wrong(number: int) -> str:
        return await hub.passerby(f"192.0.2.{number}").refused(
            "link:validate", short_code=link.short_code, password="wrong"
        )

    started = time.monotonic()
    outcomes = [
        outcome for step in (0, 30, 60) for outcome in await asyncio.gather(*map(wrong, range(step, step + 30)))
    ]
    assert set(outcomes) == {"link_password_invalid", "rate_limited"}
    assert outcomes.count("link_password_invalid") <= 31 + (time.monotonic() - started) / 2
    for number in range(20):
        # What time gave back, taken away again: the machine may be slow.
        while (await hub.limits.allow(f"link_passwords:{link.short_code}", *links_guessing.PER_CODE)).allowed:
            pass
        refused = await hub.passerby(f"198.51.100.{number}").refused(
            "link:validate", short_code=link.short_code, password=SECRET
        )
        if refused != "ok":
            break
    assert refused == "rate_limited"
    assert (await validate(hub.passerby("198.51.100.99"), other, password=SECRET)).guest_token
    assert (await hub.passerby("198.51.100.99").do("link:resolve", short_code=link.short_code)).title is None


async def test_right_passwords_are_not_counted(hub: Node) -> None:
    """However many come in a minute."""
    link = await a_link(hub, access_type="password", password=SECRET)
    for step in range(5):
        people = [hub.passerby(f"192.0.2.{step * 8 + number}") for number in range(8)]
        await asyncio.gather(*(validate(person, link, password=SECRET) for person in people))
    assert await hub.value("SELECT use_count FROM shareable_links") == 40


class Counting:
    """Passwords, and against what they were checked."""

    def __init__(self) -> None:
        self.checked: list[str | None] = []

    async def hash(self, password: str) -> str:
        return f"$2b$04${'a' * 53}"

    async def check(self, password: str, hashed: str | None) -> bool:
        self.checked.append(hashed)
        return hashed is not None and password == SECRET


async def test_every_password_costs_one_check_whatever_is_there(hub: Node) -> None:
    """S-061, S-068: right, wrong, of a link without one, and of no link: the same work, and none gets done sooner."""
    hub.passwords = counting = Counting()  # type: ignore[assignment]
    link, public = await a_link(hub, access_type="password", password=SECRET), await a_link(hub)
    for code, password, outcome in (
        (link.short_code, SECRET, "ok"),
        (link.short_code, "wrong", "link_password_invalid"),
        (public.short_code, "wrong", "ok"),
        ("AAAAAAAA", "wrong", "link_expired"),
        ("", "wrong", "link_expired"),
    ):
        before, started = len(counting.checked), time.monotonic()
        assert await hub.passerby().refused("link:validate", short_code=code, password=password) == outcome
        assert len(counting.checked) - before == 1, outcome
        assert time.monotonic() - started >= 0.25
    before = len(counting.checked)
    for code in (link.short_code, public.short_code, "AAAAAAAA"):
        await hub.passerby().refused("link:validate", short_code=code)
    assert len(counting.checked) == before


class Recorded:
    """A database that writes down which statements went to it."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self.seen: list[str] = []

    @asynccontextmanager
    async def tenant(self, *whose: Any, **how: Any) -> AsyncIterator[Any]:
        async with self._db.tenant(*whose, **how) as tx:
            with tx.query_logger(self._note):
                yield tx

    @asynccontextmanager
    async def system(self) -> AsyncIterator[Any]:
        async with self._db.system() as tx:
            with tx.query_logger(self._note):
                yield tx

    def _note(self, record: LoggedQuery) -> None:
        self.seen.append(record.query)


async def test_a_dead_link_is_looked_up_by_the_same_statements_as_none(hub: Node) -> None:
    """S-061: and is counted as a miss by the same steps, so that its time tells nothing either."""
    link = await a_link(hub, access_type="password", password=SECRET)
    await hub.rows("UPDATE shareable_links SET expires_at = now() - interval '1 second'")
    hub.db = recorded = Recorded(hub.db)  # type: ignore[assignment]
    runs: list[list[str]] = []
    for code in (link.short_code, "AAAAAAAA", "no code"):
        recorded.seen.clear()
        await hub.passerby(f"192.0.2.{len(runs)}").refused("link:validate", short_code=code, password=SECRET)
        runs.append(list(recorded.seen))
    assert runs[0] == runs[1] == runs[2]
    assert links.HASH in runs[0]


async def test_a_hung_up_visitor_has_had_their_use(hub: Node) -> None:
    """Nobody gets a second try at a use that was taken, and none is taken without being counted."""
    link = await a_link(hub, max_uses=5)
    command = hub.dispatcher.commands.get("link:validate")
    assert command is not None
    for wait_s in (0.0, 0.002, 0.005, 0.01, 0.05):
        ctx = hub.context(hub.passerby().actor)
        work = asyncio.ensure_future(hub.dispatcher.run_for(ctx, command, {"short_code": link.short_code}, door="rest"))
        await asyncio.sleep(wait_s)
        work.cancel()
        await asyncio.wait((work,))
    await hub.dispatcher.finish()
    uses = await hub.value("SELECT use_count FROM shareable_links")
    assert uses == await hub.value("SELECT coalesce(sum(uses), 0)::int FROM link_hours")


def test_an_actor_without_a_token_is_nobody(hub: Node) -> None:
    actor: Actor = hub.passerby().actor
    assert actor.nobody and not actor.admin and actor.expires_at > datetime.now(UTC) + timedelta(days=1)


async def test_nobody_does_anything_else(hub: Node) -> None:
    """S-171: public commands alone let somebody in without a token, and only by REST."""
    public = {command for command in hub.dispatcher.commands if command.needs == "public"}
    assert {command.name for command in public} >= {"link:resolve", "link:validate"}
    assert not any(command.socket for command in public)
    for name in ("room:create", "link:renew", "session:me", "link:list"):
        fields = {"name": "x"} if name == "room:create" else {}
        assert await hub.passerby().refused(name, **fields) == "unauthenticated"
