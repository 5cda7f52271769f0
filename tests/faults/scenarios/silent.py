"""Thousands of sockets that say nothing, while somebody wants in."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from tests.faults.drill.figures import Figure, at_most, none, percentile, told
from tests.faults.drill.ground import Ground
from tests.faults.drill.plan import Plan, Scenario

_CLOSED_S, _CONNECT_S = 10.0, 1.0
_UPGRADE = (
    "GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\n"
    "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


async def _play(ground: Ground, plan: Plan) -> Sequence[Figure]:
    node = await ground.node()
    count = _allowed(plan.people(2_000))
    lives: list[float] = []
    never = 0
    took: list[float] = []
    address = urlsplit(node.url)
    assert address.hostname is not None and address.port is not None

    async def silent(number: int) -> None:
        nonlocal never
        # All at once would only test the kernel's backlog.
        await asyncio.sleep(number / count)
        try:
            lives.append(await _sit(address.hostname or "", address.port or 0, upgrade=number % 4 != 0))
        except (TimeoutError, OSError):
            never += 1

    async def good() -> None:
        for number in range(40):
            client = ground.client(f"good{number}")
            started = time.monotonic()
            await client.start()
            took.append(time.monotonic() - started)
            await asyncio.sleep(0.1)
            await client.close()

    async with asyncio.TaskGroup() as tasks:
        for number in range(count):
            tasks.create_task(silent(number))
        tasks.create_task(good())
    return [
        told("silent sockets", count),
        at_most("the longest of them lived", max(lives, default=0.0), _CLOSED_S, "s"),
        none("of them not closed, or never open", never),
        told("others who connected meanwhile", len(took)),
        told("their connects, p50", percentile(took, 0.5), "s"),
        at_most("their connects, p99", percentile(took, 0.99), _CONNECT_S, "s"),
    ]


def _allowed(wanted: int) -> int:
    """As many as open files are allowed, on both sides of each."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if soft == resource.RLIM_INFINITY else min(wanted, max(1, soft - 400))


async def _sit(host: str, port: int, *, upgrade: bool) -> float:
    """Seconds until the hub hangs up on a socket that says nothing after its upgrade, or nothing at all."""
    reader, writer = await asyncio.open_connection(host, port)
    opened = time.monotonic()
    try:
        if upgrade:
            writer.write(_UPGRADE.format(host=f"{host}:{port}").encode())
        async with asyncio.timeout(30):
            with contextlib.suppress(ConnectionError):
                while await reader.read(4096):
                    pass
        return time.monotonic() - opened
    finally:
        writer.transport.abort()


SILENT = Scenario("silent", "2,000 sockets that say nothing, while others connect", _play)
