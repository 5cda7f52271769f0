"""Who is in which room, by which session, on which node; the same answer on every node.

An entry lives under the lease of its node's incarnation. A session whose socket is lost, or whose node died, is
`interrupted`; after the grace it is lost, unless its participant is back by then, on any node: then nobody hears a
thing. This node keeps what it registered, and registers it again when its lease lapsed or Redis lost its data.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Literal, NamedTuple
from uuid import UUID

import msgspec
import structlog

from hub.cluster.batch import Batch
from hub.cluster.keys import Keys, text
from hub.cluster.nodes import Nodes, monotonic_s
from hub.cluster.redis import Door, Script
from hub.context import RosterEntry
from hub.protocol.errors import ClusterUnavailable

log = structlog.get_logger(__name__)

_AT_ONCE = 500
# Changes in one script: a millisecond or two of Redis' time.
_CHANGES = 100
_CONFIRM_MS = 30_000
_RETRY_S = 0.5
# How long an interrupted session is brought back to a Redis that lost it; its grace is over by then.
_REMEMBER_S = 60.0
_IDLE_S = 15.0

_ATTEND, _ROSTER = Script("attend"), Script("roster")
_SWEEP, _CONFIRM = Script("sweep"), Script("confirm")

Key = tuple[UUID, str]


class Lost(msgspec.Struct, frozen=True):
    """The last session of a participant in a room, with its grace over.

    The attachment ended at `since`: whoever attached again after that is there and must not be closed.
    """

    call_id: UUID
    entry: RosterEntry
    since: datetime


class Swept(msgspec.Struct, frozen=True):
    """`interrupted`: sessions of nodes found dead just now. `lost`: this caller's to settle, then `confirm`."""

    interrupted: Sequence[Lost] = ()
    lost: Sequence[Lost] = ()


class _Told(msgspec.Struct, frozen=True):
    call_id: UUID
    entry: RosterEntry
    since_ms: int


class _Change(NamedTuple):
    """See attend.lua."""

    what: Literal["live", "interrupted", "lost", "left"]
    call_id: UUID
    session_id: str
    incarnation: str
    participant_id: str = ""
    entry: bytes = b""
    again: str = ""


class _Mine(msgspec.Struct):
    entry: RosterEntry
    interrupted_at_s: float | None = None


class Roster:
    def __init__(self, door: Door, keys: Keys, nodes: Nodes) -> None:
        self._door, self._keys, self._nodes = door, keys, nodes
        self._mine: dict[Key, _Mine] = {}
        # What Redis does not know yet: bring it (again), or take it out.
        self._owed: dict[Key, Literal["bring", "remove"]] = {}
        self._changes: Batch[_Change, bytes] = Batch(self._change, most=_CHANGES)
        self._wake = asyncio.Event()
        self._gone: Callable[[UUID, RosterEntry], None] | None = None
        self._moved: Callable[[str, UUID, bool], None] = lambda session_id, call_id, inside: None
        nodes.when_reborn(self._bring_all)

    def when_gone(self, tell: Callable[[UUID, RosterEntry], None]) -> None:
        """`tell` hears of sessions of this node that the others have already seen as lost.

        The node was away for longer than the grace: close them with "reconnect", so that they join again.
        """
        self._gone = tell

    def when_moved(self, tell: Callable[[str, UUID, bool], None]) -> None:
        """`tell` hears which session of this node came into or out of which room. A lost one has not come out."""
        self._moved = tell

    async def enter(self, call_id: UUID, entry: RosterEntry) -> None:
        """Under this node's present incarnation, whatever the entry says. Raises ClusterUnavailable."""
        for attempt in (1, 2):
            mine = msgspec.structs.replace(
                entry, node_id=self._nodes.node_id, incarnation=self._nodes.incarnation, state="live"
            )
            try:
                answer = await self._changes.ask(_entering(call_id, mine))
            except ClusterUnavailable:
                # It may have arrived all the same; and who was in before still is.
                self._owe_what_holds((call_id, entry.session_id))
                raise
            if answer == b"ok":
                self._mine[(call_id, entry.session_id)] = _Mine(mine)
                self._owed.pop((call_id, entry.session_id), None)
                self._moved(entry.session_id, call_id, True)
                return
            if answer == b"failed":
                raise ClusterUnavailable("the roster cannot be read")
            if attempt == 1:
                await self._nodes.beat()
        raise ClusterUnavailable("this node lost its lease")

    async def interrupt(self, lost: Sequence[Key]) -> None:
        """These sockets are lost; the grace begins. Where Redis is away, when it is back."""
        now_s, changes = monotonic_s(), []
        for key in lost:
            mine = self._mine.get(key)
            if mine is not None:
                mine.interrupted_at_s = now_s
                mine.entry = msgspec.structs.replace(mine.entry, state="interrupted")
                changes.append(_Change("lost", *key, mine.entry.incarnation))
        for start in range(0, len(changes), _CHANGES):
            some = changes[start : start + _CHANGES]
            try:
                await self._change(some)
            except ClusterUnavailable:
                for change in some:
                    self._owe_what_holds((change.call_id, change.session_id))

    async def leave(self, call_id: UUID, session_id: str) -> None:
        """Out, without grace. Where Redis is away, when it is back."""
        self._mine.pop((call_id, session_id), None)
        self._owed.pop((call_id, session_id), None)
        self._moved(session_id, call_id, False)
        try:
            await self._changes.ask(self._leaving(call_id, session_id))
        except ClusterUnavailable:
            self._owe_what_holds((call_id, session_id))
            return
        if (call_id, session_id) in self._mine:
            self._owe_what_holds((call_id, session_id))

    async def sessions(self, call_id: UUID) -> list[RosterEntry]:
        """Everybody, those in their grace included as `interrupted`. Raises ClusterUnavailable."""
        found: list[bytes | int] = await self._door.run(_ROSTER, self._room(call_id), self._keys.presence)
        entries = []
        for stored, lives in zip(found[::2], found[1::2], strict=True):
            assert isinstance(stored, bytes)
            entry = msgspec.json.decode(stored, type=RosterEntry)
            entries.append(entry if lives else msgspec.structs.replace(entry, state="interrupted"))
        return entries

    async def sweep(self, grace_s: float) -> Swept:
        """Any node may ask; everything is handed out once. Raises ClusterUnavailable."""
        interrupted, lost = await self._door.run(
            _SWEEP,
            [self._keys.incarnations],
            self._keys.presence,
            int(grace_s * 1000),
            _AT_ONCE,
            _CONFIRM_MS,
        )
        return Swept([_lost(text) for text in interrupted], [_lost(text) for text in lost])

    async def lost(self, grace_s: float) -> Sequence[Lost]:
        """Participants whose grace has ended; settle each and `confirm` it. Raises ClusterUnavailable."""
        return (await self.sweep(grace_s)).lost

    async def confirm(self, lost: Lost) -> None:
        """It is settled. What nobody confirms within 30 s is handed out again. Raises ClusterUnavailable."""
        who = f"{lost.call_id}|{lost.entry.participant_id}"
        await self._door.run(_CONFIRM, self._room(lost.call_id), self._keys.presence, who)

    async def run(self) -> None:
        """Brings to Redis what it does not know."""
        while True:
            try:
                async with asyncio.timeout(_IDLE_S):
                    await self._wake.wait()
            except TimeoutError:
                self._forget_old()
                continue
            self._wake.clear()
            try:
                await self._settle_up()
            except ClusterUnavailable:
                await asyncio.sleep(_RETRY_S)
                self._wake.set()

    def _room(self, call_id: UUID) -> list[str]:
        return [self._keys.roster(call_id)]

    def _owe(self, call_id: UUID, session_id: str, what: Literal["bring", "remove"]) -> None:
        self._owed[(call_id, session_id)] = what
        self._wake.set()

    def _owe_what_holds(self, key: Key) -> None:
        self._owe(*key, "bring" if key in self._mine else "remove")

    def _bring_all(self) -> None:
        self._forget_old()
        for key in self._mine:
            self._owed[key] = "bring"
        self._wake.set()

    async def _settle_up(self) -> None:
        while self._owed:
            owed = list(islice(self._owed.items(), _CHANGES))
            held = {key: self._mine.get(key) for key, _ in owed}
            changes = {key: change for key, what in owed if (change := self._owed_change(key, what)) is not None}
            answers = await self._change(list(changes.values())) if changes else ()
            if b"fenced" in answers:
                # The next heartbeat gives a new incarnation, and everything is owed again.
                raise ClusterUnavailable("this node lost its lease")
            for key, answer in zip(changes, answers, strict=True):
                if answer == b"gone":
                    self._seen_as_lost(key, held[key])
                elif answer == b"failed":
                    log.error("roster cannot be read", call_id=str(key[0]), session_id=key[1])
            for key, what in owed:
                if self._mine.get(key) is not held[key]:
                    # They came or went meanwhile, and nobody knows what reached Redis last.
                    self._owe_what_holds(key)
                elif self._owed.get(key) == what:
                    del self._owed[key]

    def _owed_change(self, key: Key, what: Literal["bring", "remove"]) -> _Change | None:
        mine = self._mine.get(key)
        if what == "bring" and mine is not None:
            mine.entry = msgspec.structs.replace(mine.entry, incarnation=self._nodes.incarnation)
            return _entering(key[0], mine.entry, again=True)
        if what == "remove" and mine is None:
            return self._leaving(*key)
        return None

    def _seen_as_lost(self, key: Key, mine: _Mine | None) -> None:
        if mine is None or self._mine.get(key) is not mine:
            return
        del self._mine[key]
        self._moved(key[1], key[0], False)
        log.warning("session was already seen as lost", call_id=str(key[0]), session_id=key[1])
        if self._gone is not None and mine.interrupted_at_s is None:
            self._gone(key[0], mine.entry)

    def _leaving(self, call_id: UUID, session_id: str) -> _Change:
        return _Change("left", call_id, session_id, self._nodes.incarnation)

    async def _change(self, changes: Sequence[_Change]) -> Sequence[bytes]:
        keys: list[str] = []
        words: list[str | bytes] = []
        for what, call_id, session_id, incarnation, participant_id, entry, again in changes:
            keys.append(self._keys.roster(call_id))
            words += (what, text(call_id), session_id, incarnation, participant_id, entry, again)
        answers: Sequence[bytes] = await self._door.run(_ATTEND, keys, self._keys.presence, *words)
        return answers

    def _forget_old(self) -> None:
        now_s = monotonic_s()
        for key, mine in list(self._mine.items()):
            if mine.interrupted_at_s is not None and now_s - mine.interrupted_at_s > _REMEMBER_S:
                del self._mine[key]


def _entering(call_id: UUID, entry: RosterEntry, *, again: bool = False) -> _Change:
    return _Change(
        entry.state,
        call_id,
        entry.session_id,
        entry.incarnation,
        text(entry.participant_id),
        msgspec.json.encode(entry),
        "1" if again else "",
    )


def _lost(text: bytes) -> Lost:
    told = msgspec.json.decode(text, type=_Told)
    return Lost(told.call_id, told.entry, datetime.fromtimestamp(told.since_ms / 1000, UTC))
