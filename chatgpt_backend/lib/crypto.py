"""AES-256-GCM for what users write.

A sealed value is `version (1 byte) ‖ key id (4) ‖ nonce (12) ‖ ciphertext and tag`. The associated data is
`table.column:owner_id`, so that a value copied to another row's owner, column or table does not open.
Nonces are random: NIST SP 800-38D allows 2**32 of them a key, far beyond a team's messages.
"""

import base64
import binascii
import hashlib
import os
from functools import lru_cache
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

VERSION = b"\x01"
KEY_ID_BYTES = 4
NONCE_BYTES = 12
HEADER_BYTES = 1 + KEY_ID_BYTES


class CannotOpen(Exception):
    """A sealed value fits none of the configured keys, or was changed, or belongs to another row."""


class Keyring:
    """The keys in force: the first seals, all open."""

    def __init__(self, keys: list[bytes]) -> None:
        self.ciphers = {key_id(key): AESGCM(key) for key in keys}
        self.sealing_id = key_id(keys[0])

    def seal(self, data: bytes | bytearray, associated: bytes) -> bytes:
        """Return `data` sealed under the first key."""
        nonce = os.urandom(NONCE_BYTES)
        sealed = self.ciphers[self.sealing_id].encrypt(nonce, data, associated)
        return b"".join((VERSION, self.sealing_id, nonce, sealed))

    def open(self, sealed: bytes, associated: bytes) -> bytes:
        """Return what was sealed. Raises CannotOpen."""
        sealed_id = bytes(sealed[1:HEADER_BYTES])
        cipher = self.ciphers.get(sealed_id)
        if sealed[:1] != VERSION or cipher is None:
            raise CannotOpen(f"no key {sealed_id.hex()} among ENCRYPTION_KEYS")
        body = memoryview(sealed)[HEADER_BYTES:]
        try:
            return cipher.decrypt(bytes(body[:NONCE_BYTES]), body[NONCE_BYTES:], associated)
        except (InvalidTag, ValueError) as error:  # a ValueError: cut short within the nonce
            raise CannotOpen("the sealed value was changed or belongs to another row") from error


def key_id(key: bytes) -> bytes:
    """Return the four bytes that name a key in front of what it sealed."""
    return hashlib.sha256(b"key-id:" + key).digest()[:KEY_ID_BYTES]


def parse_keys(values: list[str], secret_key: str) -> list[bytes]:
    """Decode ENCRYPTION_KEYS; with none, derive one from `secret_key`. Raises ImproperlyConfigured."""
    keys = []
    for number, value in enumerate(values, start=1):
        try:
            # Python's `urlsafe_b64decode` skips what is no base64: a mistyped key would quietly be another.
            key = base64.b64decode(value.strip(), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError) as error:
            raise ImproperlyConfigured(f"ENCRYPTION_KEYS: key {number} is not url-safe base64") from error
        if len(key) != 32:
            raise ImproperlyConfigured(f"ENCRYPTION_KEYS: key {number} has {len(key)} bytes instead of 32")
        keys.append(key)
    # The secret is long and random, so one round of a hash with a label of its own is derivation enough.
    return keys or [hashlib.sha256(b"content-encryption:" + secret_key.encode()).digest()]


@lru_cache(maxsize=8)
def _keyring(values: tuple[str, ...], secret_key: str) -> Keyring:
    return Keyring(parse_keys(list(values), secret_key))


def keyring() -> Keyring:
    """Return the keys of the settings as they stand."""
    return _keyring(tuple(settings.ENCRYPTION_KEYS), settings.SECRET_KEY)


class sealed_text(property):
    """A model's text attribute over a binary column that holds it sealed.

    Reading opens (once for each sealed value); assigning seals at once and needs the row's owner to be set before.
    `update()` sees no instance, so there one writes `column=Model.attribute.seal(text, owner_id=…)`.

    A subclass of `property`, because that is what Django's model constructor accepts as a keyword.
    """

    def __init__(self, column: str, *, owner: str = "owner_id") -> None:
        self.column = column
        self.owner = owner
        self.cached = f"_opened_{column}"
        super().__init__(self._open, self._seal)

    def __set_name__(self, model: type, name: str) -> None:
        self.model: Any = model

    def associated(self, owner_id: int) -> bytes:
        """Return the associated data that binds a value to this table, column and owner."""
        return f"{self.model._meta.db_table}.{self.column}:{owner_id}".encode()

    def seal(self, text: str | bytes | bytearray, *, owner_id: int) -> bytes:
        """Return `text` (UTF-8, if bytes) as the column holds it. Empty text stays empty."""
        data = text.encode("utf-8") if isinstance(text, str) else text
        return keyring().seal(data, self.associated(owner_id)) if data else b""

    def open(self, sealed: bytes, *, owner_id: int) -> str:
        """Return the text in `sealed`. Raises CannotOpen."""
        return keyring().open(sealed, self.associated(owner_id)).decode("utf-8") if sealed else ""

    def forget(self, row: Any) -> None:
        """Empty the attribute of an instance that is only kept for its other columns."""
        setattr(row, self.column, b"")
        row.__dict__.pop(self.cached, None)

    def _open(self, row: Any) -> str:
        sealed = bytes(getattr(row, self.column))
        known: tuple[bytes, str] | None = row.__dict__.get(self.cached)
        if known is None or known[0] != sealed:
            known = row.__dict__[self.cached] = (sealed, self.open(sealed, owner_id=getattr(row, self.owner)))
        return known[1]

    def _seal(self, row: Any, text: str) -> None:
        owner_id = getattr(row, self.owner)
        if owner_id is None:
            raise ValueError(f"set {self.owner} before sealed text: it is bound to its owner")
        sealed = self.seal(text, owner_id=owner_id)
        setattr(row, self.column, sealed)
        row.__dict__[self.cached] = (sealed, text)
