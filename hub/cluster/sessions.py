"""Every authenticated socket of a tenant, on all nodes: for operators, not for the calls. Told in batches."""

from __future__ import annotations

import asyncio
from datetime import datetime
from uuid import UUID

import msgspec

from hub.cluster.keys import Keys, text
from hub.cluster.nodes import Nodes
from hub.cluster.redis import Door, Script
from hub.protocol.errors import ClusterUnavailable

_BATCH = 100
_GATHER_S = 0.1
_RETRY_S = 0.5

_SESSIONS, _ROSTER = Script("sessions"), Script("roster")


class SessionInfo(msgspec.Struct, frozen=True):
    session_id: str
    tenant_id: UUID
    user_id: str
    connected_at: datetime
    node_id: str = ""
    incarnation: str = ""
    client: str = ""
    device_id: str | None = None


class Sessions:
    def __init__(self, door: Door, keys: Keys, nodes: Nodes) -> None:
        self._door, self._keys, self._nodes = door, keys, nodes
        self._mine: dict[str, SessionInfo] = {}
        # session_id → tenant; whether it is open or closed stands in `_mine` when the batch leaves.
        self._owed: dict[str, UUID] = {}
        self._wake = asyncio.Event()
        nodes.when_reborn(self._bring_all)

    def opened(self, info: SessionInfo) -> None:
        """On this node. The others see it within a moment, or when Redis is back."""
        self._mine[info.session_id] = info
        self._owed[info.session_id] = info.tenant_id
        self._wake.set()

    def closed(self, session_id: str) -> None:
        info = self._mine.pop(session_id, None)
        if info is not None:
            self._owed[session_id] = info.tenant_id
            self._wake.set()

    async def list(self, tenant_id: UUID) -> list[SessionInfo]:
        """Of all living nodes, the oldest first. Raises ClusterUnavailable."""
        found: list[bytes | int] = await self._door.run(_ROSTER, [self._keys.sessions(tenant_id)], self._keys.presence)
        sessions = []
        for stored, lives in zip(found[::2], found[1::2], strict=True):
            assert isinstance(stored, bytes)
            if lives:
                sessions.append(msgspec.json.decode(stored, type=SessionInfo))
        return sorted(sessions, key=lambda info: info.connected_at)

    async def find(self, tenant_id: UUID, session_id: str) -> SessionInfo | None:
        """On a living node, as the list has it. Raises ClusterUnavailable."""
        stored = await self._door.command("HGET", self._keys.sessions(tenant_id), session_id)
        if stored is None:
            return None
        info = msgspec.json.decode(stored, type=SessionInfo)
        return info if await self._door.command("EXISTS", self._keys.lease(info.incarnation)) else None

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(_GATHER_S)
            self._wake.clear()
            try:
                await self._tell()
            except ClusterUnavailable:
                await asyncio.sleep(_RETRY_S)
                self._wake.set()

    def _bring_all(self) -> None:
        for info in self._mine.values():
            self._owed[info.session_id] = info.tenant_id
        self._wake.set()

    async def _tell(self) -> None:
        while self._owed:
            some = [self._owed.popitem() for _ in range(min(_BATCH, len(self._owed)))]
            incarnation = self._nodes.incarnation
            words: list[bytes | str] = []
            for session_id, tenant_id in some:
                words += (text(tenant_id), session_id, self._row(session_id, incarnation))
            try:
                held = await self._door.run(
                    _SESSIONS, [self._keys.lease(incarnation)], self._keys.presence, incarnation, *words
                )
                if not held:
                    # The next heartbeat gives a new incarnation.
                    raise ClusterUnavailable("this node lost its lease")
            except ClusterUnavailable:
                for session_id, tenant_id in some:
                    self._owed.setdefault(session_id, tenant_id)
                raise

    def _row(self, session_id: str, incarnation: str) -> bytes:
        info = self._mine.get(session_id)
        if info is None:
            return b""
        return msgspec.json.encode(msgspec.structs.replace(info, node_id=self._nodes.node_id, incarnation=incarnation))
