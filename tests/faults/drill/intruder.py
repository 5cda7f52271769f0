"""Somebody with the password of Redis: listens to every channel, publishes what they like."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

from hub.cluster.link import Endpoint, Link, connect

_STEP_S = 5.0


class Intruder:
    def __init__(self) -> None:
        # When, on which channel, what; since `overhear`.
        self.heard: list[tuple[float, bytes, bytes]] = []
        self._speaking: Link | None = None
        self._listening: Link | None = None

    async def enter(self, url: str) -> None:
        parts = urlsplit(url)
        endpoint = Endpoint(parts.hostname or "", parts.port or 0, password=unquote(parts.password or ""))
        self._speaking = await connect(endpoint, timeout_s=_STEP_S)
        self._listening = await connect(endpoint, timeout_s=_STEP_S, on_push=self._hear)

    def leave(self) -> None:
        for link in (self._speaking, self._listening):
            if link is not None:
                link.close()

    async def channels(self, env: str) -> tuple[list[bytes], list[bytes]]:
        """The plain and the sharded ones that somebody of this environment listens to."""
        prefix = f"aura:{env}:*"
        plain = await self.say("PUBSUB", "CHANNELS", prefix)
        return sorted(plain), sorted(await self.say("PUBSUB", "SHARDCHANNELS", prefix))

    async def say(self, *words: bytes | str) -> Any:
        assert self._speaking is not None
        return await self._speaking.call(*words, budget_s=_STEP_S)

    def overhear(self, channels: Sequence[bytes | str]) -> None:
        """Sharded ones."""
        assert self._listening is not None
        self._listening.send("SSUBSCRIBE", *channels)

    def _hear(self, push: Any) -> None:
        if isinstance(push, list) and push[0] == b"smessage":
            self.heard.append((time.monotonic(), push[1], push[2]))


@asynccontextmanager
async def intruder(url: str) -> AsyncIterator[Intruder]:
    made = Intruder()
    try:
        await made.enter(url)
        yield made
    finally:
        made.leave()
