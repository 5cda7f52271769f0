"""The smaller tables: users, bans, audit, kept answers, the inbox, and the looks across tenants."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from db import audit, bans, idempotency, inbox, system, tenants, users
from db.errors import DatabaseUnavailable
from db.pool import Database
from tests.db.people import NOW, after, make_call, tenant_id

# ---------------------------------------------------------------------------------------------------------------- users


async def test_a_user_is_made_by_being_seen_and_keeps_what_is_not_said(db: Database) -> None:
    async with db.tenant(tenant_id()) as tx:
        assert await tenants.get(tx) is None
        await users.seen(tx, "olga", display_name="Olga\0" + "x" * 300, avatar_url="https://example.org/o.png")
        await users.seen(tx, "olga", avatar_url="https://example.org/" + "x" * 3000)
        await users.seen(tx, "guest:1", display_name="")
        found = await users.by_ids(tx, ["olga", "guest:1", "nobody"])
        assert set(found) == {"olga", "guest:1"}
        assert (found["olga"].display_name, found["olga"].avatar_url) == (
            "Olga" + "x" * 196, "https://example.org/o.png",
        )  # fmt: skip
        assert (found["olga"].is_guest, found["guest:1"].is_guest) == (False, True)
        await users.seen(tx, "olga", display_name="O")
        assert (await users.by_ids(tx, ["olga"]))["olga"].display_name == "O"
        assert await tenants.get(tx) is not None


async def test_a_user_who_does_nothing_new_is_not_written_again(db: Database) -> None:
    async with db.tenant(tenant_id()) as tx:
        await users.seen(tx, "olga", display_name="Olga")
        before = await tx.fetchval("SELECT ctid::text FROM users")
        await users.seen(tx, "olga", display_name="Olga")
        assert await tx.fetchval("SELECT ctid::text FROM users") == before
        await tx.execute("UPDATE users SET last_seen_at = now() - interval '2 minutes'")
        await users.seen(tx, "olga", display_name="Olga")
        assert await tx.fetchval("SELECT last_seen_at = now() FROM users")


# ----------------------------------------------------------------------------------------------------------------- bans


async def test_a_ban_holds_until_its_time_or_until_it_is_lifted(db: Database) -> None:
    """S-036: banned means banned, from the row, for as long as it says."""
    async with db.tenant(tenant_id(), "olga") as tx:
        call = await make_call(tx)
        assert await bans.active(tx, call.id, "bob", NOW) is None
        await bans.add(tx, call.id, "bob", banned_by="olga", reason="noise", expires_at=after(60))
        found = await bans.active(tx, call.id, "bob", after(59))
        assert found is not None
        assert (found.banned_by, found.reason) == ("olga", "noise")
        assert await bans.active(tx, call.id, "bob", after(60)) is None
        await bans.add(tx, call.id, "bob", banned_by="ann", reason=None, expires_at=None)
        assert [ban.banned_by for ban in await bans.of_call(tx, call.id, after(9999))] == ["ann"]
        assert await bans.remove(tx, call.id, "bob")
        assert not await bans.remove(tx, call.id, "bob")


# ---------------------------------------------------------------------------------------------------------------- audit


async def test_the_audit_log_only_grows(db: Database, database: Any) -> None:
    """S-247: what was done is listed newest first; nobody changes or empties it, not even the owner of the table."""
    mine = tenant_id()
    async with db.tenant(mine, "olga") as tx:
        for number in range(5):
            await audit.add(
                tx,
                actor="olga" if number % 2 else "ann",
                action="participant:kick",
                target_type="participant",
                target_id=str(number),
                reason="x" * 600,
                details={"number": number},
            )
        entries = await audit.page(tx, limit=2)
        entries += await audit.page(tx, before_id=entries[-1].id, limit=10)
        assert [entry.details["number"] for entry in entries] == [4, 3, 2, 1, 0]
        assert len(entries[0].reason or "") == 500
        assert [entry.target_id for entry in await audit.page(tx, actor="olga", limit=10)] == ["3", "1"]
        assert [entry.target_id for entry in await audit.page(tx, target_id="2", limit=10)] == ["2"]
    owner = await asyncpg.connect(database.owner_dsn)
    try:
        await owner.execute("SELECT set_config('app.tenant_id', $1, false)", str(mine))
        assert await owner.fetchval("SELECT count(*) FROM audit_log") == 5
        for statement in (
            "UPDATE audit_log SET actor = 'nobody'",
            "DELETE FROM audit_log",
            "TRUNCATE audit_log CASCADE",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
                await owner.execute(statement)
    finally:
        await owner.close()


# ---------------------------------------------------------------------------------------------------------- idempotency


async def test_a_key_runs_once_and_answers_for_ever_after(db: Database) -> None:
    async with db.tenant(tenant_id(), "olga") as tx:

        async def claim(command: str = "room:end", digest: bytes = b"1", key: str = "k") -> idempotency.Claim:
            return await idempotency.claim(tx, "olga", key, command, digest, 5)

        assert await claim() == idempotency.Fresh()
        assert isinstance(await claim(), idempotency.InFlight)
        assert await claim(digest=b"2") == idempotency.Conflict()
        assert await claim(command="room:leave") == idempotency.Conflict()
        assert await claim(key="other") == idempotency.Fresh()
        await idempotency.finish(tx, "olga", "k", b'{"ok":true}')
        assert await claim() == idempotency.Replay(b'{"ok":true}')
        assert await claim(digest=b"2") == idempotency.Conflict()
        with pytest.raises(DatabaseUnavailable, match="finished first"):
            await idempotency.finish(tx, "olga", "k", b"again")
        await idempotency.release(tx, "olga", "k")
        assert await claim() == idempotency.Replay(b'{"ok":true}'), "what has an answer is not given back"


async def test_a_run_that_was_given_back_or_died_may_be_tried_again(db: Database) -> None:
    async with db.tenant(tenant_id(), "olga") as tx:
        assert await idempotency.claim(tx, "olga", "k", "room:end", b"1", 5) == idempotency.Fresh()
        await idempotency.release(tx, "olga", "k")
        assert await idempotency.claim(tx, "olga", "k", "room:end", b"1", 0) == idempotency.Fresh()
        # Its lease of 0 s is over, and nobody has answered.
        assert await idempotency.claim(tx, "olga", "k", "room:end", b"2", 5) == idempotency.Conflict()
        assert await idempotency.claim(tx, "olga", "k", "room:end", b"1", 5) == idempotency.Fresh()
        await tx.execute("UPDATE command_results SET expires_at = now()")
        assert await idempotency.claim(tx, "olga", "k", "room:end", b"2", 5) == idempotency.Fresh()


async def test_twenty_runs_of_one_key_at_once_are_one(db: Database) -> None:
    mine = tenant_id()

    async def claim() -> idempotency.Claim:
        async with db.tenant(mine, "olga") as tx:
            return await idempotency.claim(tx, "olga", "k", "room:end", b"1", 5)

    claims = await asyncio.gather(*(claim() for _ in range(20)))
    assert sum(isinstance(each, idempotency.Fresh) for each in claims) == 1
    assert sum(isinstance(each, idempotency.InFlight) for each in claims) == 19


async def test_of_two_runs_that_both_believe_they_may_one_effect_is_kept(db: Database) -> None:
    """A lease ran out under its holder: whoever commits the answer first keeps the effect, the other rolls back."""
    mine = tenant_id()
    for _ in range(2):
        async with db.tenant(mine, "olga") as tx:
            assert await idempotency.claim(tx, "olga", "k", "room:create", b"1", 0) == idempotency.Fresh()

    async def run() -> None:
        async with db.tenant(mine, "olga") as tx:
            await make_call(tx)
            await idempotency.finish(tx, "olga", "k", b"done")

    outcomes = await asyncio.gather(run(), run(), return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["DatabaseUnavailable", "NoneType"]
    async with db.tenant(mine, "olga") as tx:
        assert await tx.fetchval("SELECT count(*) FROM calls") == 1


async def test_kept_answers_are_forgotten_when_their_time_is_over(db: Database) -> None:
    async with db.tenant(tenant_id(), "olga") as tx:
        for key in "abc":
            await idempotency.claim(tx, "olga", key, "room:end", b"1", 5)
        await tx.execute("UPDATE command_results SET expires_at = $1 WHERE key <> 'c'", NOW)
    async with db.system() as tx:
        assert [await system.forget_results(tx, after(1), 1) for _ in range(3)] == [1, 1, 0]


# ---------------------------------------------------------------------------------------------------------------- inbox


@dataclass
class _Sid:
    sid: str


@dataclass
class _Event:
    event_id: str
    room_name: str | None
    event: str = "participant_joined"
    created_at: Any = NOW
    room_sid: str | None = "RM_1"
    participant: _Sid | None = field(default_factory=lambda: _Sid("PA_1"))
    track: _Sid | None = None
    raw: bytes = b'{"name":"a\\u0000b"}'


async def _store(db: Database, *events: _Event) -> list[bool]:
    stored = []
    for event in events:
        async with db.system() as tx:
            stored.append(await inbox.store(tx, event))
    return stored


async def _claim(db: Database, limit: int = 10, lease_s: float = 30) -> list[inbox.Stored]:
    async with db.system() as tx:
        return await inbox.claim(tx, limit, lease_s)


async def test_an_event_is_stored_once_and_knows_its_call(db: Database) -> None:
    """S-131: the event id finds duplicates; a room that is none of ours is kept too; zero bytes do no harm."""
    mine = tenant_id()
    async with db.tenant(mine, "olga") as tx:
        call = await make_call(tx)
    ours = _Event("EV_1", call.livekit_room_name)
    strange = _Event("EV_2", "demo\0room", participant=None, track=_Sid("TR_1"))
    nowhere = _Event("EV_3", None, room_sid=None, participant=None)
    assert await _store(db, ours, ours, strange, nowhere, ours) == [True, False, True, True, False]
    first, second, third = await _claim(db)
    assert (first.event_id, first.tenant_id, first.call_id) == ("EV_1", mine, call.id)
    assert (first.payload, first.attempts, first.event_created_at) == (ours.raw, 1, NOW)
    assert (second.room_name, second.call_id) == ("demoroom", None)
    assert (third.room_name, third.room_sid) == (None, None)
    async with db.tenant(mine) as tx:
        assert [each.event_id for each in await inbox.page_of_tenant(tx, limit=9)] == ["EV_1"]
        assert await inbox.is_of_tenant(tx, "EV_1")
        assert await inbox.counts_of_tenant(tx) == {"pending": 1, "dead": 0}
    async with db.tenant(tenant_id()) as tx:
        assert not await inbox.is_of_tenant(tx, "EV_1")


async def test_a_room_is_in_one_hand_at_a_time(db: Database) -> None:
    """Events of a room that somebody works on wait; those of other rooms do not, and no two claims share one."""
    await _store(db, _Event("A1", "room_a"), _Event("A2", "room_a"), _Event("B1", "room_b"))
    assert [each.event_id for each in await _claim(db, 1)] == ["A1"]
    assert [each.event_id for each in await _claim(db)] == ["B1"]
    assert await _claim(db) == []
    async with db.system() as tx:
        await inbox.done(tx, ["A1"])
    assert [each.event_id for each in await _claim(db)] == ["A2"]


async def test_many_workers_share_the_inbox_without_overlap(db: Database) -> None:
    await _store(db, *(_Event(f"E{number}", f"room_{number % 7}") for number in range(35)))
    claimed = await asyncio.gather(*(_claim(db, 10) for _ in range(8)))
    ids = [each.event_id for claim in claimed for each in claim]
    assert len(ids) == len(set(ids)) > 0
    owners: dict[str | None, set[int]] = {}
    for number, claim in enumerate(claimed):
        for each in claim:
            owners.setdefault(each.room_name, set()).add(number)
    assert all(len(workers) == 1 for workers in owners.values())


async def test_what_fails_comes_again_and_what_is_given_up_waits_for_an_operator(db: Database) -> None:
    """S-131: retried at its time, dead after that, alive again when somebody says so; done for good."""
    await _store(db, _Event("EV_1", "room_a"))
    (event,) = await _claim(db)
    async with db.system() as tx:
        soon = await tx.fetchval("SELECT now() - interval '1 second'")
        await inbox.failed(tx, [event.event_id], "broken", soon + timedelta(hours=1))
    assert await _claim(db) == []
    async with db.system() as tx:
        await inbox.failed(tx, [event.event_id], "broken " * 500, soon)
    (event,) = await _claim(db)
    assert (event.attempts, len(event.last_error or "")) == (2, 2000)
    async with db.system() as tx:
        await inbox.dead(tx, [event.event_id], "hopeless")
        depth = await inbox.depth(tx)
        assert (depth.pending, depth.dead, depth.oldest_pending_at) == (0, 1, None)
        assert [each.last_error for each in await inbox.page(tx, status="dead", limit=5)] == ["hopeless"]
        assert await inbox.retry(tx, event.event_id)
        assert not await inbox.retry(tx, "EV_none")
    (event,) = await _claim(db)
    assert event.attempts == 1
    async with db.system() as tx:
        await inbox.done(tx, [event.event_id])
        assert await inbox.forget(tx, NOW, 10) == 0
        later = await tx.fetchval("SELECT now() + interval '1 day'")
        assert await inbox.forget(tx, later, 10) == 1


async def test_a_worker_that_died_loses_its_lease(db: Database) -> None:
    await _store(db, _Event("EV_1", "room_a"))
    assert len(await _claim(db, lease_s=0.05)) == 1
    await asyncio.sleep(0.1)
    assert [each.attempts for each in await _claim(db)] == [2]


async def test_folding_and_finishing_are_one_transaction(db: Database) -> None:
    """S-131: where the fold fails, the event is still there."""
    mine = tenant_id()
    async with db.tenant(mine, "olga") as tx:
        call = await make_call(tx)
    await _store(db, _Event("EV_1", call.livekit_room_name))
    (event,) = await _claim(db, lease_s=0.0)
    with pytest.raises(ZeroDivisionError):
        async with db.tenant(mine) as tx:
            await inbox.done(tx, [event.event_id])
            raise ZeroDivisionError
    assert [each.event_id for each in await _claim(db)] == ["EV_1"]


# --------------------------------------------------------------------------------------------------------------- system


async def test_the_looks_across_tenants_find_what_a_tenant_cannot(db: Database) -> None:
    first, second = tenant_id(), tenant_id()
    made = []
    for tenant in (first, second):
        async with db.tenant(tenant, "olga") as tx:
            made.append(await make_call(tx, region="eu"))
            over = await make_call(tx)
            await tx.execute("UPDATE calls SET status = 'ended' WHERE id = $1", over.id)
    async with db.tenant(second) as tx:
        await tx.execute("UPDATE calls SET due_at = $2 WHERE id = $1", made[1].id, after(10))
    async with db.system() as tx:
        assert await system.call_by_room_name(tx, made[1].livekit_room_name) == (second, made[1].id)
        assert await system.call_by_room_name(tx, "room_none_1") is None
        assert [(each.tenant_id, each.call_id, each.region) for each in await system.moving_calls(tx)] == [
            (first, made[0].id, "eu"),
            (second, made[1].id, "eu"),
        ]
        assert await system.due_calls(tx, after(9), 5) == []
        assert [each.call_id for each in await system.due_calls(tx, after(10), 5)] == [made[1].id]
        assert await system.next_due(tx) == after(10)
        rooms = [made[0].livekit_room_name, over.livekit_room_name, "room_strange_1"]
        assert set(await system.orphan_rooms(tx, rooms)) == set(rooms[1:])
