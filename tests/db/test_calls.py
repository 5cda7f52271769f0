"""Calls as the actions ask for them: settings, lists that never skip or repeat, counts."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from db import calls
from db.calls import Call
from db.pool import Database, Transaction
from tests.db.people import NOW, let_in, make_call, tenant_id


async def _made_at(tx: Transaction, seconds: float, owner_id: str = "olga", **fields: object) -> Call:
    call = await make_call(tx, owner_id, **fields)
    await tx.execute("UPDATE calls SET created_at = $2 WHERE id = $1", call.id, NOW + timedelta(seconds=seconds))
    found = await calls.get(tx, call.id)
    assert found is not None
    return found


async def _walk(tx: Transaction, limit: int, **filters: object) -> list[UUID]:
    found: list[Call] = []
    while True:
        place = (found[-1].created_at, found[-1].id) if found else None
        page = await calls.page(tx, after=place, limit=limit, **filters)  # type: ignore[arg-type]
        found += page
        if len(page) < limit:
            return [call.id for call in found]


async def test_a_call_is_found_by_id_and_by_room_name_in_its_tenant_only(db: Database) -> None:
    """S-034: the path may carry either; a foreign call and a missing one are the same None."""
    async with db.tenant(tenant_id(), "olga") as tx:
        call = await make_call(tx)
        assert await calls.get(tx, call.id) == await calls.by_room_name(tx, call.livekit_room_name) == call
        assert await calls.lock(tx, call.id) == call
    async with db.tenant(tenant_id(), "olga") as tx:
        for found in (
            await calls.get(tx, call.id),
            await calls.by_room_name(tx, call.livekit_room_name),
            await calls.lock(tx, call.id),
            await calls.get(tx, uuid4()),
        ):
            assert found is None
        assert not await calls.delete(tx, call.id)
        with pytest.raises(LookupError):
            await calls.change(tx, call.id, name="mine now")


async def test_a_list_holds_own_calls_and_those_taken_part_in(db: Database) -> None:
    """S-033: owner or participant, newest first; others' calls are not there, and the tenant's list has all."""
    async with db.tenant(tenant_id(), "olga") as tx:
        own, shared, foreign = [
            await _made_at(tx, number, owner) for number, owner in enumerate(["olga", "bob", "bob"])
        ]
        await let_in(tx, own, "olga")
        # Two devices of one person are one call in the list.
        await let_in(tx, shared, "olga", "phone")
        await let_in(tx, shared, "olga", "laptop")
        assert await _walk(tx, 10, user_id="olga") == [shared.id, own.id]
        assert await _walk(tx, 1, user_id="olga") == [shared.id, own.id]
        assert await _walk(tx, 10, user_id="nobody") == []
        assert await _walk(tx, 10) == [foreign.id, shared.id, own.id]


async def test_filters_narrow_the_list(db: Database) -> None:
    """S-033: status, call type, date and text, alone and together."""
    async with db.tenant(tenant_id(), "olga") as tx:
        standup = await _made_at(tx, 0, name="Team Standup 100%")
        webinar = await _made_at(tx, 60, name="Launch", call_type="webinar")
        ended = await _made_at(tx, 120, name="team retro")
        await tx.execute("UPDATE calls SET status = 'ended' WHERE id = $1", ended.id)
        await let_in(tx, ended, "bob")
        for user_id in ("olga", None):
            for filters, expected in (
                ({"status": "waiting"}, [webinar.id, standup.id]),
                ({"status": "ended"}, [ended.id]),
                ({"call_type": "webinar"}, [webinar.id]),
                ({"text": "TEAM"}, [ended.id, standup.id]),
                ({"text": "100%"}, [standup.id]),
                ({"text": "%"}, [standup.id]),
                ({"text": "_"}, []),
                ({"created_from": NOW + timedelta(seconds=60)}, [ended.id, webinar.id]),
                ({"created_before": NOW + timedelta(seconds=60)}, [standup.id]),
                ({"text": "team", "status": "waiting"}, [standup.id]),
            ):
                assert await _walk(tx, 10, user_id=user_id, **filters) == expected, (user_id, filters)
        assert await _walk(tx, 10, user_id="bob", status="ended", text="retro") == [ended.id]
        assert await _walk(tx, 10, user_id="bob", status="waiting") == []


async def test_pages_are_complete_and_without_duplicates_while_calls_are_made(db: Database) -> None:
    """S-033: rows of one instant are told apart by id, and new ones do not push old ones onto the next page."""
    async with db.tenant(tenant_id(), "olga") as tx:
        made = [await _made_at(tx, number // 5, "olga" if number % 2 else "bob") for number in range(20)]
        for call in made:
            await let_in(tx, call, "olga")
        expected = [call.id for call in sorted(made, key=lambda call: (call.created_at, call.id), reverse=True)]
        found: list[Call] = []
        while True:
            place = (found[-1].created_at, str(found[-1].id)) if found else None
            page = await calls.page(tx, user_id="olga", after=place, limit=3)
            if not page:
                break
            found += page
            await _made_at(tx, 1000)
        assert [call.id for call in found] == expected


async def test_a_person_added_later_finds_the_call_in_its_place(db: Database) -> None:
    """The list is ordered by when calls were made, not by when somebody came into them."""
    async with db.tenant(tenant_id(), "olga") as tx:
        old, new = await _made_at(tx, 0), await _made_at(tx, 60)
        await let_in(tx, new, "bob")
        await let_in(tx, old, "bob")
        assert await _walk(tx, 1, user_id="bob") == [new.id, old.id]


async def test_unsaid_settings_stay(db: Database) -> None:
    async with db.tenant(tenant_id(), "olga") as tx:
        call = await make_call(tx, metadata={"a": 1}, recording_enabled=True)
        changed = await calls.change(tx, call.id, name="New", metadata={})
        assert (changed.name, changed.metadata, changed.recording_enabled) == ("New", {}, True)
        await tx.execute("UPDATE calls SET livekit_room_sid = 'RM_2' WHERE id = $1", call.id)
        again = await calls.get(tx, call.id)
        assert again is not None
        assert (again.livekit_room_sid, again.version) == ("RM_2", changed.version)


async def test_open_calls_and_their_people_are_counted(db: Database) -> None:
    async with db.tenant(tenant_id(), "olga") as tx:
        assert await calls.people_in_calls(tx) == 0
        call, ended = await make_call(tx), await make_call(tx)
        await let_in(tx, call, "bob")
        await tx.execute("UPDATE call_participants SET status = 'joined'")
        await tx.execute("UPDATE calls SET status = 'active' WHERE id = $1", call.id)
        await tx.execute("UPDATE calls SET status = 'ended' WHERE id = $1", ended.id)
        counts = await calls.counts(tx)
        assert (counts["waiting"], counts["active"]) == (0, 1)
        assert await calls.people_in_calls(tx) == 1
