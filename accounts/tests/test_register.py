"""POST /auth/register."""

from datetime import datetime
from typing import Any

import pytest
from django.db import connection

from accounts import services
from accounts.models import Session, User, fold
from accounts.tests.conftest import errors
from quotas.models import Allowance

TESTUSER = {"username": "testuser", "email": "test@example.com", "password": "password123"}


def test_it_makes_a_user_on_the_default_plan_and_signs_it_in(anonymous: Any) -> None:
    response = anonymous.post("/auth/register", TESTUSER, user_agent="curl/8")

    assert response.status_code == 201
    body = response.json()
    user = User.objects.get()
    assert set(body) == {"user", "access", "refresh"}
    joined = body["user"].pop("date_joined")
    assert joined.endswith("Z") and datetime.fromisoformat(joined) == user.date_joined
    assert body["user"] == {
        "id": user.pk, "username": "testuser", "email": "test@example.com", "role": "user", "plan": "free",
        "is_vip": False, "mfa_enabled": False,
    }  # fmt: skip
    assert user.password.startswith("argon2$argon2id$v=19$m=19456,t=2,p=1$")
    assert user.check_password("password123")
    assert Allowance.objects.get(user=user).plan.name == "free"
    session = Session.objects.get(user=user)
    assert (session.ip, session.user_agent) == ("127.0.0.1", "curl/8")
    me = anonymous.get("/users/me", authorization=f"Bearer {body['access']}")
    assert me.json()["username"] == "testuser"


def test_queries(anonymous: Any, django_assert_num_queries: Any) -> None:
    anonymous.post("/auth/register", TESTUSER)

    # Taken names; savepoint; user; plan, allowance; session; release; plan in force.
    with django_assert_num_queries(8):
        response = anonymous.post("/auth/register", {**TESTUSER, "username": "second", "email": "second@example.com"})
    assert response.status_code == 201


def test_a_stale_bearer_token_is_no_obstacle(anonymous: Any) -> None:
    assert anonymous.post("/auth/register", TESTUSER, authorization="Bearer stale").status_code == 201


@pytest.mark.parametrize("name", ["testuser", "TestUser", "ｔｅｓｔｕｓｅｒ", "ＴＥＳＴuser", " testuser "])
def test_a_name_is_taken_however_it_is_written(anonymous: Any, name: str) -> None:
    anonymous.post("/auth/register", TESTUSER)

    response = anonymous.post("/auth/register", {**TESTUSER, "username": name, "email": "other@example.com"})

    assert response.status_code == 400
    assert response.json()["type"] == "validation_error"
    assert errors(response) == [("unique", "username")]
    assert User.objects.count() == 1


@pytest.mark.parametrize("email", ["test@example.com", "TEST@EXAMPLE.COM", "Test@example.com"])
def test_an_address_is_taken_however_it_is_written(anonymous: Any, email: str) -> None:
    anonymous.post("/auth/register", TESTUSER)

    response = anonymous.post("/auth/register", {**TESTUSER, "username": "other", "email": email})

    assert response.status_code == 400
    assert errors(response) == [("unique", "email")]
    assert User.objects.count() == 1


def test_both_taken_are_both_told(anonymous: Any) -> None:
    anonymous.post("/auth/register", TESTUSER)

    response = anonymous.post("/auth/register", TESTUSER)

    assert sorted(errors(response)) == [("unique", "email"), ("unique", "username")]


def test_a_name_is_stored_normalized(anonymous: Any) -> None:
    anonymous.post("/auth/register", {**TESTUSER, "username": "ｔｅｓｔｕｓｅｒ"})

    assert User.objects.get().username == "testuser"


def test_chinese_names_work(anonymous: Any) -> None:
    response = anonymous.post("/auth/register", {**TESTUSER, "username": "王小明"})

    assert response.status_code == 201
    assert response.json()["user"]["username"] == "王小明"


def test_somebody_elses_address_is_no_name(anonymous: Any) -> None:
    response = anonymous.post("/auth/register", {**TESTUSER, "username": "victim@example.com"})

    assert errors(response) == [("invalid", "username")]


def test_ones_own_address_may_be_the_name(anonymous: Any) -> None:
    response = anonymous.post("/auth/register", {**TESTUSER, "username": "Test@Example.com"})

    assert response.status_code == 201


@pytest.mark.parametrize(
    ("password", "codes"),
    [
        ("passw1", {"password_too_short"}),
        ("abcdefghij", {"password_of_one_kind"}),
        ("密码密码密码密码密码", {"password_of_one_kind"}),
        ("8675309123", {"password_of_one_kind"}),
        ("!!!!????", {"password_of_one_kind"}),
        ("abc", {"password_too_short", "password_of_one_kind"}),
        ("testuser1", {"password_too_similar"}),
        ("test@example.com", {"password_too_similar"}),
    ],
)
def test_weak_passwords(anonymous: Any, password: str, codes: set[str]) -> None:
    response = anonymous.post("/auth/register", {**TESTUSER, "password": password})

    assert response.status_code == 400
    assert set(errors(response)) == {(code, "password") for code in codes}
    assert not User.objects.exists()


LONG = "x" * 5000


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("username", None), ("username", ""), ("username", "ab"), ("username", "a" * 151), ("username", "a b"),
        ("username", "tab\tname"), ("username", "nul\x00name"), ("username", True), ("username", ["x"]),
        ("username", {"a": 1}), ("username", "half\ud800pair"), ("username", "ﷺ" * 100), ("username", LONG),
        ("email", None), ("email", ""), ("email", "no address"), ("email", "nul\x00@example.com"),
        ("email", "a@" + "b" * 250 + ".com"), ("email", ["a@example.com"]), ("email", "a@" + "ﷺ" * 20 + ".com"),
        ("password", None), ("password", ""), ("password", "nul\x00nul1"), ("password", LONG), ("password", []),
        ("password", "half\ud800pair1"),
    ],
)  # fmt: skip
def test_bad_fields(anonymous: Any, field: str, value: Any) -> None:
    response = anonymous.post("/auth/register", {**TESTUSER, field: value})

    assert response.status_code == 400
    assert {attr for _, attr in errors(response)} == {field}
    assert not User.objects.exists()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"null", 400),
        (b"[]", 400),
        (b'"text"', 400),
        (b"\xff\xfe", 400),
        (b"[" * 100_000, 400),
        (b'{"username": ' + b"9" * 10_000 + b"}", 400),
        (b'{"username": "' + b"a" * 10_000_000 + b'"}', 413),
    ],
)
def test_bad_bodies(anonymous: Any, body: bytes, status: int) -> None:
    response = anonymous.post("/auth/register", body)

    assert response.status_code == status
    assert response.json()["errors"]


def test_another_media_type_is_415(anonymous: Any) -> None:
    response = anonymous.client.post("/api/v1/auth/register", TESTUSER)

    assert response.status_code == 415


@pytest.mark.parametrize("mode", ["closed", "invite"])
def test_closed_registration(anonymous: Any, settings: Any, mode: str) -> None:
    settings.REGISTRATION = mode

    response = anonymous.post("/auth/register", TESTUSER)

    assert response.status_code == 403
    assert errors(response) == [("registration_closed", None)]
    assert not User.objects.exists()


@pytest.mark.parametrize(
    ("email", "status"),
    [("a@example.com", 201), ("a@EXAMPLE.com", 201), ("a@sub.example.com", 400), ("a@notexample.com", 400)],
)
def test_registration_domains(anonymous: Any, settings: Any, email: str, status: int) -> None:
    settings.REGISTRATION_DOMAINS = ["example.com"]

    response = anonymous.post("/auth/register", {**TESTUSER, "email": email})

    assert response.status_code == status
    if status == 400:
        assert errors(response) == [("domain_not_allowed", "email")]


@pytest.mark.django_db(transaction=True)
def test_of_many_at_once_one_gets_the_name(make_account: Any) -> None:
    import threading

    from accounts.tests.conftest import Api

    make_account("first")  # so that the plan is there
    barrier = threading.Barrier(6)
    statuses: list[int] = []

    def register(number: int) -> None:
        barrier.wait()
        body = {**TESTUSER, "username": "TestUser" if number % 2 else "testuser"}
        statuses.append(Api().post("/auth/register", body).status_code)
        connection.close()

    threads = [threading.Thread(target=register, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(statuses) == [201, 400, 400, 400, 400, 400]
    assert User.objects.filter(username_folded="testuser").count() == 1


def test_a_name_taken_after_the_check_is_400(anonymous: Any, alice: User) -> None:
    wanted = User(username="ALICE", email="new@example.com")

    with pytest.raises(services.ValidationError) as raised:
        services._with_free_names(wanted, lambda: wanted.save())

    assert [error.code for error in raised.value.detail["username"]] == ["unique"]


def test_folding_never_outgrows_the_column() -> None:
    """150 characters of NFKC at most double when folded; the column holds 300."""
    import sys
    import unicodedata

    normalized = {unicodedata.normalize("NFKC", chr(code)) for code in range(sys.maxunicode + 1)}
    assert max(len(fold(text)) / len(text) for text in normalized) <= 2
