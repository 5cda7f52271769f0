"""The door to Redis: what a URL means, redis-py for everything but the bus, and the Lua scripts.

    redis://[user:password@]host:port/db      one server; rediss:// with TLS, unix:///path for a socket
    redis+sentinel://[user:password@]host:port,host:port/service[/db]   the master that the sentinels name

Redis 7.0 or Valkey 7.2 at least. This is the only module that imports redis.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError

from hub.cluster.link import Endpoint
from hub.protocol.errors import ClusterUnavailable

log = structlog.get_logger(__name__)

# A command that does not answer in this time is answered for by the caller: every socket command has 3 s in all.
COMMAND_BUDGET_S = 0.5
CONNECT_S = 0.5
_CONNECTIONS = 16
# That pool refuses instead of letting one wait for a connection.
_CONNECTIONS_BY_SENTINEL = 128
_LUA = Path(__file__).parent / "lua"

Argument = bytes | str | int | float


class Script:
    """One Lua file."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = (_LUA / f"{name}.lua").read_text()
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


class Door:
    """Opens links for the bus and runs scripts for the rest."""

    def __init__(self, url: str) -> None:
        scheme = urlsplit(url).scheme
        self._sentinel: Sentinel | None = None
        self._service = ""
        # Never retried here: the caller has a deadline, and a script that may have run is not run twice unasked.
        settings: dict[str, Any] = {
            "protocol": 2,
            "socket_timeout": COMMAND_BUDGET_S,
            "socket_connect_timeout": CONNECT_S,
            "retry": Retry(NoBackoff(), 0),
            # Else every new connection looks up the version of redis-py on the disk, in the loop.
            "driver_info": None,
        }
        if scheme in ("redis", "rediss", "unix"):
            self._endpoint = _endpoint(url)
            pool = BlockingConnectionPool.from_url(
                url, max_connections=_CONNECTIONS, timeout=COMMAND_BUDGET_S, **settings
            )
            self._redis: Redis = Redis.from_pool(pool)
        elif scheme == "redis+sentinel":
            self._endpoint, self._service, sentinels = _sentinels(url)
            self._sentinel = Sentinel(  # type: ignore[no-untyped-call]
                sentinels,
                sentinel_kwargs={"socket_timeout": CONNECT_S, "socket_connect_timeout": CONNECT_S, "driver_info": None},
                **settings,
            )
            self._redis = self._sentinel.master_for(
                self._service,
                username=self._endpoint.username,
                password=self._endpoint.password,
                db=self._endpoint.db,
                max_connections=_CONNECTIONS_BY_SENTINEL,
            )
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
        try:
            async with asyncio.timeout(COMMAND_BUDGET_S):
                try:
                    return await _asked(self._redis.evalsha(script.sha, len(keys), *keys, *args))
                except NoScriptError:
                    return await _asked(self._redis.eval(script.text, len(keys), *keys, *args))
        except (RedisError, OSError, TimeoutError) as error:
            # redis-py raises its own TimeoutError and ConnectionError, which are RedisErrors.
            raise ClusterUnavailable() from error

    async def command(self, *words: Argument) -> Any:
        """One plain command, under the same budget."""
        try:
            async with asyncio.timeout(COMMAND_BUDGET_S):
                return await _asked(self._redis.execute_command(*words))  # type: ignore[no-untyped-call]
        except (RedisError, OSError, TimeoutError) as error:
            raise ClusterUnavailable() from error

    async def close(self) -> None:
        await self._redis.aclose()


async def _asked(answer: Any) -> Any:
    """The answer, unless we were cancelled while waiting for it.

    redis-py waits by `asyncio.wait_for`, which in Python 3.11 swallows a cancellation that comes together with the
    result. A loop that was told to end would go on for ever, and a deadline would be none.
    """
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    try:
        return await answer
    except RuntimeError as error:
        # What uvloop says where a connection was closed in the very turn in which somebody writes to it.
        if "handler is closed" not in str(error):
            raise
        raise RedisConnectionError(str(error)) from error
    finally:
        if task.cancelling() > before:
            raise asyncio.CancelledError


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
