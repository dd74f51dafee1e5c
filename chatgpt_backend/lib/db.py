"""The one place that chooses threads for database work, and that retries what a database asks to be retried.

Async code reaches the ORM through `run` alone. `database_sync_to_async` shares one thread a process between all
callers that are thread-sensitive; this pool has `DATABASE_THREADS` of them, each with a connection of its own.
"""

import asyncio
import contextvars
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import lru_cache, partial
from typing import Any, ParamSpec, TypeVar

import structlog
from django.conf import settings
from django.core.exceptions import EmptyResultSet
from django.db import OperationalError, connection, connections, models, transaction
from django.db.models.sql import UpdateQuery

log = structlog.get_logger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

# SQLSTATE 40001 serialization failure, 40P01 deadlock; MySQL 1205 lock wait time-out, 1213 deadlock.
RETRYABLE_SQLSTATES = {"40001", "40P01"}
RETRYABLE_MYSQL = {1205, 1213}
ATTEMPTS = 6
LARGE_PARAMETERS = 1_000_000
# SQLite has one writer at a time, and lets those who wait sleep and try their luck: twenty at once took seconds. In one
# process they stand in a queue instead; between processes its own waiting still serves.
_sqlite_queue = threading.Lock()


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=settings.DATABASE_THREADS, thread_name_prefix="database")


def _call(function: Callable[[], T]) -> T:
    _tidy()
    try:
        return function()
    finally:
        _tidy()


def _tidy() -> None:
    """Close this thread's connections where they are broken. The others it keeps, whatever their age, as its own.

    Elsewhere CONN_MAX_AGE is 0, Django's default: a view that is not async has a thread of its own, and what that left
    open would be closed when the garbage collector came round to it.
    """
    for one in connections.all(initialized_only=True):
        if not one.settings_dict["OPTIONS"].get("pool"):  # psycopg's, to which each is given back
            one.close_at = None
        one.close_if_unusable_or_obsolete()


async def run(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `function` in a thread of the pool and return what it returns.

    The caller's context variables (the request id of log lines) go along. A cancelled caller leaves the call running
    to its end: a transaction is never cut in the middle.
    """
    context = contextvars.copy_context()
    call = partial(context.run, _call, partial(function, *args, **kwargs))
    return await asyncio.get_running_loop().run_in_executor(_pool(), call)


@lru_cache(maxsize=1)
def _reserved() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="database-keeper")


async def run_reserved(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `function` as `run` does, in one thread set aside: for what must not wait behind a busy pool (leases)."""
    call = partial(_call, partial(function, *args, **kwargs))
    return await asyncio.get_running_loop().run_in_executor(_reserved(), call)


def is_retryable(error: OperationalError) -> bool:
    """Say whether the database refused for a reason that another attempt may not meet (deadlock, busy)."""
    cause = error.__cause__
    if getattr(cause, "sqlstate", None) in RETRYABLE_SQLSTATES:
        return True
    code = cause.args[0] if cause is not None and cause.args else None
    return code in RETRYABLE_MYSQL or "locked" in str(error)


def in_transaction(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `function` in one transaction, again from its start where the database reports a deadlock or BUSY.

    `function` must therefore do nothing outside the database. Inside a surrounding transaction it is called once:
    only the outermost can be tried again.
    """
    queue = _sqlite_queue if connection.vendor == "sqlite" and not connection.in_atomic_block else nullcontext()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with queue, transaction.atomic():
                return function(*args, **kwargs)
        except OperationalError as error:
            if attempt == ATTEMPTS or connection.in_atomic_block or not is_retryable(error):
                raise
            log.info("transaction_retried", attempt=attempt)
            time.sleep(random.uniform(0.5, 1.5) * 0.02 * 2**attempt)  # noqa: S311 - jitter
    raise AssertionError("unreachable")


def let_go_of_large(size: int) -> None:
    """Close SQLite's connection after a statement with `size` bytes of parameters, if those are many.

    Python's sqlite3 keeps prepared statements, and each keeps what was last bound to it: hundreds of megabytes after
    one huge text, for every thread that wrote one. Call it outside a transaction.
    """
    if size > LARGE_PARAMETERS and connection.vendor == "sqlite" and not connection.in_atomic_block:
        connection.close()


def update_returning(
    queryset: models.QuerySet[Any], *fields: str, again: models.QuerySet[Any] | None = None, **changes: Any
) -> list[tuple[Any, ...]]:
    """Run `queryset.update(**changes)` and return `fields` of each row updated, as it now stands, in one statement.

    MySQL and MariaDB have no `UPDATE … RETURNING`: there a SELECT follows, so call it in a transaction, where the rows
    stay locked. `again` finds the same rows where the queryset's own filter may no longer match them; it is asked only
    when it has as many rows as were updated, else the answer is empty.
    """
    using = connections[queryset.db]
    if using.vendor == "mysql":
        updated = queryset.update(**changes)
        rows = list((queryset if again is None else again).values_list(*fields))
        return rows if len(rows) == updated else []
    query: Any = queryset.query.chain(UpdateQuery)
    query.add_update_values(changes)
    try:
        sql, parameters = query.get_compiler(queryset.db).as_sql()
    except EmptyResultSet:  # Django knows without asking that nothing matches
        return []
    columns = ", ".join(using.ops.quote_name(queryset.model._meta.get_field(name).column) for name in fields)
    with using.cursor() as cursor:
        cursor.execute(f"{sql} RETURNING {columns}", parameters)
        return list(cursor.fetchall())
