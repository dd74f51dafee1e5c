"""The settings, without the developer's `.env`, on a database file that threads can share."""

import os
import tempfile
from pathlib import Path

os.environ["ENV_FILE"] = ""
os.environ["LOG_FILE"] = ""
os.environ.setdefault("SECRET_KEY", "tests-only-secret-key-0123456789abcdef0123456789abcdef")
os.environ["OPENAI_API_KEY"] = ""

from chatgpt_backend.settings import *  # noqa: F403 - Django reads them here
from chatgpt_backend.settings import DATABASES

if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    # Pool threads do not see an in-memory database: a file, on memory where there is such a disk.
    shared_memory = Path("/dev/shm")
    folder = tempfile.mkdtemp(prefix="chatgpt-backend-tests-", dir=shared_memory if shared_memory.is_dir() else None)
    DATABASES["default"]["TEST"] = {"NAME": str(Path(folder) / "test.db")}
EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
