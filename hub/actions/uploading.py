"""Bringing a file: the space for it, and the one way in which bytes that are whole become a file, however they came.

`reserve` → the bytes go to the store under `upload.storage_key` → `finish`. Or `abandon`, by whoever gives it up; by
the sweep, where nobody does.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import msgspec
import structlog

from db import calls, files, tombstones, uploads, users
from db.calls import Call
from db.errors import DatabaseUnavailable
from db.files import File
from db.pool import Transaction
from db.uploads import Upload
from hub import metrics
from hub.actions import burying, members, sharing
from hub.actions.telling import tell
from hub.context import Context
from hub.policy import ACCESS_LEVELS, file_actions
from hub.protocol import errors
from hub.protocol.errors import HubError
from hub.protocol.filenames import clean_filename
from hub.protocol.files import FileAnnounced, FileProgressed, FileView
from storage import keys, sniff
from storage.errors import ObjectMissing, PartsMismatch, UploadMissing
from storage.store import Part

log = structlog.get_logger("hub.uploading")

MADE = metrics.counter("files_made", "Files that were made, by the way they came", "source")
REFUSED = metrics.counter(
    "files_refused", "Uploads whose bytes were refused for good when they were to become files", "source", "code"
)

# Longer than a command that finishes one may take: nobody else begins while it could still be at it.
_LEASE_S = 90.0
FINISH_S = 60.0
# At most four a second; see protocol.
_PROGRESS_S = 0.25
# One hop to a thread for so much of a hash.
_HASHED_BYTES = 1024 * 1024
# What will not be better another time: the bytes go.
_FINAL = (
    errors.ChecksumMismatch,
    errors.FileTooLarge,
    errors.FileTypeBlocked,
    errors.CallEnded,
    errors.Forbidden,
    errors.NotFound,
    errors.NotInRoom,
    errors.TransferExpired,
)


class Checked(msgspec.Struct, frozen=True):
    """Bytes that lie under the file's own key, whole."""

    key: str
    size_bytes: int
    sha256: str
    detected_mime_type: str | None
    previewable: bool


class Scanned(msgspec.Struct, frozen=True):
    """What was known of the bytes of a file, under that key, when a copy of them was made."""

    file_id: UUID
    key: str
    status: str
    at: datetime | None


async def reserve(
    ctx: Context,
    tx: Transaction,
    call: Call,
    *,
    source: str,
    name: str,
    mime_type: str,
    size_bytes: int,
    access_level: str,
    sha256: str | None = None,
    expires_in_hours: int | None = None,
    open_s: float = 0.0,
    lasts_s: float | None = None,
) -> Upload:
    """Space for a file that the actor, who may send files in the call, is going to bring. In the caller's transaction.

    `size_bytes`: exactly, or the most that may come. `open_s`: how long a client may put the bytes by itself.

    Raises CallEnded, FileTooLarge, Forbidden, QuotaExceeded, StorageUnavailable, or RateLimited for too many at once.
    """
    rules, now, actor = ctx.hub.rules, ctx.now(), ctx.actor
    if not rules.stores_files:
        raise errors.StorageUnavailable("this hub keeps no files")
    members.demand_open(call)
    if size_bytes > rules.file_bytes:
        raise errors.FileTooLarge(f"at most {rules.file_bytes} bytes", details={"limit_bytes": rules.file_bytes})
    if actor.guest is not None and access_level == "public":
        raise errors.Forbidden("guests may not bring public files")
    await users.seen(tx, actor.user_id, display_name=actor.display_name, avatar_url=actor.avatar_url)
    if await uploads.count_open(tx, actor.user_id, now) >= rules.uploads_per_user:
        raise errors.RateLimited(f"at most {rules.uploads_per_user} uploads at once", retry_after_ms=5000)
    file_id = uuid4()
    key = keys.incoming if source == "presigned" else keys.content
    upload = await uploads.open_(
        tx,
        file_id,
        call.id,
        uploader_id=actor.user_id,
        source=source,
        name=clean_filename(name),
        mime_type=mime_type,
        size_bytes=size_bytes,
        sha256=sha256,
        access_level=access_level,
        expires_in_hours=expires_in_hours,
        storage_key=key(call.tenant_id, call.id, file_id),
        open_until=now + timedelta(seconds=open_s) if open_s else None,
        expires_at=now + timedelta(seconds=rules.upload_ttl_s if lasts_s is None else lasts_s),
    )
    await _demand_room(ctx, tx, call.id)
    return upload


async def _demand_room(ctx: Context, tx: Transaction, call_id: UUID) -> None:
    """After the reservation, whose counts are this transaction's alone until it ends."""
    rules, used = ctx.hub.rules, await uploads.usage(tx, call_id)
    for what, have, most in (
        ("call_files", used.call_files, rules.files_per_call),
        ("call_bytes", used.call_bytes, rules.call_file_bytes),
        ("tenant_bytes", used.tenant_bytes, rules.tenant_file_bytes),
    ):
        if have > most:
            raise errors.QuotaExceeded(
                f"no more room: {what.replace('_', ' ')} are at most {most}", details={"quota": what, "limit": most}
            )


async def finish(
    ctx: Context,
    upload_id: UUID,
    *,
    size_bytes: int | None = None,
    claimed: str | None = None,
    known: str | None = None,
    parts: Sequence[Part] | None = None,
    scanned: Scanned | None = None,
    source: str | None = None,
    content: Callable[[], Awaitable[bytes]] | None = None,
    answer: Callable[[FileView], Any] = lambda view: view,
) -> FileView:
    """Make the file of an upload of the actor's whose bytes are all in the store, and announce it. Once done, again.

    `size_bytes`: how many came, where the row only knows the most. `claimed`: what the sender says they hash to.
    `known`: what they do hash to, for whom saw them all; else they are read once more. `parts`: of the multipart
    upload, where the row does not hold them. `source`: the way it has to have come. `content`: all of it, where it is
    not in the store yet but to be put there. `answer`: what the command answers, kept under its op_id.

    Raises ChecksumMismatch, FileTooLarge, FileTypeBlocked, and what says that the actor may not send files any more
    (the upload is dropped then); NotFound; Conflict where bytes are missing; Timeout where somebody else is at it;
    StorageUnavailable.
    """
    upload = await _lease(ctx, upload_id, source)
    if isinstance(upload, File):
        return sharing.view(ctx.hub.rules, upload)
    try:
        if content is not None:
            upload = await _put(ctx, upload, await content())
        checked = await _check(ctx, upload, upload.size_bytes if size_bytes is None else size_bytes, known, parts)
        for said in (claimed, upload.sha256):
            if said is not None and said != checked.sha256:
                raise errors.ChecksumMismatch(details={"sha256": checked.sha256})
        view = await _commit(ctx, upload, checked, scanned, answer)
        MADE.labels(upload.source).inc()
        return view
    except _FINAL as refusal:
        REFUSED.labels(upload.source, refusal.code).inc()
        await abandon(ctx, upload.id)
        raise
    except BaseException:
        await asyncio.shield(_give_back(ctx, upload))
        raise


async def _lease(ctx: Context, upload_id: UUID, source: str | None) -> Upload | File:
    now = ctx.now()
    async with ctx.transaction() as tx:
        if source is not None:
            row = await uploads.get(tx, upload_id) or await files.get(tx, upload_id)
            if row is not None and row.source != source:
                raise errors.NotFound()
        upload = await uploads.lease(tx, upload_id, now + timedelta(seconds=_LEASE_S), now)
        if upload is not None:
            return await _closed(tx, upload) if upload.open_until is not None else upload
        file = await files.get(tx, upload_id)
        if file is not None and file.uploader_id == ctx.actor.user_id:
            return file
        busy = await uploads.get(tx, upload_id) is not None
    if busy:
        raise errors.Timeout("this file is just being made", retry_after_ms=1000)
    raise errors.NotFound()


async def _closed(tx: Transaction, upload: Upload) -> Upload:
    """A client can put bytes under the key of its URL as long as that is good: so they are brought to another one. From
    before that on both are known of, whatever happens then."""
    assert upload.open_until is not None
    await tombstones.add(tx, upload.id, upload.storage_key, upload.open_until)
    key = keys.content(upload.tenant_id, upload.call_id, upload.id)
    moved = await uploads.serve_from(tx, upload.id, upload.fence, key)
    assert moved is not None
    return moved


async def _put(ctx: Context, upload: Upload, data: bytes) -> Upload:
    """The bytes put under a key of this lease's own, by nobody but who has it. Known of before they are there: however
    late the store takes them, and whatever has become of the upload by then, they do not stay."""
    key = keys.written(upload.tenant_id, upload.call_id, upload.id, upload.fence)
    async with ctx.transaction() as tx:
        moved = await uploads.serve_from(tx, upload.id, upload.fence, key)
        if moved is None:
            raise errors.NotFound()
        await tombstones.add(tx, upload.id, key, ctx.now() + timedelta(seconds=_LEASE_S))
    await ctx.hub.store.put(key, data, content_type=upload.mime_type)
    return moved


async def _check(
    ctx: Context, upload: Upload, size_bytes: int, known: str | None, parts: Sequence[Part] | None
) -> Checked:
    """The bytes brought under the file's own key, and looked at there."""
    store, key = ctx.hub.store, upload.storage_key
    try:
        if upload.source == "presigned":
            stored = await store.move(keys.incoming(upload.tenant_id, upload.call_id, upload.id), key)
        elif upload.multipart_id is not None:
            stored = await store.complete(key, upload.multipart_id, _parts(upload) if parts is None else parts)
        else:
            stored = await store.head(key)
    except ObjectMissing:
        raise errors.Conflict("the bytes are not there yet") from None
    except UploadMissing:
        raise errors.TransferExpired() from None
    except PartsMismatch:
        raise errors.ChecksumMismatch("the parts are not those that were stored") from None
    if stored.size_bytes > size_bytes:
        raise errors.FileTooLarge(f"{stored.size_bytes} bytes instead of {size_bytes}")
    if stored.size_bytes != size_bytes:
        raise errors.ChecksumMismatch(f"{stored.size_bytes} bytes instead of {size_bytes}")
    kind = sniff.look(await _head(ctx, key, size_bytes), name=upload.name, declared=upload.mime_type)
    if kind.blocked:
        raise errors.FileTypeBlocked(details={"detected_mime_type": kind.mime_type})
    sha256 = known or await _hash(ctx, key)
    return Checked(key, size_bytes, sha256, kind.mime_type, kind.previewable)


def _parts(upload: Upload) -> list[Part]:
    return [Part(part.number, part.etag, part.size_bytes) for part in upload.parts]


async def _head(ctx: Context, key: str, size_bytes: int) -> bytes:
    if not size_bytes:
        return b""
    async with aclosing(ctx.hub.store.get(key, length=min(size_bytes, sniff.HEAD_BYTES))) as pieces:
        return b"".join([piece async for piece in pieces])


async def _hash(ctx: Context, key: str) -> str:
    """Of bytes that this node did not see. In a thread: a hundred mebibytes are a third of a second."""
    digest, gathered = hashlib.sha256(), bytearray()
    async with aclosing(ctx.hub.store.get(key)) as pieces:
        async for piece in pieces:
            gathered += piece
            if len(gathered) >= _HASHED_BYTES:
                await asyncio.to_thread(digest.update, gathered)
                gathered = bytearray()
    digest.update(gathered)
    return digest.hexdigest()


async def _commit(
    ctx: Context, upload: Upload, checked: Checked, scanned: Scanned | None, answer: Callable[[FileView], Any]
) -> FileView:
    now, rules = ctx.now(), ctx.hub.rules
    async with ctx.deciding(upload.call_id) as tx:
        call = await calls.lock(tx, upload.call_id)
        if call is None:
            raise errors.NotFound()
        await demand_may_bring(ctx, tx, call, upload.access_level)
        scan_status, scanned_at = await _scan_status(ctx, tx, scanned)
        hours = upload.expires_in_hours
        file = await files.add(
            tx,
            upload.id,
            call.id,
            uploader_id=upload.uploader_id,
            name=upload.name,
            size_bytes=checked.size_bytes,
            mime_type=upload.mime_type,
            detected_mime_type=checked.detected_mime_type,
            sha256=checked.sha256,
            storage_key=checked.key,
            access_level=upload.access_level,
            source=upload.source,
            scan_status=scan_status,
            scanned_at=scanned_at,
            preview_status="pending" if checked.previewable else "none",
            expires_at=None if hours is None else now + timedelta(hours=hours),
            now=now,
        )
        if not await uploads.finish(tx, upload.id, upload.fence):
            raise errors.Timeout("somebody else is making this file", retry_after_ms=1000)
        await tombstones.spare(tx, file.id, checked.key)
        view = sharing.view(rules, file)
        announce(ctx, file, view)
        await ctx.keep(tx, answer(view))
    return view


async def _scan_status(ctx: Context, tx: Transaction, scanned: Scanned | None) -> tuple[str, datetime | None]:
    """A copy is what it is a copy of, if that is still what it was then; else it is scanned for itself."""
    if scanned is not None:
        held = await files.lock(tx, scanned.file_id)
        if held is not None and (held.storage_key, held.scan_status) == (scanned.key, scanned.status):
            return scanned.status, scanned.at
        return "pending", None
    return ("pending", None) if ctx.hub.rules.scanner else ("skipped", ctx.now())


async def demand_may_bring(ctx: Context, tx: Transaction, call: Call, access_level: str) -> None:
    """At the end as at the beginning: somebody who was put out meanwhile brings nothing. Raises CallEnded, NotInRoom or
    Forbidden."""
    members.demand_open(call)
    part = await sharing.part_in(ctx, tx, call)
    if part.role is None:
        raise errors.NotInRoom()
    level = next(level for level in ACCESS_LEVELS if level == access_level)
    if "upload" not in file_actions(part.role, level, allowed=part.allowed):
        raise errors.Forbidden("this needs file_send", details={"permission": "file_send"})


def announce(ctx: Context, file: File, view: FileView) -> None:
    """After the commit of the transaction in hand: to the room, or of a private file to its uploader."""
    ctx.first(lambda: tell(ctx.hub.bus, file, FileAnnounced(view), by=ctx.by()))


async def abandon(ctx: Context, upload_id: UUID, *, bury: bool = True) -> None:
    """Give the space back and have the bytes deleted: at once, or by the sweep. Never raises for what is away: the
    sweep comes by."""
    try:
        async with ctx.transaction() as tx:
            await uploads.drop(tx, upload_id)
    except DatabaseUnavailable as error:
        log.warning("upload_not_dropped", error=str(error)[:200], request_id=ctx.request_id)
        return
    if bury:
        await burying.bury_now(ctx, upload_id)


async def _give_back(ctx: Context, upload: Upload) -> None:
    try:
        async with ctx.transaction() as tx:
            await uploads.unlease(tx, upload.id, upload.fence)
    except DatabaseUnavailable:
        # The lease ends by itself.
        log.warning("upload_lease_kept", request_id=ctx.request_id)


class Progress:
    """Tells how far an upload has come, at most so often: the room, or of a private file its uploader."""

    def __init__(self, ctx: Context, upload: Upload, *, size_bytes: int | None) -> None:
        self._ctx, self._upload, self._size_bytes = ctx, upload, size_bytes
        self._next_at = 0.0

    async def at(self, received_bytes: int) -> None:
        now = time.monotonic()
        if now < self._next_at:
            return
        self._next_at = now + _PROGRESS_S
        upload, bus = self._upload, self._ctx.hub.bus
        event = FileProgressed(
            file_id=upload.id,
            call_id=upload.call_id,
            uploader_id=upload.uploader_id,
            file_name=upload.name,
            received_bytes=received_bytes,
            size_bytes=self._size_bytes,
        )
        try:
            if upload.access_level != "private":
                await bus.to_room(upload.call_id, event.name, event, recorded=False)
            else:
                await bus.to_user(upload.tenant_id, upload.uploader_id, event.name, event, recorded=False)
        except HubError as error:
            # It says again how far it is, in a moment.
            log.info("progress_not_told", code=error.code, call_id=str(upload.call_id))
