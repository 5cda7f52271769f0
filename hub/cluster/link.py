"""One connection to Redis: RESP through hiredis on a plain asyncio protocol.

There is no connection pool: commands of one loop turn leave in one write and in order, messages arrive in a callback
instead of a task, and no command waits longer than it may. A command costs a tenth of what it costs by redis-py.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

import hiredis
import msgspec

# Above this the peer does not read what we write; waiting would only pile up memory.
WRITE_BUFFER_BYTES = 8 * 1024 * 1024
WAITING_COMMANDS = 50_000
# How often commands are looked at for their age. One timer for all of them: a timer per publish costs more than the
# publish.
_AGE_CHECK_S = 0.05
_READ_FIRST_S = 0.005

Word = bytes | str | int | float
OnPush = Callable[[Any], None]


class LinkLost(Exception):
    """The connection is gone, was never there, or did not answer in time."""


class ServerRefused(Exception):
    """Redis answered with an error; its first word is `code`."""

    @property
    def code(self) -> str:
        return str(self).partition(" ")[0]


class Endpoint(msgspec.Struct, frozen=True):
    """Where a Redis server listens and how to enter: a host and port, or the path of a socket."""

    host: str = "127.0.0.1"
    port: int = 6379
    path: str | None = None
    username: str | None = None
    password: str | None = None
    db: int = 0
    tls: ssl.SSLContext | None = None


class _Hearer:
    """In place of a future, for who wants no more than to be called: a future calls a turn later, and costs more than
    the command."""

    __slots__ = ("_done", "_then")

    def __init__(self, then: Callable[[Any], None]) -> None:
        self._then, self._done = then, False

    def done(self) -> bool:
        return self._done

    def set_result(self, outcome: Any) -> None:
        self._done = True
        self._then(outcome)

    set_exception = set_result

    def exception(self) -> None:
        """It has been told."""


# What waits for a reply, since when, and until when: of the loop's clock.
_Waiting = tuple[asyncio.Future[Any] | _Hearer, float, float]


class Link(asyncio.Protocol):
    """`call` for commands, `send` for subscriptions, never both at once: what nobody waits for goes to `on_push`."""

    def __init__(self, on_push: OnPush | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(replyError=ServerRefused)
        self._on_push = on_push
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self._waiting: deque[_Waiting] = deque()
        self._age_check: asyncio.TimerHandle | None = None
        self.lost: asyncio.Future[None] = self._loop.create_future()

    @property
    def up(self) -> bool:
        return self._transport is not None and not self.lost.done()

    def oldest_wait_s(self) -> float:
        """For how long the oldest command has been without an answer, whether or not somebody still waits for it."""
        return self._loop.time() - self._waiting[0][1] if self._waiting else 0.0

    def call(self, *words: Word, budget_s: float = 1.0) -> asyncio.Future[Any]:
        """Send a command; the future brings the reply or raises ServerRefused, or LinkLost within the budget."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self._call(future, words, budget_s)
        return future

    def tell(self, *words: Word, budget_s: float, then: Callable[[Any], None]) -> None:
        """The same without a future: `then` is called with the reply, or with the error. It must not raise."""
        self._call(_Hearer(then), words, budget_s)

    def _call(self, hearer: asyncio.Future[Any] | _Hearer, words: tuple[Word, ...], budget_s: float) -> None:
        if not self.up:
            hearer.set_exception(LinkLost("not connected"))
            return
        if len(self._waiting) >= WAITING_COMMANDS or self._buffered() > WRITE_BUFFER_BYTES:
            hearer.set_exception(LinkLost("too much is waiting for the server"))
            return
        now = self._loop.time()
        self._waiting.append((hearer, now, now + budget_s))
        if self._age_check is None:
            self._age_check = self._loop.call_later(_AGE_CHECK_S, self._look_at_ages)
        self.send(*words)

    def send(self, *words: Word) -> None:
        """Send a command whose answer comes as a push."""
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(hiredis.pack_command(cast("Any", words)))

    def close(self) -> None:
        if self._transport is not None:
            # Not close(): on a half-open link it would wait for a buffer that never drains.
            self._transport.abort()
        self._end(None)

    def _buffered(self) -> int:
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def _flush(self) -> None:
        out, self._out = self._out, []
        if out and self.up and self._transport is not None:
            self._transport.write(b"".join(out))

    def _look_at_ages(self) -> None:
        # After a stall of the loop the timer may come before the replies that wait in the socket: read those first.
        self._age_check = self._loop.call_later(_READ_FIRST_S, self._expire)

    def _expire(self) -> None:
        now = self._loop.time()
        # Whoever is told may call again.
        for hearer, _, deadline in list(self._waiting):
            if deadline <= now and not hearer.done():
                # It keeps its place, so that the replies that follow find theirs.
                hearer.set_exception(LinkLost("no answer in time"))
        self._age_check = self._loop.call_later(_AGE_CHECK_S, self._look_at_ages) if self._waiting else None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        reader.feed(data)
        try:
            while (reply := reader.gets()) is not False:
                if self._waiting:
                    self._answer(self._waiting.popleft()[0], reply)
                elif self._on_push is not None:
                    self._on_push(reply)
        except hiredis.ProtocolError as error:
            self._end(error)
            if self._transport is not None:
                self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc)

    def _answer(self, future: asyncio.Future[Any] | _Hearer, reply: Any) -> None:
        if future.done():
            return
        if isinstance(reply, ServerRefused):
            future.set_exception(reply)
        else:
            future.set_result(reply)

    def _end(self, cause: Exception | None) -> None:
        if self._age_check is not None:
            self._age_check.cancel()
            self._age_check = None
        if not self.lost.done():
            self.lost.set_result(None)
        while self._waiting:
            future = self._waiting.popleft()[0]
            if not future.done():
                future.set_exception(LinkLost(f"connection lost: {cause or 'closed'}"))
                # Nobody may be waiting any more: then it is no news.
                future.exception()


async def connect(endpoint: Endpoint, *, timeout_s: float, on_push: OnPush | None = None) -> Link:
    """An authenticated link. Raises LinkLost within `timeout_s`, also when the server refuses the credentials."""
    loop = asyncio.get_running_loop()
    link = Link(on_push)
    try:
        async with asyncio.timeout(timeout_s):
            if endpoint.path is not None:
                await loop.create_unix_connection(lambda: link, endpoint.path)
            else:
                await loop.create_connection(lambda: link, endpoint.host, endpoint.port, ssl=endpoint.tls)
            for words in _greeting(endpoint):
                await link.call(*words)
            await link.call("PING")
    except (OSError, TimeoutError, ServerRefused, LinkLost) as error:
        link.close()
        raise LinkLost(f"{type(error).__name__}: {error}") from error
    except BaseException:
        link.close()
        raise
    return link


def _greeting(endpoint: Endpoint) -> Sequence[tuple[Word, ...]]:
    words: list[tuple[Word, ...]] = []
    if endpoint.password is not None:
        user = (endpoint.username,) if endpoint.username else ()
        words.append(("AUTH", *user, endpoint.password))
    if endpoint.db:
        words.append(("SELECT", endpoint.db))
    return words
