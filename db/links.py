"""SQL about shareable links: their settings, who may come in by them, and what binds those who did.

Policies show a link to its creator only: a validation runs in a transaction of the link's tenant and creator.
"""

# What is put into statements here is COLUMNS, a constant of this file, when the file is read.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from db.pool import Transaction


class Link(msgspec.Struct, frozen=True):
    """One row, in the order of COLUMNS, without the password's hash."""

    id: UUID
    call_id: UUID
    creator_id: str
    link_type: str
    short_code: str
    title: str | None
    access_type: str
    has_password: bool
    allowed_user_ids: list[str]
    allowed_emails: list[str]
    allowed_domains: list[str]
    default_role: str
    granted_as: str
    max_uses: int | None
    use_count: int
    click_count: int
    unique_visitors: int
    enable_recording: bool
    enable_screen_share: bool
    enable_chat: bool
    enable_files: bool
    auto_join: bool
    require_approval: bool
    metadata: dict[str, Any]
    active_from: datetime | None
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    created_at: datetime
    updated_at: datetime
    version: int

    @property
    def features_off(self) -> tuple[str, ...]:
        switches = {
            "recording": self.enable_recording,
            "screen_share": self.enable_screen_share,
            "chat": self.enable_chat,
            "files": self.enable_files,
        }
        return tuple(feature for feature, on in switches.items() if not on)


class Terms(msgspec.Struct, frozen=True):
    """What a link says now of those who came by it."""

    revoked: bool
    expired: bool
    default_role: str
    require_approval: bool
    granted_as: str
    creator_id: str
    call_id: UUID
    # Tokens from before this version of the link let nobody in.
    valid_from: int


class Found(msgspec.Struct, frozen=True):
    """Where a code leads."""

    tenant_id: UUID
    link_id: UUID
    creator_id: str


COLUMNS = """
id, call_id, creator_id, link_type, short_code, title, access_type, password_hash IS NOT NULL, allowed_user_ids,
allowed_emails, allowed_domains, default_role, granted_as, max_uses, use_count, click_count, unique_visitors,
enable_recording, enable_screen_share, enable_chat, enable_files, auto_join, require_approval, metadata, active_from,
expires_at, revoked_at, last_used_at, created_at, updated_at, version
"""

# ----------------------------------------------------------------------------------------------------- making, changing

ADD = f"""
INSERT INTO shareable_links (
    call_id, creator_id, link_type, short_code, title, access_type, password_hash, allowed_user_ids, allowed_emails,
    allowed_domains, default_role, granted_as, max_uses, enable_recording, enable_screen_share, enable_chat,
    enable_files, auto_join, require_approval, metadata, active_from, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22)
ON CONFLICT (short_code) DO NOTHING
RETURNING {COLUMNS}
"""


async def add(
    tx: Transaction,
    *,
    call_id: UUID,
    creator_id: str,
    link_type: str,
    short_code: str,
    title: str | None,
    access_type: str,
    password_hash: str | None,
    allowed_user_ids: Sequence[str],
    allowed_emails: Sequence[str],
    allowed_domains: Sequence[str],
    default_role: str,
    granted_as: str,
    max_uses: int | None,
    enable_recording: bool,
    enable_screen_share: bool,
    enable_chat: bool,
    enable_files: bool,
    auto_join: bool,
    require_approval: bool,
    metadata: Mapping[str, Any],
    active_from: datetime | None,
    expires_at: datetime | None,
) -> Link | None:
    """None: some link, of whatever tenant, has that code already."""
    row = await tx.fetchrow(
        ADD,
        call_id,
        creator_id,
        link_type,
        short_code,
        title,
        access_type,
        password_hash,
        list(allowed_user_ids),
        list(allowed_emails),
        list(allowed_domains),
        default_role,
        granted_as,
        max_uses,
        enable_recording,
        enable_screen_share,
        enable_chat,
        enable_files,
        auto_join,
        require_approval,
        dict(metadata),
        active_from,
        expires_at,
    )
    return Link(*row) if row else None


CHANGE = f"""
UPDATE shareable_links
SET title = $2, access_type = $3, password_hash = coalesce($4, CASE WHEN $3 = 'password' THEN password_hash END),
    allowed_user_ids = $5, allowed_emails = $6, allowed_domains = $7, default_role = $8, granted_as = $9,
    max_uses = $10, enable_recording = $11, enable_screen_share = $12, enable_chat = $13, enable_files = $14,
    auto_join = $15, require_approval = $16, metadata = $17, active_from = $18, expires_at = $19,
    valid_from = CASE WHEN $20 THEN version + 1 ELSE valid_from END
WHERE id = $1
RETURNING {COLUMNS}
"""


async def change(tx: Transaction, link: Link, *, password_hash: str | None, rebinds: bool = False) -> Link:
    """Write the settings of `link`; a new `password_hash`, or (None) the old one where it still asks for a password.

    `rebinds`: tokens that it gave before let nobody in any more.
    Raises LookupError for no such link.
    """
    row = await tx.fetchrow(
        CHANGE,
        link.id,
        link.title,
        link.access_type,
        password_hash,
        link.allowed_user_ids,
        link.allowed_emails,
        link.allowed_domains,
        link.default_role,
        link.granted_as,
        link.max_uses,
        link.enable_recording,
        link.enable_screen_share,
        link.enable_chat,
        link.enable_files,
        link.auto_join,
        link.require_approval,
        link.metadata,
        link.active_from,
        link.expires_at,
        rebinds,
    )
    if row is None:
        raise LookupError(f"no link {link.id}")
    return Link(*row)


REVOKE = "UPDATE shareable_links SET revoked_at = now() WHERE id = $1 AND revoked_at IS NULL RETURNING true"


async def revoke(tx: Transaction, link_id: UUID) -> bool:
    """It leads nowhere any more. The row stays: it still binds those who came by it. False: it was revoked already."""
    return await tx.fetchval(REVOKE, link_id) is not None


# -------------------------------------------------------------------------------------------------------------- finding

GET = f"SELECT {COLUMNS} FROM shareable_links WHERE id = $1 AND revoked_at IS NULL"


async def get(tx: Transaction, link_id: UUID) -> Link | None:
    row = await tx.fetchrow(GET, link_id)
    return Link(*row) if row else None


HOLD = f"SELECT {COLUMNS} FROM shareable_links WHERE id = $1 AND revoked_at IS NULL FOR NO KEY UPDATE"


async def hold(tx: Transaction, link_id: UUID) -> Link | None:
    """The link as it stands, held until the transaction ends."""
    row = await tx.fetchrow(HOLD, link_id)
    return Link(*row) if row else None


PAGE = f"""
SELECT {COLUMNS} FROM shareable_links
WHERE creator_id = $1 AND revoked_at IS NULL
  AND (created_at, id)
      < (coalesce($2, 'infinity'::timestamptz), coalesce($3, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))
  AND ($4::uuid IS NULL OR call_id = $4)
  AND ($5::text IS NULL OR access_type = $5)
  AND ($6::text IS NULL OR position(lower($6) IN lower(coalesce(title, ''))) > 0)
ORDER BY created_at DESC, id DESC LIMIT $7
"""


async def page(
    tx: Transaction,
    creator_id: str,
    *,
    call_id: UUID | None = None,
    access_type: str | None = None,
    text: str | None = None,
    after: tuple[datetime, UUID] | None = None,
    limit: int,
) -> list[Link]:
    """Somebody's links, newest first, older than `after`, the (created_at, id) of the last one of the page before."""
    at, last = after or (None, None)
    rows = await tx.fetch(PAGE, creator_id, at, last, call_id, access_type, text or None, limit)
    return [Link(*row) for row in rows]


PAGE_OF_CALL = f"""
SELECT {COLUMNS} FROM shareable_links
WHERE call_id = $1 AND revoked_at IS NULL
  AND (created_at, id)
      < (coalesce($2, 'infinity'::timestamptz), coalesce($3, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))
  AND ($4::text IS NULL OR access_type = $4)
  AND ($5::text IS NULL OR position(lower($5) IN lower(coalesce(title, ''))) > 0)
ORDER BY created_at DESC, id DESC LIMIT $6
"""


async def page_of_call(
    tx: Transaction,
    call_id: UUID,
    *,
    access_type: str | None = None,
    text: str | None = None,
    after: tuple[datetime, UUID] | None = None,
    limit: int,
) -> list[Link]:
    """As `page`, of all creators, for a head of the call (`tenant.head`)."""
    at, last = after or (None, None)
    rows = await tx.fetch(PAGE_OF_CALL, call_id, at, last, access_type, text or None, limit)
    return [Link(*row) for row in rows]


COUNT_OF_CALL = "SELECT count(*) FROM shareable_links WHERE call_id = $1 AND creator_id = $2 AND revoked_at IS NULL"


async def count_of_call(tx: Transaction, call_id: UUID, creator_id: str) -> int:
    return int(await tx.fetchval(COUNT_OF_CALL, call_id, creator_id))


# ------------------------------------------------------------------------------------------------------------ coming in

LIVE = "SELECT tenant_id, link_id, creator_id FROM live_link($1)"


async def live(tx: Transaction, code: str) -> Found | None:
    """Where a code leads, in whatever tenant. None: nowhere, be it unknown, revoked, not open or of an ended call."""
    row = await tx.fetchrow(LIVE, code)
    return Found(*row) if row else None


HASH = "SELECT password_hash FROM shareable_links WHERE id = $1"


async def password_hash(tx: Transaction, link_id: UUID) -> str | None:
    """The bcrypt hash of the link's password. Never logged, never part of an answer."""
    found: str | None = await tx.fetchval(HASH, link_id)
    return found


# One statement decides, so that no two nodes give the last use away twice. `version`: what was checked still holds.
USE = f"""
UPDATE shareable_links SET use_count = use_count + 1, last_used_at = now()
WHERE id = $1 AND version = $2 AND revoked_at IS NULL AND (max_uses IS NULL OR use_count < max_uses)
  AND (active_from IS NULL OR active_from <= now()) AND (expires_at IS NULL OR expires_at > now())
RETURNING {COLUMNS}
"""


async def use(tx: Transaction, link_id: UUID, version: int) -> Link | None:
    """Take one use. None: there is none left, or the link is not what it was at `version`, or not open."""
    row = await tx.fetchrow(USE, link_id, version)
    return Link(*row) if row else None


# ---------------------------------------------------------------------------------------------------- those who came by

FEATURES_OFF = "SELECT link_features_off($1)"


async def features_off(tx: Transaction, link_id: UUID) -> frozenset[str]:
    """Of chat, files, screen_share and recording, what the link does not allow. Anybody in the tenant may ask."""
    return frozenset(await tx.fetchval(FEATURES_OFF, link_id) or ())


TERMS = """
SELECT revoked, expired, default_role, require_approval, granted_as, creator_id, call_id, valid_from FROM link_terms($1)
"""


async def terms(tx: Transaction, link_id: UUID) -> Terms | None:
    """What the link says now. Anybody in the tenant may ask. None: no such link, or of a call that is gone."""
    row = await tx.fetchrow(TERMS, link_id)
    return Terms(*row) if row else None
