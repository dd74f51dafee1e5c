"""Typed reading of the environment and of `.env`, and the one-time writing of missing secrets.

The environment wins over `.env`. `ENV_FILE` names another file; empty, none is read (tests do so).
"""

import base64
import os
import re
import secrets
from pathlib import Path

import environ

BASE_DIR = Path(__file__).resolve().parent.parent
env = environ.Env()
SECRETS = ("SECRET_KEY", "ENCRYPTION_KEYS")


def env_file() -> Path | None:
    """Return the path of the file that settings are read from, or None when there is to be none."""
    name = os.environ.get("ENV_FILE", ".env")
    return BASE_DIR / name if name else None


def read_env_file() -> None:
    """Load the file's variables that the environment does not have yet."""
    # Compose files and shells pass what is unset on as empty: without this, an empty secret there would outweigh the
    # one in the file, and each `init` would write another.
    for name in SECRETS:
        if not os.environ.get(name, "unset"):
            del os.environ[name]
    path = env_file()
    if path is not None and path.is_file():
        environ.Env.read_env(path, overwrite=False)


def write_missing_secrets() -> list[str]:
    """Append a fresh SECRET_KEY and ENCRYPTION_KEYS to the file where neither it nor the environment has one.

    Returns the names written. The file ends with mode 0600. Existing lines are never changed.
    """
    path = env_file()
    if path is None:
        return []
    read_env_file()
    fresh = {
        "SECRET_KEY": lambda: secrets.token_urlsafe(48),
        "ENCRYPTION_KEYS": lambda: base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
    }
    missing = {name: make() for name, make in fresh.items() if not os.environ.get(name)}
    if not missing:
        return []
    old = path.read_text("utf-8") if path.exists() else ""
    # A line `NAME=` left empty (as in .env.example) would win over a later one in some readers: drop it.
    for name in missing:
        old = re.sub(rf"(?m)^{name}=[ \t]*$\n?", "", old)
    if old and not old.endswith("\n"):
        old += "\n"
    text = old + "".join(f"{name}={value}\n" for name, value in missing.items())
    # Written beside and moved over, so that a crash cannot leave half a file; private before it holds anything.
    draft = path.with_name(path.name + ".new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    draft.chmod(0o600)
    draft.replace(path)
    os.environ.update(missing)
    return list(missing)
