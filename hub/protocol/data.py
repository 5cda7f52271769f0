"""App data that goes to the others through the SFU."""

from __future__ import annotations

from typing import Annotated, ClassVar
from uuid import UUID

import msgspec
from msgspec import Meta

from hub.commands import Event
from hub.protocol.fields import CallId


class SendData(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A text of yours, to some or to everybody in the SFU room. It is not kept and not acknowledged by them."""

    call_id: CallId
    topic: Annotated[
        str, Meta(min_length=1, max_length=64, pattern=r"^[\w.:/-]+$(?!\n)", description="What it is about.")
    ]
    # The bytes are counted by the action: a character can be four of them.
    data: Annotated[str, Meta(max_length=15_360, description="Up to 15 KiB of UTF-8.")]
    to: (
        Annotated[list[UUID], Meta(min_length=1, max_length=100, description="Participants; absent: everybody.")] | None
    ) = None


class DataSent(Event, frozen=True):
    """Data for everybody. It goes through the SFU as well, where it has no sender; here it has one."""

    name: ClassVar[str] = "data:sent"
    recorded: ClassVar[bool] = False

    participant_id: UUID | None
    user_id: str
    topic: str
    data: str
