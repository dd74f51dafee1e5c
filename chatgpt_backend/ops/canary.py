"""Whether the configured keys fit the data, told before anything is read or written with the wrong ones."""

from chatgpt_backend.lib.crypto import CannotOpen, keyring
from chatgpt_backend.ops.models import KeyCanary

SONG = b"the keys fit"
ASSOCIATED = b"canary"


class KeysDoNotFit(Exception):
    """Data was sealed under a key that is not configured. The message names the key and what to do."""


def verify_keys() -> None:
    """Prove that every key the data was sealed under is configured; note the sealing key where it is new.

    Safe to run in several processes at once. Raises KeysDoNotFit.
    """
    ring = keyring()
    known = set()
    for canary in KeyCanary.objects.all():
        try:
            ring.open(bytes(canary.sealed), ASSOCIATED)
        except CannotOpen as error:
            raise KeysDoNotFit(
                f"This database holds data sealed under key {canary.key_id}, which is not configured. Put the key back "
                "into ENCRYPTION_KEYS (or SECRET_KEY, where no ENCRYPTION_KEYS were set), for instance from the .env "
                "that the database was made with, or name another database in DATABASE_URL."
            ) from error
        known.add(canary.key_id)
    sealing_id = ring.sealing_id.hex()
    if sealing_id not in known:
        KeyCanary.objects.get_or_create(key_id=sealing_id, defaults={"sealed": ring.seal(SONG, ASSOCIATED)})
