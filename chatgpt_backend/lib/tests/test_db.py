"""Database work from async code, transactions that are tried again, and updates that return."""

import asyncio
import contextvars
import sqlite3
import threading

import pytest
from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import IntegrityError, OperationalError, connection, transaction
from django.db.models import F

from chatgpt_backend.lib import db

pytestmark = pytest.mark.django_db(transaction=True)
REQUEST = contextvars.ContextVar("request", default="none")
on_sqlite = pytest.mark.skipif("sqlite" not in settings.DATABASES["default"]["ENGINE"], reason="SQLite's own lock")


async def test_the_call_runs_in_the_pool_and_returns_or_raises_as_it_would_here():
    name = await db.run(lambda: threading.current_thread().name)
    assert name.startswith("database_")
    assert await db.run(divmod, 7, 2) == (3, 1)
    assert await db.run(int, "ff", base=16) == 255
    with pytest.raises(ZeroDivisionError):
        await db.run(divmod, 1, 0)


async def test_the_callers_context_goes_along_and_nothing_comes_back():
    def read_and_change():
        before = REQUEST.get()
        REQUEST.set("changed in the thread")
        return before

    async def with_context(value):
        REQUEST.set(value)
        read = await db.run(read_and_change)
        return read, REQUEST.get()

    found = await asyncio.gather(*(asyncio.ensure_future(with_context(str(n))) for n in range(30)))
    assert found == [(str(n), str(n)) for n in range(30)]
    assert await db.run(REQUEST.get) == "none"


async def test_as_many_calls_run_at_once_as_there_are_threads():
    # Each waits until all are there: one that had to wait for another's end would break the barrier.
    barrier = threading.Barrier(settings.DATABASE_THREADS)

    def meet():
        barrier.wait(timeout=10)
        return threading.get_ident()

    threads = await asyncio.gather(*(db.run(meet) for _ in range(settings.DATABASE_THREADS)))
    assert len(set(threads)) == settings.DATABASE_THREADS == 20


async def test_what_must_not_wait_has_a_thread_of_its_own():
    everybody_waits = threading.Barrier(settings.DATABASE_THREADS + 1)
    release = threading.Event()

    def occupy():
        everybody_waits.wait(timeout=10)
        release.wait(timeout=10)

    busy = [asyncio.ensure_future(db.run(occupy)) for _ in range(settings.DATABASE_THREADS)]
    await asyncio.to_thread(everybody_waits.wait, 10)
    try:
        assert await asyncio.wait_for(db.run_reserved(get_user_model().objects.count), 5) == 0
    finally:
        release.set()
        await asyncio.gather(*busy)


async def test_a_cancelled_caller_does_not_cut_the_call():
    begun, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def write():
        with transaction.atomic():
            add_user()
            begun.set()
            go_on.wait(timeout=10)
        done.set()

    task = asyncio.ensure_future(db.run(write))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    assert await asyncio.to_thread(done.wait, 10)
    assert await db.run(get_user_model().objects.count) == 1


# --- Transactions ----------------------------------------------------------------------------------------------------


class Begins:
    """Counts BEGINs by Django's own instrumentation, and does something before one of them."""

    def __init__(self, *, before=0, do=None):
        self.count, self.before, self.do = 0, before, do

    def __call__(self, execute, sql, params, many, context):
        if sql.startswith("BEGIN"):
            self.count += 1
            if self.count == self.before:
                self.do()
        return execute(sql, params, many, context)


@pytest.fixture
def other():
    """A second connection to SQLite's file; ours gives up at once where the file is locked."""
    connection.ensure_connection()
    with connection.cursor() as cursor:
        (patience,) = cursor.execute("PRAGMA busy_timeout").fetchone()
        cursor.execute("PRAGMA busy_timeout = 0")
    opened = sqlite3.connect(connection.settings_dict["NAME"], isolation_level=None)
    yield opened
    opened.close()
    with connection.cursor() as cursor:
        cursor.execute(f"PRAGMA busy_timeout = {patience}")


def add_user(name="alice"):
    return get_user_model().objects.create(username=name, email=f"{name}@example.com").pk


@on_sqlite
@pytest.mark.parametrize("freed_before", [2, 3, 6])
def test_a_busy_database_is_asked_again(other, freed_before):
    other.execute("BEGIN IMMEDIATE")
    begins = Begins(before=freed_before, do=lambda: other.execute("ROLLBACK"))
    with connection.execute_wrapper(begins):
        user_id = db.in_transaction(add_user)
    assert (begins.count, get_user_model().objects.get().pk) == (freed_before, user_id)


@on_sqlite
def test_a_database_that_stays_busy_is_an_error_after_six_attempts(other):
    other.execute("BEGIN IMMEDIATE")
    begins, called = Begins(), []
    with connection.execute_wrapper(begins), pytest.raises(OperationalError, match="locked"):
        db.in_transaction(called.append, 1)
    assert (begins.count, called) == (db.ATTEMPTS, [])
    other.execute("ROLLBACK")
    assert db.in_transaction(add_user)


@on_sqlite
def test_what_a_failed_attempt_wrote_is_gone_before_the_next(other):
    attempts = []

    def write():
        attempts.append(get_user_model().objects.count())
        add_user(f"user{len(attempts)}")
        if len(attempts) < 3:
            raise OperationalError("database is locked")

    db.in_transaction(write)
    assert attempts == [0, 0, 0]
    assert [one.username for one in get_user_model().objects.all()] == ["user3"]


@on_sqlite
def test_inside_a_transaction_there_is_one_attempt():
    calls = []

    def refuse():
        calls.append(1)
        raise OperationalError("database is locked")

    with transaction.atomic(), pytest.raises(OperationalError):
        db.in_transaction(refuse)
    assert calls == [1]


@pytest.mark.parametrize(
    "error", [IntegrityError("locked"), OperationalError("no such table: x"), ValueError("locked")]
)
def test_other_errors_are_not_tried_again(error):
    calls = []

    def fail():
        calls.append(add_user())
        raise error

    with pytest.raises(type(error)):
        db.in_transaction(fail)
    assert len(calls) == 1
    assert not get_user_model().objects.exists()


@pytest.mark.parametrize(
    ("attributes", "arguments", "retryable"),
    [
        ({"sqlstate": "40001"}, ("could not serialize",), True),
        ({"sqlstate": "40P01"}, ("deadlock detected",), True),
        ({"sqlstate": "57P01"}, ("terminating connection",), False),
        ({"sqlstate": None}, ("connection refused",), False),
        ({}, (1213, "Deadlock found"), True),
        ({}, (1205, "Lock wait timeout exceeded"), True),
        ({}, (2006, "MySQL server has gone away"), False),
        ({}, (), False),
    ],
)
def test_which_refusals_may_pass(attributes, arguments, retryable):
    cause = Exception(*arguments)
    vars(cause).update(attributes)
    error = OperationalError(*arguments)
    error.__cause__ = cause
    assert db.is_retryable(error) is retryable


async def test_a_hundred_writers_at_once_lose_nothing():
    user_id = await db.run(add_user)

    def bump():
        user = get_user_model().objects.select_for_update().get(id=user_id)
        user.theme = str(int(user.theme or 0) + 1)
        user.save(update_fields=["theme"])

    await asyncio.gather(*(db.run(db.in_transaction, bump) for _ in range(100)))
    assert (await db.run(get_user_model().objects.get)).theme == "100"


# --- Updates that return ---------------------------------------------------------------------------------------------


def test_an_update_returns_each_row_as_it_now_stands_in_one_statement(django_assert_num_queries):
    first, second, third = (add_user(name) for name in ("alice", "bob", "carol"))
    users = get_user_model().objects.exclude(id=second).order_by("username")
    with transaction.atomic(), django_assert_num_queries(1 if connection.vendor != "mysql" else 2):
        rows = db.update_returning(users, "id", "theme", "email", theme="dark", email=F("username"))
    assert sorted(rows) == [(first, "dark", "alice"), (third, "dark", "carol")]
    assert sorted(get_user_model().objects.values_list("id", "theme")) == [
        (first, "dark"),
        (second, ""),
        (third, "dark"),
    ]


def test_an_update_of_nothing_returns_nothing():
    add_user()
    users = get_user_model().objects
    assert db.update_returning(users.filter(username="nobody"), "id", theme="dark") == []
    assert db.update_returning(users.filter(id__in=[]), "id", theme="dark") == []
    assert db.update_returning(users.none(), "id", theme="dark") == []
    assert users.get().theme == ""


def test_a_row_that_no_longer_matches_is_returned_all_the_same():
    user_id = add_user()
    users = get_user_model().objects
    rows = db.update_returning(users.filter(theme=""), "id", "theme", again=users.filter(id=user_id), theme="dark")
    assert rows == [(user_id, "dark")]
