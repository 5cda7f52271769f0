"""The door to Redis: what a URL means, and the Lua scripts of everything but the bus, on one link.

    redis://[user:password@]host:port/db      one server; rediss:// with TLS, unix:///path for a socket
    redis+sentinel://[user:password@]host:port,host:port/service[/db]   the master that the sentinels name

Redis 7.0 or Valkey 7.2 at least. This is the only module that imports redis.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import structlog
from redis.asyncio.connection import parse_url
from redis.asyncio.sentinel import Sentinel
from redis.exceptions import RedisError

from hub.cluster.link import Endpoint, Link, LinkLost, ServerRefused, connect
from hub.protocol.errors import ClusterUnavailable

log = structlog.get_logger(__name__)

# A command that does not answer in this time is answered for by the caller: every socket command has 3 s in all.
COMMAND_BUDGET_S = 0.5
CONNECT_S = 0.5
_BACKOFF_S = (0.05, 0.5)
_LUA = Path(__file__).parent / "lua"

Argument = bytes | str | int | float


class Script:
    """One Lua file."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = (_LUA / f"{name}.lua").read_text()
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


# Answers of a server that is no longer, or not yet, the one to talk to.
WRONG_SERVER = frozenset(("READONLY", "MOVED", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "NOAUTH"))


class Door:
    """Opens links for the bus, and runs scripts for the rest on a link of its own."""

    def __init__(self, url: str) -> None:
        scheme = urlsplit(url).scheme
        self._sentinel: Sentinel | None = None
        self._service = ""
        self._link: Link | None = None
        # The task that makes a new link, while one is missing.
        self._connecting: asyncio.Task[None] | None = None
        # The last thing known of the server is that it does not answer.
        self._silent = False
        if scheme in ("redis", "rediss", "unix"):
            self._endpoint = _endpoint(url)
        elif scheme == "redis+sentinel":
            self._endpoint, self._service, sentinels = _sentinels(url)
            settings: dict[str, Any] = {
                "socket_timeout": CONNECT_S,
                "socket_connect_timeout": CONNECT_S,
                # Else every new connection looks up the version of redis-py on the disk, in the loop.
                "driver_info": None,
            }
            self._sentinel = Sentinel(sentinels, sentinel_kwargs=settings)  # type: ignore[no-untyped-call]
        elif scheme == "redis+cluster":
            raise ValueError("redis+cluster:// is not supported yet: name one server or a sentinel")
        else:
            raise ValueError(f"not a Redis URL: the scheme is {scheme!r}")

    async def endpoint(self) -> Endpoint:
        """Where the bus connects now. Raises ClusterUnavailable when no sentinel knows."""
        if self._sentinel is None:
            return self._endpoint
        try:
            async with asyncio.timeout(CONNECT_S * 2):
                host, port = await self._sentinel.discover_master(self._service)
        except (RedisError, OSError, TimeoutError) as error:
            raise ClusterUnavailable("no sentinel names a master") from error
        found = self._endpoint
        return Endpoint(
            host=host, port=port, username=found.username, password=found.password, db=found.db, tls=found.tls
        )

    async def run(self, script: Script, keys: Sequence[str], *args: Argument) -> Any:
        """The script's answer. Raises ClusterUnavailable within half a second; the script may then have run or not."""
        return await self._ask(("EVALSHA", script.sha, len(keys), *keys, *args), script)

    async def command(self, *words: Argument) -> Any:
        """One plain command, under the same budget."""
        return await self._ask(words)

    async def _ask(self, words: tuple[Argument, ...], script: Script | None = None) -> Any:
        # Nothing is asked twice unasked: what has timed out may have run.
        link = None
        try:
            link = await self._serving()
            try:
                return await link.call(*words, budget_s=COMMAND_BUDGET_S)
            except ServerRefused as error:
                if script is None or error.code != "NOSCRIPT":
                    raise
                return await link.call("EVAL", script.text, *words[2:], budget_s=COMMAND_BUDGET_S)
        except (LinkLost, TimeoutError) as error:
            raise ClusterUnavailable() from error
        except ServerRefused as error:
            if error.code in WRONG_SERVER and link is not None:
                link.close()
            raise ClusterUnavailable() from error

    async def _serving(self) -> Link:
        """The link, or a new one in place of one that was lost.

        Raises LinkLost or TimeoutError: at once where a server is known to be silent. Many may ask one after the
        other, in their turns, and must not wait for it one after the other as well.
        """
        link = self._link
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
        assert self._link is not None
        return self._link

    async def _connect(self) -> None:
        """Until it is done: as long as nobody asks, there may be nobody to see it fail."""
        wait_s = _BACKOFF_S[0]
        try:
            while True:
                try:
                    self._link = await connect(await self.endpoint(), timeout_s=CONNECT_S)
                    self._silent = False
                    return
                except (LinkLost, ClusterUnavailable):
                    self._silent = True
                await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
                wait_s = min(wait_s * 2, _BACKOFF_S[1])
        finally:
            self._connecting = None

    async def close(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        if self._link is not None:
            self._link.close()


def _endpoint(url: str) -> Endpoint:
    found = cast("dict[str, Any]", parse_url(url))
    return Endpoint(
        host=found.get("host", "127.0.0.1"),
        port=found.get("port", 6379),
        path=found.get("path"),
        username=found.get("username"),
        password=found.get("password"),
        db=int(found.get("db", 0)),
        tls=_tls(found) if url.startswith("rediss:") else None,
    )


def _tls(found: dict[str, Any]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=found.get("ssl_ca_certs"))
    if certificate := found.get("ssl_certfile"):
        context.load_cert_chain(certificate, found.get("ssl_keyfile"))
    return context


def _sentinels(url: str) -> tuple[Endpoint, str, list[tuple[str, int]]]:
    parts = urlsplit(url)
    path = parts.path.strip("/").split("/")
    if not path[0]:
        raise ValueError("redis+sentinel:// needs the name of the service as its path")
    hosts = parts.netloc.rpartition("@")[2]
    sentinels = []
    for host in hosts.split(","):
        name, _, port = host.partition(":")
        sentinels.append((name, int(port or 26379)))
    credentials = parts.netloc.rpartition("@")[0]
    user, _, password = credentials.partition(":")
    endpoint = Endpoint(
        username=unquote(user) or None,
        password=unquote(password) or None,
        db=int(path[1]) if len(path) > 1 else 0,
    )
    return endpoint, path[0], sentinels
