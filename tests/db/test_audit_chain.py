"""The audit log is a chain: whatever is done to it behind the hub's back is found, and where."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from db import audit, audit_chain
from db.audit_chain import Break, Hole
from db.pool import Database
from tests.db.people import tenant_id


async def _act(db: Database, tenant: UUID, target: str = "t", **fields: Any) -> None:
    async with db.tenant(tenant, "olga") as tx:
        given: dict[str, Any] = {"actor": "olga", "action": "participant:kick", "target_type": "participant"}
        await audit.add(tx, **(given | {"target_id": target} | fields))


async def test_an_untouched_chain_holds_and_each_tenant_has_its_own(db: Database) -> None:
    ours, theirs = tenant_id(), tenant_id()
    for number in range(5):
        await _act(db, ours, str(number))
    await _act(db, theirs)
    assert (await audit_chain.verify(db, ours)).broken is None
    verdict = await audit_chain.verify(db, theirs)
    assert (verdict.broken, verdict.links, verdict.head.seq) == (None, 1, 1)
    async with db.tenant(ours) as tx:
        links = await audit_chain.links(tx, after_seq=0, limit=10)
        assert [link.seq for link in links] == [1, 2, 3, 4, 5]
        last = links[-1]
        assert not isinstance(last, Hole)
        assert await audit_chain.head(tx) == audit_chain.Head(5, last.hash)
    async with db.system() as tx:
        assert set(await audit_chain.tenants(tx)) == {ours, theirs}
    assert (await audit_chain.verify(db, tenant_id())).links == 0


async def test_whatever_an_entry_holds_both_sides_hash_it_alike(db: Database) -> None:
    """No two entries are written alike, and no character and no number is written in two ways."""
    mine = tenant_id()
    for fields in (
        {"reason": None, "target": ""},
        {"reason": "", "details": {"b": 1, "a": {"ü": ["\u2028", None, True], "é": 1.50}}},
        {
            "reason": "3:abc,-,\n\t\"'\\ 日本 🎉",
            "details": {"call_id": "x" * 3000, "n": 12345678901234567890, "z": 1e-7},
        },
        {"actor": "guest:ü", "details": {"": "\x01"}},
    ):
        await _act(db, mine, **fields)
    verdict = await audit_chain.verify(db, mine)
    assert (verdict.broken, verdict.links) == (None, 4)


async def test_acts_at_once_make_one_chain_and_wait_only_to_commit(db: Database) -> None:
    """An act that is written and not yet committed holds up nobody."""
    mine = tenant_id()
    async with db.tenant(mine, "slow") as tx:
        await audit.add(tx, actor="slow", action="room:end", target_type="call", target_id="1")
        async with asyncio.timeout(4):
            await asyncio.gather(*(_act(db, mine, str(number)) for number in range(20)))
    verdict = await audit_chain.verify(db, mine)
    assert (verdict.broken, verdict.links) == (None, 21)
    async with db.tenant(mine) as tx:
        last = (await audit_chain.links(tx, after_seq=20, limit=1))[0]
    # In the order of the commits, not of the writing.
    assert not isinstance(last, Hole) and last.actor == "slow"


async def test_an_act_that_is_taken_back_leaves_no_link(db: Database) -> None:
    mine = tenant_id()
    await _act(db, mine, "1")
    with pytest.raises(ZeroDivisionError):
        async with db.tenant(mine, "olga") as tx:
            await audit.add(tx, actor="olga", action="room:end", target_type="call", target_id="2")
            raise ZeroDivisionError
    await _act(db, mine, "3")
    verdict = await audit_chain.verify(db, mine)
    assert (verdict.broken, verdict.links) == (None, 2)


_RESEAL = (
    "UPDATE audit_log SET actor = 'nobody' WHERE target_id = '3'; UPDATE audit_chain c SET hash ="
    " audit_digest(c.seq, c.prev_hash, a) FROM audit_log a WHERE a.id = c.audit_id AND c.seq = 3"
)
_SLIPPED_IN = "INSERT INTO audit_log (tenant_id, actor, action, target_type) VALUES (app_tenant_id(), 'eve', 'x', 'y')"
_PUT_ON = "INSERT INTO audit_chain SELECT tenant_id, 7, 999999, hash, hash FROM audit_chain WHERE seq = 6"
# What somebody does: the place in the chain and the problem that the verifier names.
_TAMPERING = {
    "UPDATE audit_log SET actor = 'nobody' WHERE target_id = '3'": (3, "changed"),
    "UPDATE audit_log SET at = at - interval '1 us' WHERE target_id = '1'": (1, "changed"),
    "UPDATE audit_log SET reason = '' WHERE target_id = '6'": (6, "changed"),
    "UPDATE audit_log SET details = '{\"ban_s\": 2}' WHERE target_id = '4'": (4, "changed"),
    "DELETE FROM audit_log WHERE target_id = '2'": (2, "entry_missing"),
    "DELETE FROM audit_chain WHERE seq = 2; DELETE FROM audit_log WHERE target_id = '2'": (2, "link_missing"),
    "DELETE FROM audit_chain WHERE seq > 4; DELETE FROM audit_log WHERE target_id > '4'": (5, "link_missing"),
    _SLIPPED_IN: (None, "entry_unlinked"),
    _PUT_ON: (7, "link_extra"),
    "DELETE FROM audit_heads": (1, "link_extra"),
    "UPDATE audit_heads SET hash = sha256('x')": (6, "head_wrong"),
    "UPDATE audit_chain SET hash = sha256('x') WHERE seq = 2": (2, "changed"),
    _RESEAL: (4, "link_broken"),
}


async def test_what_was_done_behind_the_hubs_back_is_found_with_its_place(db: Database, database: Any) -> None:
    """S-247: changed, removed, slipped in, cut off: the verifier names the first row that is not as it was written."""
    # Somebody who has the whole server, with every trigger and key switched off; the role keeps them to one tenant.
    intruder = await asyncpg.connect(database.admin_dsn)
    try:
        await intruder.execute("SET session_replication_role = replica; SET ROLE hub_owner")
        for statement, (seq, problem) in _TAMPERING.items():
            mine = tenant_id()
            async with db.tenant(mine, "olga") as tx:
                for number in range(1, 7):
                    await audit.add(
                        tx, actor="olga", action="a", target_type="t", target_id=str(number), details={"ban_s": 1}
                    )
            assert (await audit_chain.verify(db, mine)).broken is None
            await intruder.execute("SELECT set_config('app.tenant_id', $1, false)", str(mine))
            await intruder.execute(statement)
            broken = (await audit_chain.verify(db, mine)).broken
            assert isinstance(broken, Break), statement
            assert (broken.seq, broken.problem) == (seq, problem), statement
    finally:
        await intruder.close()


async def test_nobody_but_the_database_itself_writes_the_chain(db: Database, database: Any) -> None:
    """Neither the app role, which may not, nor the owner, whom the triggers hold to the same."""
    mine = tenant_id()
    await _act(db, mine)
    statements = (
        "UPDATE audit_chain SET hash = prev_hash",
        "DELETE FROM audit_chain",
        "TRUNCATE audit_chain",
        "UPDATE audit_heads SET seq = 0",
        "DELETE FROM audit_heads",
        "TRUNCATE audit_heads",
    )
    only_app = (
        "INSERT INTO audit_chain (tenant_id, seq, audit_id, prev_hash, hash)"
        " SELECT tenant_id, 2, audit_id, hash, hash FROM audit_chain",
        "INSERT INTO audit_log (actor, action, target_type, at) VALUES ('olga', 'a', 'b', now() - interval '1 day')",
        "SELECT audit_append(a) FROM audit_log a",
    )
    for dsn, refused in ((database.app_dsn, statements + only_app), (database.owner_dsn, statements)):
        connection = await asyncpg.connect(dsn)
        try:
            await connection.execute("SELECT set_config('app.tenant_id', $1, false)", str(mine))
            for statement in refused:
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.execute(statement)
        finally:
            await connection.close()
    assert (await audit_chain.verify(db, mine)).broken is None


async def test_a_long_chain_is_followed_page_by_page_while_it_grows(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_chain, "_PAGE", 3)
    mine = tenant_id()
    for number in range(10):
        await _act(db, mine, str(number))
    verifying = asyncio.create_task(audit_chain.verify(db, mine))
    for number in range(5):
        await _act(db, mine, f"later {number}")
    verdict = await verifying
    assert verdict.broken is None
    assert verdict.links >= 10
