"""Is the node alive, may it be given work, and is all well: `/livez`, `/readyz`, `/healthz`; `/metrics` inside only.

`/livez` needs nothing but a running loop. `/readyz` needs the required checks, and turns first when the node drains.
`/healthz` is for people: `degraded` (media or storage away) is still 200, since calls go on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Literal

import msgspec
import structlog
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from hub import metrics
from hub.protocol import errors
from hub.protocol.errors import HubError
from hub.transport.middleware import setup as middleware

log = structlog.get_logger("hub.health")

Check = Callable[[], Awaitable[object]]
"""Raises, or takes too long, where something is wrong."""

_DEADLINE_S = 1.0
# Probes of several balancers, and whoever finds the page, share one look.
_FRESH_S = 1.0
# The gauge is scraped less often than that.
_LOOK_S = 5.0
_REFUSALS: Final[Mapping[str, type[HubError]]] = {
    "database": errors.DatabaseUnavailable,
    "migrations": errors.DatabaseUnavailable,
    "media": errors.MediaUnavailable,
    "livekit": errors.MediaUnavailable,
    "storage": errors.StorageUnavailable,
}

READY = metrics.gauge("ready", "1 while the node may be given work")


class Checked(msgspec.Struct, frozen=True):
    """One dependency. What is wrong with it is in the log: this page may be public."""

    status: Literal["ok", "failed"]
    required: bool
    ms: float


class Health(msgspec.Struct, frozen=True):
    status: Literal["ok", "degraded", "draining", "down"]
    checks: dict[str, Checked]


class Checks:
    """Runs the checks, all at once, at most once a second."""

    def __init__(
        self, required: Mapping[str, Check], optional: Mapping[str, Check], draining: Callable[[], bool]
    ) -> None:
        self._required = required
        self._optional = optional
        self._draining = draining
        self._lock = asyncio.Lock()
        self._seen: tuple[float, dict[str, Checked]] = (float("-inf"), {})
        self._failed: set[str] = set()

    async def run(self) -> None:
        """Keep the gauge right where nobody probes."""
        while True:
            await self.health()
            await asyncio.sleep(_LOOK_S)

    async def health(self) -> Health:
        checks = await self._look()
        failed = {name for name, checked in checks.items() if checked.status == "failed"}
        required = failed & set(self._required)
        READY.set(0 if required or self._draining() else 1)
        if self._draining():
            return Health("draining", checks)
        return Health("down" if required else "degraded" if failed else "ok", checks)

    async def _look(self) -> dict[str, Checked]:
        async with self._lock:
            if time.monotonic() - self._seen[0] >= _FRESH_S:
                names = [*self._required, *self._optional]
                found = await asyncio.gather(*(self._run(name) for name in names))
                self._seen = (time.monotonic(), dict(zip(names, found, strict=True)))
        return self._seen[1]

    async def _run(self, name: str) -> Checked:
        required = name in self._required
        started = time.perf_counter()
        try:
            async with asyncio.timeout(_DEADLINE_S):
                await (self._required[name] if required else self._optional[name])()
        except Exception as error:
            # Whatever a driver raises: the dependency is not there. Said once when it goes, once when it is back.
            if name not in self._failed:
                self._failed.add(name)
                log.warning("check_failed", check=name, error=f"{type(error).__name__}: {error}"[:300])
            return Checked("failed", required, _ms(started))
        if name in self._failed:
            self._failed.discard(name)
            log.info("check_recovered", check=name)
        return Checked("ok", required, _ms(started))


def setup(app: web.Application, checks: Checks) -> None:
    """Add `/livez`, `/readyz` and `/healthz`."""

    async def livez(_request: web.Request) -> web.Response:
        return _json({"status": "ok"})

    async def readyz(request: web.Request) -> web.Response:
        health = await checks.health()
        details: dict[str, Any] = msgspec.to_builtins(health) if "verbose" in request.query else {}
        if health.status == "draining":
            raise errors.ServerDraining(details=details, retry_after_ms=1000)
        if health.status == "down":
            raise _refusal(health)("a required dependency is down", details=details, retry_after_ms=1000)
        return _json({"status": "ok", **details, "ready": True})

    async def healthz(_request: web.Request) -> web.Response:
        health = await checks.health()
        if health.status == "down":
            raise _refusal(health)("a required dependency is down", details=msgspec.to_builtins(health))
        return _json(msgspec.to_builtins(health))

    app.router.add_get("/livez", livez)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/healthz", healthz)


def internal_app(checks: Checks) -> web.Application:
    """What the internal listener serves: the health pages and `/metrics`."""
    app = web.Application()
    middleware(app, origins=frozenset(), https=False)
    setup(app, checks)

    async def scrape(_request: web.Request) -> web.Response:
        # Some milliseconds of text making: off the loop, which has sockets to serve.
        body = await asyncio.to_thread(generate_latest, metrics.REGISTRY)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    app.router.add_get("/metrics", scrape)
    return app


def _refusal(health: Health) -> type[HubError]:
    names = (name for name, checked in health.checks.items() if checked.required and checked.status == "failed")
    return _REFUSALS.get(next(names), errors.ClusterUnavailable)


def _json(value: dict[str, Any]) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


def _ms(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 2)
