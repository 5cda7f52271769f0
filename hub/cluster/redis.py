"""The door to Redis: what a URL means, and the Lua scripts of everything but the bus, on one link.

    redis://[user:password@]host:port/db      one server; rediss:// with TLS, unix:///path for a socket
    redis+sentinel://[user:password@]host:port,host:port/service[/db]   the master that the sentinels name
    redis+cluster://[user:password@]host:port,host:port   a Redis Cluster, by some of its nodes; rediss+… with TLS

Redis 7.0 or Valkey 7.2 at least. This is the only module that imports redis.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import msgspec
import structlog
from redis.asyncio.connection import parse_url
from redis.asyncio.sentinel import Sentinel
from redis.exceptions import RedisError

from hub.cluster.link import Endpoint, LinkLost, ServerRefused
from hub.cluster.topology import Address, SlotMap, Topology
from hub.cluster.way import COMMAND_BUDGET_S, CONNECT_S, Way
from hub.protocol.errors import ClusterUnavailable

log = structlog.get_logger(__name__)

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
        # Of a Redis Cluster: whose each key is.
        self.topology: Topology | None = None
        self._ways: dict[Address | None, Way] = {None: Way(self.endpoint)}
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
        elif scheme in ("redis+cluster", "rediss+cluster"):
            self._endpoint, seeds = _cluster(url)
            self.topology = Topology(seeds, self._endpoint)
            self.topology.when_changed(self._changed)
            self._ways.clear()
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

    def _stale(self) -> None:
        if self.topology is not None:
            self.topology.stale()

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
            link = await (await self._way(words)).serving()
            try:
                return await link.call(*words, budget_s=COMMAND_BUDGET_S)
            except ServerRefused as error:
                if script is None or error.code != "NOSCRIPT":
                    raise
                return await link.call("EVAL", script.text, *words[2:], budget_s=COMMAND_BUDGET_S)
        except (LinkLost, TimeoutError) as error:
            self._stale()
            raise ClusterUnavailable() from error
        except ServerRefused as error:
            if error.code in WRONG_SERVER and link is not None:
                link.close()
                self._stale()
            raise ClusterUnavailable() from error

    async def _way(self, words: tuple[Argument, ...]) -> Way:
        """Raises ClusterUnavailable where it is not known whose the key is."""
        if self.topology is None:
            return self._ways[None]
        address = await self.topology.owner(_key_of(words))
        way = self._ways.get(address)
        if way is None:
            way = self._ways[address] = Way(partial(self._at, address))
        return way

    async def _at(self, address: Address) -> Endpoint:
        assert self.topology is not None
        return self.topology.endpoint(address)

    def _changed(self, slots: SlotMap) -> None:
        for address in [each for each in self._ways if each not in slots.addresses]:
            self._ways.pop(address).close()

    def look_again(self) -> None:
        """Somebody else has reached the server: whatever is known of a silence is out of date."""
        for way in self._ways.values():
            way.look_again()

    async def close(self) -> None:
        for way in self._ways.values():
            way.close()


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


def _sentinels(url: str) -> tuple[Endpoint, str, list[Address]]:
    path = urlsplit(url).path.strip("/").split("/")
    if not path[0]:
        raise ValueError("redis+sentinel:// needs the name of the service as its path")
    endpoint, sentinels = _several(url, 26379)
    return msgspec.structs.replace(endpoint, db=int(path[1]) if len(path) > 1 else 0), path[0], sentinels


def _cluster(url: str) -> tuple[Endpoint, list[Address]]:
    if urlsplit(url).path.strip("/") not in ("", "0"):
        raise ValueError("redis+cluster:// has no databases: leave the path away")
    endpoint, nodes = _several(url, 6379)
    tls = ssl.create_default_context() if url.startswith("rediss") else None
    return msgspec.structs.replace(endpoint, tls=tls), nodes


def _several(url: str, port: int) -> tuple[Endpoint, list[Address]]:
    """How to enter, and the servers that the URL names. Raises ValueError for a port that is none."""
    credentials, _, hosts = urlsplit(url).netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    named = []
    for host in hosts.split(","):
        name, _, number = host.partition(":")
        if not name or not (number or str(port)).isdecimal():
            raise ValueError("not a Redis URL: it names servers as host:port,host:port")
        named.append((name, int(number or port)))
    return Endpoint(username=unquote(user) or None, password=unquote(password) or None), named


def _key_of(words: tuple[Argument, ...]) -> str:
    """The key that says where a command belongs; those without one belong anywhere."""
    at = 3 if words[0] in ("EVAL", "EVALSHA") else 1
    return str(words[at]) if len(words) > at else ""
