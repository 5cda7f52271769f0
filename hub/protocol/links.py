"""What is said about shareable links, and to those who come by one."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, UnsetType

from hub.protocol.fields import CallId, Cursor, DisplayName, Limit, Metadata, RoleName, UserId
from hub.protocol.names import NAME
from hub.protocol.rooms import RoomToken

AccessType = Literal["public", "password", "restricted"]
LinkStatus = Literal["active", "scheduled", "expired", "exhausted"]
Step = Literal["hour", "day", "week"]
_EMAIL = r"^[^@\s\x00-\x1f\x7f]{1,64}@[^@\s\x00-\x1f\x7f]{1,253}$(?!\n)"
_DOMAIN = r"^(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z0-9-]{2,63}$(?!\n)"

LinkId = Annotated[UUID, Meta(description="The link, as in the answer that made it.")]
# No pattern: what cannot be a code is answered as a code that leads nowhere.
ShortCode = Annotated[str, Meta(max_length=512, description="The last part of the link's URL.")]
Title = Annotated[str, Meta(min_length=1, max_length=200, pattern=NAME, description="What those see who open it.")]
Password = Annotated[
    str,
    Meta(min_length=4, max_length=72, description="At most 72 bytes. Kept as a bcrypt hash only."),
]
Moment = Annotated[datetime, Meta(tz=True)]
Hours = Annotated[
    float, Meta(gt=0, le=87_600, description="From now on. Either this or `expires_at`; neither: for ever.")
]
MaxUses = Annotated[int, Meta(ge=1, le=1_000_000, description="How many validations it is good for.")]
AllowedUsers = Annotated[list[UserId], Meta(max_length=500, description="Users of the tenant, by the `sub` of tokens.")]
AllowedEmails = Annotated[
    list[Annotated[str, Meta(max_length=320, pattern=_EMAIL)]],
    Meta(max_length=500, description="Addresses, as the identity provider vouches for them in `email`."),
]
AllowedDomains = Annotated[
    list[Annotated[str, Meta(max_length=253, pattern=_DOMAIN)]],
    Meta(max_length=100, description="What stands behind the @ of such an address; a subdomain is another domain."),
]
Evict = Annotated[bool, Meta(description="Put those out of the call who came in by this link.")]


class CreateLink(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    call_id: CallId
    link_type: Literal["call"] = "call"
    title: Title | None = None
    access_type: AccessType = "public"
    password: Password | None = None
    allowed_user_ids: AllowedUsers = []
    allowed_emails: AllowedEmails = []
    allowed_domains: AllowedDomains = []
    active_from: Moment | None = None
    expires_in_hours: Hours | None = None
    expires_at: Moment | None = None
    max_uses: MaxUses | None = None
    default_role: Annotated[RoleName, Meta(description="Never above your own.")] = "participant"
    enable_recording: bool = True
    enable_screen_share: bool = True
    enable_chat: bool = True
    enable_files: bool = True
    auto_join: Annotated[bool, Meta(description="A validation answers with a seat and LiveKit's token as well.")] = (
        False
    )
    require_approval: Annotated[bool, Meta(description="Whoever comes by it waits in the lobby.")] = False
    metadata: Metadata = {}


class CreatedLink(msgspec.Struct, frozen=True):
    link_id: UUID
    short_code: str
    url: str
    created_at: datetime


class ListLinks(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    call_id: CallId | None = None
    access_type: AccessType | None = None
    q: Annotated[str, Meta(min_length=1, max_length=200, description="Part of the title.")] | None = None
    limit: Limit = 50
    cursor: Cursor | None = None


class NameLink(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    link_id: LinkId


class UpdateLink(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is absent stays; null takes a title, a limit or a date away."""

    link_id: LinkId
    title: Title | UnsetType | None = UNSET
    access_type: AccessType | UnsetType = UNSET
    password: Password | UnsetType = UNSET
    allowed_user_ids: AllowedUsers | UnsetType = UNSET
    allowed_emails: AllowedEmails | UnsetType = UNSET
    allowed_domains: AllowedDomains | UnsetType = UNSET
    active_from: Moment | UnsetType | None = UNSET
    expires_in_hours: Hours | UnsetType = UNSET
    expires_at: Moment | UnsetType | None = UNSET
    max_uses: MaxUses | UnsetType | None = UNSET
    default_role: RoleName | UnsetType = UNSET
    enable_recording: bool | UnsetType = UNSET
    enable_screen_share: bool | UnsetType = UNSET
    enable_chat: bool | UnsetType = UNSET
    enable_files: bool | UnsetType = UNSET
    auto_join: bool | UnsetType = UNSET
    require_approval: bool | UnsetType = UNSET
    metadata: Metadata | UnsetType = UNSET
    evict: Evict = False


class RevokeLink(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    link_id: LinkId
    evict: Evict = False


class LinkView(msgspec.Struct, frozen=True, kw_only=True):
    """A link as its creator sees it. Of a password it only says that there is one."""

    link_id: UUID
    short_code: str
    url: str
    call_id: UUID
    creator_id: str
    link_type: str
    title: str | None
    status: LinkStatus
    access_type: str
    has_password: bool
    allowed_user_ids: list[str]
    allowed_emails: list[str]
    allowed_domains: list[str]
    active_from: datetime | None
    expires_at: datetime | None
    max_uses: int | None
    use_count: int
    click_count: int
    unique_visitors: int
    default_role: str
    enable_recording: bool
    enable_screen_share: bool
    enable_chat: bool
    enable_files: bool
    auto_join: bool
    require_approval: bool
    metadata: dict[str, Any]
    last_used_at: datetime | None
    created_at: datetime
    updated_at: datetime
    # Grows with every change of the settings; uses and clicks leave it alone.
    version: int

    @property
    def etag(self) -> str:
        return f'"{self.link_id}-{self.version}"'


class LinkPage(msgspec.Struct, frozen=True):
    items: list[LinkView]
    next_cursor: str | None


# ---------------------------------------------------------------------------------------------------------- coming in


class ResolveLink(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    short_code: ShortCode
    referrer: (
        Annotated[str, Meta(max_length=2048, description="The page that led here; only its host is counted.")] | None
    ) = None


class ResolvedLink(msgspec.Struct, frozen=True, kw_only=True):
    """What anybody may know of a link that is open: what it is called, and what to bring along."""

    short_code: str
    url: str
    link_type: str
    title: str | None
    access_type: str
    # What `validate` will want: nothing, a password, or the token of a user.
    next_step: Literal["validate", "password", "sign_in"]
    require_approval: bool
    auto_join: bool


class ValidateLink(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    short_code: ShortCode
    password: Annotated[str, Meta(max_length=200)] | None = None
    display_name: DisplayName | None = None


class LinkCall(msgspec.Struct, frozen=True, kw_only=True):
    """As much of a call as those need who are about to come in."""

    call_id: UUID
    name: str
    call_type: str
    status: str
    participant_count: int
    max_participants: int
    started_at: datetime | None


class LinkFeatures(msgspec.Struct, frozen=True):
    """Link and room together: what is on for whoever comes by it."""

    recording: bool
    screen_share: bool
    chat: bool
    files: bool


class LinkPass(msgspec.Struct, frozen=True, kw_only=True):
    """The way in. `guest_token` is the bearer token of this guest, on sockets and by REST, until `expires_at`."""

    call: LinkCall
    title: str | None
    role: str
    permissions: list[str]
    features: LinkFeatures
    guest_token: str
    user_id: str
    expires_at: datetime
    # Knock first (`lobby:knock`); somebody inside decides.
    lobby: bool
    next_step: Literal["join", "lobby", "joined"]
    # With `joined`: the seat and LiveKit's token, as of `POST /rooms/{call_id}/token`.
    media: RoomToken | None


class RenewedPass(msgspec.Struct, frozen=True):
    guest_token: str
    expires_at: datetime


# ---------------------------------------------------------------------------------------------------------- analytics


class AskAnalytics(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    link_id: LinkId
    step: Step = "day"
    from_: Moment | None = msgspec.field(default=None, name="from")
    to: Moment | None = None


class Funnel(msgspec.Struct, frozen=True):
    """How far people came. `minutes`: of all of them together, over every coming and going."""

    clicks: int
    validated: int
    joined: int
    minutes: float


class Source(msgspec.Struct, frozen=True):
    source: str
    clicks: int


class LinkPoint(msgspec.Struct, frozen=True):
    """From `at` on, for one step. Steps without anything are left out."""

    at: datetime
    clicks: int
    unique_visitors: int
    validated: int


class LinkAnalytics(msgspec.Struct, frozen=True, kw_only=True):
    """Bots are left out. A visitor is one address and browser on one day (UTC): who comes on two days is two."""

    link_id: UUID
    clicks: int
    unique_visitors: int
    funnel: Funnel
    # Hosts of the pages that led here, the most frequent first; `direct` for none.
    referrers: list[Source]
    # mobile, tablet, desktop, other
    devices: list[Source]
    step: Step
    series: list[LinkPoint]


class Picture(msgspec.Struct, frozen=True):
    """A body that is no JSON; of which kind says the route."""

    body: bytes
