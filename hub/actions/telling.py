"""Whom an event about a file is for: the room, and of a private file its uploader alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol
from uuid import UUID

import structlog

from db.files import File
from hub.commands import Event
from hub.protocol.errors import ClusterUnavailable

log = structlog.get_logger("hub.telling")


class Ears(Protocol):
    async def to_room(
        self, call_id: UUID, name: str, payload: Any, *, recorded: bool = True, by: Mapping[str, Any] | None = None
    ) -> object: ...
    async def to_user(
        self,
        tenant_id: UUID,
        user_id: str,
        name: str,
        payload: Any,
        *,
        recorded: bool = True,
        by: Mapping[str, Any] | None = None,
    ) -> object: ...


async def tell(bus: Ears, file: File, event: Event, *, by: Mapping[str, Any] | None = None) -> None:
    """Raises ClusterUnavailable."""
    if file.access_level == "private":
        await bus.to_user(file.tenant_id, file.uploader_id, event.name, event, recorded=event.recorded, by=by)
    else:
        await bus.to_room(file.call_id, event.name, event, recorded=event.recorded, by=by)


async def tell_all(bus: Ears, file: File, event: Event, besides: Iterable[str] = ()) -> None:
    """The same on nobody's behalf, and these people as well. Never raises for what is away: whoever missed it sees it
    in the next picture of the room."""
    try:
        await tell(bus, file, event)
        for user_id in besides:
            await bus.to_user(file.tenant_id, user_id, event.name, event, recorded=event.recorded)
    except ClusterUnavailable:
        log.warning("event_not_told", event_name=event.name, call_id=str(file.call_id))
