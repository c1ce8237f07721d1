"""Who the client is when a proxy stands between."""

from collections.abc import Iterable, Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

Network = IPv4Network | IPv6Network

#: What stands for whoever connects through a Unix socket.
UNIX = "unix"

#: The address of such a client, as connections have it.
NO_ADDRESS = "-"

#: The proxies in a row that are looked at.
_HOPS = 16

#: The peers whose trust is remembered.
_KNOWN_PEERS = 1000


def network_of(text: str) -> Network:
    """The network that an address or a network in CIDR notation is. Raises `ValueError`."""
    found = ip_network(text)
    mapped = found.network_address.ipv4_mapped if isinstance(found, IPv6Network) else None
    if mapped is None or found.prefixlen < 96:
        return found
    return ip_network((int(mapped), found.prefixlen - 96))


class Proxies:
    """The proxies whose word is taken for who the client is (X-Forwarded-For)."""

    def __init__(self, trusted: Iterable[str] = ()) -> None:
        """`trusted` are addresses, networks, and perhaps `UNIX`. Raises `ValueError`."""
        given = list(trusted)
        self._unix = UNIX in given
        self._networks = [network_of(one) for one in given if one != UNIX]
        #: Whether there are any.
        self.any = bool(given)
        self._known: dict[str, bool] = {}

    def trust(self, peer: str) -> bool:
        """Whether a connection's peer is one of them."""
        if not self.any:
            return False
        trusted = self._known.get(peer)
        if trusted is None:
            if len(self._known) >= _KNOWN_PEERS:
                self._known.clear()
            found = _address(peer)
            trusted = self._known[peer] = (
                peer == NO_ADDRESS and self._unix if found is None else self._has(found)
            )
        return trusted

    def client(self, peer: str, forwarded: Sequence[str]) -> str:
        """The client's address; `forwarded` are the values of X-Forwarded-For, in their order.

        Each proxy adds, at the end, whom it has talked to. So the client is the last one that is no
        trusted proxy: what stands before it anybody could have written.
        """
        if not forwarded or not self.trust(peer):
            return peer
        client = peer
        for hop in reversed(",".join(forwarded).split(",")[-_HOPS:]):
            found = _address(hop.strip())
            if found is None:
                break
            client = str(found)
            if not self._has(found):
                break
        return client

    def _has(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self._networks)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """An address, also with a port behind it as some proxies write it."""
    host = text
    if text.startswith("["):
        host = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        host = text.partition(":")[0]
    try:
        found = ip_address(host)
    except ValueError:
        return None
    if isinstance(found, IPv6Address):
        return found.ipv4_mapped or found
    return found
