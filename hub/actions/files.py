"""Files of a call: found, shown, fetched, deleted. How they come in is `bringing.py`."""

from __future__ import annotations

from uuid import UUID

from db import audit, calls, files, system
from db.files import File
from db.pool import Transaction
from hub.actions import burying, members, pages, sharing
from hub.actions.telling import tell
from hub.commands import Commands, Empty, Event, Http, Rate
from hub.context import Context
from hub.policy import FEATURE_PERMISSIONS, ROLE_PERMISSIONS, Permissions, file_matrix
from hub.protocol import errors
from hub.protocol.filenames import attachment
from hub.protocol.files import (
    DownloadFile,
    FileDeleted,
    FileLink,
    FilePage,
    FileScanned,
    FileView,
    ListFiles,
    NameFile,
    PolicyAnswer,
)
from storage import sniff

commands = Commands()

PREVIEW_TYPE = "image/webp"


@commands.add("session:policy", needs="anyone", http=Http("GET", "/policy"), socket=False, mutates=False)
async def policy(ctx: Context, message: Empty) -> PolicyAnswer:
    """Who may do what: roles, features, and files by access level."""
    return PolicyAnswer(
        roles={role: sorted(held) for role, held in ROLE_PERMISSIONS.items()},
        features={feature: sorted(lost) for feature, lost in FEATURE_PERMISSIONS.items()},
        files={role: {level: dict(row) for level, row in levels.items()} for role, levels in file_matrix().items()},
    )


@commands.add("file:list", needs="anyone", http=Http("GET", "/files"), mutates=False)
async def list_(ctx: Context, message: ListFiles) -> FilePage:
    """Files of a call that you may see, or without a call those you brought, newest first."""
    now, after = ctx.now(), pages.row(message.cursor)
    async with ctx.transaction() as tx:
        if message.call_id is None:
            found = await files.of_uploader(tx, ctx.actor.user_id, now=now, after=after, limit=message.limit + 1)
        else:
            takes_part = await _looks_at(ctx, tx, message.call_id)
            found = await files.of_call(
                tx, message.call_id, now=now, takes_part=takes_part, after=after, limit=message.limit + 1
            )
    items, more = found[: message.limit], len(found) > message.limit
    return FilePage(
        items=[sharing.view(ctx.hub.rules, file) for file in items],
        next_cursor=pages.cursor(items[-1].created_at, items[-1].id) if more else None,
    )


async def _looks_at(ctx: Context, tx: Transaction, call_id: UUID) -> bool:
    """Whether the actor takes part in that call; else they see what is public and their own. Raises NotFound for a call
    they never had a part in, Forbidden where files are switched off."""
    call = None if members.elsewhere(ctx.actor, call_id) else await calls.get(tx, call_id)
    part = await sharing.part_in(ctx, tx, call) if call else None
    if part is None or not part.known:
        raise errors.NotFound()
    if "file_download" not in part.allowed:
        raise errors.Forbidden("this needs file_download", details={"permission": "file_download"})
    return part.role is not None


@commands.add("file:get", needs="anyone", http=Http("GET", "/files/{file_id}"), mutates=False)
async def get(ctx: Context, message: NameFile) -> FileView:
    """One file: what it is, whether it was scanned, until when it is there."""
    async with ctx.transaction() as tx:
        sight = await sharing.sight(ctx, tx, message.file_id, "see")
    return sharing.view(ctx.hub.rules, sight.file)


@commands.add(
    "file:download",
    needs="public",
    # Of everybody behind one address.
    rate=Rate(300, per_s=10),
    http=Http("GET", "/files/{file_id}/download", redirect="url"),
    socket=False,
    mutates=False,
)
async def download(ctx: Context, message: DownloadFile) -> FileLink:
    """The way to a file's bytes: a redirect to a URL that is good for a moment. A public file takes no token."""
    file = await downloadable(ctx, message.file_id)
    async with ctx.hub.db.tenant(file.tenant_id, file.uploader_id) as tx:
        await files.downloaded(tx, file.id)
    signed = await ctx.hub.store.sign_get(
        file.storage_key,
        ttl_s=ctx.hub.rules.file_url_s,
        content_type=sniff.served(file.detected_mime_type),
        disposition=attachment(file.name),
    )
    return FileLink(signed.url, signed.expires_at)


async def downloadable(ctx: Context, file_id: UUID) -> File:
    """The file, for somebody who may have its bytes now. Raises what `_found` and `sharing.demand_clean` do."""
    file = await _found(ctx, file_id)
    sharing.demand_clean(file, ctx.hub.rules)
    return file


async def _found(ctx: Context, file_id: UUID) -> File:
    """The file, for somebody who may download it: by their part in its call, or because anybody may."""
    if not ctx.actor.nobody:
        try:
            async with ctx.transaction() as tx:
                return (await sharing.sight(ctx, tx, file_id, "download")).file
        except errors.NotFound:
            pass
    async with ctx.hub.db.system() as tx:
        public = await system.public_file(tx, file_id)
    file = await _public(ctx, *public, file_id) if public else None
    if file is not None:
        return file
    # Who has a token hears that there is nothing; who has none, that one is needed, whether there is something or not.
    raise errors.Unauthenticated() if ctx.actor.nobody else errors.NotFound()


async def _public(ctx: Context, tenant_id: UUID, call_id: UUID, file_id: UUID) -> File | None:
    async with ctx.hub.db.tenant(tenant_id) as tx:
        file, call = await files.get(tx, file_id), await calls.get(tx, call_id)
    if file is None or call is None or not call.file_sharing_enabled:
        return None
    sharing.demand_unexpired(file, ctx.now())
    return file


@commands.add(
    "file:preview",
    needs="anyone",
    http=Http("GET", "/files/{file_id}/preview", redirect="url"),
    socket=False,
    mutates=False,
)
async def preview(ctx: Context, message: DownloadFile) -> FileLink:
    """The way to a small picture of a file, made here of its bytes: never the bytes themselves."""
    async with ctx.transaction() as tx:
        file = (await sharing.sight(ctx, tx, message.file_id, "download")).file
    sharing.demand_clean(file, ctx.hub.rules)
    if file.preview_status != "ready" or file.preview_storage_key is None:
        raise errors.NotFound()
    signed = await ctx.hub.store.sign_get(
        file.preview_storage_key, ttl_s=ctx.hub.rules.file_url_s, content_type=PREVIEW_TYPE, disposition="inline"
    )
    return FileLink(signed.url, signed.expires_at)


@commands.add("file:delete", needs="anyone", emits=(FileDeleted,), http=Http("DELETE", "/files/{file_id}", 204))
async def delete(ctx: Context, message: NameFile) -> None:
    """Delete a file, bytes and all: the uploader, and the host of the call."""
    async with ctx.transaction() as tx:
        call_id = (await sharing.sight(ctx, tx, message.file_id, "delete")).file.call_id
    async with ctx.deciding(call_id) as tx:
        await calls.lock(tx, call_id)
        file = (await sharing.sight(ctx, tx, message.file_id, "delete")).file
        await files.delete(tx, file.id)
        due(ctx, file, FileDeleted(file.id, file.call_id, "deleted"))
        if file.uploader_id != ctx.actor.user_id:
            await _note(ctx, tx, "file:delete", file)
        await ctx.keep(tx, None)
    await burying.bury_now(ctx, file.id)


def due(ctx: Context, file: File, event: Event) -> None:
    """After the commit of the transaction in hand, to whom the file is shown."""
    ctx.first(lambda: tell(ctx.hub.bus, file, event, by=ctx.by()))


@commands.add(
    "file:rescan",
    needs="anyone",
    rate=Rate(10, per_s=60),
    emits=(FileScanned,),
    http=Http("POST", "/files/{file_id}/rescan"),
)
async def rescan(ctx: Context, message: NameFile) -> FileView:
    """Have a file scanned again: the uploader, and the host of the call. Until it is, nobody has it."""
    if not ctx.hub.rules.scanner:
        raise errors.Conflict("this hub has no scanner")
    async with ctx.transaction() as tx:
        call_id = (await sharing.sight(ctx, tx, message.file_id, "delete")).file.call_id
    async with ctx.deciding(call_id) as tx:
        await calls.lock(tx, call_id)
        before = (await sharing.sight(ctx, tx, message.file_id, "delete")).file
        sharing.demand_unexpired(before, ctx.now())
        file = await files.rescan(tx, before.id, ctx.now())
        if file is None:
            raise errors.NotFound()
        view = sharing.view(ctx.hub.rules, file)
        if before.scan_status != "pending":
            due(ctx, file, FileScanned(view))
            await _note(ctx, tx, "file:rescan", file)
        await ctx.keep(tx, view)
    return view


async def _note(ctx: Context, tx: Transaction, action: str, file: File) -> None:
    await audit.add(
        tx,
        actor=ctx.actor.user_id,
        action=action,
        target_type="file",
        target_id=str(file.id),
        details={"call_id": str(file.call_id), "uploader_id": file.uploader_id},
    )


async def of_snapshot(ctx: Context, tx: Transaction, call_id: UUID, may: Permissions) -> list[FileView]:
    """The newest files of a call, for the picture that somebody gets who is in it and may do that."""
    if "file_download" not in may:
        return []
    found = await files.of_call(tx, call_id, now=ctx.now(), takes_part=True, limit=SNAPSHOT_FILES)
    return [sharing.view(ctx.hub.rules, file) for file in found]


# More are at `GET /files?call_id=`.
SNAPSHOT_FILES = 100
