"""Files by chunk frames, on `/files`: offering, sending, taking up again, completing; and reading in frames."""

from __future__ import annotations

import time
from uuid import UUID

import google_crc32c

from db import calls, files, uploads
from db.files import File
from db.uploads import Upload
from hub.actions import burying, uploading
from hub.actions.files import downloadable
from hub.actions.uploading import FINISH_S, Progress
from hub.commands import FILES, Commands, Empty, Rate
from hub.context import Context, Receiving, Session
from hub.protocol import errors
from hub.protocol.errors import HubError
from hub.protocol.files import FileAnnounced, FileProgressed
from hub.protocol.transfers import (
    CHUNK_BYTES,
    CancelTransfer,
    ChunkTaken,
    CompletedTransfer,
    CompleteTransfer,
    FileBytes,
    OfferFile,
    ReadFile,
    ResumeTransfer,
    SendChunk,
    TransferOffer,
    TransferState,
)
from hub.state import transfer

commands = Commands()

# Chunks on their way at once: with 64 KiB each, what a broken socket can cost of every 10 MB is under 5 %.
WINDOW = 6
# What is held back by flow control alone: the window of an upload, and what a client has read of a download.
_FRAMES = Rate(10_000, per_s=1)
# Somebody who was put out of a call sends nothing more within a second.
_ALLOWED_S = 1.0
# What is in hand has so long to be stored when the end is said.
_STORING_S = 20.0
_TAKING_UP_S = 10.0
# Most of it is waiting for the client to read what it has asked for before.
_READING_S = 10.0


@commands.add(
    "file:offer",
    needs="file_send",
    rate=Rate(60, per_s=60),
    emits=(FileProgressed,),
    namespaces=(FILES,),
)
async def offer(ctx: Context, message: OfferFile) -> TransferOffer:
    """Reserve the room for a file, to be sent in chunks on this connection; nobody sees it before it is completed."""
    session, transfers = _session(ctx), ctx.hub.transfers
    transfers.room()
    receiving: Receiving | None = None
    try:
        async with ctx.transaction() as tx:
            row = await uploading.reserve(
                ctx,
                tx,
                ctx.member.call,
                source="frames",
                name=message.name,
                mime_type=message.mime,
                size_bytes=message.size_bytes,
                access_level=message.access_level,
                sha256=message.sha256,
                expires_in_hours=message.expires_in_hours,
            )
            taken = await uploads.take(tx, row.id, transfers.writer, ctx.now())
            assert taken is not None
            receiving = await transfers.open(taken, session.id, _progress(ctx, taken))
            answer = TransferOffer(
                file_id=taken.id,
                transfer_id=taken.id,
                chunk_bytes=CHUNK_BYTES,
                window=_window(receiving),
                offset=receiving.at.received,
                stored=receiving.at.stored,
                expires_at=taken.expires_at,
            )
            await ctx.keep(tx, answer)
    except BaseException:
        if receiving is not None:
            transfers.close(receiving)
        raise
    return answer


@commands.add("file:chunk", needs="anyone", rate=_FRAMES, emits=(FileProgressed,), namespaces=(FILES,), mutates=False)
async def chunk(ctx: Context, message: SendChunk) -> ChunkTaken:
    """Send the next bytes of a file; what is corrupt or out of order is refused, and nothing of it kept."""
    receiving = ctx.hub.transfers.of(_session(ctx).id, message.transfer_id)
    if message.crc32c is not None and google_crc32c.value(message.data) != message.crc32c:
        raise errors.ChunkCorrupt(details={"expected_offset": receiving.at.received})
    await _demand_still_allowed(ctx, receiving)
    await receiving.chunk(message.offset, message.data)
    await receiving.progress(receiving.at.received)
    if not _window(receiving):
        await receiving.opening(CHUNK_BYTES)
    return ChunkTaken(receiving.at.received, receiving.at.stored, _window(receiving))


@commands.add("file:resume", needs="anyone", namespaces=(FILES,), mutates=False, deadline_s=_TAKING_UP_S)
async def resume(ctx: Context, message: ResumeTransfer) -> TransferState:
    """Take a transfer of yours up again, on whatever node: where it stands, and from where on to send."""
    session, transfers = _session(ctx), ctx.hub.transfers
    receiving = transfers.find(session.id, message.transfer_id)
    if receiving is None:
        row = await _own(ctx, message.transfer_id)
        if isinstance(row, File):
            return _done(row)
        transfers.room()
        await transfers.claim(row)
        receiving = await transfers.open(await _taken(ctx, row.id), session.id, _progress(ctx, row))
    row, at = receiving.upload, receiving.at
    return TransferState(
        file_id=row.id,
        transfer_id=row.id,
        size_bytes=row.size_bytes,
        chunk_bytes=CHUNK_BYTES,
        window=_window(receiving),
        offset=at.received,
        stored=at.stored,
        completed=False,
        expires_at=row.expires_at,
    )


@commands.add("file:complete", needs="anyone", emits=(FileAnnounced,), namespaces=(FILES,), deadline_s=FINISH_S)
async def complete(ctx: Context, message: CompleteTransfer) -> CompletedTransfer:
    """Make the file of what was sent, once its length and hash are right; saying it twice is saying it once."""
    transfers = ctx.hub.transfers
    receiving = transfers.find(_session(ctx).id, message.transfer_id)
    known: str | None = None
    if receiving is None:
        await _demand_stored(ctx, message.transfer_id)
    else:
        known = await receiving.finish(_STORING_S)
        if known is not None and known != message.sha256:
            transfers.close(receiving)
            await uploading.abandon(ctx, message.transfer_id)
            raise errors.ChecksumMismatch(details={"sha256": known})
    try:
        view = await uploading.finish(
            ctx,
            message.transfer_id,
            claimed=message.sha256,
            known=known,
            content=receiving.content if receiving is not None and receiving.multipart_id is None else None,
            answer=CompletedTransfer,
        )
    except HubError as error:
        if receiving is not None and not error.retryable:
            transfers.close(receiving)
        raise
    if receiving is not None:
        transfers.close(receiving)
    return CompletedTransfer(view)


@commands.add("file:cancel", needs="anyone", namespaces=(FILES,))
async def cancel(ctx: Context, message: CancelTransfer) -> Empty:
    """Give a transfer of yours up; what was sent of it is deleted."""
    receiving = ctx.hub.transfers.find(_session(ctx).id, message.transfer_id)
    if receiving is not None:
        ctx.hub.transfers.close(receiving)
    async with ctx.transaction() as tx:
        row = await uploads.get(tx, message.transfer_id)
        if row is None or row.source != "frames" or not await uploads.drop(tx, row.id):
            raise errors.NotFound()
        await ctx.keep(tx, Empty())
    await burying.bury_now(ctx, message.transfer_id)
    return Empty()


@commands.add("file:read", needs="anyone", rate=_FRAMES, namespaces=(FILES,), mutates=False, deadline_s=_READING_S)
async def read(ctx: Context, message: ReadFile) -> FileBytes:
    """Read some bytes of a file that you may download, once you have read what you were sent before."""
    session, readings = _session(ctx), ctx.hub.readings
    await session.drained()
    file = readings.known(session.id, message.file_id, _ALLOWED_S)
    if file is None:
        file = await downloadable(ctx, message.file_id)
        readings.know(session.id, file)
        if not message.offset:
            async with ctx.hub.db.tenant(file.tenant_id, file.uploader_id) as tx:
                await files.downloaded(tx, file.id)
    if message.offset > file.size_bytes:
        raise errors.ValidationFailed(
            "offset: behind the end", errors=[errors.FieldError("offset", f"the file has {file.size_bytes} bytes")]
        )
    data = await readings.read(session.id, file, message.offset, message.length)
    return FileBytes(data, eof=message.offset + len(data) == file.size_bytes)


def _session(ctx: Context) -> Session:
    if ctx.session is None:
        raise errors.BadRequest("this needs a socket")
    return ctx.session


def _window(receiving: Receiving) -> int:
    return transfer.window(receiving.at, CHUNK_BYTES, WINDOW)


def _progress(ctx: Context, row: Upload) -> Progress:
    return Progress(ctx, row, size_bytes=row.size_bytes)


async def _demand_still_allowed(ctx: Context, receiving: Receiving) -> None:
    """At most once a second; whoever may not any more has sent for nothing."""
    now = time.monotonic()
    if now - receiving.allowed_at < _ALLOWED_S:
        return
    try:
        await _demand_allowed(ctx, receiving.upload)
    except HubError as error:
        if not error.retryable:
            ctx.hub.transfers.close(receiving)
            await uploading.abandon(ctx, receiving.upload.id)
        raise
    receiving.allowed_at = now


async def _demand_allowed(ctx: Context, row: Upload) -> None:
    async with ctx.transaction() as tx:
        call = await calls.get(tx, row.call_id)
        if call is None:
            raise errors.NotFound()
        await uploading.demand_may_bring(ctx, tx, call, row.access_level)


async def _own(ctx: Context, transfer_id: UUID) -> Upload | File:
    """A transfer of the actor's, or the file that it has become. Raises NotFound or TransferExpired."""
    async with ctx.transaction() as tx:
        row = await uploads.get(tx, transfer_id)
        file = await files.get(tx, transfer_id) if row is None else None
    if row is not None and row.source == "frames":
        if row.expires_at <= ctx.now():
            raise errors.TransferExpired()
        await _demand_allowed(ctx, row)
        return row
    if file is not None and file.uploader_id == ctx.actor.user_id and file.source == "frames":
        return file
    raise errors.NotFound()


def _done(file: File) -> TransferState:
    return TransferState(
        file_id=file.id,
        transfer_id=file.id,
        size_bytes=file.size_bytes,
        chunk_bytes=CHUNK_BYTES,
        window=WINDOW,
        offset=file.size_bytes,
        stored=file.size_bytes,
        completed=True,
        expires_at=None,
    )


async def _taken(ctx: Context, transfer_id: UUID) -> Upload:
    """With a fence of this node's own: all writers before are shut out."""
    async with ctx.transaction() as tx:
        taken = await uploads.take(tx, transfer_id, ctx.hub.transfers.writer, ctx.now())
        there = taken is not None or await uploads.get(tx, transfer_id) is not None
    if taken is not None:
        return taken
    if there:
        raise errors.Timeout("this file is just being made", retry_after_ms=1000)
    raise errors.NotFound()


async def _demand_stored(ctx: Context, transfer_id: UUID) -> None:
    """Not in hand on this connection: all of it has to be in parts, or it is a file already."""
    async with ctx.transaction() as tx:
        row = await uploads.get(tx, transfer_id)
    if row is not None and (row.source != "frames" or not row.parts or row.stored_bytes != row.size_bytes):
        raise errors.NotFound("not in hand on this connection: take it up with file:resume")
