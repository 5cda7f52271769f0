"""Tenants, people and calls for the tests of the database, made through the code that makes them in the hub."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from db import calls, participants, users
from db.calls import Call
from db.participants import Participant
from db.pool import Transaction

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
_serial = itertools.count(1)


def tenant_id() -> UUID:
    return uuid4()


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


async def make_call(tx: Transaction, owner_id: str = "olga", **fields: Any) -> Call:
    await users.seen(tx, owner_id)
    given = {"name": "Team Standup", "call_type": "group", "livekit_room_name": f"room_test{next(_serial)}_1760558400"}
    return await calls.add(tx, owner_id=owner_id, **(given | fields))


async def let_in(tx: Transaction, call: Call, user_id: str, device_id: str | None = None, **fields: Any) -> Participant:
    await users.seen(tx, user_id)
    given: dict[str, Any] = {
        "role": "participant",
        "display_name": None,
        "metadata": None,
        "via_link_id": None,
        "now": NOW,
    }
    identity = f"{user_id}:{device_id}" if device_id else user_id
    return await participants.admit(
        tx, call.id, user_id=user_id, identity=identity, device_id=device_id, **(given | fields)
    )


async def set_status(tx: Transaction, participant: Participant, status: str) -> None:
    await tx.execute("UPDATE call_participants SET status = $2 WHERE id = $1", participant.id, status)
