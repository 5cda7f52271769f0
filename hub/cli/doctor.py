"""doctor: does everything the hub needs work, from here, with these settings?"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from uuid import uuid4

import aiohttp
import msgspec

from hub import logs
from hub.cli import environment
from hub.cli.output import FAILURE, OK, bad, emit_json, good, say
from hub.protocol.errors import HubError
from hub.settings import Settings

CHECK_S = 10.0
_CLOCK_S = 2.0

Check = Callable[[Settings], Awaitable[str]]


class Broken(Exception):
    """A check that failed; the text says what to do."""


class Finding(msgspec.Struct, frozen=True):
    check: str
    ok: bool
    text: str
    ms: int


def doctor(*, json: bool = False) -> int:
    """Check the database and its row level security, Redis, LiveKit, the store, the webhook's way in, and the clock.

    Parameters
    ----------
    json
        Print a JSON object.
    """
    loaded = environment.load_all()
    # The findings say it; what the parts log of it would stand between them.
    logs.configure(log_format="console", level="critical")
    findings = asyncio.run(_examine(loaded))
    healthy = all(finding.ok for finding in findings)
    if json:
        emit_json({"ok": healthy, "checks": findings})
    else:
        width = max(len(finding.check) for finding in findings)
        for finding in findings:
            mark = good("ok  ") if finding.ok else bad("fail")
            say(f"{mark} {finding.check.ljust(width)}  {finding.text} ({finding.ms} ms)")
    return OK if healthy else FAILURE


async def _examine(loaded: Settings) -> list[Finding]:
    checks: dict[str, Check] = {
        "database": _database,
        "migrations": _migrations,
        "redis": _redis,
        "livekit": _livekit,
        "storage": _storage,
        **({"scanner": _scanner} if loaded.clamav_url else {}),
        "webhook": _webhook,
        "clock": _clock,
    }
    return list(await asyncio.gather(*(_run(name, check, loaded) for name, check in checks.items())))


async def _run(name: str, check: Check, loaded: Settings) -> Finding:
    started = time.perf_counter()
    try:
        async with asyncio.timeout(CHECK_S):
            text, ok = await check(loaded), True
    except TimeoutError:
        text, ok = f"no answer within {CHECK_S:g} s", False
    except HubError as refusal:
        text, ok = f"{refusal.code}: {refusal.message}", False
    except Exception as error:  # whatever it is, it is this check's finding
        text, ok = str(error).splitlines()[0] if str(error) else type(error).__name__, False
    return Finding(name, ok, text, round((time.perf_counter() - started) * 1000))


async def _database(loaded: Settings) -> str:
    from db import posture
    from hub.app import open_database

    async with open_database(loaded) as database, database.system() as tx:
        problems = await posture.check(tx)
        if problems:
            raise Broken("; ".join(problems))
    return "reachable; not an owner, row level security holds"


async def _migrations(loaded: Settings) -> str:
    from db import migrate

    problems = await migrate.check(loaded.database_owner_url or loaded.database_url)
    if problems:
        raise Broken(f"{problems[0]}; run: auralink-hub migrate up")
    return "up to date"


async def _redis(loaded: Settings) -> str:
    from hub.app import ping_redis

    return f"round trip {await ping_redis(loaded):.1f} ms"


async def _livekit(loaded: Settings) -> str:
    from hub.app import make_media

    async with make_media(loaded) as media:
        for region in (None, *loaded.livekit_regions):
            await media.ping(region)
    return f"answers with our key, {1 + len(loaded.livekit_regions)} region(s)"


async def _storage(loaded: Settings) -> str:
    """There and back: what is put is had again, and gone when it is deleted."""
    from hub.app import open_store

    if not loaded.stores_files:
        return "AURALINK_STORAGE is not set: files are refused"
    async with open_store(loaded) as store:
        key, data = f"doctor/{uuid4()}", os.urandom(1024)
        await store.ping()
        await store.put(key, data)
        try:
            async with aclosing(store.get(key)) as pieces:
                if b"".join([piece async for piece in pieces]) != data:
                    raise Broken("what was put came back as something else")
        finally:
            await store.delete(key)
    return "put, got and deleted"


async def _scanner(loaded: Settings) -> str:
    from storage.scan import Clamd

    assert loaded.clamav_url is not None
    return await Clamd(loaded.clamav_url).version()


async def _webhook(loaded: Settings) -> str:
    """The hub's own public door: an unsigned webhook must be refused by a hub, not lost on the way."""
    url = f"{loaded.public_url}/webhooks/livekit"
    async with aiohttp.ClientSession() as session, session.post(url, data=b"{}", allow_redirects=False) as response:
        if response.status != 401:
            raise Broken(f"{url} answers {response.status}, a hub would answer 401 to an unsigned webhook")
    return f"{url} is a hub"


async def _clock(loaded: Settings) -> str:
    from hub.app import open_database

    async with open_database(loaded) as database, database.system() as tx:
        before = datetime.now(UTC)
        theirs = await tx.fetchval("SELECT clock_timestamp()")
        half = (datetime.now(UTC) - before) / 2
    apart = abs((theirs - before - half).total_seconds())
    if apart > _CLOCK_S:
        raise Broken(f"{apart:.1f} s apart from the database's: tokens tolerate 60 s, set both by NTP")
    return f"{apart * 1000:.0f} ms apart from the database's"
