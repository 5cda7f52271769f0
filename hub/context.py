"""What an action is given: who asks, and the ports it may use. Data and Protocols only.

An action gets one `Context` and its decoded message. It never sees Redis, LiveKit or a socket: it sees `Bus`, `Media`,
`Roster` and `Session`, which `app.py` fills with the real ones and tests fill as they like.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol
from uuid import UUID

import msgspec
from msgspec import UnsetType

from db import idempotency
from hub.commands import APPS, Event
from hub.policy import Permission, Permissions, Role

if TYPE_CHECKING:
    from db.calls import Call
    from db.files import File
    from db.participants import Participant
    from db.pool import Database, Transaction
    from db.quality import Report
    from db.uploads import Upload
    from hub.media.values import Grant, ParticipantInfo, RoomInfo
    from hub.state.presence import Chosen, Known, Presence
    from hub.state.quality import Watch
    from hub.state.transfer import Transfer
    from storage.pour import Poured
    from storage.store import Store

# What a command has decided has this much longer than the command to be told, whoever still waits for the answer.
TELL_S = 3.0


class GuestPass(msgspec.Struct, frozen=True):
    """What a guest token is bound to."""

    call_id: UUID
    role: Role
    denied: tuple[Permission, ...] = ()
    link_id: UUID | None = None
    # Somebody has to let them in, whatever the call says.
    approval: bool = False
    # Of the link, when it gave this; renewing keeps it.
    link_version: int = 0


class Actor(msgspec.Struct, frozen=True):
    """Who asks, as the token says."""

    tenant_id: UUID
    user_id: str
    role: Literal["authenticated", "anon", "service_role", "guest"]
    expires_at: datetime
    display_name: str = ""
    avatar_url: str = ""
    hub_role: Literal["viewer", "admin"] | None = None
    guest: GuestPass | None = None
    # In lower case; empty where the identity provider does not vouch for it.
    email: str = ""

    @property
    def nobody(self) -> bool:
        """Somebody without a token, whom only `public` commands let in."""
        return not self.user_id

    @property
    def admin(self) -> bool:
        """Of the tenant."""
        return self.hub_role == "admin" or self.operator

    @property
    def operator(self) -> bool:
        """Of the installation, with all its tenants."""
        return self.role == "service_role"


NOBODY = Actor(tenant_id=UUID(int=0), user_id="", role="anon", expires_at=datetime.max.replace(tzinfo=UTC))


class Visitor(msgspec.Struct, frozen=True):
    """Where a request of the public came from. Nothing of it is kept or logged as it is."""

    # An IPv4 address, or the /64 that an IPv6 address is in: whoever has one has all of it.
    network: str = ""
    agent: str = ""
    # The host of the page that led here.
    referrer: str = ""
    # False: looked at ahead of time by a browser, or only asked whether it is there.
    opens: bool = True


_UNSEEN = Visitor()


class Position(msgspec.Struct, frozen=True):
    """A place in a room's log."""

    epoch: str
    offset: int


class Member(msgspec.Struct, frozen=True):
    """The actor in one call: `participant` is None for an owner or admin who is not in it."""

    call: Call
    participant: Participant | None
    role: Role
    permissions: Permissions


class RosterEntry(msgspec.Struct, frozen=True):
    """One socket session in one room, as all nodes see it."""

    session_id: str
    participant_id: UUID
    user_id: str
    tenant_id: UUID
    node_id: str
    incarnation: str
    state: Literal["live", "interrupted"] = "live"


class Session(Protocol):
    """The socket session a command came by."""

    @property
    def id(self) -> str: ...
    @property
    def rooms(self) -> Mapping[UUID, UUID]:
        """call_id → participant_id of the rooms this session is in."""
        ...

    async def enter(self, call_id: UUID, participant_id: UUID) -> None:
        """Hear the room from now on. Events are held back until the ack of the running command has left."""
        ...

    def seen(self, call_id: UUID, position: Position) -> None:
        """The ack tells the room as of `position`: events up to it are not delivered again."""
        ...

    async def exit(self, call_id: UUID) -> None: ...

    async def drained(self) -> None:
        """Until the client has read most of what it was sent."""
        ...

    def refresh(self, actor: Actor) -> None:
        """The token was renewed."""
        ...


class Bus(Protocol):
    async def to_room(
        self,
        call_id: UUID,
        name: str,
        payload: Any,
        *,
        recorded: bool = True,
        by: Mapping[str, Any] | None = None,
        skip_session: str | None = None,
    ) -> Position | None: ...

    async def to_user(
        self,
        tenant_id: UUID,
        user_id: str,
        name: str,
        payload: Any,
        *,
        recorded: bool = True,
        by: Mapping[str, Any] | None = None,
    ) -> Position | None: ...

    async def position(self, call_id: UUID) -> Position: ...

    async def since(self, call_id: UUID, position: Position) -> Sequence[Any] | None: ...

    async def control(self, node_id: str, message: Mapping[str, Any]) -> None:
        """Tell one node something that no client hears: evict or close a session."""
        ...


class Roster(Protocol):
    async def enter(self, call_id: UUID, entry: RosterEntry) -> None: ...
    async def leave(self, call_id: UUID, session_id: str) -> None: ...
    async def interrupt(self, lost: Sequence[tuple[UUID, str]]) -> None:
        """These sockets of sessions in calls are lost."""
        ...

    async def sessions(self, call_id: UUID) -> Sequence[RosterEntry]: ...


class Media(Protocol):
    """LiveKit. Every call ends within its own deadline, or raises MediaUnavailable, MediaError or NotFound."""

    async def create_room(
        self,
        name: str,
        *,
        region: str | None = None,
        max_participants: int = 0,
        empty_timeout_s: int = 300,
        departure_timeout_s: int = 20,
        metadata: Mapping[str, Any] | None = None,
    ) -> RoomInfo: ...
    async def delete_room(self, name: str, *, region: str | None = None) -> None: ...
    async def list_rooms(
        self, names: Sequence[str] | None = None, *, region: str | None = None
    ) -> Sequence[RoomInfo]: ...
    async def list_participants(self, room: str, *, region: str | None = None) -> Sequence[ParticipantInfo]: ...
    async def remove_participant(self, room: str, identity: str, *, region: str | None = None) -> None: ...
    async def mute(
        self, room: str, identity: str, track_sid: str, muted: bool, *, region: str | None = None
    ) -> None: ...
    async def set_permissions(self, room: str, identity: str, grant: Grant, *, region: str | None = None) -> None: ...
    async def update_participant(
        self,
        room: str,
        identity: str,
        *,
        region: str | None = None,
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> None: ...
    async def update_room_metadata(
        self, room: str, metadata: Mapping[str, Any], *, region: str | None = None
    ) -> None: ...
    async def send_data(
        self,
        room: str,
        data: bytes,
        *,
        topic: str,
        identities: Sequence[str] | None = None,
        region: str | None = None,
    ) -> None:
        """`identities` None: everybody in the room; an empty one: nobody."""
        ...

    def mint_token(
        self,
        *,
        room_name: str,
        identity: str,
        name: str,
        metadata: Mapping[str, Any],
        attributes: Mapping[str, str],
        grant: Grant,
        ttl_s: int,
        region: str | None = None,
    ) -> tuple[str, datetime]: ...
    def public_url(self, region: str | None = None) -> str: ...
    def has_region(self, region: str) -> bool: ...


class Verdict(Protocol):
    @property
    def allowed(self) -> bool: ...
    @property
    def retry_after_ms(self) -> int: ...


class Limits(Protocol):
    async def allow(self, key: str, times: int, per_s: float) -> Verdict: ...
    async def look(self, key: str, times: int, per_s: float) -> Verdict:
        """Whether one use would be allowed now; nothing is counted."""
        ...

    async def give_back(self, key: str, times: int, per_s: float) -> None:
        """A use that was counted was none."""
        ...


class Passwords(Protocol):
    """Slow on purpose, and beside the loop. Raises RateLimited while too many wait."""

    async def hash(self, password: str) -> str: ...
    async def check(self, password: str, hashed: str | None) -> bool:
        """Whether that is the password. `hashed` None: it is not, and to find that out takes the same work."""
        ...


class Incoming(Protocol):
    """The bytes of a form's file as they come in. Iterated once; ends early never: what is cut off raises."""

    @property
    def name(self) -> str:
        """As the sender calls it."""
        ...

    @property
    def content_type(self) -> str:
        """As the sender declares it."""
        ...

    @property
    def size_bytes(self) -> int | None:
        """None: not known before the end."""
        ...

    @property
    def most_bytes(self) -> int:
        """It cannot be more than that."""
        ...

    def __aiter__(self) -> AsyncIterator[bytes]: ...


class Pours(Protocol):
    """Streams into the store, next to nothing of them in memory. Raises storage.errors.StorageError."""

    async def pour(
        self,
        key: str,
        pieces: AsyncIterator[bytes],
        *,
        content_type: str = "application/octet-stream",
        begun: Callable[[str], Awaitable[None]],
        received: Callable[[int], Awaitable[None]],
    ) -> Poured: ...


class Progress(Protocol):
    async def at(self, received_bytes: int) -> None:
        """An upload has come so far."""
        ...


class Receiving(Protocol):
    """An upload by chunk frames that this node has in hand, for one session. Raises what ended it."""

    # When it was looked at, by the monotonic clock, whether the uploader may still do this.
    allowed_at: float

    @property
    def upload(self) -> Upload: ...
    @property
    def at(self) -> Transfer: ...
    @property
    def multipart_id(self) -> str | None:
        """None for a file of one part or less."""
        ...

    @property
    def progress(self) -> Callable[[int], Awaitable[None]]: ...
    async def chunk(self, offset: int, data: bytes) -> Transfer:
        """Raises OffsetMismatch, FileTooLarge; StorageUnavailable, DatabaseUnavailable, ServerBusy: again later."""
        ...

    async def opening(self, length: int) -> None:
        """Until so much more may come, or for a moment."""
        ...

    async def finish(self, seconds: float) -> str | None:
        """All of it is stored, but for a file of one part: `content`. Its sha256, where all of it came by here."""
        ...

    async def content(self) -> bytes: ...


class Transfers(Protocol):
    """The uploads by chunk frames of this node."""

    @property
    def writer(self) -> str:
        """This node, as `uploads.take` is told it."""
        ...

    def room(self) -> None:
        """Raises ServerBusy where no more can be taken up here."""
        ...

    async def claim(self, upload: Upload) -> None:
        """Have whoever has it in hand, on whatever node, lay it aside."""
        ...

    async def open(self, upload: Upload, session_id: str, progress: Progress) -> Receiving:
        """Have it in hand. Raises ServerBusy, StorageUnavailable."""
        ...

    def of(self, session_id: str, transfer_id: UUID) -> Receiving:
        """Raises NotFound for what that session does not have in hand."""
        ...

    def find(self, session_id: str, transfer_id: UUID) -> Receiving | None: ...
    def asked(self, transfer_id: UUID) -> None:
        """Another node wants to take it up."""
        ...

    def close(self, receiving: Receiving) -> None: ...


class Readings(Protocol):
    """The downloads by frames of this node."""

    def known(self, session_id: str, file_id: UUID, seconds: float) -> File | None:
        """The file, where that session was found to be allowed to read it so lately."""
        ...

    def know(self, session_id: str, file: File) -> None: ...
    async def read(self, session_id: str, file: File, offset: int, length: int) -> bytes:
        """Fewer than `length` at the end only. Raises NotFound, StorageUnavailable."""
        ...


class NodeEntry(Protocol):
    """One node of the cluster."""

    @property
    def node_id(self) -> str: ...
    @property
    def incarnation(self) -> str: ...
    @property
    def region(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def started_at(self) -> datetime: ...
    @property
    def draining(self) -> bool: ...
    @property
    def lost(self) -> bool: ...
    @property
    def load(self) -> Mapping[str, int]: ...


class Nodes(Protocol):
    async def list(self) -> Sequence[NodeEntry]: ...
    async def all(self) -> Sequence[NodeEntry]:
        """Those that were lost lately as well."""
        ...


class SessionEntry(Protocol):
    """One authenticated socket, on whatever node."""

    @property
    def session_id(self) -> str: ...
    @property
    def user_id(self) -> str: ...
    @property
    def node_id(self) -> str: ...
    @property
    def client(self) -> str: ...
    @property
    def device_id(self) -> str | None: ...
    @property
    def connected_at(self) -> datetime: ...


class Sessions(Protocol):
    async def list(self, tenant_id: UUID) -> Sequence[SessionEntry]: ...
    async def find(self, tenant_id: UUID, session_id: str) -> SessionEntry | None: ...


class Presences(Protocol):
    """Whether people are there. Raises ClusterUnavailable."""

    async def choose(self, tenant_id: UUID, user_id: str, status: Chosen, text: str | UnsetType | None) -> Known: ...
    async def look(self, tenant_id: UUID, user_ids: Sequence[str]) -> Sequence[Known]: ...
    async def ring(self, tenant_id: UUID, user_ids: Sequence[str]) -> None:
        """Contacts of these people changed: sessions that watch ask anew whom they may see."""
        ...


class Watching(Protocol):
    """The watch lists of this node's sessions."""

    async def watch(
        self, session_id: str, tenant_id: UUID, user_id: str, shown: Mapping[str, datetime | None]
    ) -> Mapping[str, Presence]:
        """`shown`: whom to watch as well; with since when they hide. Raises ClusterUnavailable, Conflict."""
        ...

    def unwatch(self, session_id: str, user_ids: Sequence[str]) -> None: ...


class Reconciliation(msgspec.Struct, frozen=True):
    """One comparison of all calls with LiveKit, and how many of what were (or would be) set right."""

    calls: int
    rooms: int
    # Calls that could not be compared this time, and regions whose LiveKit did not answer.
    skipped: int
    unreachable_regions: int
    corrections: Mapping[str, int]


class Reconciler(Protocol):
    async def now(self, *, dry_run: bool = False) -> Reconciliation: ...


class Quality(Protocol):
    """Reports about connections, on their way into the database."""

    def take(self, tenant_id: UUID, reports: Sequence[Report]) -> bool:
        """False, and none of them taken, where too many wait."""
        ...

    def watch(self, participant_id: UUID) -> Watch: ...


class Hub(Protocol):
    """The node, as actions see it."""

    @property
    def db(self) -> Database: ...
    @property
    def bus(self) -> Bus: ...
    @property
    def roster(self) -> Roster: ...
    @property
    def media(self) -> Media: ...
    @property
    def limits(self) -> Limits: ...
    @property
    def node_id(self) -> str: ...
    @property
    def incarnation(self) -> str: ...
    @property
    def rules(self) -> Rules: ...
    @property
    def tokens(self) -> TokenDesk: ...
    @property
    def passwords(self) -> Passwords: ...
    @property
    def clock(self) -> Callable[[], datetime]: ...
    @property
    def nodes(self) -> Nodes: ...
    @property
    def sessions(self) -> Sessions: ...
    @property
    def presence(self) -> Presences: ...
    @property
    def watching(self) -> Watching: ...
    @property
    def reconcile(self) -> Reconciler: ...
    @property
    def quality(self) -> Quality: ...
    @property
    def store(self) -> Store:
        """Where the bytes of files are. Raises storage.errors.StorageError."""
        ...

    @property
    def pours(self) -> Pours: ...
    @property
    def transfers(self) -> Transfers: ...
    @property
    def readings(self) -> Readings: ...
    @property
    def config(self) -> Callable[[], Mapping[str, Any]]:
        """Every setting as it is in force, secrets hidden."""
        ...


class IssuedToken(Protocol):
    @property
    def token(self) -> str: ...
    @property
    def user_id(self) -> str: ...
    @property
    def expires_at(self) -> datetime: ...


class TokenDesk(Protocol):
    async def verify(self, token: str) -> Actor:
        """Raises TokenInvalid or TokenExpired."""
        ...

    def issue_guest(
        self, *, tenant: UUID, guest: GuestPass, display_name: str = "", user_id: str | None = None
    ) -> IssuedToken:
        """A token for somebody new, or (`user_id`) for a guest who has or had one."""
        ...


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers an action decides by, out of the settings, whose defaults are these. Published at `/limits`."""

    max_participants: int = 100
    metadata_bytes: int = 8192
    display_name_chars: int = 128
    token_ttl_s: int = 600
    waiting_expires_s: int = 604_800
    reconnect_grace_s: float = 20.0
    leave_grace_s: float = 2.0
    socket_grace_s: float = 25.0
    absent_room_grace_s: float = 60.0
    empty_timeout_s: int = 300
    departure_timeout_s: int = 20
    data_bytes: int = 15_360
    rooms_per_session: int = 64
    # Each device takes a seat; without this one person could take them all.
    devices_per_call: int = 4
    lobby_timeout_s: int = 600
    lobby_cooldown_s: int = 60
    # Who waits takes a row and a place in everybody's count.
    lobby_seats: int = 200
    contacts_per_user: int = 1000
    # Requests that wait for one person; more do not arrive.
    contact_requests_per_user: int = 200
    chat_retention_days: int = 90
    regions: tuple[str, ...] = ("default",)
    # Rooms of ours are called `room_<mark>…`. Another hub on the same LiveKit has another mark, so that neither takes
    # the other's rooms for orphans.
    room_mark: str = "hub0"
    recovery_window_s: int = 120
    # Where links lead: `{public_url}/join/{short_code}`.
    public_url: str = "http://127.0.0.1:8080"
    # Somebody's, to one call, that are not revoked.
    links_per_call: int = 100
    file_bytes: int = 104_857_600
    # Whether there is a store.
    stores_files: bool = True
    files_per_call: int = 1000
    # Uploads that are on their way count with all they may become.
    call_file_bytes: int = 10 * 2**30
    tenant_file_bytes: int = 1000 * 2**30
    uploads_per_user: int = 16
    upload_ttl_s: int = 86_400
    # How long the way to a file's bytes is open that somebody was shown.
    file_url_s: int = 60
    # Without one files are `skipped`, and had unscanned.
    scanner: bool = False
    # What could not be scanned is had all the same.
    serve_unscanned: bool = False
    # What the socket edge holds its clients to, by name.
    sockets: Mapping[str, Any] = {}

    def published(self) -> dict[str, Any]:
        """What everybody may know, for `/limits` and `session:ready`."""
        limits: dict[str, Any] = msgspec.to_builtins(self)
        del limits["room_mark"], limits["public_url"], limits["sockets"]
        return {**limits, **self.sockets}


@dataclass(slots=True)
class Context:
    """One running command."""

    hub: Hub
    actor: Actor
    request_id: str
    session: Session | None = None
    device_id: str | None = None
    op_key: str | None = None
    if_match: str | None = None
    client: str = ""
    # Of a command that is a form.
    body: Incoming | None = None
    # Of the socket.
    namespace: str = APPS
    visitor: Visitor = _UNSEEN
    # Filled by the dispatcher for commands that need a member or a permission.
    _member: Member | None = None
    # The answer already kept beside the effect, in the same transaction.
    kept: bool = False
    # The effect is about to be committed: from here on others are told of it, whoever still waits for the answer.
    decided: bool = False
    # Gives the caller an answer when the command's time is over and what it decided is still being told.
    overdue: Callable[[], None] | None = None
    # All it has left to do is to wait for the last event's place in the log.
    telling: bool = False
    # What follows the commit of the transaction in hand.
    _steps: list[Callable[[], Awaitable[object]]] = field(default_factory=list)

    @property
    def attending(self) -> Session | None:
        """The session, where it is one that can be in rooms."""
        return self.session if self.namespace == APPS else None

    def now(self) -> datetime:
        return self.hub.clock().astimezone(UTC)

    @property
    def member(self) -> Member:
        if self._member is None:
            raise LookupError("the command was declared without a member")
        return self._member

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """One transaction that sees the actor's tenant only. Raises db.errors.DatabaseUnavailable."""
        return self.hub.db.tenant(self.actor.tenant_id, self.actor.user_id)

    @asynccontextmanager
    async def deciding(self, call_id: UUID) -> AsyncIterator[Transaction]:
        """A transaction that changes the call, whose row it begins by locking.

        Such transactions of one call wait for each other, without a connection. What is `due` in it is told right
        after the commit and before the next one's turn, so that a node tells of a call in the order of its commits.
        From the commit until it is told, no deadline and no caller who hangs up comes between.
        """
        actor, self._steps = self.actor, []
        async with self.hub.db.tenant(actor.tenant_id, actor.user_id, turn=call_id, then=self._follow) as tx:
            yield tx
            self.decided = True

    def time_to_tell(self) -> float:
        """When the command's time is over: the seconds that it gets still, while its caller waits no more."""
        if not self.decided:
            return 0.0
        if self.overdue is not None:
            self.overdue()
        return TELL_S

    def due(self, call_id: UUID, events: Iterable[Event]) -> None:
        """What everybody in the room hears of the transaction in hand (`deciding`)."""
        for event in events:
            self._steps.append(partial(self.tell, call_id, event))

    def due_to_users(self, news: Iterable[tuple[str, Event]]) -> None:
        """What single people hear of it, on whatever device and node, in the room or not."""
        told = list(news)
        if told:
            self._steps.append(partial(self._tell_users, told))

    def first(self, step: Callable[[], Awaitable[object]]) -> None:
        """What is done after the commit and before anything is told that becomes `due` from here on."""
        self._steps.append(step)

    async def _follow(self) -> None:
        steps, self._steps = self._steps, []
        for step in steps:
            await step()

    async def keep(self, tx: Transaction, answer: Any) -> None:
        """Store the answer in the transaction of its effect: a repeat under the same op_id can never do it twice.

        Last in the transaction: what comes after it is the commit, and then telling everybody.
        """
        if self.op_key is not None:
            await idempotency.finish(tx, self.actor.user_id, self.op_key, msgspec.json.encode(answer))
            self.kept = True
        self.decided = True

    async def tell(self, call_id: UUID, event: Event) -> None:
        """Everybody in the room hears `event`, now. What a transaction changed is told by `due`."""
        await self.hub.bus.to_room(call_id, event.name, event, recorded=event.recorded, by=self.by())

    async def tell_last(self, call_id: UUID, event: Event) -> None:
        """`tell`, as the last that a command does. Where nothing else had to be waited for, the client's next command
        begins before this one is answered: its events come after this one all the same.
        """
        self.telling = True
        await self.tell(call_id, event)

    async def _tell_users(self, news: Sequence[tuple[str, Event]]) -> None:
        tenant_id, by, to_user = self.actor.tenant_id, self.by(), self.hub.bus.to_user
        await asyncio.gather(
            *(to_user(tenant_id, user_id, event.name, event, recorded=event.recorded, by=by) for user_id, event in news)
        )

    def by(self) -> dict[str, Any]:
        """The `by` of an event's envelope."""
        participant = self._member.participant if self._member else None
        return {"participant_id": participant.id if participant else None, "user_id": self.actor.user_id}
