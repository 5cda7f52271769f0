"""Whether people are there: the devices of each, on all nodes, and what they chose to look like.

A device is a socket session under the lease of its node's incarnation. One that is lost, or whose node died, counts
until its grace is over; if its owner is back by then, nobody hears a thing. This node keeps what it told, and tells it
again when its lease lapsed or Redis lost its data. Whoever changes a record rings the tenant's bell in the same step;
nodes with somebody who watches look again (`watching.py`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import structlog
from msgspec import UNSET, UnsetType

from hub.cluster.keys import Keys, text
from hub.cluster.nodes import LEASE_MS, Nodes
from hub.cluster.redis import Door, Script
from hub.protocol.errors import ClusterUnavailable
from hub.state.presence import Choice, Chosen, Known

log = structlog.get_logger(__name__)

# So long somebody without a device is remembered, with what they chose and when they were last seen.
KEPT_MS = 30 * 86_400_000
_GATHER_S = 0.1
_BATCH = 100
_AT_ONCE = 500
_RETRY_S = 0.5
_SWEEP_S = 1.0
# A node looks for the dead only when its own lease has held for so long: after an outage of Redis all leases have
# lapsed, and everybody needs a moment to say that they are there.
_SETTLED_S = LEASE_MS / 1000

_PRESENT, _ABSENT, _CHOOSE, _LOOK = Script("present"), Script("absent"), Script("choose"), Script("look")

User = tuple[UUID, str]


class _Wish(msgspec.Struct, frozen=True, omit_defaults=True):
    """A choice as it is stored; without a text, the text of before stays."""

    status: Chosen
    text: str | UnsetType | None = UNSET


class _Device(msgspec.Struct):
    user: User
    calls: set[UUID]
    gone: bool = False


class Presences:
    """One for a node. Reading and choosing raise ClusterUnavailable; the coming and going of devices never does."""

    def __init__(self, door: Door, keys: Keys, nodes: Nodes) -> None:
        self._door, self._keys, self._nodes = door, keys, nodes
        self._mine: dict[str, _Device] = {}
        # How many devices each user has on this node.
        self._here: Counter[User] = Counter()
        # What Redis does not know yet. Of devices that went, all there is left.
        self._owed: dict[str, _Device] = {}
        # What users with a device here chose, to bring it back to a Redis that lost it.
        self._choices: dict[User, Choice] = {}
        self._lost_choices: dict[User, Choice] = {}
        self._wake = asyncio.Event()
        nodes.when_reborn(self._bring_all)

    # Devices of this node

    def opened(self, session_id: str, tenant_id: UUID, user_id: str) -> None:
        self._here[(tenant_id, user_id)] += 1
        self._owe(session_id, _Device((tenant_id, user_id), set()))

    def moved(self, session_id: str, call_id: UUID, inside: bool) -> None:
        """A device came into or out of a call."""
        device = self._mine.get(session_id)
        if device is None:
            return
        before = bool(device.calls)
        (device.calls.add if inside else device.calls.discard)(call_id)
        if bool(device.calls) != before:
            self._owe(session_id, device)

    def closed(self, session_id: str, *, goodbye: bool) -> None:
        """`goodbye`: on purpose, so nobody waits for a return; but calls wait, and whoever is in one is still there."""
        device = self._mine.pop(session_id, None)
        if device is None:
            return
        device.gone = goodbye and not device.calls
        self._owed[session_id] = device
        self._wake.set()
        self._here[device.user] -= 1
        if not self._here[device.user]:
            del self._here[device.user]
            self._choices.pop(device.user, None)

    def _owe(self, session_id: str, device: _Device) -> None:
        self._mine[session_id] = self._owed[session_id] = device
        self._wake.set()

    def _bring_all(self) -> None:
        self._owed = {**self._mine, **self._owed}
        self._lost_choices.update(self._choices)
        self._wake.set()

    # Everybody

    async def choose(self, tenant_id: UUID, user_id: str, status: Chosen, text: str | UnsetType | None) -> Known:
        """For all devices of the user, until they choose something else. How they are then."""
        wish = msgspec.json.encode(_Wish(status, text))
        for attempt in (1, 2):
            found = await self._choose(tenant_id, user_id, wish, "")
            if found is not None:
                known = self._known((tenant_id, user_id), found)
                if known.choice is not None and (tenant_id, user_id) in self._here:
                    self._choices[(tenant_id, user_id)] = known.choice
                return known
            if attempt == 1:
                await self._nodes.beat()
        raise ClusterUnavailable("this node lost its lease")

    async def look(self, tenant_id: UUID, user_ids: Sequence[str]) -> list[Known]:
        """How these people are, in their order."""
        known: list[Known] = []
        for start in range(0, len(user_ids), _BATCH):
            some = user_ids[start : start + _BATCH]
            found = await self._door.run(_LOOK, [self._keys.nodes], self._keys.presence, str(tenant_id), *some)
            known += [self._known((tenant_id, one), record) for one, record in zip(some, found, strict=True)]
        return known

    def _known(self, user: User, found: Sequence[bytes]) -> Known:
        known = _known(found)
        if not known.devices and user in self._here:
            # A device has only just come, and Redis is about to hear of it.
            return msgspec.structs.replace(known, devices=(False,))
        return known

    async def ring(self, tenant_id: UUID, user_ids: Sequence[str]) -> None:
        """Have whoever watches these people, or is one of them, ask anew whom they may see."""
        body = msgspec.json.encode({"contacts": list(user_ids)})
        await self._door.command("SPUBLISH", self._keys.bell(tenant_id), body)

    async def sweep(self, grace_s: float) -> int:
        """Take away the devices whose grace is over; how many. Any node may, each is taken once."""
        taken: int = await self._door.run(
            _ABSENT, [self._keys.holders], self._keys.presence, int(grace_s * 1000), _AT_ONCE, KEPT_MS
        )
        return taken

    # Loops

    async def run(self) -> None:
        """Tells Redis what it does not know."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(_GATHER_S)
            self._wake.clear()
            try:
                await self._tell()
            except ClusterUnavailable:
                await asyncio.sleep(_RETRY_S)
                self._wake.set()

    async def run_sweep(self, grace_s: float) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            if self._nodes.held_s() < _SETTLED_S:
                continue
            try:
                while await self.sweep(grace_s) >= _AT_ONCE:
                    pass
            except ClusterUnavailable as error:
                log.info("presence sweep waits", error=str(error))

    async def _tell(self) -> None:
        while self._owed:
            some = [self._owed.popitem() for _ in range(min(_BATCH, len(self._owed)))]
            incarnation = self._nodes.incarnation
            words: list[str] = []
            for session_id, device in some:
                how = "gone" if device.gone else "here" if session_id in self._mine else "parting"
                words += (text(device.user[0]), device.user[1], session_id, how, "1" if device.calls else "0")
            try:
                lease = [self._keys.lease(incarnation)]
                if not await self._door.run(_PRESENT, lease, self._keys.presence, incarnation, KEPT_MS, *words):
                    # The next heartbeat gives a new incarnation, and everything is owed again.
                    raise ClusterUnavailable("this node lost its lease")
            except ClusterUnavailable:
                for session_id, device in some:
                    self._owed.setdefault(session_id, device)
                raise
        while self._lost_choices:
            (tenant_id, user_id), choice = next(iter(self._lost_choices.items()))
            wish = msgspec.json.encode(_Wish(choice.status, choice.text))
            if await self._choose(tenant_id, user_id, wish, str(round(choice.at.timestamp() * 1000))) is None:
                raise ClusterUnavailable("this node lost its lease")
            del self._lost_choices[(tenant_id, user_id)]

    async def _choose(self, tenant_id: UUID, user_id: str, wish: bytes, at_ms: str) -> Any:
        lease = [self._keys.lease(self._nodes.incarnation)]
        return await self._door.run(_CHOOSE, lease, self._keys.presence, str(tenant_id), user_id, wish, at_ms, KEPT_MS)


def _known(found: Sequence[bytes]) -> Known:
    """A record out of Redis."""
    devices: list[bool] = []
    choice: Choice | None = None
    last_seen: datetime | None = None
    for field, value in zip(found[::2], found[1::2], strict=True):
        if field.startswith(b"s:"):
            devices.append(value.startswith(b"1"))
        elif field == b"choice":
            at_ms, _, text = value.partition(b" ")
            wish = msgspec.json.decode(text, type=_Wish)
            choice = Choice(wish.status, wish.text if isinstance(wish.text, str) else None, _time(at_ms))
        elif field == b"seen":
            last_seen = _time(value)
    return Known(tuple(devices), choice, last_seen)


def _time(ms: bytes) -> datetime:
    return datetime.fromtimestamp(int(float(ms)) / 1000, UTC)
