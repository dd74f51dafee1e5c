"""Which address a request came from."""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
# Some proxies add the port: `192.0.2.1:4711`, `[2001:db8::1]:4711`.
WITH_PORT = re.compile(r"\[([^\]]*)\](?::\d+)?|([\d.]+):\d+")


def client_address(source: Mapping[str, Any]) -> str | None:
    """Return the client's address from a request's `META` or from an ASGI scope; None where there is none.

    The peer itself, unless it is one of TRUSTED_PROXIES: then X-Forwarded-For is read from its right end, where our
    own proxies write, up to the first address that is none of them. What stands left of that is the client's own word.
    """
    if "headers" in source:
        peer = str((source.get("client") or ("",))[0] or "")
        values = [value.decode("latin-1") for name, value in source["headers"] if name == b"x-forwarded-for"]
        return resolve_address(peer, ",".join(values))
    return resolve_address(source.get("REMOTE_ADDR") or "", source.get("HTTP_X_FORWARDED_FOR", ""))


def resolve_address(peer: str, forwarded_for: str) -> str | None:
    """Return the address of the client behind `peer`, as the header of TRUSTED_PROXIES tells."""
    address = parse_address(peer)
    if address is None:
        return None
    trusted = _networks(tuple(settings.TRUSTED_PROXIES))
    hops = forwarded_for.split(",") if forwarded_for else []
    while hops and _is_in(address, trusted):
        hop = parse_address(hops.pop())
        if hop is None:  # "unknown", or nonsense: the last proxy is as far as we know
            break
        address = hop
    return str(address)


def parse_address(text: str) -> Address | None:
    """Return an address without port and zone, IPv4 written as IPv6 as what it is; None if it is none."""
    text = text.strip()
    if match := WITH_PORT.fullmatch(text):
        text = match[1] or match[2] or ""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


@lru_cache(maxsize=8)
def _networks(values: tuple[str, ...]) -> tuple[Network, ...]:
    try:
        return tuple(ip_network(value.strip(), strict=False) for value in values)
    except ValueError as error:
        raise ImproperlyConfigured(f"TRUSTED_PROXIES: {error}") from error


def _is_in(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)
