"""A master, its replica and a sentinel: the master dies, the nodes find the new one."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from hub.cluster import Cluster
from hub.embedded.valkey import valkey_binary
from tests.cluster.hearing import SECRET, Ear, until

PASSWORD = "sentinel-test"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.asynccontextmanager
async def server(
    directory: Path, port: int, *lines: str, sentinel: bool = False
) -> AsyncIterator[asyncio.subprocess.Process]:
    directory.mkdir()
    config = directory / "valkey.conf"
    config.write_text("\n".join((f"port {port}", "bind 127.0.0.1", f"dir {directory}", 'save ""', *lines, "")))
    argv = [str(valkey_binary()), str(config), *(["--sentinel"] if sentinel else [])]
    log = (directory / "log").open("wb")
    process = await asyncio.create_subprocess_exec(*argv, stdout=log, stderr=log)
    try:
        yield process
    finally:
        log.close()
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def answers(port: int, words: tuple[str, ...], wanted: str, *, password: str | None = PASSWORD) -> None:
    async with asyncio.timeout(15):
        while True:
            client = Redis(port=port, password=password, socket_timeout=1, driver_info=None, decode_responses=True)
            try:
                if wanted in str(await cast("Any", client).execute_command(*words)):
                    return
            except OSError:
                pass
            except Exception as error:
                if "Connection" not in type(error).__name__ and "Timeout" not in type(error).__name__:
                    raise
            finally:
                await client.aclose()
            await asyncio.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(90)
async def test_the_nodes_follow_a_failover_and_go_on(tmp_path: Path, env_name: str) -> None:
    first, second, watcher = free_port(), free_port(), free_port()
    secrets = (f"requirepass {PASSWORD}", f"masterauth {PASSWORD}", "repl-diskless-sync-delay 0")
    async with AsyncExitStack() as stack:
        master = await stack.enter_async_context(server(tmp_path / "one", first, *secrets))
        await answers(first, ("PING",), "True")
        await stack.enter_async_context(server(tmp_path / "two", second, *secrets, f"replicaof 127.0.0.1 {first}"))
        await answers(second, ("INFO", "replication"), "'master_link_status': 'up'")
        await stack.enter_async_context(
            server(
                tmp_path / "watcher",
                watcher,
                f"sentinel monitor hub 127.0.0.1 {first} 1",
                f"sentinel auth-pass hub {PASSWORD}",
                "sentinel down-after-milliseconds hub 500",
                "sentinel failover-timeout hub 5000",
                sentinel=True,
            )
        )
        await answers(watcher, ("SENTINEL", "REPLICAS", "hub"), str(second), password=None)
        url = f"redis+sentinel://:{PASSWORD}@127.0.0.1:{watcher}/hub"
        nodes = []
        for name in ("a", "b"):
            node, ear = (
                await stack.enter_async_context(Cluster.open(url, env=env_name, secret=SECRET, node_id=name)),
                Ear(),
            )
            node.bus.listen(ear)
            nodes.append((node, ear))
        (a, ear_a), (b, ear_b) = nodes
        call_id = uuid4()
        await a.bus.subscribe_room(call_id)
        await b.bus.subscribe_room(call_id)
        await a.bus.to_room(call_id, "chat:posted", {"text": "before"})
        await until(lambda: bool(ear_a.events and ear_b.events))
        master.kill()
        killed_at = time.monotonic()
        await until(lambda: a.degraded and b.degraded, 10)
        await until(lambda: not a.degraded and not b.degraded, 20)
        assert time.monotonic() - killed_at <= 15
        await b.bus.to_room(call_id, "chat:posted", {"text": "after"})
        await until(lambda: ear_a.said[-1] == ear_b.said[-1] == "after", 10)
        assert {node.node_id for node in await a.nodes.list()} == {"a", "b"}
