"""The bus's pair of connections to one Redis: one that publishes, one that hears; kept alive, watched and
re-subscribed.

Every second a tick goes out on the first and must come back on the second. Three missing ticks are a dead
subscription, also on a link that still looks open: both connections are dropped and made again.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

import structlog

from hub.cluster.link import Endpoint, Link, LinkLost, ServerRefused, connect
from hub.cluster.redis import WRONG_SERVER, Script
from hub.protocol.errors import ClusterUnavailable

log = structlog.get_logger(__name__)

TICK_S = 1.0
# The third tick in a row is out and the first of them is this old: the subscription is dead.
DEAF_S = 2 * TICK_S + 0.25
_STEP_S = 0.25
CONNECT_S = 0.5
BACKOFF_S = (0.05, 1.0)
# A command without an answer for this long: the server does not serve us now, later ones need not wait as well.
STALLED_S = 0.5
SUBSCRIBE_S = 0.5
_RESUBSCRIBE_S = 5.0
_CHANNELS_PER_COMMAND = 500


class Ear(Protocol):
    """What hears the line."""

    def message(self, channel: bytes, wire: bytes) -> None: ...
    def line_up(self) -> None:
        """Every wanted channel is subscribed again; what was said meanwhile was not heard."""
        ...

    def line_down(self) -> None: ...


class Line:
    def __init__(
        self,
        endpoint: Callable[[], Coroutine[Any, Any, Endpoint]],
        *,
        tick_channel: str,
        scripts: tuple[Script, ...],
        one_slot: bool = False,
    ) -> None:
        """`one_slot`: no command may be about channels of several slots, as in a Redis Cluster."""
        self._one_slot = one_slot
        self._endpoint = endpoint
        self.ear: Ear | None = None
        self._tick_channel = tick_channel.encode()
        self._scripts = scripts
        self._publish: Link | None = None
        self._hear: Link | None = None
        self._loaded = False
        # channel → sharded; what shall be subscribed, whether or not it is at this moment.
        self._wanted: dict[bytes, bool] = {}
        # One future for each SUBSCRIBE sent, in order: a quick leave and return gets the second answer, not the first.
        self._confirming: dict[bytes, deque[asyncio.Future[None]]] = {}
        # number → when it was sent, of the ticks not yet heard.
        self._ticks: dict[int, float] = {}
        self._tick = 0
        self._serving = asyncio.Event()
        self.reconnects = 0

    @property
    def spans(self) -> bool:
        """A script may be about keys of several slots."""
        return not self._one_slot

    @property
    def up(self) -> bool:
        """Both connections serve, every wanted channel is subscribed."""
        return self._serving.is_set()

    @property
    def publishes(self) -> bool:
        """The server takes commands now. It may do so while the subscriptions are being made again."""
        link = self._publish
        return link is not None and link.up and self._loaded and link.oldest_wait_s() <= STALLED_S

    @property
    def hears(self) -> bool:
        """Up, and the last tick but one came back: what others say now is heard within a second or so."""
        return self._serving.is_set() and len(self._ticks) < 2

    async def wait_up(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await self._serving.wait()
        except TimeoutError:
            return False
        return True

    # Commands

    def call(self, *words: bytes | str | int, budget_s: float) -> asyncio.Future[Any]:
        """See `Link.call`."""
        if self._publish is None:
            future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            future.set_exception(LinkLost("not connected"))
            return future
        return self._publish.call(*words, budget_s=budget_s)

    def tell(self, *words: bytes | str | int, budget_s: float, then: Callable[[Any], None]) -> None:
        """See `Link.tell`."""
        if self._publish is None:
            then(LinkLost("not connected"))
        else:
            self._publish.tell(*words, budget_s=budget_s, then=then)

    async def run_script(self, script: Script, keys: Sequence[str], *args: bytes | str | int, budget_s: float) -> Any:
        """Raises ServerRefused or LinkLost. All scripts of one loop turn leave in one write."""
        try:
            return await self.call("EVALSHA", script.sha, len(keys), *keys, *args, budget_s=budget_s)
        except ServerRefused as error:
            if error.code in WRONG_SERVER:
                self.drop()
            if error.code != "NOSCRIPT":
                raise
        # Loaded on connecting, so somebody flushed the scripts. Nothing has run yet: the text goes along this once.
        return await self.call("EVAL", script.text, len(keys), *keys, *args, budget_s=budget_s)

    # Subscriptions

    async def subscribe(self, channels: Sequence[bytes], *, sharded: bool = True) -> None:
        """Confirmed by the server on return. Raises ClusterUnavailable, and then none of them stays subscribed."""
        self._wanted.update(dict.fromkeys(channels, sharded))
        try:
            if not self.up or not self.publishes or self._hear is None:
                raise LinkLost("not connected, or silent")
            confirmed = self._ask(self._hear, channels, sharded)
            async with asyncio.timeout(SUBSCRIBE_S):
                for each in confirmed:
                    await each
        except BaseException as error:
            for channel in channels:
                self._unsubscribe(channel)
            if isinstance(error, LinkLost | TimeoutError):
                raise ClusterUnavailable() from error
            raise

    def want(self, channel: str, *, sharded: bool) -> None:
        """Subscribe now or whenever the line is up."""
        self._wanted[channel.encode()] = sharded
        if self.up and self._hear is not None:
            self._ask(self._hear, [channel.encode()], sharded)

    def unsubscribe(self, channel: str) -> None:
        self._unsubscribe(channel.encode())

    def _unsubscribe(self, name: bytes) -> None:
        sharded = self._wanted.pop(name, None)
        if sharded is not None and self._hear is not None and self._hear.up:
            self._hear.send("SUNSUBSCRIBE" if sharded else "UNSUBSCRIBE", name)

    def _ask(self, link: Link, names: Sequence[bytes], sharded: bool) -> list[asyncio.Future[None]]:
        loop = asyncio.get_running_loop()
        futures = []
        for name in names:
            future: asyncio.Future[None] = loop.create_future()
            self._confirming.setdefault(name, deque()).append(future)
            futures.append(future)
        if sharded and self._one_slot:
            for name in names:
                link.send("SSUBSCRIBE", name)
        else:
            link.send("SSUBSCRIBE" if sharded else "SUBSCRIBE", *names)
        return futures

    def _heard(self, reply: Any) -> None:
        if not isinstance(reply, list):
            # Nobody waits for answers on this connection: an error here is a subscription that was refused.
            log.error("subscription refused", error=str(reply))
            self.drop()
            return
        kind, channel = reply[0], reply[1]
        if kind in (b"smessage", b"message"):
            if channel == self._tick_channel:
                self._tick_heard(reply[2])
            else:
                if self.ear is not None:
                    self.ear.message(channel, reply[2])
        elif kind in (b"ssubscribe", b"subscribe"):
            waiting = self._confirming.get(channel)
            if waiting:
                future = waiting.popleft()
                if not waiting:
                    del self._confirming[channel]
                if not future.done():
                    future.set_result(None)

    # Life

    async def run(self) -> None:
        """Connects, watches, connects again; until cancelled."""
        wait_s = BACKOFF_S[0]
        try:
            while True:
                try:
                    await self._connect()
                except (LinkLost, ClusterUnavailable, TimeoutError) as error:
                    self.drop()
                    self._clear_away()
                    log.warning("redis unreachable", error=str(error), retry_in_s=round(wait_s, 2))
                    await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
                    wait_s = min(wait_s * 2, BACKOFF_S[1])
                    continue
                wait_s = BACKOFF_S[0]
                self._serving.set()
                log.info("redis connected", channels=len(self._wanted))
                if self.ear is not None:
                    self.ear.line_up()
                await self._watch()
                self.reconnects += 1
                self._clear_away()
                log.warning("redis lost", publishing=self.publishes)
        finally:
            self.drop()
            self._clear_away()

    def drop(self) -> None:
        """Give the connections up; `run` makes new ones."""
        for link in (self._publish, self._hear):
            if link is not None:
                link.close()

    def _clear_away(self) -> None:
        """Let go of what is dead. A connection that still publishes stays: its events are in the log, to be read
        later.
        """
        self._serving.clear()
        if self.ear is not None:
            self.ear.line_down()
        if self._publish is not None and not self._publish.up:
            self._publish, self._loaded = None, False
        if self._hear is None or self._hear.up:
            return
        self._hear = None
        confirming, self._confirming = self._confirming, {}
        for waiting in confirming.values():
            for future in waiting:
                if not future.done():
                    future.set_exception(LinkLost("connection lost"))
                    # Nobody may be waiting any more: then it is no news.
                    future.exception()

    async def _connect(self) -> None:
        endpoint = await self._endpoint()
        if self._publish is None:
            self._publish = await connect(endpoint, timeout_s=CONNECT_S)
            for script in self._scripts:
                await self._load(self._publish, script)
            self._loaded = True
        if self._hear is not None:
            return
        self._ticks.clear()
        self._hear = await connect(endpoint, timeout_s=CONNECT_S, on_push=self._heard)
        confirmed = self._ask(self._hear, [self._tick_channel], sharded=False)
        asked = dict(self._wanted)
        for sharded in (True, False):
            names = [name for name, kind in asked.items() if kind is sharded]
            for start in range(0, len(names), _CHANNELS_PER_COMMAND):
                confirmed += self._ask(self._hear, names[start : start + _CHANNELS_PER_COMMAND], sharded)
        async with asyncio.timeout(_RESUBSCRIBE_S):
            await asyncio.gather(*confirmed)
        # Whatever became wanted meanwhile saw a line that was down, and was not asked for.
        for name in self._wanted.keys() - asked.keys():
            self._ask(self._hear, [name], self._wanted[name])

    async def _load(self, link: Link, script: Script) -> None:
        try:
            await link.call("SCRIPT", "LOAD", script.text)
        except ServerRefused as error:
            raise LinkLost(str(error)) from error

    async def _watch(self) -> None:
        """Returns when a connection is lost or the ticks do not come back."""
        loop = asyncio.get_running_loop()
        next_tick = loop.time()
        while self._publish is not None and self._hear is not None and self._publish.up and self._hear.up:
            now = loop.time()
            if self._ticks and now - next(iter(self._ticks.values())) > DEAF_S:
                log.warning("redis link is deaf", unheard_ticks=len(self._ticks))
                self._hear.close()
                if not self.publishes:
                    self._publish.close()
                return
            if now >= next_tick:
                self._send_tick(self._publish, now)
                next_tick = now + TICK_S
            done, _ = await asyncio.wait(
                (self._publish.lost, self._hear.lost), timeout=_STEP_S, return_when=asyncio.FIRST_COMPLETED
            )
            if done:
                return

    def _send_tick(self, link: Link, now: float) -> None:
        self._tick += 1
        self._ticks[self._tick] = now
        link.call("PUBLISH", self._tick_channel, self._tick, budget_s=TICK_S).add_done_callback(_ignore)

    def _tick_heard(self, data: bytes) -> None:
        # Ticks carry a number that we sent and did not hear yet: somebody else's cannot hide that we are deaf.
        try:
            number = int(data)
        except ValueError:
            return
        if number in self._ticks:
            for older in [tick for tick in self._ticks if tick <= number]:
                del self._ticks[older]


def _ignore(future: asyncio.Future[Any]) -> None:
    """The ticks that come back tell what we want to know."""
    if not future.cancelled():
        future.exception()
