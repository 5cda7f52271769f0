"""One server's link for commands, made again whenever it is lost."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine

from hub.cluster.link import Endpoint, Link, LinkLost, connect
from hub.protocol.errors import ClusterUnavailable

# A command that does not answer in this time is answered for by the caller: every socket command has 3 s in all.
COMMAND_BUDGET_S = 0.5
CONNECT_S = 0.5
_BACKOFF_S = (0.05, 0.5)


class Way:
    def __init__(self, endpoint: Callable[[], Coroutine[None, None, Endpoint]]) -> None:
        """`endpoint` says where the server is now, or raises ClusterUnavailable."""
        self._endpoint = endpoint
        self.link: Link | None = None
        # The task that makes a new link, while one is missing.
        self._connecting: asyncio.Task[None] | None = None
        # The last thing known of the server is that it does not answer.
        self._silent = False
        self._hint = asyncio.Event()

    def look_again(self) -> None:
        """The server may be back: try at once, and let who asks wait for it."""
        self._silent = False
        if self._connecting is not None:
            self._hint.set()

    async def serving(self) -> Link:
        """The link, or a new one in place of one that was lost.

        Raises LinkLost or TimeoutError: at once where a server is known to be silent. Many may ask one after the
        other, in their turns, and must not wait for it one after the other as well.
        """
        link = self.link
        if link is not None and link.up:
            if link.oldest_wait_s() <= COMMAND_BUDGET_S:
                return link
            # It may be half open.
            link.close()
            self._silent = True
        if self._connecting is None:
            self._connecting = asyncio.ensure_future(self._connect())
        if self._silent:
            raise LinkLost("the server is silent")
        async with asyncio.timeout(COMMAND_BUDGET_S):
            await asyncio.shield(self._connecting)
        assert self.link is not None
        return self.link

    async def _connect(self) -> None:
        """Until it is done: as long as nobody asks, there may be nobody to see it fail."""
        wait_s = _BACKOFF_S[0]
        try:
            while True:
                try:
                    self.link = await connect(await self._endpoint(), timeout_s=CONNECT_S)
                    self._silent = False
                    return
                except (LinkLost, ClusterUnavailable):
                    # A try that began before the hint says nothing against it.
                    self._silent = not self._hint.is_set()
                await self._pause(wait_s * random.uniform(0.5, 1.0))
                wait_s = min(wait_s * 2, _BACKOFF_S[1])
        finally:
            self._connecting = None
            self._hint.clear()

    async def _pause(self, at_most_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(at_most_s):
                await self._hint.wait()
        self._hint.clear()

    def close(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
        if self.link is not None:
            self.link.close()
