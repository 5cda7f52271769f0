"""What is said about contacts."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Annotated, ClassVar, Literal
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, UnsetType

from hub.commands import Event
from hub.protocol.fields import Cursor, DisplayName, Limit, UserId
from hub.protocol.names import TEXT

ContactId = Annotated[UUID, Meta(description="As in the list of contacts.")]
ContactStatus = Literal["pending", "requested", "accepted", "blocked"]
Notes = Annotated[str, Meta(max_length=2000, pattern=TEXT, description="For yourself alone.")]
OwnName = Annotated[DisplayName, Meta(description="What you call them; nobody else sees it.")]
Favorite = Annotated[bool, Meta(description="A mark of your own.")]


class ContactView(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody in your own list. `pending`: you asked; `requested`: they asked; `accepted`: you see each other.

    `profile_name` and `avatar_url` are what they call themselves, shown of those who agreed or asked. Whether somebody
    blocks you does not show.
    """

    contact_id: UUID
    user_id: str
    status: ContactStatus
    display_name: str | None
    profile_name: str | None
    avatar_url: str | None
    favorite: bool
    notes: str | None
    created_at: datetime
    updated_at: datetime

    @property
    def etag(self) -> str:
        """The strong tag of what its owner can change."""
        parts = (self.contact_id, self.status, self.display_name, self.favorite, self.notes)
        return f'"{hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:32]}"'


class AddContact(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    user_id: UserId
    display_name: OwnName | None = None
    favorite: Favorite = False
    notes: Notes | None = None
    blocked: Annotated[bool, Meta(description="Block them instead of asking them.")] = False


class UpdateContact(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    contact_id: ContactId
    display_name: OwnName | UnsetType | None = UNSET
    favorite: Favorite | UnsetType = UNSET
    notes: Notes | UnsetType | None = UNSET
    accepted: Annotated[Literal[True], Meta(description="Agree to what they asked.")] | UnsetType = UNSET
    blocked: (
        Annotated[bool, Meta(description="Block them, or unblock them: then it is as it was before, if they stayed.")]
        | UnsetType
    ) = UNSET


class NameContact(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    contact_id: ContactId


class ListContacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Your own list, newest first."""

    status: Annotated[ContactStatus | None, Meta(description="Only these.")] = None
    favorite: Annotated[bool | None, Meta(description="Only those with this mark, or without.")] = None
    limit: Limit = 50
    cursor: Cursor | None = None


class ContactAnswer(msgspec.Struct, frozen=True):
    contact: ContactView

    @property
    def etag(self) -> str:
        return self.contact.etag


class ContactLeft(msgspec.Struct, frozen=True):
    """`contact` null: nothing is left between you."""

    contact: ContactView | None

    @property
    def etag(self) -> str | None:
        return self.contact.etag if self.contact else None


class ContactPage(msgspec.Struct, frozen=True):
    items: list[ContactView]
    next_cursor: str | None


class ContactChanged(Event, frozen=True):
    """A contact of yours is new or different: by you on another device, or because they asked or agreed.

    Whoever became `accepted` can be watched from now on (`presence:watch`).
    """

    name: ClassVar[str] = "contact:changed"

    contact: ContactView


class ContactRemoved(Event, frozen=True):
    """Somebody is no longer in your list: you removed them, or they you."""

    name: ClassVar[str] = "contact:removed"

    contact_id: UUID
    user_id: str
