"""Which addresses of the network a stranger may make us call: public ones, unless the operator allows more.

Pure. Addresses that carry another one inside (IPv4 in IPv6, 6to4, Teredo, NAT64) are judged by the one inside too: the
standard library calls several of those global.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_NAT64_LOCAL = ipaddress.IPv6Network("64:ff9b:1::/48")
# Of special use, and called global all the same.
_SPECIAL = (ipaddress.IPv4Network("192.0.0.0/24"), ipaddress.IPv4Network("192.88.99.0/24"))
_IPV4_COMPATIBLE = ipaddress.IPv6Network("::/96")


def may_be_called(address: str, allowed: Iterable[Network] = ()) -> bool:
    """Whether an address is public through and through, or lies in a network that the operator allows."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if any(found.version == network.version and found in network for network in allowed):
        return True
    return all(_is_public(one) for one in (found, *_inside(found)))


def _is_public(address: Address) -> bool:
    if address.is_multicast or address.is_reserved or address.is_unspecified or address.is_loopback:
        return False
    if any(address.version == network.version and address in network for network in _SPECIAL):
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if address.is_site_local or address.scope_id is not None or address in _NAT64_LOCAL:
            return False
        if any(True for _ in _inside(address)):
            return True  # judged by what is inside
    return address.is_global and not address.is_link_local


def _inside(address: Address) -> list[Address]:
    """The IPv4 addresses that an IPv6 address stands for."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    found: list[Address] = []
    if address.ipv4_mapped is not None:
        found.append(address.ipv4_mapped)
    if address.sixtofour is not None:
        found.append(address.sixtofour)
    if address.teredo is not None:
        found += address.teredo
    if address in _NAT64 or address in _IPV4_COMPATIBLE:
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return found
