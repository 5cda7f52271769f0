"""A listener that writes down what a node heard."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import msgspec

from hub.cluster import Cluster
from hub.cluster.line import Line

SECRET = b"a secret of the tests, long enough"


@dataclass
class Ear:
    """What one node delivered, in order."""

    events: list[dict[str, Any]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    skipped: list[str | None] = field(default_factory=list)
    users: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    controls: list[dict[str, Any]] = field(default_factory=list)
    resyncs: list[UUID] = field(default_factory=list)
    user_resyncs: list[str] = field(default_factory=list)
    flags: list[bool] = field(default_factory=list)

    def deliver_room(
        self, call_id: UUID, offset: int | None, epoch: str, name: str, body: bytes, skip_session: str | None
    ) -> None:
        event = msgspec.json.decode(body, type=dict[str, Any])
        assert event["call_id"] == str(call_id)
        assert event.get("offset") == offset
        assert event["epoch"] == epoch
        self.events.append(event)
        self.names.append(name)
        self.skipped.append(skip_session)

    def deliver_user(self, tenant_id: UUID, user_id: str, name: str, body: bytes) -> None:
        self.users.append((user_id, name, msgspec.json.decode(body)))

    def control(self, message: dict[str, Any]) -> None:
        self.controls.append(message)

    def resynced(self, call_id: UUID) -> None:
        self.resyncs.append(call_id)

    def resynced_user(self, tenant_id: UUID, user_id: str) -> None:
        self.user_resyncs.append(user_id)

    def degraded(self, on: bool) -> None:
        self.flags.append(on)

    @property
    def offsets(self) -> list[int]:
        return [event["offset"] for event in self.events]

    @property
    def said(self) -> list[str]:
        return [event["text"] for event in self.events]


def line_of(cluster: Cluster) -> Line:
    """The bus's line to its one server."""
    line = cluster.bus._line
    assert isinstance(line, Line)
    return line


async def until(fact: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Waits for something to become true; TimeoutError if it does not."""
    async with asyncio.timeout(timeout_s):
        while not fact():  # noqa: ASYNC110  # any fact, also one that tells nobody when it becomes true
            await asyncio.sleep(0.005)
