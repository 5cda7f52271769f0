"""Passwords of links, as bcrypt hashes: the only file that knows bcrypt.

bcrypt takes tens of milliseconds of a core on purpose, and lets go of the interpreter meanwhile. It runs in a few
threads of its own, one core is left to the loop, and only so many wait as can have their turn while somebody still
waits for the answer.
"""

from __future__ import annotations

import asyncio
import os
import time
import unicodedata
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

import bcrypt

from hub import metrics
from hub.protocol.errors import RateLimited

T = TypeVar("T")

CHECKS = metrics.counter("password_checks", "Passwords hashed or checked, by outcome", "outcome")

# 50 ms on an ordinary core: each step more is twice the work, for guesser and hub alike, and guessing is throttled.
COST = 10
# bcrypt knows no more of a password; longer ones are refused, never cut.
MOST_BYTES = 72
# About two seconds of work at COST, and no more than these on a machine that is slower or busy.
_WAITING_PER_THREAD = 40
_PATIENCE_S = 3.0
_BUSY_RETRY_MS = 1000


class Passwords:
    """Hashes and checks. Owns its threads: `close()` it."""

    def __init__(
        self,
        *,
        cost: int = COST,
        threads: int | None = None,
        waiting: int | None = None,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        count = threads or max(1, (os.cpu_count() or 2) - 1)
        self._cost = cost
        self._count = count
        self._patience_s = patience_s
        # How long one takes lately.
        self._each_s = 0.0
        self._most = waiting or count * _WAITING_PER_THREAD
        self._under_way = 0
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="passwords")
        # What no password has: to check against it takes as long as against a real one.
        self._nobodys = f"$2b${cost:02}${'.' * 53}".encode()

    async def hash(self, password: str) -> str:
        """Raises ValueError for more than MOST_BYTES, RateLimited while too many wait."""
        plain = encoded(password)
        if len(plain) > MOST_BYTES:
            raise ValueError(f"longer than {MOST_BYTES} bytes")
        return (await self._run(lambda: bcrypt.hashpw(plain, bcrypt.gensalt(self._cost)))).decode()

    async def check(self, password: str, hashed: str | None) -> bool:
        """Whether `hashed` is of this password; exactly one check, whatever the answer. Raises RateLimited.

        `hashed` None, or a password that is too long: False, for the same work.
        """
        plain = encoded(password)
        possible = hashed is not None and len(plain) <= MOST_BYTES
        against = hashed.encode() if hashed is not None and possible else self._nobodys
        right = await self._run(lambda: bcrypt.checkpw(plain[:MOST_BYTES], against))
        CHECKS.labels("right" if right and possible else "wrong").inc()
        return right and possible

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[[], T]) -> T:
        late = self._under_way * self._each_s / self._count > self._patience_s
        if self._under_way >= self._most or (late and self._under_way >= self._count):
            CHECKS.labels("busy").inc()
            raise RateLimited("too many passwords are being checked", retry_after_ms=_BUSY_RETRY_MS)
        self._under_way += 1
        loop = asyncio.get_running_loop()

        def over(_: Future[T]) -> None:
            # The node may have ended meanwhile.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._over)

        future = self._threads.submit(self._timed, work)
        # Not when the caller gives up: what a thread has begun it finishes.
        future.add_done_callback(over)
        return await asyncio.wrap_future(future)

    def _timed(self, work: Callable[[], T]) -> T:
        started = time.perf_counter()
        result = work()
        self._each_s += (time.perf_counter() - started - self._each_s) / 4
        return result

    def _over(self) -> None:
        self._under_way -= 1


def encoded(password: str) -> bytes:
    """As bytes, the same however a keyboard puts its accents together."""
    return unicodedata.normalize("NFC", password).encode()
