"""Whose address is believed."""

from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from chatgpt_backend.lib.addresses import client_address, resolve_address


@pytest.mark.parametrize(
    ("trusted", "peer", "forwarded", "expected"),
    [
        ([], "198.51.100.1", "", "198.51.100.1"),
        ([], "198.51.100.1", "203.0.113.9", "198.51.100.1"),
        (["10.0.0.1"], "198.51.100.1", "203.0.113.9", "198.51.100.1"),
        (["10.0.0.1"], "10.0.0.1", "203.0.113.9", "203.0.113.9"),
        (["10.0.0.1"], "10.0.0.1", "", "10.0.0.1"),
        # What the client wrote itself stands left of what our proxy added.
        (["10.0.0.1"], "10.0.0.1", "1.1.1.1, 203.0.113.9", "203.0.113.9"),
        (["10.0.0.0/8"], "10.0.0.1", "1.1.1.1, 203.0.113.9, 10.2.3.4", "203.0.113.9"),
        (["10.0.0.0/8"], "10.0.0.1", "10.9.9.9, 10.2.3.4", "10.9.9.9"),
        (["10.0.0.0/8"], "10.0.0.1", "203.0.113.9, unknown", "10.0.0.1"),
        (["10.0.0.0/8"], "10.0.0.1", "203.0.113.9, ", "10.0.0.1"),
        (["10.0.0.0/8"], "::ffff:10.0.0.1", "203.0.113.9:4711", "203.0.113.9"),
        (["2001:db8::/32"], "2001:db8::1", "[2001:dead::7]:4711", "2001:dead::7"),
        (["2001:db8::/32"], "2001:db8::1", "[2001:dead::7]", "2001:dead::7"),
        (["fe80::/10"], "fe80::1%eth0", "2001:DEAD:0::7", "2001:dead::7"),
        (["10.0.0.1"], "fe80::1%eth0", "", "fe80::1"),
        (["10.0.0.1"], "", "203.0.113.9", None),
        (["10.0.0.1"], "/run/daphne.sock", "203.0.113.9", None),
    ],
)
def test_the_walk_from_the_right(
    settings: Any, trusted: list[str], peer: str, forwarded: str, expected: str | None
) -> None:
    settings.TRUSTED_PROXIES = trusted

    assert resolve_address(peer, forwarded) == expected


def test_from_meta_and_from_a_scope(settings: Any) -> None:
    settings.TRUSTED_PROXIES = ["10.0.0.0/8"]
    meta = {"REMOTE_ADDR": "10.0.0.1", "HTTP_X_FORWARDED_FOR": "1.1.1.1,203.0.113.9"}
    scope = {
        "client": ["10.0.0.1", 4711],
        "headers": [(b"x-forwarded-for", b"1.1.1.1"), (b"host", b"x"), (b"x-forwarded-for", b"203.0.113.9")],
    }

    assert client_address(meta) == "203.0.113.9"
    assert client_address(scope) == "203.0.113.9"
    assert client_address({"headers": [], "client": None}) is None
    assert client_address({}) is None


def test_a_proxy_that_is_no_address_is_said_so(settings: Any) -> None:
    settings.TRUSTED_PROXIES = ["nginx"]

    with pytest.raises(ImproperlyConfigured, match="TRUSTED_PROXIES"):
        resolve_address("10.0.0.1", "")
