"""What operators see and do.

An admin is one tenant's: so are the rooms, sessions, webhooks and acts that they see. What is about the installation
(its nodes, its settings, a comparison of all calls) is for its operators, who come with a service token.
"""

from __future__ import annotations

from collections import Counter

from db import audit as audit_log
from db import calls
from db import inbox as webhook_inbox
from hub.actions import nodes, pages, rooms
from hub.commands import Commands, Empty, Http, Rate
from hub.context import Context
from hub.protocol import errors
from hub.protocol.admin import (
    CloseSession,
    ConfigAnswer,
    EndAnyRoom,
    InboxEntry,
    InboxPage,
    ListAllRooms,
    ListInbox,
    ListSessions,
    Overview,
    Reconcile,
    Reconciled,
    RetryInbox,
    RoomList,
    SessionList,
    SessionView,
)
from hub.protocol.participants import ParticipantLeft
from hub.protocol.rooms import RoomAnswer, RoomEnded

commands = Commands()


@commands.add("admin:overview", needs="admin", http=Http("GET", "/admin/overview"), socket=False, mutates=False)
async def overview(ctx: Context, message: Empty) -> Overview:
    """The tenant's calls and people, the webhooks still waiting, and how many nodes there are."""
    async with ctx.transaction() as tx:
        counts = await calls.counts(tx)
        people = await calls.people_in_calls(tx)
        waiting = await webhook_inbox.counts_of_tenant(tx)
    return Overview(
        calls=counts,
        participants=people,
        sessions=len(await ctx.hub.sessions.list(ctx.actor.tenant_id)),
        inbox=waiting,
        nodes=dict(Counter(node.status for node in await nodes.views(ctx))),
        server_time=ctx.now(),
    )


@commands.add("admin:rooms", needs="admin", http=Http("GET", "/admin/rooms"), socket=False, mutates=False)
async def all_rooms(ctx: Context, message: ListAllRooms) -> RoomList:
    """Every call of the tenant, newest first."""
    async with ctx.transaction() as tx:
        found = await calls.page(
            tx,
            user_id=None,
            status=message.status,
            text=message.q,
            after=pages.row(message.cursor),
            limit=message.limit + 1,
        )
    page = rooms.page(found, message.limit)
    return RoomList(page.items, page.next_cursor)


@commands.add(
    "admin:end_room",
    needs="admin",
    rate=Rate(30, per_s=60),
    emits=(RoomEnded, ParticipantLeft),
    http=Http("POST", "/admin/rooms/{call_id}/end"),
    socket=False,
)
async def end_room(ctx: Context, message: EndAnyRoom) -> RoomAnswer:
    """End any call of the tenant for everybody."""
    return await rooms.end_call(ctx, message.call_id, "ended_by_admin", message.reason)


@commands.add("admin:sessions", needs="admin", http=Http("GET", "/admin/sessions"), socket=False, mutates=False)
async def sessions(ctx: Context, message: ListSessions) -> SessionList:
    """The tenant's socket sessions on all nodes, the oldest first."""
    found = await ctx.hub.sessions.list(ctx.actor.tenant_id)
    return SessionList(
        items=[
            SessionView(
                session_id=each.session_id,
                user_id=each.user_id,
                node_id=each.node_id,
                client=each.client,
                device_id=each.device_id,
                connected_at=each.connected_at,
            )
            for each in found[: message.limit]
        ],
        total=len(found),
    )


@commands.add(
    "admin:close_session",
    needs="admin",
    rate=Rate(60, per_s=60),
    http=Http("DELETE", "/admin/sessions/{session_id}", 204),
    socket=False,
)
async def close_session(ctx: Context, message: CloseSession) -> Empty:
    """Close a socket session; its client is told to stay away."""
    found = await ctx.hub.sessions.find(ctx.actor.tenant_id, message.session_id)
    if found is None:
        raise errors.NotFound()
    await _note(ctx, "session:close", "session", message.session_id, message.reason)
    await ctx.hub.bus.control(
        found.node_id,
        {
            "kind": "close",
            "session_id": found.session_id,
            "code": "closed_by_admin",
            "message": message.reason or "an operator closed this session",
        },
    )
    return Empty()


@commands.add("admin:inbox", needs="admin", http=Http("GET", "/admin/inbox"), socket=False, mutates=False)
async def inbox(ctx: Context, message: ListInbox) -> InboxPage:
    """LiveKit's webhooks about the tenant's calls, newest first; `dead` ones wait for somebody to look."""
    place = pages.place(message.cursor)
    async with ctx.transaction() as tx:
        found = await webhook_inbox.page_of_tenant(tx, status=message.status, before=place, limit=message.limit + 1)
    items, more = found[: message.limit], len(found) > message.limit
    return InboxPage(
        items=[
            InboxEntry(
                id=each.event_id,
                event=each.event,
                room_name=each.room_name or "",
                status=each.status,
                attempts=each.attempts,
                error=each.last_error,
                received_at=each.received_at,
            )
            for each in items
        ],
        next_cursor=pages.cursor(items[-1].received_at, items[-1].event_id) if more else None,
    )


@commands.add(
    "admin:retry_inbox",
    needs="admin",
    rate=Rate(60, per_s=60),
    http=Http("POST", "/admin/inbox/{id}/retry", 202),
    socket=False,
)
async def retry_inbox(ctx: Context, message: RetryInbox) -> Empty:
    """Fold a webhook once more, from the start."""
    async with ctx.transaction() as tx:
        if not await webhook_inbox.is_of_tenant(tx, message.id):
            raise errors.NotFound()
        await webhook_inbox.retry(tx, message.id)
        await audit_log.add(
            tx,
            actor=ctx.actor.user_id,
            action="inbox:retry",
            target_type="webhook",
            target_id=message.id,
        )
        await ctx.keep(tx, Empty())
    return Empty()


@commands.add("admin:config", needs="operator", http=Http("GET", "/admin/config"), socket=False, mutates=False)
async def config(ctx: Context, message: Empty) -> ConfigAnswer:
    """Every setting as it is in force; secrets are hidden."""
    return ConfigAnswer(dict(ctx.hub.config()))


@commands.add(
    "admin:reconcile",
    needs="operator",
    rate=Rate(6, per_s=60, shared=True),
    http=Http("POST", "/admin/reconcile"),
    socket=False,
    deadline_s=30.0,
)
async def reconcile(ctx: Context, message: Reconcile) -> Reconciled:
    """Compare all calls of all tenants with LiveKit now, and mend what differs; `dry_run` only says what differs."""
    await _note(ctx, "node:reconcile", "node", ctx.hub.node_id, None)
    done = await ctx.hub.reconcile.now(dry_run=message.dry_run)
    return Reconciled(
        dry_run=message.dry_run,
        calls=done.calls,
        rooms=done.rooms,
        skipped=done.skipped,
        unreachable_regions=done.unreachable_regions,
        corrections=dict(done.corrections),
    )


async def _note(ctx: Context, action: str, target_type: str, target_id: str, reason: str | None) -> None:
    async with ctx.transaction() as tx:
        await audit_log.add(
            tx,
            actor=ctx.actor.user_id,
            action=action,
            target_type=target_type,
            target_id=target_id,
            reason=reason,
        )
