"""Where a request of the public comes from."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from hub.context import Visitor
from hub.transport.address import networks
from hub.transport.rest import visitor_of


def request(peer: str, method: str = "GET", **headers: str) -> web.Request:
    transport = Mock()
    transport.get_extra_info = lambda name, default=None: (peer, 1234) if name == "peername" else default
    return make_mocked_request(
        method,
        "/join/x",
        headers={name.replace("_", "-"): value for name, value in headers.items()},
        transport=transport,
    )


@pytest.mark.parametrize(
    ("peer", "forwarded", "network"),
    [
        ("192.0.2.7", "203.0.113.1", "192.0.2.7"),
        ("10.0.0.1", "203.0.113.1", "203.0.113.1"),
        ("10.0.0.1", "198.51.100.9, 203.0.113.1, 10.0.0.2", "203.0.113.1"),
        ("10.0.0.1", "2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("10.0.0.1", "nonsense", "10.0.0.1"),
        ("10.0.0.1", "203.0.113.1:4711, 10.0.0.2:80", "203.0.113.1"),
        ("10.0.0.1", "[2001:db8:1:2:3::4]:4711", "2001:db8:1:2::/64"),
        ("10.0.0.1", "[2001:db8:1:2:3::4]", "2001:db8:1:2::/64"),
        ("10.0.0.1", "198.51.100.9, [nonsense]:1", "10.0.0.1"),
    ],
)
def test_only_proxies_we_know_say_who_it_is(peer: str, forwarded: str, network: str) -> None:
    """S-061: or everybody could have as many addresses as they like."""
    found = visitor_of(request(peer, X_Forwarded_For=forwarded), networks(["10.0.0.0/8"]))
    assert found.network == network


def test_several_lines_are_one_list() -> None:
    """S-061: what the visitor wrote comes first, in a line of its own; what our proxy wrote comes last."""
    asked = request("10.0.0.1")
    headers = CIMultiDict([("X-Forwarded-For", "198.51.100.9"), ("X-Forwarded-For", "203.0.113.1")])
    assert visitor_of(asked.clone(headers=headers), networks(["10.0.0.0/8"])).network == "203.0.113.1"


def test_a_visitor_is_a_network_a_browser_and_a_host() -> None:
    """S-072: the page they come from is cut to its host."""
    found = visitor_of(
        request("192.0.2.7", User_Agent="x" * 1000, Referer="https://www.example.com/secret?token=1"), ()
    )
    assert found == Visitor("192.0.2.7", "x" * 512, "example.com", opens=True)


@pytest.mark.parametrize(
    ("method", "headers"),
    [("HEAD", {}), ("GET", {"Sec_Purpose": "prefetch;prerender"}), ("GET", {"Purpose": "prefetch"})],
)
def test_looking_ahead_is_no_opening(method: str, headers: dict[str, str]) -> None:
    assert not visitor_of(request("192.0.2.7", method, **headers), ()).opens
