"""The media servers by region, and how one of them is called: a deadline, a breaker, our own errors."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from time import monotonic
from typing import TypeVar

import aiohttp
from google.protobuf.message import DecodeError
from livekit.api import LiveKitAPI, ServerError, ServerErrorCode

from hub.media.values import Server
from hub.protocol.errors import HubError, MediaError, MediaUnavailable, NotFound

TIMEOUT_S = 2.5
OPEN_AFTER = 3
RETRY_AFTER_S = 1.0

Result = TypeVar("Result")
# method, outcome (ok, not_found, media_error, media_unavailable, refused_early, abandoned), seconds
Observe = Callable[[str, str, float], None]
_LATER = {ServerErrorCode.UNAVAILABLE, ServerErrorCode.DEADLINE_EXCEEDED, ServerErrorCode.RESOURCE_EXHAUSTED}
_KEY_REFUSED = {ServerErrorCode.UNAUTHENTICATED, ServerErrorCode.PERMISSION_DENIED}


class Breaker:
    """Fails fast after three failures in a row, and lets one call try again after a second. `now` is monotonic.

    A timeout counts once per room until something succeeds: LiveKit never answers for one room whose node died,
    or that it does not know, while it serves all others.
    """

    def __init__(self) -> None:
        self._failures = 0
        self._rooms: set[str] = set()
        self._opened_at: float | None = None
        self._probing = False

    def admit(self, now: float) -> None:
        """Raises MediaUnavailable while open. Whoever is admitted says afterwards how it went."""
        if self._opened_at is None:
            return
        if self._probing or now < self._opened_at + RETRY_AFTER_S:
            left_s = max(0.0, self._opened_at + RETRY_AFTER_S - now)
            raise MediaUnavailable(retry_after_ms=max(100, int(left_s * 1000)))
        self._probing = True

    def succeeded(self) -> None:
        self._failures = 0
        self._rooms.clear()
        self._opened_at = None
        self._probing = False

    def failed(self, now: float, room: str | None) -> None:
        if room is None:
            self._failures += 1
        else:
            self._rooms.add(room)
        if self._opened_at is not None or self._failures + len(self._rooms) >= OPEN_AFTER:
            self._opened_at = now
            self._rooms.clear()
        self._probing = False

    def abandoned(self) -> None:
        """The caller gave up before there was an answer: nothing was learned."""
        self._probing = False


class Region:
    """One LiveKit and its breaker."""

    def __init__(
        self, server: Server, session: aiohttp.ClientSession, timeout_s: float, observe: Observe | None
    ) -> None:
        self.server = server
        self.breaker = Breaker()
        self._timeout_s = timeout_s
        self._observe = observe
        # Failover is for LiveKit's own cloud, and would sleep past our deadline.
        self._api = LiveKitAPI(server.url, server.api_key, server.api_secret, session=session, failover=False)

    async def call(
        self,
        method: str,
        work: Callable[[LiveKitAPI], Awaitable[Result]],
        *,
        room: str | None = None,
        twice: bool = True,
    ) -> Result:
        """Run `work` under the deadline. `room`: what it concerns, None for the server as a whole.

        `twice`: harmless to repeat, so it is tried again when a kept connection turns out to be dead, as after a
        restart of LiveKit. Raises NotFound, MediaError or MediaUnavailable.
        """
        started = monotonic()
        outcome = "refused_early"
        try:
            self.breaker.admit(started)
            outcome = "abandoned"
            result = await self._guarded(work, room, twice)
            outcome = "ok"
            return result
        except HubError as error:
            outcome = error.code if outcome == "abandoned" else outcome
            raise
        finally:
            if outcome == "abandoned":
                self.breaker.abandoned()
            if self._observe:
                self._observe(method, outcome, monotonic() - started)

    async def _guarded(self, work: Callable[[LiveKitAPI], Awaitable[Result]], room: str | None, twice: bool) -> Result:
        try:
            # The library's own timeout has no effect: every call passes "none" to aiohttp.
            async with asyncio.timeout(self._timeout_s):
                result = await self._once_or_twice(work, twice)
        except ServerError as error:
            raise self._answered(error) from (None if error.code in _KEY_REFUSED else error)
        except DecodeError as error:
            self.breaker.succeeded()
            raise MediaError("what answers at the media server's address is not LiveKit") from error
        except AttributeError as error:
            # The library trips over an error whose JSON is no object, as that of a proxy with nobody behind it.
            self.breaker.failed(monotonic(), None)
            raise MediaUnavailable() from error
        except TimeoutError as error:
            self.breaker.failed(monotonic(), room)
            raise MediaUnavailable("the media server did not answer in time") from error
        except aiohttp.ClientError as error:
            self.breaker.failed(monotonic(), None)
            raise MediaUnavailable() from error
        self.breaker.succeeded()
        return result

    async def _once_or_twice(self, work: Callable[[LiveKitAPI], Awaitable[Result]], twice: bool) -> Result:
        try:
            return await work(self._api)
        except aiohttp.ClientConnectorError:
            raise
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            if not twice:
                raise
            return await work(self._api)

    def _answered(self, error: ServerError) -> HubError:
        """Our error for an answer that came; a proxy's page has the code "unknown" and counts as no answer."""
        details = {"code": error.code, "status": error.status}
        if error.code == ServerErrorCode.UNKNOWN and error.status >= 500:
            self.breaker.failed(monotonic(), None)
            return MediaUnavailable(details=details)
        self.breaker.succeeded()
        if error.code == ServerErrorCode.NOT_FOUND:
            return NotFound("the media server has no such room, participant or track")
        if error.code in _LATER:
            return MediaUnavailable(details=details)
        if error.code in _KEY_REFUSED:
            # LiveKit repeats the token in its message, so nothing of it goes on, the chained exception neither.
            return MediaError("the media server does not accept this hub's API key", details=details)
        message = error.message.removeprefix("twirp error unknown: ")[:200]
        return MediaError(f"the media server refused: {message}", details=details)


class Regions:
    """A region that has no server of its own is served by the default one."""

    def __init__(self, regions: Mapping[str, Region], default: str) -> None:
        self._regions = dict(regions)
        self._default = default

    def __getitem__(self, name: str | None) -> Region:
        return self._regions.get(name or self._default) or self._regions[self._default]

    def __contains__(self, name: str) -> bool:
        return name in self._regions
