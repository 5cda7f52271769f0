"""A real WebRTC client as a test sees it: `rtc_client.py` in a process of its own, its events, its commands."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

_SCRIPT = Path(__file__).with_name("rtc_client.py")


class RtcClient:
    """`await RtcClient.start(url, token, audio=True)`; end it with `leave()` or `kill()`, or use it as a context."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.events: list[dict[str, Any]] = []
        self._news = asyncio.Condition()
        self._reader = asyncio.create_task(self._read(), name="rtc client")

    @classmethod
    async def start(
        cls,
        url: str,
        token: str,
        *,
        seconds: float = 60,
        audio: bool = False,
        video: bool = False,
        screen: bool = False,
    ) -> Self:
        flags = [f"--{name}" for name, on in (("audio", audio), ("video", video), ("screen", screen)) if on]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(_SCRIPT), "--url", url, "--token", token, "--seconds", str(seconds), *flags),
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
        )
        return cls(process)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    async def wait_for(self, event: str, *, timeout_s: float = 15, **fields: Any) -> dict[str, Any]:
        """The first such event, past or to come. Raises TimeoutError, or AssertionError when the client ended."""

        def found() -> dict[str, Any] | None:
            return next((seen for seen in self.events if _matches(seen, event, fields)), None)

        async with asyncio.timeout(timeout_s), self._news:
            while (seen := found()) is None:
                assert not self._reader.done(), f"ended without {event}: {self.events}"
                await self._news.wait()
            return seen

    def seen(self, event: str, **fields: Any) -> bool:
        return any(_matches(seen, event, fields) for seen in self.events)

    async def tell(self, do: str, **fields: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **fields}).encode() + b"\n")
        await self.process.stdin.drain()

    async def leave(self) -> int:
        """The orderly way; its exit code."""
        await self.tell("leave")
        return await self.ended()

    async def ended(self, timeout_s: float = 15) -> int:
        async with asyncio.timeout(timeout_s):
            code = await self.process.wait()
            await self._reader
        return code

    async def kill(self) -> None:
        """Without a word, as a crash."""
        with suppress(ProcessLookupError):
            self.process.kill()
        await self.ended()

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            async with self._news:
                self.events.append(json.loads(line))
                self._news.notify_all()
        async with self._news:
            self._news.notify_all()


def _matches(seen: dict[str, Any], event: str, fields: dict[str, Any]) -> bool:
    return seen["event"] == event and all(seen.get(name) == value for name, value in fields.items())
