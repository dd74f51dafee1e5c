"""Argon2id, with a ceiling on the memory that all running hashes take together."""

from concurrent.futures import ThreadPoolExecutor

from django.contrib.auth.hashers import Argon2PasswordHasher

# A hash holds 19 MiB and a core for some 20 ms: more at once would be no faster, only larger.
CONCURRENT_HASHES = 4
# Threads of their own: a semaphore bounds what is in use, but not what is kept. glibc keeps freed memory in the arena
# of the thread that had it, and 40 requests at once left 500 MB in their threads' arenas; so it stays at 100 MB.
_threads = ThreadPoolExecutor(CONCURRENT_HASHES, thread_name_prefix="argon2")


class Argon2Hasher(Argon2PasswordHasher):
    """Argon2id at OWASP's second setting (19 MiB, 2 passes, 1 lane); Django's own takes 100 MB a hash.

    A flood of logins waits for its turn instead of filling the memory. Never hash inside a transaction: the waiting
    would hold its locks.
    """

    time_cost = 2
    memory_cost = 19 * 1024
    parallelism = 1

    def encode(self, password: str, salt: str) -> str:
        """Return the hash of `password`, waiting for a free thread."""
        return _threads.submit(super().encode, password, salt).result()

    def verify(self, password: str, encoded: str) -> bool:
        """Say whether `password` is the one in `encoded`, waiting for a free thread."""
        return _threads.submit(super().verify, password, encoded).result()
