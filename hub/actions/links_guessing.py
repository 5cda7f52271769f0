"""Guessing codes and passwords of links, and how it is slowed down.

Who is wrong too often from one address is refused before anything is looked up, so that a hit is not told from a miss
any more. Against many addresses on one link, wrong passwords are counted by its code as well: that slows everybody who
tries one, and shuts out nobody who opens a link without.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from uuid import UUID
from weakref import WeakKeyDictionary, WeakValueDictionary

from db.turns import Turns
from hub.context import Context, Hub, Verdict
from hub.protocol import errors

CODE: Final = re.compile(r"[A-Za-z0-9_-]{8}")
# Misses from one address, over all nodes; then one more every half minute.
PER_ADDRESS: Final = (10, 300.0)
# Wrong passwords for one code, from wherever; then one every two seconds.
PER_CODE: Final = (30, 60.0)
# What is under way is not counted yet: so few at a time from one address, the others wait.
_AT_ONCE: Final = 8
# As many as have their turn within seconds; a password takes much longer than a code. And no longer than that, on a
# machine that is busy.
_PATIENCE_S: Final = 3.0
_WAITING: Final = {True: 40, False: 400}


_CONNECTIONS: Final = 4


class _Gate:
    def __init__(self) -> None:
        self.turns = asyncio.Semaphore(_AT_ONCE)
        self.here = 0


_few: WeakKeyDictionary[Hub, asyncio.Semaphore] = WeakKeyDictionary()
_turns: WeakKeyDictionary[Hub, Turns] = WeakKeyDictionary()
# By network, as long as somebody of it is here.
_gates: WeakValueDictionary[str, _Gate] = WeakValueDictionary()


@asynccontextmanager
async def turn(ctx: Context, code: str, *, password: bool) -> AsyncIterator[None]:
    """One attempt. Raises RateLimited for who has been wrong too often, and where too many wait."""
    gate = _gates.setdefault(ctx.visitor.network, _Gate())
    if gate.here >= _AT_ONCE + _WAITING[password]:
        raise errors.RateLimited("too many at once from this address", retry_after_ms=1000)
    gate.here += 1
    try:
        async with _turn_of(gate):
            _allowed(await ctx.hub.limits.look(_address(ctx), *PER_ADDRESS))
            if password:
                # Counted before it is checked, or many at once would count as none; a right one is given back.
                _allowed(await ctx.hub.limits.allow(_code(code), *PER_CODE))
            yield
    finally:
        gate.here -= 1


@asynccontextmanager
async def _turn_of(gate: _Gate) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(_PATIENCE_S):
            await gate.turns.acquire()
    except TimeoutError:
        raise errors.RateLimited("too many at once from this address", retry_after_ms=1000) from None
    try:
        yield
    finally:
        gate.turns.release()


def few(ctx: Context) -> asyncio.Semaphore:
    """Hold it while at the database: a crowd at a link waits here, and does not take all connections from the calls."""
    return _few.setdefault(ctx.hub, asyncio.Semaphore(_CONNECTIONS))


@asynccontextmanager
async def at_link(ctx: Context, link_id: UUID) -> AsyncIterator[None]:
    """Hold it while writing to a link: one at a time, and who waits for that holds nothing that other links need."""
    async with _turns.setdefault(ctx.hub, Turns()).of(link_id), few(ctx):
        yield


async def missed(ctx: Context) -> None:
    """The attempt was wrong: a code that leads nowhere, or a wrong password."""
    await ctx.hub.limits.allow(_address(ctx), *PER_ADDRESS)


async def right(ctx: Context, code: str) -> None:
    """The password of the attempt was no wrong one."""
    await ctx.hub.limits.give_back(_code(code), *PER_CODE)


def _allowed(verdict: Verdict) -> None:
    if not verdict.allowed:
        raise errors.RateLimited("too many wrong codes or passwords", retry_after_ms=verdict.retry_after_ms)


def _address(ctx: Context) -> str:
    return f"link_misses:{ctx.visitor.network}"


def _code(code: str) -> str:
    # What cannot be a code is one code, or somebody could fill Redis with them.
    return f"link_passwords:{code if CODE.fullmatch(code) else ''}"
