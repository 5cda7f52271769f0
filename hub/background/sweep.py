"""The sweep: what LiveKit really has, held against what the hub believes. It feeds the same fold as the webhooks.

One node at a time runs it. Every two seconds it looks whether LiveKit is there and has the rooms it had; every sweep
interval, and at once where something is missing, it compares every open call. So a room that LiveKit lost is made again
within seconds of LiveKit's return. A round over very many calls takes several turns, with such a look before each.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID

import msgspec
import structlog

from db import system
from db.errors import DatabaseUnavailable
from db.system import OpenCall
from hub import metrics
from hub.actions.orders import carry_out, deciding
from hub.actions.rights import align
from hub.actions.settle import Settled, grace_of, settle
from hub.background.inbox import InboxDesk, InboxMedia
from hub.media.values import ParticipantInfo, RoomInfo
from hub.protocol.errors import ClusterUnavailable, HubError, NotFound
from hub.sealed import sealed
from hub.state.call import MakeRoom
from hub.state.facts import SNAPSHOT_MARGIN, FactEvent, MediaSilent, RoomAbsent, SeenPerson, SeenTrack, SweepSeen

log = structlog.get_logger("hub.sweep")

CORRECTIONS = metrics.counter("reconcile_corrections", "What the sweep put right, by kind", "kind")
SWEEPS = metrics.counter("sweeps", "Comparisons with LiveKit, by outcome", "outcome")
SWEEP_SECONDS = metrics.histogram("sweep", "Time of a whole comparison with LiveKit")

PROBE_S = 2.0
# A turn compares for so long and then lets LiveKit be looked at again; what is urgent gets the first half of it.
_TURN_S = 2.0
_ROOMS_AT_ONCE = 4
_TIMEOUT_S = 5.0
# A room whose node is gone answers "unavailable" although it is listed.
_STRIKES = 3
# One failure may be a lost packet; LiveKit is silent when it fails for this long.
_SILENT_AFTER = timedelta(seconds=2)
# Rooms of ours are named so (hub/actions/rooms.py). Anybody else's rooms are none of our business.
OUR_ROOM = re.compile(r"^room_[a-z0-9]+_\d+$")
# CreateRoom comes before the call's row: a room may be without one for a moment.
_ORPHAN_AFTER = timedelta(seconds=60)


class SweepMedia(InboxMedia, Protocol):
    async def list_rooms(
        self, names: Sequence[str] | None = None, *, region: str | None = None
    ) -> Sequence[RoomInfo]: ...
    async def list_participants(self, room: str, *, region: str | None = None) -> Sequence[ParticipantInfo]: ...


class SweepDesk(InboxDesk, Protocol):
    @property
    def media(self) -> SweepMedia: ...


class Leader(Protocol):
    async def leads(self) -> bool:
        """Whether this node is the one that sweeps; asking also tries to become it. Raises ClusterUnavailable."""
        ...


class Correction(msgspec.Struct, frozen=True):
    """`kind`: an event's name (`participant:left`), an order (`MakeRoom`), `fact` or `orphan_room`."""

    kind: str
    room_name: str
    call_id: UUID | None = None


class SweepReport(msgspec.Struct, frozen=True, kw_only=True):
    at: datetime
    took_ms: int
    dry_run: bool
    calls: int
    rooms: int
    # Regions whose LiveKit did not answer; nothing is concluded about their calls but that.
    unreachable: tuple[str, ...] = ()
    # Calls that could not be compared this time.
    skipped: int = 0
    corrections: tuple[Correction, ...] = ()


class _Listing(msgspec.Struct, frozen=True):
    """What one LiveKit answered to ListRooms. `rooms` None: nothing."""

    at: datetime
    rooms: Mapping[str, RoomInfo] | None


class _DryRun(Exception):
    """Takes a settling back."""


class _Round(msgspec.Struct):
    """One comparison of every open call, in as many turns as it takes."""

    dry_run: bool = False
    # Those it has not come to yet; None before the first turn.
    left: set[UUID] | None = None
    compared: int = 0
    skipped: int = 0
    corrections: list[Correction] = []

    @property
    def done(self) -> bool:
        return self.left is not None and not self.left


class Sweep:
    """`run()` until cancelled; `once()` whenever somebody wants to know. `regions` are all that calls may be in."""

    def __init__(
        self,
        desk: SweepDesk,
        leader: Leader,
        *,
        regions: Sequence[str],
        every_s: float = 10.0,
        probe_s: float = PROBE_S,
        turn_s: float = _TURN_S,
    ) -> None:
        self._desk = desk
        self._leader = leader
        self._regions = tuple(regions)
        self._every_s = every_s
        self._probe_s = min(probe_s, every_s)
        self._turn_s = turn_s
        self._turn = asyncio.Lock()
        # The round that is on, which `run` goes on with at each look.
        self._round: _Round | None = None
        self._began = 0.0
        self._returned = False
        # By region: since when it does not answer, and the rooms of ours that it had when it was last asked.
        self._silent_since: dict[str, datetime] = {}
        self._had: dict[str, set[str]] = {}
        # Regions whose calls know of the silence: they need not hear of it again every two seconds.
        self._known_silent: set[str] = set()
        # By room: how often in a row it did not answer.
        self._strikes: dict[str, int] = {}
        # Rooms that should be there and are not: looked for at every probe.
        self._missing: set[str] = set()
        # When a call was compared last, so that those come first that have waited longest.
        self._compared_at: dict[UUID, float] = {}

    async def run(self) -> None:
        due_at = 0.0
        while True:
            try:
                if await self._leader.leads():
                    if await self.probe(full=time.monotonic() >= due_at):
                        due_at = time.monotonic() + self._every_s
                else:
                    self._forget()
                    due_at = 0.0
            except (DatabaseUnavailable, ClusterUnavailable) as error:
                SWEEPS.labels("failed").inc()
                log.warning("sweep_postponed", error=str(error))
            except Exception:
                # A bug in one sweep must not be the end of all sweeps.
                SWEEPS.labels("crashed").inc()
                log.exception("sweep_crashed")
            await asyncio.sleep(0 if self._round is not None else self._probe_s)

    async def once(self, *, dry_run: bool = False) -> SweepReport:
        """Compare every open call now; `dry_run` changes, tells and orders nothing. Raises DatabaseUnavailable."""
        started, at = time.perf_counter(), self._desk.clock()
        round_ = _Round(dry_run)
        listings: Mapping[str, _Listing] = {}
        while not round_.done:
            async with self._turn:
                listings = await self._list()
                await self._compare(listings, round_)
        took_s = time.perf_counter() - started
        if not dry_run:
            _count_round(took_s)
        return SweepReport(
            at=at,
            took_ms=int(took_s * 1000),
            dry_run=dry_run,
            calls=round_.compared,
            rooms=sum(len(listing.rooms or ()) for listing in listings.values()),
            unreachable=tuple(region for region, listing in listings.items() if listing.rooms is None),
            skipped=round_.skipped,
            corrections=tuple(round_.corrections),
        )

    async def probe(self, *, full: bool) -> bool:
        """Ask LiveKit for its rooms; compare where it is time or where rooms are missing. True: compared everything."""
        async with self._turn:
            listings = await self._list()
            if self._returned or (full and self._round is None):
                self._round, self._returned = _Round(), False
                self._began = time.perf_counter()
            if self._round is None and not any(self._urgent(listings)):
                self._had.update({region: set(listing.rooms or ()) for region, listing in listings.items()})
                return False
            await self._compare(listings, self._round)
            if self._round is None or not self._round.done:
                return False
            self._round = None
            _count_round(time.perf_counter() - self._began)
            return True

    def _urgent(self, listings: Mapping[str, _Listing]) -> tuple[set[str], set[str]]:
        """Rooms that are missing, and regions of whose silence their calls do not know."""
        wanted = set(self._missing)
        for region, listing in listings.items():
            if listing.rooms is not None:
                wanted |= self._had.get(region, set()) - set(listing.rooms)
        return wanted, {region for region, listing in listings.items() if listing.rooms is None} - self._known_silent

    def _forget(self) -> None:
        """Another node sweeps: what we remember grows old."""
        self._round, self._returned = None, False
        self._compared_at.clear()
        self._silent_since.clear()
        self._known_silent.clear()
        self._had.clear()
        self._strikes.clear()
        self._missing.clear()

    async def _list(self) -> dict[str, _Listing]:
        """Every region's rooms. Notes whether a region answers again that did not."""
        was_silent = set(self._silent_since)
        async with asyncio.TaskGroup() as tasks:
            asked = {region: tasks.create_task(self._list_region(region)) for region in self._regions}
        self._returned |= bool(was_silent - set(self._silent_since))
        return {region: task.result() for region, task in asked.items()}

    async def _list_region(self, region: str) -> _Listing:
        at = self._desk.clock()
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                rooms = await self._desk.media.list_rooms(region=region)
        except (HubError, TimeoutError) as error:
            if region not in self._silent_since:
                self._silent_since[region] = at
                log.warning("media_silent", region=region, error=str(error))
            return _Listing(at, None)
        if self._silent_since.pop(region, None) is not None:
            log.info("media_back", region=region)
        return _Listing(at, {room.name: room for room in rooms if OUR_ROOM.match(room.name)})

    async def _compare(self, listings: Mapping[str, _Listing], round_: _Round | None) -> None:
        """One turn: what is urgent, and a piece of the round."""
        dry_run = round_ is not None and round_.dry_run
        async with self._desk.db.system() as tx:
            calls = await system.moving_calls(
                tx, [name for listing in listings.values() for name in listing.rooms or ()]
            )
        by_id = {call.call_id: call for call in calls}
        wanted, silent = self._urgent(listings) if not dry_run else (set(), set())
        urgent = [call for call in calls if call.room_name in wanted or self._region(call, listings) in silent]
        rest: list[OpenCall] = []
        if round_ is not None:
            round_.left = set(by_id) if round_.left is None else round_.left & set(by_id)
            rest = [by_id[call_id] for call_id in round_.left - {call.call_id for call in urgent}]
        begun = time.monotonic()
        outcomes = await self._each(urgent, listings, begun + self._turn_s / 2, dry_run=dry_run)
        outcomes += await self._each(rest, listings, begun + self._turn_s, dry_run=dry_run)
        corrections = [correction for outcome in outcomes for correction in outcome.corrections]
        if round_ is not None:
            assert round_.left is not None
            fresh = [outcome for outcome in outcomes if outcome.call_id in round_.left]
            round_.left -= {outcome.call_id for outcome in fresh}
            round_.compared += len(fresh)
            round_.skipped += sum(outcome.skipped for outcome in fresh)
            if round_.done:
                open_rooms = {call.room_name for call in calls}
                corrections += await self._orphans(listings, open_rooms, dry_run=dry_run)
            round_.corrections += corrections
        if not dry_run:
            self._remember(listings, outcomes, urgent, by_id)
            for correction in corrections:
                CORRECTIONS.labels(correction.kind).inc()

    async def _each(
        self, calls: Iterable[OpenCall], listings: Mapping[str, _Listing], until: float, *, dry_run: bool
    ) -> list[_Outcome]:
        """Some at a time, those first that have waited longest, the active before the others; one each in any case."""
        waiting = iter(
            sorted(calls, key=lambda call: (self._compared_at.get(call.call_id, 0), call.status != "active"))
        )
        outcomes: list[_Outcome] = []

        async def work() -> None:
            for call in waiting:
                outcomes.append(await self._one(call, listings, dry_run=dry_run))
                if time.monotonic() >= until:
                    return

        async with asyncio.TaskGroup() as tasks:
            for _ in range(_ROOMS_AT_ONCE):
                tasks.create_task(work())
        return outcomes

    def _remember(
        self,
        listings: Mapping[str, _Listing],
        outcomes: Sequence[_Outcome],
        urgent: Iterable[OpenCall],
        open_calls: Mapping[UUID, OpenCall],
    ) -> None:
        now, compared = time.monotonic(), {outcome.call_id for outcome in outcomes}
        not_reached = {call.room_name for call in urgent if call.call_id not in compared}
        # A room that is gone and whose call nobody has come to is not forgotten.
        self._missing = not_reached | {outcome.room_name for outcome in outcomes if outcome.room_missing}
        open_rooms = {call.room_name for call in open_calls.values()}
        self._strikes = {name: strikes for name, strikes in self._strikes.items() if name in open_rooms}
        self._compared_at = {
            call_id: now if call_id in compared else self._compared_at.get(call_id, 0) for call_id in open_calls
        }
        all_told = not not_reached and not any(outcome.failed for outcome in outcomes)
        for region, listing in listings.items():
            if listing.rooms is not None:
                self._had[region] = set(listing.rooms)
                self._known_silent.discard(region)
            elif all_told and listing.at - self._silent_since.get(region, listing.at) >= _SILENT_AFTER:
                self._known_silent.add(region)

    async def _one(self, call: OpenCall, listings: Mapping[str, _Listing], *, dry_run: bool) -> _Outcome:
        connected: list[ParticipantInfo] = []
        try:
            news = await self._news(call, listings, connected)
            if not news:
                return _Outcome(call.call_id, call.room_name, skipped=True)
            settled = await sealed(self._settle(call, news, connected, dry_run=dry_run))
        except NotFound:
            return _Outcome(call.call_id, call.room_name)
        except DatabaseUnavailable as error:
            log.warning("call_not_compared", call_id=str(call.call_id), error=str(error))
            return _Outcome(call.call_id, call.room_name, skipped=True, failed=True)
        except Exception:
            log.exception("call_not_compared", call_id=str(call.call_id))
            return _Outcome(call.call_id, call.room_name, skipped=True, failed=True)
        missing = any(isinstance(order, MakeRoom) for order in settled.orders)
        return _Outcome(call.call_id, call.room_name, corrections=_corrections(call, settled), room_missing=missing)

    def _region(self, call: OpenCall, listings: Mapping[str, _Listing]) -> str:
        """A call that names no region, or one that is no more, is in the first."""
        return call.region if call.region is not None and call.region in listings else self._regions[0]

    async def _news(
        self, call: OpenCall, listings: Mapping[str, _Listing], connected: list[ParticipantInfo]
    ) -> list[FactEvent]:
        """Empty: nothing can be said about this call now. Whoever LiveKit lists is put into `connected`."""
        region = self._region(call, listings)
        listing = listings[region]
        now = self._desk.clock()
        if listing.rooms is None:
            since = self._silent_since.get(region, listing.at)
            silent = call.status == "active" and listing.at - since >= _SILENT_AFTER
            return [MediaSilent(at=since, known_at=now)] if silent else []
        room = listing.rooms.get(call.room_name)
        if room is None:
            # Younger than the list: it says nothing about it.
            young = call.created_at > listing.at - SNAPSHOT_MARGIN
            return [] if young else [RoomAbsent(at=listing.at, known_at=now)]
        asked_at = self._desk.clock()
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                people = await self._desk.media.list_participants(call.room_name, region=region)
        except (HubError, TimeoutError):
            self._strikes[call.room_name] = strikes = self._strikes.get(call.room_name, 0) + 1
            if strikes >= _STRIKES:
                return [RoomAbsent(at=listing.at, known_at=now)]
            return [observed(room, None, listing.at)]
        self._strikes.pop(call.room_name, None)
        connected.extend(people)
        return [observed(room, people, asked_at)]

    async def _settle(
        self, call: OpenCall, news: Sequence[FactEvent], connected: Sequence[ParticipantInfo], *, dry_run: bool
    ) -> Settled:
        settled: Settled | None = None
        try:
            async with deciding(self._desk, call.tenant_id, call.call_id) as (tx, due):
                grace = grace_of(self._desk.rules)
                settled = await settle(tx, call.call_id, self._desk.clock(), fold=news, grace=grace)
                if dry_run:
                    raise _DryRun
                due += settled.events
        except _DryRun:
            assert settled is not None
            return settled
        await carry_out(self._desk, settled.call, settled.orders)
        await align(self._desk, call.tenant_id, call.call_id, connected)
        return settled

    async def _orphans(
        self, listings: Mapping[str, _Listing], open_rooms: Collection[str], *, dry_run: bool
    ) -> list[Correction]:
        """Delete rooms that this hub made and no open call has."""
        found: list[Correction] = []
        ours = f"room_{self._desk.rules.room_mark}"
        for region, listing in listings.items():
            old = [
                room.name
                for room in (listing.rooms or {}).values()
                if room.name.startswith(ours)
                and room.name not in open_rooms
                and room.created_at <= listing.at - _ORPHAN_AFTER
            ]
            if not old:
                continue
            async with self._desk.db.system() as tx:
                orphans = await system.orphan_rooms(tx, old)
            for name in orphans:
                found.append(Correction("orphan_room", name))
                if dry_run:
                    continue
                log.warning("orphan_room", room_name=name, region=region)
                try:
                    await self._desk.media.delete_room(name, region=region)
                except HubError as error:
                    log.warning("orphan_room_stays", room_name=name, error=str(error))
        return found


def _count_round(took_s: float) -> None:
    SWEEPS.labels("done").inc()
    SWEEP_SECONDS.observe(took_s)


class _Outcome(msgspec.Struct, frozen=True):
    call_id: UUID
    room_name: str
    corrections: Sequence[Correction] = ()
    room_missing: bool = False
    skipped: bool = False
    failed: bool = False


def observed(room: RoomInfo, people: Iterable[ParticipantInfo] | None, at: datetime) -> SweepSeen:
    """A snapshot as news; `at` is when it was asked for. Only people whose media is up are in a call."""
    seen = None
    if people is not None:
        seen = tuple(
            SeenPerson(
                person.sid,
                person.identity,
                person.joined_at,
                person.countable,
                tuple(SeenTrack(track.sid, track.source, track.muted) for track in person.tracks),
            )
            for person in people
            if person.state == "active"
        )
    return SweepSeen(at=at, known_at=at, room_sid=room.sid, room_created_at=room.created_at, people=seen)


def _corrections(call: OpenCall, settled: Settled) -> list[Correction]:
    kinds = [event.name for event in settled.events] + [type(order).__name__ for order in settled.orders]
    if settled.news and not kinds:
        # Something was learned that nobody has to hear: a miss, a sid.
        kinds = ["fact"]
    return [Correction(kind, call.room_name, call.call_id) for kind in kinds]
