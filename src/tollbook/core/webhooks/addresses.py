"""Which addresses a webhook may be sent to: the public Internet's, asked of each connection as it is made.

A name is not trusted: what it resolves to is checked when its socket is made, after DNS, at every connection.
So an answer that changes between two look-ups changes nothing.
"""

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, cast

from aiohttp.abc import AbstractResolver, ResolveResult

from tollbook.core.webhooks.errors import UrlRefused
from tollbook.core.webhooks.rules import Endpoint

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Lookup = Callable[[str, int], Awaitable[list[str]]]

LOOKUP_SECONDS_MAX = 10.0
LOOKUPS_AT_ONCE_MAX = 64

# RFC 6890 and its registry: what is not global unicast. Python's own is_global differs between its versions.
NOT_PUBLIC_4 = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
        "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15",
        "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
        "168.63.129.16/32",  # Azure's own service for its machines, behind a public number
    )
)  # fmt: skip
PUBLIC_6 = IPv6Network("2000::/3")
# Special purposes (with Teredo), documentation, 6to4, documentation again: tunnels lead to what they embed.
NOT_PUBLIC_6 = tuple(IPv6Network(t) for t in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"))
TRANSLATED = IPv6Network("64:ff9b::/96")  # NAT64: the way to IPv4 from a network that has none


class AddressRefused(OSError):
    """The socket was not made: its address is not one that a webhook may be sent to."""

    def __init__(self) -> None:
        super().__init__(errno.EACCES, "the address is not public")


def may_reach(text: str, allowed: Sequence[Network]) -> bool:
    """Whether a webhook may be sent to this numeric address: a public one, or one of `allowed`."""
    try:
        address = ip_address(text)  # an IPv6 address with a zone is link-local, so it is none of ours
    except ValueError:
        return False
    address = _unwrap(address)
    return any(address in network for network in allowed if network.version == address.version) or is_public(
        address
    )


def is_public(address: Address) -> bool:
    """Whether it is global unicast. What embeds an IPv4 address is judged by that."""
    address = _unwrap(address)
    if isinstance(address, IPv4Address):
        return not any(address in network for network in NOT_PUBLIC_4)
    return address in PUBLIC_6 and not any(address in network for network in NOT_PUBLIC_6)


def _unwrap(address: Address) -> Address:
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in TRANSLATED:
            return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


def make_socket_factory(allowed: Sequence[Network]) -> Callable[[Any], socket.socket]:
    """What makes aiohttp's sockets: none to an address that may not be reached. It raises AddressRefused."""

    def make_socket(info: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, target = info
        if family not in (socket.AF_INET, socket.AF_INET6) or not may_reach(str(target[0]), allowed):
            raise AddressRefused
        return socket.socket(family, kind, protocol)

    return make_socket


async def check(endpoint: Endpoint, allowed: Sequence[Network], lookup: Lookup) -> None:
    """Look once where a new URL leads. Raises UrlRefused: the same for a name that leads nowhere.

    So nobody learns by it which names there are in our network.
    """
    try:
        async with asyncio.timeout(LOOKUP_SECONDS_MAX):
            found = await lookup(endpoint.host, endpoint.port)
    except (OSError, UnicodeError):  # TimeoutError is an OSError
        found = []
    if not found or not all(may_reach(text, allowed) for text in found):
        raise UrlRefused(
            "The webhook's URL does not lead to a public address. Check its host; for an endpoint in your "
            "own network the operator allows it, as TOLLBOOK_WEBHOOKS_ALLOW_NETWORKS=10.1.0.0/16."
        )


class Names(AbstractResolver):
    """Looks names up in threads of its own, one look-up a name at a time.

    A name whose server is silent holds one thread, and nobody else's look-up.
    """

    def __init__(self, lookup: Lookup | None = None) -> None:
        self._threads = ThreadPoolExecutor(LOOKUPS_AT_ONCE_MAX, thread_name_prefix="webhook-names")
        self._lookup = lookup
        self._under_way: dict[tuple[str, int], asyncio.Task[list[str]]] = {}

    async def look_up(self, host: str, port: int) -> list[str]:
        """The numeric addresses of a name. Raises OSError."""
        key = (host, port)
        task = self._under_way.get(key)
        if task is None:
            task = asyncio.ensure_future(self._ask(host, port))
            self._under_way[key] = task
            task.add_done_callback(lambda done: self._forget(key, done))
        return await asyncio.shield(task)

    def _forget(self, key: tuple[str, int], done: asyncio.Task[list[str]]) -> None:
        del self._under_way[key]
        if not done.cancelled():
            done.exception()  # seen, also where who asked has gone

    async def _ask(self, host: str, port: int) -> list[str]:
        if self._lookup is not None:
            return await self._lookup(host, port)
        loop = asyncio.get_running_loop()
        infos = await loop.run_in_executor(self._threads, _resolve, host, port)
        return list(dict.fromkeys(infos))

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """What aiohttp asks: the addresses of a host, of a family or of both."""
        found = await self.look_up(host, port)
        return [_as_result(host, port, text) for text in found if _fits(text, family)]

    async def close(self) -> None:
        """End it, without waiting for who is silent."""
        for task in self._under_way.values():
            task.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)


def _resolve(host: str, port: int) -> list[str]:
    return [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def _fits(text: str, family: int) -> bool:
    return family == socket.AF_UNSPEC or (":" in text) == (family == socket.AF_INET6)


def _as_result(host: str, port: int, text: str) -> ResolveResult:
    return cast(
        ResolveResult,
        {
            "hostname": host,
            "host": text,
            "port": port,
            "family": socket.AF_INET6 if ":" in text else socket.AF_INET,
            "proto": 0,
            "flags": socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
        },
    )
