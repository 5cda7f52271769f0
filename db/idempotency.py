"""SQL about repeated commands: the first run of a (user, key) has the effect, every other one gets its answer.

`claim` and `finish` may stand in two transactions or in one. What makes the effect happen once is that `finish` stands
in the transaction of the effect and fails where another run was quicker.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from db.errors import DatabaseUnavailable
from db.pool import Transaction


@dataclass(frozen=True, slots=True)
class Fresh:
    """Ours to run, until the lease ends."""


@dataclass(frozen=True, slots=True)
class Replay:
    """It ran; this was the answer."""

    answer: bytes


@dataclass(frozen=True, slots=True)
class Conflict:
    """The key stands for another command or payload."""


@dataclass(frozen=True, slots=True)
class InFlight:
    """It runs right now, somewhere."""

    until: datetime


Claim = Fresh | Replay | Conflict | InFlight

# One statement, so that two at once cannot both find nothing. What may be taken over: a row that has expired, and
# the same command whose runner had its time and left no answer.
TAKE = """
INSERT INTO command_results AS known (user_id, key, command, payload_hash, leased_until, expires_at)
VALUES ($1, $2, $3, $4, now() + $5 * interval '1 second', now() + interval '24 hours')
ON CONFLICT (tenant_id, user_id, key) DO UPDATE
SET command = excluded.command, payload_hash = excluded.payload_hash, answer = NULL,
    leased_until = excluded.leased_until, created_at = now(), expires_at = excluded.expires_at
WHERE known.expires_at <= now()
   OR (known.answer IS NULL AND known.leased_until <= now()
       AND known.command = excluded.command AND known.payload_hash = excluded.payload_hash)
RETURNING true
"""
LOOK = """
SELECT command = $3 AND payload_hash = $4 AS same, answer, leased_until FROM command_results
WHERE user_id = $1 AND key = $2
"""


async def claim(tx: Transaction, user_id: str, key: str, command: str, payload_hash: bytes, lease_s: float) -> Claim:
    """Whose turn it is. The transaction's user must be `user_id`; results live 24 h."""
    if await tx.fetchval(TAKE, user_id, key, command, payload_hash, lease_s):
        return Fresh()
    row = await tx.fetchrow(LOOK, user_id, key, command, payload_hash)
    if row is None:
        # Given back between the two statements.
        raise DatabaseUnavailable("the claim of this key was just given back")
    if not row["same"]:
        return Conflict()
    if row["answer"] is not None:
        return Replay(row["answer"])
    return InFlight(row["leased_until"])


FINISH = "UPDATE command_results SET answer = $3 WHERE user_id = $1 AND key = $2 AND answer IS NULL RETURNING true"


async def finish(tx: Transaction, user_id: str, key: str, answer: bytes) -> None:
    """Keep the answer beside the effect.

    Raises DatabaseUnavailable where somebody else took the command over and was quicker: the effect must not be
    committed then, and a repeat gets their answer.
    """
    if not await tx.fetchval(FINISH, user_id, key, answer):
        raise DatabaseUnavailable("another run of this command finished first")


RELEASE = "DELETE FROM command_results WHERE user_id = $1 AND key = $2 AND answer IS NULL"


async def release(tx: Transaction, user_id: str, key: str) -> None:
    """Nothing happened: let a repeat try at once."""
    await tx.execute(RELEASE, user_id, key)
