"""What a request tells of its visitor."""

from __future__ import annotations

import pytest

from hub.state.visits import device_of, host_of, is_bot
from hub.transport.address import network_of


@pytest.mark.parametrize(
    ("agent", "device"),
    [
        ("Mozilla/5.0 (iPhone; CPU iPhone OS 17_0 like Mac OS X) Mobile/15E148", "mobile"),
        ("Mozilla/5.0 (Linux; Android 14; Pixel 8) Chrome/120 Mobile Safari/537.36", "mobile"),
        ("Mozilla/5.0 (Linux; Android 14; SM-X900) Chrome/120 Safari/537.36", "tablet"),
        ("Mozilla/5.0 (iPad; CPU OS 17_0 like Mac OS X) Mobile/15E148", "tablet"),
        ("Mozilla/5.0 (Windows NT 10.0; Win64; x64)", "desktop"),
        ("Mozilla/5.0 (Macintosh; Intel Mac OS X 14_0)", "desktop"),
        ("curl/8.0", "other"),
        ("", "other"),
    ],
)
def test_a_device_is_what_browsers_say(agent: str, device: str) -> None:
    assert device_of(agent) == device
    assert not is_bot(agent)


@pytest.mark.parametrize(
    "agent", ["Twitterbot/1.0", "LinkedInBot/1.0", "TelegramBot (like TwitterBot)", "Discordbot/2.0", "YandexBot/3.0"]
)
def test_a_bot_says_so(agent: str) -> None:
    assert is_bot(f"Mozilla/5.0 (compatible; {agent}; +https://example.com)")


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://www.Example.com:8443/a?b#c", "example.com"),
        ("http://user:password@example.com/", "example.com"),
        ("javascript:alert(1)", ""),
        ("https://[::1", ""),
        ("example.com", ""),
        ("https://exa mple.com", ""),
        ("", ""),
    ],
)
def test_of_a_referrer_its_host_is_left(url: str, host: str) -> None:
    assert host_of(url) == host


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("unix", ""),
    ],
)
def test_an_ipv6_address_counts_as_its_network(address: str, network: str) -> None:
    """S-061: whoever has one has all of the /64."""
    assert network_of(address) == network
