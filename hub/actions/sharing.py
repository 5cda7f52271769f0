"""Who may do what with a file, and how one is shown: the table of hub/policy.py, applied to a person and a call."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

import msgspec

from db import bans, calls, files, participants
from db.calls import Call
from db.files import File
from db.pool import Transaction
from hub.actions import members
from hub.context import Context
from hub.policy import (
    ACCESS_LEVELS,
    AccessLevel,
    FileAction,
    FileActions,
    Permissions,
    Role,
    file_actions,
    permissions,
)
from hub.protocol import errors
from hub.protocol.files import FileView

if TYPE_CHECKING:
    from db.participants import Participant
    from hub.context import Rules


class Part(msgspec.Struct, frozen=True):
    """What somebody is in a call, as far as its files go. `role` None: nothing, or nothing any more."""

    role: Role | None
    allowed: Permissions
    # Ever, but for those who were put out.
    known: bool


class Sight(msgspec.Struct, frozen=True):
    """A file that somebody may know of, and what they may do with it."""

    file: File
    call: Call
    part: Part
    may: FileActions


async def part_in(ctx: Context, tx: Transaction, call: Call) -> Part:
    """While a call goes on its files are for those who are in it; when it is over, for those who were.

    Kicked and banned people have no part in it, and neither does a guest of another call.
    """
    actor, off = ctx.actor, members.features_off(call)
    if members.heads(actor, call):
        return Part("host", permissions("host", features_off=off), known=True)
    outside = permissions("viewer", features_off=off)
    if members.elsewhere(actor, call.id) or await bans.active(tx, call.id, actor.user_id, ctx.now()):
        return Part(None, outside, known=False)
    mine = await participants.of_user(tx, call.id, actor.user_id)
    known = any(each.status != "kicked" for each in mine)
    person = next((each for each in mine if _takes_part(call, each)), None)
    if person is None:
        return Part(None, outside, known)
    member = members.as_member(actor, call, person, await members.taken_away(tx, actor, person))
    return Part(member.role, member.permissions, known=True)


def _takes_part(call: Call, person: Participant) -> bool:
    if call.status == "ended":
        return person.joined_at is not None and person.status != "kicked"
    return person.status in members.IN_CALL


async def sight(ctx: Context, tx: Transaction, file_id: UUID, action: FileAction) -> Sight:
    """The file, for somebody who may do that with it.

    Raises NotFound (a foreign file, a missing one, and one that they may not know of are the same), Forbidden, or
    FileExpired, but where it is to be deleted.
    """
    file = await files.get(tx, file_id)
    call = await calls.get(tx, file.call_id) if file else None
    if file is None or call is None:
        raise errors.NotFound()
    part, level = await part_in(ctx, tx, call), level_of(file)
    own = file.uploader_id == ctx.actor.user_id
    if "see" not in file_actions(part.role, level, own=own):
        raise errors.NotFound()
    may = file_actions(part.role, level, own=own, allowed=part.allowed)
    if action not in may:
        raise errors.Forbidden(f"you may not {action} this file")
    if action != "delete":
        demand_unexpired(file, ctx.now())
    return Sight(file, call, part, may)


def level_of(file: File) -> AccessLevel:
    return next(level for level in ACCESS_LEVELS if level == file.access_level)


def demand_unexpired(file: File, now: datetime) -> None:
    if file.expires_at is not None and file.expires_at <= now:
        raise errors.FileExpired()


def demand_clean(file: File, rules: Rules) -> None:
    """Whoever asks, the uploader included: bytes that may be infected are nobody's. Raises ScanPending, FileInfected or
    ScanFailed."""
    match file.scan_status:
        case "pending":
            raise errors.ScanPending(retry_after_ms=1000)
        case "infected":
            raise errors.FileInfected()
        case "failed" if not rules.serve_unscanned:
            raise errors.ScanFailed()


def view(rules: Rules, file: File) -> FileView:
    base = f"{rules.public_url}/api/v1/files/{file.id}"
    return FileView(
        file_id=file.id,
        call_id=file.call_id,
        uploader_id=file.uploader_id,
        name=file.name,
        size_bytes=file.size_bytes,
        mime_type=file.mime_type,
        detected_mime_type=file.detected_mime_type,
        sha256=file.sha256,
        access_level=file.access_level,
        source=file.source,
        scan_status=file.scan_status,
        scanned_at=file.scanned_at,
        preview_status=file.preview_status,
        expires_at=file.expires_at,
        created_at=file.created_at,
        download_url=f"{base}/download",
        preview_url=f"{base}/preview" if file.preview_status == "ready" else None,
    )
