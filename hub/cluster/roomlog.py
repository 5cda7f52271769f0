"""The logs of rooms and users in Redis: append, read, and begin anew. Sealed going in, verified coming out."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import Any

import msgspec

from hub.cluster.batch import Batch
from hub.cluster.envelope import VERSION, Envelope, Head, Kind, Signer
from hub.cluster.keys import LogKeys
from hub.cluster.line import Line
from hub.cluster.link import LinkLost, ServerRefused
from hub.cluster.nodes import Nodes
from hub.cluster.order import Arrival
from hub.cluster.redis import Script
from hub.cluster.shards import Shards
from hub.context import Position
from hub.protocol.errors import ClusterUnavailable

LOG_EVENTS = 1000
PUBLISH_S = 0.25
# What has happened already is told a little more patiently: giving up costs everybody in the room a snapshot.
TELL_S = 0.5
READ_S = 1.0
# A script that reaches Redis later than this after the call does nothing: the caller has been told that it failed.
LATE_MS = int(TELL_S * 1000)

# Logs that are looked at in one script.
_HEADS = 200

_PUBLISH, _READ, _RESET, _HEADS_OF = Script("publish"), Script("read"), Script("reset"), Script("heads")
SCRIPTS = (_PUBLISH, _READ, _RESET, _HEADS_OF)

# Where a log stands, and entries of it.
Found = tuple[Head, list[Arrival]]


class Counters(msgspec.Struct):
    """Since the start of the node; for the metrics."""

    published: int = 0
    failed: int = 0
    delivered: int = 0
    unverified: int = 0
    replayed: int = 0
    duplicates: int = 0
    repairs: int = 0
    repaired: int = 0
    resyncs: int = 0
    told_here_only: int = 0


class RoomLog:
    """Every method raises ClusterUnavailable within its budget."""

    def __init__(
        self, line: Line | Shards, nodes: Nodes, signer: Signer, counters: Counters, *, window_s: float
    ) -> None:
        """`window_s`: how long at least an event can be had again, as long as it is one of the last LOG_EVENTS."""
        self._line, self._nodes, self._signer = line, nodes, signer
        self._counters = counters
        self._window_ms = int(window_s * 1000)
        self._number = 0
        # Epochs are offered with every event and hardly ever taken: what is unique about them is drawn once.
        self._own, self._offered = secrets.token_hex(5), 0
        self._asked: Batch[LogKeys, Found] = Batch(self._heads, most=_HEADS)

    @property
    def writable(self) -> bool:
        return self._line.publishes and self._nodes.alive

    @property
    def incarnation(self) -> str:
        return self._nodes.incarnation

    def next_number(self) -> int:
        self._number += 1
        return self._number

    def envelope(self, kind: Kind, number: int, name: str, body: bytes, skip_session: str | None = None) -> Envelope:
        """Signed under the present incarnation, stamped with Redis' time."""
        return Envelope(
            VERSION, kind, self._nodes.incarnation, number, self._nodes.clock.now_ms(), name, body, skip_session
        )

    async def append(
        self, keys: LogKeys, number: int, name: str, body: bytes, skip_session: str | None, *, budget_s: float
    ) -> Position:
        for attempt in (1, 2):
            if not self.writable:
                raise ClusterUnavailable()
            envelope = self.envelope("recorded", number, name, body, skip_session)
            sealed = self._signer.seal(keys.channel_bytes, envelope)
            try:
                answer = await self._line.run_script(
                    _PUBLISH,
                    (keys.head, keys.log, keys.channel),
                    sealed,
                    self._new_epoch(),
                    self._deadline_ms(),
                    self._window_ms,
                    LOG_EVENTS,
                    budget_s=budget_s,
                )
            except LinkLost as error:
                self._counters.failed += 1
                raise ClusterUnavailable() from error
            except ServerRefused as error:
                self._counters.failed += 1
                if error.code != "FENCED" or attempt == 2:
                    raise ClusterUnavailable(str(error)) from error
                # Our lease ended, or our idea of Redis' clock is off: a heartbeat mends both.
                await self._renew()
                continue
            self._counters.published += 1
            epoch, _, offset = answer.decode().partition(":")
            return Position(epoch, int(offset))
        raise ClusterUnavailable()

    async def read(self, keys: LogKeys, start: int | None = None) -> Found:
        """Where the log stands, and its entries from the offset `start` on; without one, only the last entry."""
        if start is None:
            return await self._asked.ask(keys)
        head, arrivals, _ = await self._read(keys, start)
        return head, arrivals

    async def read_on_arrival(self, keys: LogKeys, start: int) -> tuple[Head, list[Arrival], int]:
        """The same of a log that this node has just begun to hear, which the others are told; and how many hear it."""
        head, arrivals, more = await self._read(keys, start, self._arrived(keys))
        return head, arrivals, int(more[0])

    def _arrived(self, keys: LogKeys) -> bytes:
        return self._signer.seal(keys.channel_bytes, self.envelope("arrived", self.next_number(), "", b""))

    async def _read(self, keys: LogKeys, start: int, *announcement: bytes) -> tuple[Head, list[Arrival], list[Any]]:
        self._demand_answers()
        arguments: tuple[bytes | str | int, ...] = (self._new_epoch(), start, LOG_EVENTS + 1, *announcement)
        try:
            epoch, offset, found, *more = await self._line.run_script(
                _READ, (keys.head, keys.log, keys.channel), *arguments, budget_s=READ_S
            )
        except (LinkLost, ServerRefused) as error:
            raise ClusterUnavailable() from error
        return (*self._found(keys, epoch, offset, found), more)

    async def heads_on_arrival(self, logs: Sequence[LogKeys]) -> Sequence[tuple[Head, list[Arrival], int]]:
        """Where logs stand that this node has just begun to hear, each with its last entry and how many hear it; where
        others do, they have been told.
        """
        found: list[tuple[Head, list[Arrival], int]] = []
        for start in range(0, len(logs), _HEADS):
            some = logs[start : start + _HEADS]
            answers = await self._stand(some, "1")
            found += [
                (*self._found(keys, *answer), hearers) for keys, (*answer, hearers) in zip(some, answers, strict=True)
            ]
        # Alone, it would tell itself.
        await self._announce([keys for keys, (_, _, hearers) in zip(logs, found, strict=True) if hearers != 1])
        return found

    async def _announce(self, logs: Sequence[LogKeys]) -> None:
        calls = [
            self._line.call("SPUBLISH", keys.channel, b"\n" + self._arrived(keys), budget_s=PUBLISH_S) for keys in logs
        ]
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise ClusterUnavailable() from outcome

    async def _heads(self, logs: Sequence[LogKeys]) -> Sequence[Found]:
        # Many ask for the same room at the same time.
        unique = list(dict.fromkeys(logs))
        answers = await self._stand(unique)
        found = {keys: self._found(keys, *answer) for keys, answer in zip(unique, answers, strict=True)}
        return [found[keys] for keys in logs]

    async def _stand(self, logs: Sequence[LogKeys], *count: str) -> Sequence[Any]:
        self._demand_answers()
        together = [logs] if self._line.spans else [[keys] for keys in logs]
        asked = [
            self._line.run_script(
                _HEADS_OF,
                [name for keys in some for name in (keys.head, keys.log, keys.channel)],
                self._new_epoch(),
                *count,
                budget_s=READ_S,
            )
            for some in together
        ]
        answers: list[Any] = []
        for outcome in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(outcome, LinkLost | ServerRefused):
                raise ClusterUnavailable() from outcome
            if isinstance(outcome, BaseException):
                raise outcome
            answers += outcome
        return answers

    def _demand_answers(self) -> None:
        if not self._line.publishes:
            # Nobody waits for a server that is known to be silent: others may stand behind, for their turn.
            raise ClusterUnavailable()

    def _found(self, keys: LogKeys, epoch: bytes, offset: bytes, found: Sequence[bytes]) -> Found:
        head = Head(epoch.decode(), int(offset))
        arrivals: list[Arrival] = []
        for wire in found:
            opened = self._signer.open(keys.channel_bytes, wire)
            if opened is None or opened[0] is None or opened[1].kind != "recorded" or opened[0].epoch != head.epoch:
                self._counters.unverified += 1
                continue
            arrivals.append((opened[0], opened[1]))
        return head, arrivals

    async def leave_epoch(self, keys: LogKeys, incomplete: str) -> None:
        """A new epoch, unless the log has already left the `incomplete` one."""
        await self._begin_anew(keys, incomplete)

    async def begin_anew(self, keys: LogKeys, age_s: float) -> None:
        """A new epoch, unless one has begun since an event that the log lacks happened, `age_s` ago."""
        # By its age: Redis' clock after a failover need not be the one that we knew when it happened.
        await self._begin_anew(keys, "", int(age_s * 1000) + 1)

    async def _begin_anew(self, keys: LogKeys, incomplete: str, *age_ms: int) -> None:
        marker = self._signer.seal(keys.channel_bytes, self.envelope("reset", self.next_number(), "", b""))
        arguments: tuple[Any, ...] = (incomplete, self._new_epoch(), marker, self._deadline_ms(), *age_ms)
        try:
            await self._line.run_script(_RESET, (keys.head, keys.log, keys.channel), *arguments, budget_s=TELL_S)
        except ServerRefused as error:
            if error.code == "FENCED":
                await self._renew()
            raise ClusterUnavailable() from error
        except LinkLost as error:
            raise ClusterUnavailable() from error

    def _deadline_ms(self) -> int:
        return min(self._nodes.lease_until_ms, self._nodes.clock.now_ms() + LATE_MS)

    def _new_epoch(self) -> str:
        """One that no room has ever had."""
        self._offered += 1
        return f"{self._own}{self._offered:x}"

    async def _renew(self) -> None:
        try:
            async with asyncio.timeout(PUBLISH_S):
                await self._nodes.beat()
        except TimeoutError as error:
            raise ClusterUnavailable() from error
