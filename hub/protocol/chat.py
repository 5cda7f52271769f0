"""Chat in a call: messages to everybody or to one, which are kept; typing and reactions, which are not."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, ClassVar
from uuid import UUID

import msgspec
from msgspec import Meta

from hub.commands import Event
from hub.protocol.fields import CallId, Cursor, Emoji, Limit, ParticipantId
from hub.protocol.names import TEXT

TEXT_CHARS = 4000
FILES = 10

MessageId = Annotated[UUID, Meta(description="A message, as in `message.message_id`.")]
Text = Annotated[str, Meta(max_length=TEXT_CHARS, pattern=TEXT, description="Lines are kept. Empty only with files.")]


class PostMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    call_id: CallId
    text: Text = ""
    reply_to: MessageId | None = None
    file_ids: Annotated[list[UUID], Meta(max_length=FILES, description="Files of this call.")] = []
    to: Annotated[ParticipantId, Meta(description="To this person alone, on all their devices.")] | None = None


class DeleteMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    call_id: CallId
    message_id: MessageId


class ListMessages(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Newest first. `cursor` is also `chat_cursor` of the answer to `room:join`."""

    call_id: CallId
    limit: Limit = 50
    cursor: Cursor | None = None


class SetTyping(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    call_id: CallId
    typing: Annotated[bool, Meta(description="Say true again every few seconds: others forget it by themselves.")]


class SendReaction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    call_id: CallId
    emoji: Emoji


class Recipient(msgspec.Struct, frozen=True):
    participant_id: UUID
    user_id: str


class MessageView(msgspec.Struct, frozen=True, kw_only=True):
    message_id: UUID
    call_id: UUID
    # Null: the owner or an admin, from outside of the call.
    participant_id: UUID | None
    user_id: str
    # As it was when they wrote.
    display_name: str
    text: str
    # May have been deleted since.
    reply_to: UUID | None
    file_ids: list[UUID]
    # Null: everybody in the call.
    to: Recipient | None
    sent_at: datetime


class MessageAnswer(msgspec.Struct, frozen=True):
    message: MessageView


class MessagePage(msgspec.Struct, frozen=True):
    items: list[MessageView]
    next_cursor: str | None


class ChatPosted(Event, frozen=True):
    """A message: of the room where it is for everybody, else of the two people, whether they are in the room or not."""

    name: ClassVar[str] = "chat:posted"

    message: MessageView


class ChatDeleted(Event, frozen=True):
    """A message is gone, for everybody who had it."""

    name: ClassVar[str] = "chat:deleted"

    message_id: UUID


class TypingChanged(Event, frozen=True):
    """Somebody writes, or stopped."""

    name: ClassVar[str] = "chat:typing_changed"
    recorded: ClassVar[bool] = False

    participant_id: UUID
    user_id: str
    typing: bool


class ReactionSent(Event, frozen=True):
    """A reaction, to be shown for a moment."""

    name: ClassVar[str] = "reaction:sent"
    recorded: ClassVar[bool] = False

    participant_id: UUID
    user_id: str
    emoji: str
