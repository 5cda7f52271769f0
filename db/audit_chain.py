"""SQL about the chain of the audit log, and looking whether it holds.

Each entry has a link: its place in the tenant's chain, the hash of the link before, and a hash over both and the entry.
The database makes the links when an act commits (migration 025). Here they are computed once more, from what stands in
the log now.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Literal
from uuid import UUID

import msgspec

from db.pool import Database, Transaction

FIRST = bytes(32)
_PAGE = 500
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Head(msgspec.Struct, frozen=True):
    """How far a chain goes. `seq` 0: nothing is in it."""

    seq: int
    hash: bytes


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """An entry in its place. `details`: the JSON text as it was hashed."""

    seq: int
    prev_hash: bytes
    hash: bytes
    id: int
    tenant_id: UUID
    at: datetime
    actor: str
    action: str
    target_type: str
    target_id: str | None
    reason: str | None
    details: str


class Hole(msgspec.Struct, frozen=True):
    """A link whose entry is gone."""

    seq: int
    id: int


Problem = Literal[
    "changed", "entry_missing", "link_missing", "link_broken", "link_extra", "entry_unlinked", "head_wrong"
]


class Break(msgspec.Struct, frozen=True):
    """The first row that is not as it was written: its place in the chain, its id in the log, and what is wrong."""

    seq: int | None
    id: int | None
    problem: Problem
    text: str


class Verdict(msgspec.Struct, frozen=True):
    """One tenant's chain. `links`: how many were looked at; `broken` None: all of them hold."""

    tenant_id: UUID
    links: int
    head: Head
    broken: Break | None


def digest(link: Link) -> bytes:
    """What the link's hash has to be, as `audit_digest` in the database makes it."""
    micros = (link.at - _EPOCH) // timedelta(microseconds=1)
    fields = (
        *(str(link.seq), str(link.id), str(link.tenant_id), str(micros), link.actor, link.action, link.target_type),
        *(link.target_id, link.reason, link.details),
    )
    return hashlib.sha256(link.prev_hash + b",".join(_written(field) for field in fields)).digest()


def _written(field: str | None) -> bytes:
    if field is None:
        return b"-"
    text = field.encode()
    return b"%d:%s" % (len(text), text)


def check(before: Head, links: Iterable[Link | Hole]) -> Head | Break:
    """Follow the chain from `before`: where it then is, or the first link that does not hold."""
    for link in links:
        if link.seq != before.seq + 1:
            at = before.seq + 1
            return Break(at, None, "link_missing", f"link {at} is missing: entry and link were removed")
        if isinstance(link, Hole):
            return Break(
                link.seq, link.id, "entry_missing", f"entry {link.id} was removed, its link {link.seq} is there"
            )
        if link.prev_hash != before.hash:
            return Break(link.seq, link.id, "link_broken", f"link {link.seq} does not follow the one before it")
        if link.hash != digest(link):
            return Break(link.seq, link.id, "changed", f"entry {link.id} is not what was sealed as link {link.seq}")
        before = Head(link.seq, link.hash)
    return before


HEAD = "SELECT seq, hash FROM audit_heads WHERE tenant_id = app_tenant_id()"


async def head(tx: Transaction) -> Head:
    row = await tx.fetchrow(HEAD)
    return Head(*row) if row else Head(0, FIRST)


LINKS = """
SELECT c.seq, c.prev_hash, c.hash, c.audit_id, a.id, a.tenant_id, a.at, a.actor, a.action, a.target_type, a.target_id,
       a.reason, a.details::text AS details
FROM audit_chain c LEFT JOIN audit_log a ON a.id = c.audit_id
WHERE c.tenant_id = app_tenant_id() AND c.seq > $1 ORDER BY c.seq LIMIT $2
"""


async def links(tx: Transaction, *, after_seq: int, limit: int) -> list[Link | Hole]:
    """The tenant's chain above `after_seq`, the oldest first."""
    return [
        Hole(row["seq"], row["audit_id"])
        if row["id"] is None
        else Link(**{name: row[name] for name in Link.__struct_fields__})
        for row in await tx.fetch(LINKS, after_seq, limit)
    ]


UNLINKED = """
SELECT a.id, c.seq IS NOT NULL AS linked
FROM audit_log a LEFT JOIN audit_chain c ON c.audit_id = a.id
WHERE a.tenant_id = app_tenant_id() AND a.id > $1 ORDER BY a.id LIMIT $2
"""


async def unlinked(tx: Transaction, *, after_id: int, limit: int) -> tuple[int | None, int | None]:
    """Of the next `limit` entries: the first that no link seals, and the last that was looked at (None: no more)."""
    rows = await tx.fetch(UNLINKED, after_id, limit)
    found = next((row["id"] for row in rows if not row["linked"]), None)
    return found, rows[-1]["id"] if rows else None


TENANTS = "SELECT tenant_id FROM system_audit_tenants()"


async def tenants(tx: Transaction) -> list[UUID]:
    """Every tenant that has a log or a chain."""
    return [row["tenant_id"] for row in await tx.fetch(TENANTS)]


async def verify(db: Database, tenant_id: UUID, *, known: Head | None = None) -> Verdict:
    """Look through a tenant's whole chain, and whether each entry is in it. The log may grow meanwhile.

    `known`: a head as it once was, noted outside of this database. Who has the whole server can seal everything anew;
    then this is what does not fit. Raises DatabaseUnavailable.
    """
    async with db.tenant(tenant_id) as tx:
        end = await head(tx)
        then = await links(tx, after_seq=known.seq - 1, limit=1) if known else []
    if known is not None and (not then or isinstance(then[0], Hole) or Head(then[0].seq, then[0].hash) != known):
        text = f"link {known.seq} is not the one that was noted: the log was made anew"
        return Verdict(tenant_id, 0, end, Break(known.seq, None, "head_wrong", text))
    reached = Head(0, FIRST)
    while reached.seq < end.seq:
        async with db.tenant(tenant_id) as tx:
            page = await links(tx, after_seq=reached.seq, limit=min(_PAGE, end.seq - reached.seq))
        if not page:
            at = reached.seq + 1
            gone = Break(at, None, "link_missing", f"links {at} to {end.seq} are missing: the end was cut off")
            return Verdict(tenant_id, reached.seq, end, gone)
        found = check(reached, page)
        if isinstance(found, Break):
            return Verdict(tenant_id, (found.seq or 1) - 1, end, found)
        reached = found
    return Verdict(tenant_id, reached.seq, end, await _beside(db, tenant_id, reached, end))


async def _beside(db: Database, tenant_id: UUID, reached: Head, end: Head) -> Break | None:
    """What a chain that holds in itself does not tell."""
    if reached.hash != end.hash:
        return Break(end.seq, None, "head_wrong", f"the chain does not end as its head says, at link {end.seq}")
    after_id = 0
    while True:
        async with db.tenant(tenant_id) as tx:
            # A link beyond the head is one that the hub did not make; a head that moved on meanwhile is the hub's.
            extra = await links(tx, after_seq=end.seq, limit=1)
            if extra and (await head(tx)).seq == end.seq:
                return Break(extra[0].seq, extra[0].id, "link_extra", f"link {extra[0].seq} is beyond the chain's head")
            found, last = await unlinked(tx, after_id=after_id, limit=_PAGE)
        if found is not None:
            return Break(None, found, "entry_unlinked", f"entry {found} was slipped in: no link seals it")
        if last is None:
            return None
        after_id = last
