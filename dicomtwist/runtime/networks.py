"""
Sets of addresses: IP networks, and the words ``loopback`` and ``unix``. No I/O.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

__all__ = ["ANYWHERE", "LOOPBACK", "UNIX", "Networks", "host_of", "is_address", "parse_networks"]

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

#: Words that stand for addresses of this machine.
LOOPBACK: Final = "loopback"
UNIX: Final = "unix"

_LOOPBACK_NETWORKS: Final = (ip_network("127.0.0.0/8"), ip_network("::1/128"))


@dataclass(frozen=True, slots=True)
class Networks:
    """
    A set of addresses.

    :ivar networks: IP networks; an IPv4 address inside IPv6 counts as an IPv4 address.
    :ivar loopback: whether the loopback addresses of this machine belong to the set.
    :ivar unix: whether UNIX sockets of this machine belong to the set.
    """

    networks: tuple[Network, ...] = ()
    loopback: bool = False
    unix: bool = False

    def __bool__(self) -> bool:
        return bool(self.networks or self.loopback or self.unix)

    def has(self, address: str, *, proxied: bool = False) -> bool:
        """
        Return whether *address* belongs to the set.

        :param address: an IPv4 or IPv6 address, or :data:`UNIX`.
        :param proxied: whether a proxy has told the address. Then it is an address of another machine, or of clients of
            the proxy, so that neither :attr:`loopback` nor :attr:`unix` applies to it.
        """
        parsed = _parsed(address)
        if parsed is None:
            return self.unix and address == UNIX and not proxied
        if self.loopback and not proxied and _within(parsed, _LOOPBACK_NETWORKS):
            return True
        return _within(parsed, self.networks)

    def texts(self) -> list[str]:
        """Return the texts that name the set, see :func:`parse_networks`."""
        words = [(self.loopback, LOOPBACK), (self.unix, UNIX)]
        return [*map(_network_text, self.networks), *(word for is_in, word in words if is_in)]


#: No condition on an address.
ANYWHERE: Final = Networks()


def parse_networks(texts: Iterable[str]) -> Networks:
    """
    Return the set of addresses that *texts* name.

    :param texts: addresses, networks such as ``10.1.0.0/16``, ``loopback`` and ``unix``.
    :raises ValueError: one of them is none of these; the message says what to write.
    """
    networks: list[Network] = []
    loopback = unix = False
    for text in texts:
        if text == UNIX:
            unix = True
        elif text == LOOPBACK:
            loopback = True
        else:
            try:
                networks.append(ip_network(text))
            except ValueError as error:
                hint = "write an address, a network such as 10.1.0.0/16, loopback or unix"
                raise ValueError(f"{error}: {hint}") from None
    return Networks(tuple(networks), loopback, unix)


def is_address(text: str) -> bool:
    """Whether *text* is an IPv4 or IPv6 address."""
    return _parsed(text) is not None


def host_of(address: str) -> str:
    """Return what stands for the host of *address*: of IPv6 its network of 64 bits, in which a host has any address."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if not isinstance(parsed, IPv6Address):
        return str(parsed)
    return str(parsed.ipv4_mapped or int(parsed) >> 64)


def _network_text(network: Network) -> str:
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)


def _within(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks if network.version == address.version)


def _parsed(address: str) -> Address | None:
    try:
        parsed = ip_address(address)
    except ValueError:
        return None
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return parsed.ipv4_mapped
        if parsed.scope_id is not None:
            return IPv6Address(int(parsed))
    return parsed
