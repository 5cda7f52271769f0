"""Passwords: bcrypt, beside the loop, and no more at once than can have their turn."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator

import pytest

from hub.passwords import COST, MOST_BYTES, Passwords
from hub.protocol.errors import RateLimited


@pytest.fixture
def passwords() -> Iterator[Passwords]:
    made = Passwords(cost=4)
    yield made
    made.close()


async def test_a_hash_is_bcrypt_and_only_its_password_fits() -> None:
    """S-068, S-175: `$2b$` with a cost of at least 10, salted."""
    passwords = Passwords()
    hashed = await passwords.hash("secret123")
    assert COST >= 10
    assert re.fullmatch(rf"\$2b\${COST:02}\$[./A-Za-z0-9]{{53}}", hashed)
    assert hashed != await passwords.hash("secret123")
    assert await passwords.check("secret123", hashed)
    assert not await passwords.check("secret124", hashed)
    passwords.close()


async def test_no_hash_is_nobodys_password(passwords: Passwords) -> None:
    for password in ("", "secret123", "x" * 200):
        assert not await passwords.check(password, None)


async def test_a_password_beyond_72_bytes_is_refused_and_never_cut(passwords: Passwords) -> None:
    """S-068: bcrypt would ignore the rest, so that two passwords would be one."""
    longest = "ä" * 36
    hashed = await passwords.hash(longest)
    assert await passwords.check(longest, hashed)
    assert not await passwords.check(longest + "x", hashed)
    with pytest.raises(ValueError, match=str(MOST_BYTES)):
        await passwords.hash(longest + "x")


async def test_accents_put_together_in_two_ways_are_one_password(passwords: Passwords) -> None:
    assert await passwords.check("cafe\u0301", await passwords.hash("caf\u00e9"))


async def test_who_finds_too_many_waiting_is_told_to_come_again() -> None:
    passwords = Passwords(cost=10, threads=1, waiting=3)
    outcomes = await asyncio.gather(*(passwords.check("x", None) for _ in range(10)), return_exceptions=True)
    refused = [each for each in outcomes if isinstance(each, RateLimited)]
    assert len(refused) == 7
    assert all(each.retry_after_ms for each in refused)
    assert not await passwords.check("x", None)
    passwords.close()


async def test_nobody_waits_longer_than_somebody_waits_for_the_answer() -> None:
    """However few they are: on a slow machine that is fewer. One is always let try."""
    passwords = Passwords(cost=6, threads=1, patience_s=0.0)
    await passwords.check("x", None)
    for _ in range(2):
        outcomes = await asyncio.gather(*(passwords.check("x", None) for _ in range(10)), return_exceptions=True)
        assert [type(each) for each in outcomes] == [bool, *[RateLimited] * 9]
    passwords.close()


async def test_the_place_of_somebody_who_gave_up_is_given_on() -> None:
    passwords = Passwords(cost=8, threads=1, waiting=2)
    given_up = [asyncio.ensure_future(passwords.check("x", None)) for _ in range(2)]
    await asyncio.sleep(0)
    for each in given_up:
        each.cancel()
    deadline = time.monotonic() + 10
    while True:
        try:
            assert not await passwords.check("x", None)
            break
        except RateLimited:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
    passwords.close()


async def test_the_loop_goes_on_while_passwords_are_checked() -> None:
    """S-068: of the time that the checks take, the loop loses next to nothing."""
    passwords = Passwords(cost=10)
    checks = asyncio.gather(*(passwords.check("x", None) for _ in range(10)), return_exceptions=True)
    turns = 0
    while not checks.done():
        await asyncio.sleep(0.001)
        turns += 1
    # Ten times 30 ms or more, on a loop that would have had no turn at all.
    assert turns > 20
    passwords.close()
