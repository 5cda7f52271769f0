"""Rights in LiveKit, brought in line with rights here.

A token carries the rights of the moment it was minted in, and lets its holder in for minutes. So whenever somebody
connects, and whenever a sweep sees them, what LiveKit holds is compared with what they may now.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

import structlog

from db import calls, participants
from db.calls import Call
from db.errors import DatabaseUnavailable
from db.participants import Participant
from hub.actions import members
from hub.actions.settle import Settled, settle
from hub.media.values import Grant, ParticipantInfo
from hub.policy import Permissions, publish_sources
from hub.protocol.errors import HubError, NotFound
from hub.state.call import Grace
from hub.state.facts import MediaReported

if TYPE_CHECKING:
    from db.pool import Transaction

log = structlog.get_logger("hub.rights")


class Granting(Protocol):
    async def set_permissions(self, room: str, identity: str, grant: Grant, *, region: str | None = None) -> None: ...


class Tenants(Protocol):
    def tenant(self, tenant_id: UUID, user_id: str | None = None) -> AbstractAsyncContextManager[Transaction]: ...


class RightsDesk(Protocol):
    @property
    def db(self) -> Tenants: ...
    @property
    def media(self) -> Granting: ...


def wanted(call: Call, person: Participant, allowed: Permissions) -> Grant:
    return members.grant_of(members.standing(call, person), allowed)


async def everybody(tx: Transaction, call: Call) -> list[tuple[Participant, Permissions]]:
    """Who is in the call, and what they may do now."""
    return [(person, await members.allowed(tx, call, person)) for person in await participants.in_call(tx, call.id)]


async def withdraw(
    tx: Transaction, call_id: UUID, people: Iterable[tuple[Participant, Permissions]], now: datetime, grace: Grace
) -> Settled | None:
    """Show nothing as published that may not be, late in the transaction that took the right. None: nothing was."""
    news = [each for person, allowed in people for each in _withdrawn(person, allowed, now)]
    return await settle(tx, call_id, now, fold=news, grace=grace) if news else None


def _withdrawn(person: Participant, allowed: Permissions, now: datetime) -> list[MediaReported]:
    """What somebody shows without a right to, as the news that it is off."""
    shown = (person.is_audio_enabled, person.is_video_enabled, person.is_screen_sharing)
    may = publish_sources(allowed)
    left = tuple(
        on and source in may for on, source in zip(shown, ("microphone", "camera", "screen_share"), strict=True)
    )
    if left == shown:
        return []
    microphone, camera, screen_share = left
    return [
        MediaReported(
            at=now,
            known_at=now,
            participant_id=person.id,
            microphone=microphone,
            camera=camera,
            screen_share=screen_share,
        )
    ]


async def give(media: Granting, call: Call, person: Participant, grant: Grant) -> bool:
    """Tell LiveKit. False: it could not be told now; a sweep finds the difference. Somebody not connected is fine."""
    try:
        await media.set_permissions(call.livekit_room_name, person.identity, grant, region=call.region)
    except NotFound:
        return True
    except HubError as error:
        log.warning("rights_not_told", code=error.code, call_id=str(call.id))
        return False
    return True


async def align(desk: RightsDesk, tenant_id: UUID, call_id: UUID, people: Iterable[ParticipantInfo]) -> int:
    """Give each of these connected people the rights they have here, where LiveKit's differ; how many did.

    Never raises for what is away.
    """
    seen = {each.identity: each.grant for each in people if each.grant is not None and each.countable}
    if not seen:
        return 0
    try:
        async with desk.db.tenant(tenant_id) as tx:
            call = await calls.get(tx, call_id)
            if call is None or call.status == "ended":
                return 0
            off = [
                (person, grant)
                for person in await participants.in_call(tx, call_id)
                if person.identity in seen
                and (grant := wanted(call, person, await members.allowed(tx, call, person))) != seen[person.identity]
            ]
    except DatabaseUnavailable as error:
        log.warning("rights_not_compared", call_id=str(call_id), error=str(error))
        return 0
    for person, grant in off:
        log.info("rights_corrected", call_id=str(call_id), participant_id=str(person.id))
        await give(desk.media, call, person, grant)
    return len(off)
