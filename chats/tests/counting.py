"""Counting the statements of a request: they run in the threads of the database pool."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import connections

from chatgpt_backend.lib import db


@contextmanager
def statements_of_requests() -> Iterator[list[str]]:
    """Yield a list that collects each statement run through `db.run`; the keeper has a thread of its own."""
    found: list[str] = []

    def note(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if threading.current_thread().name.startswith("database_") and not sql.startswith(("BEGIN", "COMMIT")):
            found.append(sql)
        return execute(sql, params, many, context)

    call = db._call

    def watched(function: Any) -> Any:
        with connections["default"].execute_wrapper(note):
            return call(function)

    with pytest.MonkeyPatch.context() as patched:
        # Not a mock: the pool's own call, with Django's own instrumentation around it.
        patched.setattr(db, "_call", watched)
        yield found
