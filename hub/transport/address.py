"""Where a request comes from, believing only the proxies we were told to believe."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_WITH_PORT = re.compile(r"\[(?P<v6>[^\]]*)\](?::[0-9]{1,5})?|(?P<v4>[0-9.]+):[0-9]{1,5}")


def networks(texts: Iterable[str]) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(text, strict=False) for text in texts)


def client_address(address: str, forwarded_for: str, trusted: tuple[Network, ...]) -> str:
    """The nearest address that is no trusted proxy. `address`: the transport's; "" where it has none (a UNIX socket).

    X-Forwarded-For is read from its end: what stands before the first address we do not trust was written by whoever
    sits there, and proves nothing. A hop may have a port (`192.0.2.1:5060`, `[2001:db8::1]:5060`), which is left off.
    """
    if not trusted or not _within(address, trusted):
        return address
    for hop in reversed(forwarded_for.split(",")):
        hop = _without_port(hop.strip())
        if not _is_address(hop):
            return address
        address = hop
        if not _within(address, trusted):
            break
    return address


def network_of(address: str) -> str:
    """What limits count together: an IPv4 address, or the /64 of an IPv6 one. "" where it is no address."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped:
        return str(found.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))


def _without_port(hop: str) -> str:
    found = _WITH_PORT.fullmatch(hop)
    return hop if found is None else found["v6"] or found["v4"]


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _within(address: str, trusted: tuple[Network, ...]) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped:
        found = found.ipv4_mapped
    return any(found in network for network in trusted)
