"""Payloads before they become messages."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from hub.protocol.errors import ValidationFailed
from hub.protocol.plain import closed, plain


def test_whole_numbers_are_whole_however_they_were_written() -> None:
    taken = plain({"a": 2.0, "b": [1.0, {"c": -3.0}], "d": 1.5, "e": True, "f": 1e18, "g": -0.0, "h": b"\x00"})
    assert taken == {"a": 2, "b": [1, {"c": -3}], "d": 1.5, "e": True, "f": 10**18, "g": 0, "h": b"\x00"}
    assert [type(taken[name]) for name in "adefg"] == [int, float, bool, int, int]


def test_numbers_travel_that_json_and_msgpack_and_postgresql_carry() -> None:
    taken = {"a": [2**63 - 1, 1 - 2**63, 0.1, -1e-30, 123456.75]}
    assert plain(taken) == taken
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(plain(taken))) == taken


@pytest.mark.parametrize(
    "number",
    [2**63, -(2**63) - 1, pytest.param(10**4000, id="4000 digits"), 1e20, -1e308, 1e-31, 5e-324, math.inf, math.nan],
)
def test_a_number_that_cannot_travel_is_refused_by_its_place(number: float) -> None:
    """S-179"""
    with pytest.raises(ValidationFailed) as refusal:
        plain({"metadata": {"x": [1, number]}})
    assert [error.path for error in refusal.value.errors] == ["metadata.x[1]"]
    assert len(refusal.value.message) < 100


def test_nesting_ends_somewhere() -> None:
    deep: Any = 1
    for _ in range(64):
        deep = [deep]
    assert plain({"a": deep}) == {"a": deep}
    for _ in range(100_000):
        deep = {"x": deep}
    with pytest.raises(ValidationFailed):
        plain({"a": deep})


@pytest.mark.parametrize(
    ("payload", "path"),
    [
        ({"a": "\x00"}, "a"),
        ({"a": {"b": ["x", "y\x00"]}}, "a.b[1]"),
        ({"a": {"b": ["x", "\ud800"]}}, "a.b[1]"),
        ({"a": {"\udc00": 1}}, "a"),
        ({"a": {"k\x00": 1}}, "a"),
        ({"\x00": 1}, ""),
        ({1: 2}, ""),
        ({"a": {None: 2}}, "a"),
    ],
)
def test_what_no_database_holds_is_refused_by_its_place(payload: dict[Any, Any], path: str) -> None:
    """S-179, S-182"""
    with pytest.raises(ValidationFailed) as refusal:
        plain(payload)
    assert [error.path for error in refusal.value.errors] == [path]
    assert "\x00" not in refusal.value.message


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    number: int


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    inner: list[Inner] | None = None
    text: str = ""


class Free(msgspec.Struct, forbid_unknown_fields=True):
    metadata: dict[str, Any] = {}


class Loose(msgspec.Struct):
    text: str


def test_only_a_message_that_is_declared_to_its_end_is_closed() -> None:
    assert closed(Outer)
    assert not closed(Free) and not closed(Loose)
