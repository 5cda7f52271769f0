"""SQL about chat. Row level security leaves a direct message to the two whom it is between."""

# What is put into statements here is COLUMNS, a constant of this file, when the file is read.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import msgspec

from db.pool import Transaction


class Message(msgspec.Struct, frozen=True):
    """One row, in the order of COLUMNS."""

    id: UUID
    call_id: UUID
    sender_id: str
    participant_id: UUID | None
    display_name: str
    recipient_id: str | None
    recipient_participant_id: UUID | None
    text: str
    reply_to: UUID | None
    file_ids: list[UUID]
    sent_at: datetime

    @property
    def between(self) -> set[str] | None:
        """The two people of a direct message; None: it is for everybody."""
        return None if self.recipient_id is None else {self.sender_id, self.recipient_id}


COLUMNS = """
id, call_id, sender_id, participant_id, display_name, recipient_id, recipient_participant_id, text, reply_to, file_ids,
sent_at
"""

ADD = f"""
INSERT INTO chat_messages
    (call_id, sender_id, participant_id, display_name, recipient_id, recipient_participant_id, text, reply_to, file_ids)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
RETURNING {COLUMNS}
"""


async def add(
    tx: Transaction,
    call_id: UUID,
    *,
    sender_id: str,
    participant_id: UUID | None,
    display_name: str,
    recipient_id: str | None,
    recipient_participant_id: UUID | None,
    text: str,
    reply_to: UUID | None,
    file_ids: Sequence[UUID],
) -> Message:
    """The newest message of the call, which the caller holds (`calls.lock`). The sender is the transaction's user."""
    row = await tx.fetchrow(
        ADD,
        call_id,
        sender_id,
        participant_id,
        display_name,
        recipient_id,
        recipient_participant_id,
        text,
        reply_to,
        list(file_ids),
    )
    assert row is not None
    return Message(*row)


GET = f"SELECT {COLUMNS} FROM chat_messages WHERE call_id = $1 AND id = $2"


async def get(tx: Transaction, call_id: UUID, message_id: UUID) -> Message | None:
    """None also for what is between others."""
    row = await tx.fetchrow(GET, call_id, message_id)
    return Message(*row) if row else None


PAGE = f"""
SELECT {COLUMNS} FROM chat_messages
WHERE call_id = $1
  AND (sent_at, id)
      < (coalesce($2, 'infinity'::timestamptz), coalesce($3, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))
ORDER BY sent_at DESC, id DESC LIMIT $4
"""


async def page(
    tx: Transaction, call_id: UUID, *, after: tuple[datetime, UUID] | None = None, limit: int
) -> list[Message]:
    """Newest first, older than `after`, the (sent_at, id) of the last one of the page before."""
    at, last = after or (None, None)
    return [Message(*row) for row in await tx.fetch(PAGE, call_id, at, last, limit)]


DELETE = "DELETE FROM chat_messages WHERE call_id = $1 AND id = $2"


async def delete(tx: Transaction, call_id: UUID, message_id: UUID) -> None:
    await tx.execute(DELETE, call_id, message_id)


FILES_THERE = "SELECT id FROM files WHERE call_id = $1 AND id = ANY ($2::uuid[]) AND status = 'ready'"


async def files_there(tx: Transaction, call_id: UUID, file_ids: Sequence[UUID]) -> set[UUID]:
    """Of these files, the whole ones of the call that the transaction's user may see."""
    return {row["id"] for row in await tx.fetch(FILES_THERE, call_id, list(file_ids))}


FORGET = "SELECT system_forget_chat($1, $2)"


async def forget(tx: Transaction, sent_before: datetime, limit: int) -> int:
    """Delete messages of any tenant that are older; how many, at most `limit`."""
    return int(await tx.fetchval(FORGET, sent_before, limit))
