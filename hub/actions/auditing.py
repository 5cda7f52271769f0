"""The audit log as admins read it: in pages, and whole with its chain, to be kept and verified elsewhere."""

from __future__ import annotations

from datetime import UTC, datetime

from db import audit as audit_log
from db import audit_chain
from db.audit_chain import Hole, Link
from hub.actions import pages
from hub.commands import Commands, Http
from hub.context import Context
from hub.protocol import errors
from hub.protocol.admin import (
    AuditEntry,
    AuditExport,
    AuditHead,
    AuditLink,
    AuditPage,
    ExportAudit,
    ListAudit,
)

commands = Commands()

# A chain has numbers: the time in a cursor says nothing here.
_NO_TIME = datetime(1970, 1, 1, tzinfo=UTC)


@commands.add("admin:audit", needs="admin", http=Http("GET", "/admin/audit"), socket=False, mutates=False)
async def audit(ctx: Context, message: ListAudit) -> AuditPage:
    """Who did what to whom, newest first."""
    async with ctx.transaction() as tx:
        found = await audit_log.page(
            tx,
            before_id=_number(message.cursor),
            actor=message.actor,
            target_id=message.target_id,
            limit=message.limit + 1,
        )
    items, more = found[: message.limit], len(found) > message.limit
    return AuditPage(
        items=[
            AuditEntry(
                id=str(each.id),
                at=each.at,
                actor=each.actor,
                action=each.action,
                target_type=each.target_type,
                target_id=each.target_id,
                reason=each.reason,
                details=each.details,
            )
            for each in items
        ],
        next_cursor=pages.cursor(items[-1].at, items[-1].id) if more else None,
    )


@commands.add(
    "admin:export_audit",
    needs="admin",
    http=Http("GET", "/admin/audit/export"),
    socket=False,
    mutates=False,
)
async def export(ctx: Context, message: ExportAudit) -> AuditExport:
    """The whole log, oldest first, with the hashes that chain it; that somebody takes it out is written down too."""
    after_seq = _number(message.cursor)
    async with ctx.transaction() as tx:
        if not after_seq or not await audit_log.did_lately(tx, ctx.actor.user_id, "audit:export"):
            # Also for a cursor that no page gave.
            await audit_log.add(tx, actor=ctx.actor.user_id, action="audit:export", target_type="audit", target_id=None)
    async with ctx.transaction() as tx:
        # The head first: whatever it names is in the pages.
        head = await audit_chain.head(tx)
        found = await audit_chain.links(tx, after_seq=after_seq or 0, limit=message.limit + 1)
    items = [_link(each) for each in found[: message.limit] if not isinstance(each, Hole)]
    more = len(found) > message.limit
    return AuditExport(
        items=items,
        head=AuditHead(head.seq, head.hash.hex()),
        next_cursor=pages.cursor(_NO_TIME, found[message.limit - 1].seq) if more else None,
    )


def _number(cursor: str | None) -> int | None:
    """The place in a list whose ids are numbers. Raises InvalidCursor."""
    place = pages.place(cursor)
    if place is None:
        return None
    if not (place.id.isdecimal() and int(place.id) < 2**63):
        raise errors.InvalidCursor()
    return int(place.id)


def _link(link: Link) -> AuditLink:
    return AuditLink(
        seq=link.seq,
        id=str(link.id),
        tenant_id=link.tenant_id,
        at=link.at,
        actor=link.actor,
        action=link.action,
        target_type=link.target_type,
        target_id=link.target_id,
        reason=link.reason,
        details_json=link.details,
        prev_hash=link.prev_hash.hex(),
        hash=link.hash.hex(),
    )
