"""Files on their way in: by a form, by a URL of the store's own, and out of another call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

from db import calls, files, tombstones, uploads
from db.files import File
from db.uploads import Upload
from hub.actions import burying, members, sharing, uploading
from hub.actions.files import due
from hub.actions.uploading import FINISH_S, Progress, Scanned
from hub.commands import Commands, Http, Rate
from hub.context import Context, Incoming
from hub.policy import FileAction
from hub.protocol import errors
from hub.protocol.files import (
    ConfirmFile,
    CopyFile,
    FileAnnounced,
    FileDeleted,
    FileProgressed,
    FileView,
    MoveFile,
    PresignedFile,
    PresignFile,
    UploadFile,
)
from storage.errors import ObjectMissing, StorageError

commands = Commands()

# A form of the largest file at 30 kB/s. Who sends nothing for a while is cut off long before (transport/forms.py).
UPLOAD_S = 3600.0
# What a copy reserves it needs for as long as the store takes; after a crash the sweep clears up.
_COPYING_S = 600.0
# The URL of a direct upload: long enough for the largest file over a slow line.
_PUT_S = 3600


@commands.add(
    "file:upload",
    needs="file_send",
    rate=Rate(60, per_s=60),
    emits=(FileProgressed, FileAnnounced),
    http=Http("POST", "/files/upload", 201, location="/files/{file_id}", form=True),
    socket=False,
    # Its bytes are not kept beside the answer: whether a repeat is the same nobody could say.
    mutates=False,
    deadline_s=UPLOAD_S,
)
async def upload(ctx: Context, message: UploadFile) -> FileView:
    """Bring a file by a form: 100 MiB at most, never held in memory as a whole."""
    body = ctx.body
    if body is None:
        raise errors.BadRequest("this needs a form with a file in it")
    call = ctx.member.call
    async with ctx.transaction() as tx:
        row = await uploading.reserve(
            ctx,
            tx,
            call,
            source="rest",
            name=message.name or body.name,
            mime_type=body.content_type,
            size_bytes=min(body.most_bytes, ctx.hub.rules.file_bytes),
            access_level=message.access_level,
            sha256=message.sha256,
            expires_in_hours=message.expires_in_hours,
            lasts_s=2 * UPLOAD_S,
        )
    try:
        poured = await ctx.hub.pours.pour(
            row.storage_key,
            _within(body, ctx.hub.rules.file_bytes),
            begun=lambda multipart_id: _begun(ctx, row, multipart_id),
            received=Progress(ctx, row, size_bytes=body.size_bytes).at,
        )
        return await uploading.finish(
            ctx, row.id, size_bytes=poured.size_bytes, known=poured.sha256, parts=poured.parts
        )
    except BaseException as error:
        # Nobody can send the rest of a form. Where the file was made after all, there is nothing to abandon. A store
        # that has just failed is left to the sweep: whoever waits has waited long enough.
        await asyncio.shield(uploading.abandon(ctx, row.id, bury=not isinstance(error, StorageError)))
        raise


async def _within(body: Incoming, most_bytes: int) -> AsyncIterator[bytes]:
    """The bytes, up to the limit; one more and the rest is not even read. Raises FileTooLarge."""
    got = 0
    async for piece in body:
        got += len(piece)
        if got > most_bytes:
            raise errors.FileTooLarge(f"at most {most_bytes} bytes", details={"limit_bytes": most_bytes})
        yield piece


async def _begun(ctx: Context, row: Upload, multipart_id: str) -> None:
    async with ctx.transaction() as tx:
        if not await uploads.begun(tx, row.id, row.fence, multipart_id):
            # With its call, or swept: what was begun is not known to anybody else.
            await ctx.hub.store.abort(row.storage_key, multipart_id)
            raise errors.NotFound()


@commands.add(
    "file:presign",
    needs="file_send",
    rate=Rate(60, per_s=60),
    http=Http("POST", "/files/presign", 201, location="/files/{file_id}"),
    socket=False,
    # A kept answer would leave a URL at rest that takes bytes.
    mutates=False,
)
async def presign(ctx: Context, message: PresignFile) -> PresignedFile:
    """A URL to put a file's bytes to the store directly; then complete it. Until then nobody sees anything."""
    async with ctx.transaction() as tx:
        row = await uploading.reserve(
            ctx,
            tx,
            ctx.member.call,
            source="presigned",
            name=message.name,
            mime_type=message.mime_type,
            size_bytes=message.size_bytes,
            access_level=message.access_level,
            sha256=message.sha256,
            expires_in_hours=message.expires_in_hours,
            open_s=_PUT_S,
        )
        signed = await ctx.hub.store.sign_put(
            row.storage_key, ttl_s=_PUT_S, content_type=row.mime_type, size_bytes=row.size_bytes
        )
    return PresignedFile(row.id, "PUT", signed.url, dict(signed.headers), signed.expires_at)


@commands.add(
    "file:confirm",
    needs="anyone",
    emits=(FileAnnounced,),
    http=Http("POST", "/files/{file_id}/complete"),
    socket=False,
    deadline_s=FINISH_S,
)
async def confirm(ctx: Context, message: ConfirmFile) -> FileView:
    """Make a file of what was put to its URL: its size, hash and type are checked here. Doing it twice is doing it
    once."""
    return await uploading.finish(ctx, message.file_id, claimed=message.sha256, source="presigned")


@commands.add(
    "file:copy",
    # In the call that it is copied into.
    needs="file_send",
    rate=Rate(30, per_s=60),
    emits=(FileAnnounced,),
    http=Http("POST", "/files/{file_id}/copy", 201, location="/files/{file_id}"),
    deadline_s=FINISH_S,
)
async def copy(ctx: Context, message: CopyFile) -> FileView:
    """Copy a file that you may download into a call; the copy is yours."""
    file = await _source(ctx, message.file_id, "download")
    row = await _reserve_copy(ctx, file, message.access_level or file.access_level)
    try:
        await _copied(ctx, file.storage_key, row.storage_key)
        return await uploading.finish(
            ctx,
            row.id,
            known=file.sha256,
            scanned=Scanned(file.id, file.storage_key, file.scan_status, file.scanned_at),
        )
    except BaseException:
        await asyncio.shield(uploading.abandon(ctx, row.id))
        raise


@commands.add(
    "file:move",
    needs="file_send",
    rate=Rate(30, per_s=60),
    emits=(FileAnnounced, FileDeleted),
    http=Http("POST", "/files/{file_id}/move"),
    deadline_s=FINISH_S,
)
async def move(ctx: Context, message: MoveFile) -> FileView:
    """Move a file that you may delete into another call. It stays the same file."""
    file = await _source(ctx, message.file_id, "delete")
    if file.call_id == message.call_id:
        raise errors.Conflict("the file is in this call already")
    # The row says that there are bytes under the new key, until the file does.
    row = await _reserve_copy(ctx, file, file.access_level)
    try:
        await _copied(ctx, file.storage_key, row.storage_key)
        view = await _moved(ctx, file, row)
    except BaseException:
        await asyncio.shield(uploading.abandon(ctx, row.id))
        raise
    await burying.bury_now(ctx, file.id)
    return view


async def _moved(ctx: Context, file: File, row: Upload) -> FileView:
    async with ctx.deciding(row.call_id) as tx:
        call = await calls.lock(tx, row.call_id)
        if call is None:
            raise errors.NotFound()
        await uploading.demand_may_bring(ctx, tx, call, file.access_level)
        held = await files.lock(tx, file.id)
        if held is None or held.storage_key != file.storage_key:
            raise errors.Conflict("the file was moved or deleted meanwhile")
        await sharing.sight(ctx, tx, file.id, "delete")
        moved = await files.move(tx, file.id, call.id, row.storage_key)
        if moved is None or not await uploads.finish(tx, row.id, row.fence):
            raise errors.Conflict("the file was moved or deleted meanwhile")
        await tombstones.add(tx, file.id, file.storage_key, ctx.now())
        view = sharing.view(ctx.hub.rules, moved)
        due(ctx, file, FileDeleted(file.id, file.call_id, "moved"))
        uploading.announce(ctx, moved, view)
        await ctx.keep(tx, view)
    return view


async def _source(ctx: Context, file_id: UUID, action: FileAction) -> File:
    async with ctx.transaction() as tx:
        sight = await sharing.sight(ctx, tx, file_id, action)
    sharing.demand_unexpired(sight.file, ctx.now())
    sharing.demand_clean(sight.file, ctx.hub.rules)
    return sight.file


async def _reserve_copy(ctx: Context, file: File, access_level: str) -> Upload:
    left_s = (file.expires_at - ctx.now()).total_seconds() if file.expires_at else None
    async with ctx.transaction() as tx:
        members.demand_open(ctx.member.call)
        return await uploading.reserve(
            ctx,
            tx,
            ctx.member.call,
            source="copy",
            name=file.name,
            mime_type=file.mime_type,
            size_bytes=file.size_bytes,
            access_level=access_level,
            # A copy does not outlive what it is a copy of by more than the hour begun.
            expires_in_hours=None if left_s is None else max(1, -int(-left_s // 3600)),
            lasts_s=_COPYING_S,
        )


async def _copied(ctx: Context, source: str, target: str) -> None:
    try:
        await ctx.hub.store.copy(source, target)
    except ObjectMissing:
        # Its row is there and its bytes are not: deleted at this moment, or lost.
        raise errors.NotFound() from None
