"""The fields that many messages share, with their limits. What a description says here stands in both documents."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from msgspec import Meta

from hub.protocol.names import EMOJI, NAME, TEXT

# In patterns: Python's `$` also stands before a last line break, hence the `(?!\n)` behind it.
_DEVICE = r"^[A-Za-z0-9._-]+$(?!\n)"
# What a text has to be, in words: nobody should have to read a pattern in a refusal.
IN_WORDS = {
    NAME: "one line that shows something, without control characters and marks that turn text around",
    TEXT: "text without control characters and marks that turn text around",
    EMOJI: "an emoji",
    _DEVICE: "letters, digits, dots, dashes and underscores only",
}

CallId = Annotated[UUID, Meta(description="The call. Paths of the REST twin also take its `room_name`.")]
ParticipantId = Annotated[UUID, Meta(description="Somebody in the call, as in `participants[].participant_id`.")]
DisplayName = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=128,
        pattern=NAME,
        description="What others see; never an identity.",
    ),
]
CallName = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=200,
        pattern=NAME,
        description="What the call is called.",
    ),
]
DeviceId = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=64,
        pattern=_DEVICE,
        description="A stable id of this device. With it one person can be in a call on two devices; without it the "
        "newer one takes over.",
    ),
]
UserId = Annotated[str, Meta(min_length=1, max_length=128, description="The `sub` of their token.")]
Metadata = Annotated[dict[str, Any], Meta(max_length=256, description="A JSON object of yours, up to 8 KiB.")]
MetadataText = Annotated[str, Meta(max_length=8192, description="The same object as JSON in a string.")]
Reason = Annotated[str, Meta(max_length=500, pattern=TEXT, description="Free text, for people.")]
Emoji = Annotated[str, Meta(pattern=EMOJI, description="One emoji, with its modifiers.", examples=["👍"])]
Limit = Annotated[int, Meta(ge=1, le=100, description="How many to a page.")]
Cursor = Annotated[str, Meta(min_length=1, max_length=512, description="`next_cursor` of the page before.")]
CallType = Literal["one_to_one", "group", "webinar"]
CallStatus = Literal["waiting", "active", "ended"]
RoleName = Literal["viewer", "participant", "moderator", "host"]
MediaSource = Literal["microphone", "camera", "screen_share"]
Sources = Annotated[
    list[MediaSource],
    Meta(min_length=1, max_length=3, description="Which tracks; a shared screen takes its sound along."),
]
