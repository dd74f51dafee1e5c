"""GET, PATCH and DELETE /users/me."""

from typing import Any

import pytest
from django.utils import timezone

from accounts.models import Session, User
from accounts.tests.conftest import Api, errors
from quotas.models import Allowance, UsageRecord

NO_PREFERENCES = {"default_model": "", "custom_instructions": "", "language": "", "theme": ""}


def test_get(alice: User, api_of: Any) -> None:
    body = api_of(alice).get("/users/me").json()

    assert body.pop("date_joined").endswith("Z")
    assert body == {
        "id": alice.pk, "username": "alice", "email": "alice@example.com", "role": "user", "plan": "free",
        "is_vip": False, "mfa_enabled": False, "preferences": NO_PREFERENCES,
    }  # fmt: skip


def test_get_queries(alice: User, api_of: Any, django_assert_num_queries: Any) -> None:
    api = api_of(alice)

    # Session and user; plan in force.
    with django_assert_num_queries(2):
        api.get("/users/me")


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
def test_anonymous(anonymous: Any, alice: User, method: str) -> None:
    response = anonymous.request(method, "/users/me", {"username": "mallory", "password": "Kr1stall-alice"})

    assert response.status_code == 401
    assert errors(response) == [("not_authenticated", None)]
    assert User.objects.get().username == "alice"


def test_patch_changes_what_is_given(alice: User, api_of: Any) -> None:
    api = api_of(alice)

    response = api.patch("/users/me", {"username": "Alicia", "preferences": {"theme": "dark", "language": "zh-Hans"}})

    assert response.status_code == 200
    assert response.json()["username"] == "Alicia"
    assert response.json()["preferences"] == {**NO_PREFERENCES, "theme": "dark", "language": "zh-Hans"}
    response = api.patch(
        "/users/me", {"preferences": {"custom_instructions": "请用中文回答 🙂", "default_model": "gpt-4o"}}
    )
    assert response.json() == api.get("/users/me").json()
    assert response.json()["preferences"] == {
        "default_model": "gpt-4o", "custom_instructions": "请用中文回答 🙂", "language": "zh-Hans", "theme": "dark",
    }  # fmt: skip
    alice.refresh_from_db()
    assert (alice.username_folded, alice.email_folded) == ("alicia", "alice@example.com")
    assert "中文".encode() not in bytes(alice.custom_instructions_sealed)


def test_patch_takes_preferences_back(alice: User, api_of: Any) -> None:
    api = api_of(alice)
    api.patch("/users/me", {"preferences": {"theme": "dark", "custom_instructions": "x"}})

    assert api.patch("/users/me", {"preferences": NO_PREFERENCES}).json()["preferences"] == NO_PREFERENCES


def test_patch_queries(alice: User, api_of: Any, django_assert_num_queries: Any) -> None:
    api = api_of(alice)

    # Session and user; savepoint; user again, locked; taken names; update; release; plan in force.
    with django_assert_num_queries(7):
        assert api.patch("/users/me", {"email": "a@example.org"}).status_code == 200
    with django_assert_num_queries(5):
        assert api.patch("/users/me", {}).status_code == 200


def test_patch_keeps_ones_own_name_in_another_case(alice: User, api_of: Any) -> None:
    response = api_of(alice).patch("/users/me", {"username": "ALICE", "email": "ALICE@example.com"})

    assert response.status_code == 200
    assert response.json()["username"] == "ALICE"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"username": "ＢＯＢ"}, ("unique", "username")),
        ({"email": "Bob@Example.com"}, ("unique", "email")),
        ({"username": "carol@example.com"}, ("invalid", "username")),
    ],
)
def test_patch_refuses_others_names(
    alice: User, bob: User, api_of: Any, change: dict[str, str], code: tuple[str, str]
) -> None:
    response = api_of(alice).patch("/users/me", {**change, "preferences": {"theme": "dark"}})

    assert response.status_code == 400
    assert errors(response) == [code]
    stored = User.objects.get(pk=alice.pk)
    assert (stored.username, stored.email, stored.theme) == ("alice", "alice@example.com", "")


def test_patch_ignores_what_is_not_the_users_to_set(alice: User, api_of: Any) -> None:
    response = api_of(alice).patch("/users/me", {"role": "admin", "plan": "vip", "id": 7, "is_staff": True})

    assert response.status_code == 200
    stored = User.objects.get()
    assert (stored.role, stored.is_staff, stored.pk) == ("user", False, alice.pk)
    assert response.json()["plan"] == "free"


@pytest.mark.parametrize(
    ("body", "attr"),
    [
        ({"username": None}, "username"), ({"username": ""}, "username"), ({"username": "a\x00bc"}, "username"),
        ({"username": []}, "username"), ({"username": "ab"}, "username"), ({"email": "nothing"}, "email"),
        ({"email": None}, "email"), ({"preferences": None}, "preferences"),
        ({"preferences": []}, "preferences.non_field_errors"),
        ({"preferences": {"theme": "pink"}}, "preferences.theme"),
        ({"preferences": {"theme": None}}, "preferences.theme"),
        ({"preferences": {"theme": {}}}, "preferences.theme"), ({"preferences": {"theme": []}}, "preferences.theme"),
        ({"preferences": {"language": "klingon-x-y-z"}}, "preferences.language"),
        ({"preferences": {"language": "../../etc"}}, "preferences.language"),
        ({"preferences": {"default_model": "x" * 201}}, "preferences.default_model"),
        ({"preferences": {"custom_instructions": "x" * 8001}}, "preferences.custom_instructions"),
        ({"preferences": {"custom_instructions": "nul\x00"}}, "preferences.custom_instructions"),
        ({"preferences": {"custom_instructions": "\ud800"}}, "preferences.custom_instructions"),
    ],
)  # fmt: skip
def test_patch_bad_fields(alice: User, api_of: Any, body: Any, attr: str) -> None:
    response = api_of(alice).patch("/users/me", body)

    assert response.status_code == 400
    assert {found for _, found in errors(response)} == {attr}
    assert User.objects.get().username == "alice"


def test_patch_takes_the_longest_instructions(alice: User, api_of: Any) -> None:
    text = "🙂" * 8000

    response = api_of(alice).patch("/users/me", {"preferences": {"custom_instructions": text}})

    assert response.json()["preferences"]["custom_instructions"] == text


def test_patch_a_huge_body_is_413(alice: User, api_of: Any) -> None:
    assert api_of(alice).patch("/users/me", {"username": "x" * 10_000_000}).status_code == 413


def test_delete_removes_everything_but_usage(alice: User, bob: User, api_of: Any, open_session: Any) -> None:
    now = timezone.now()
    record = UsageRecord.objects.create(
        user=alice, hold_id="0" * 32, created_at=now, day=now.date(), model="m", provider="p", prompt_tokens=1,
        completion_tokens=2, cost=3, input_price=0, output_price=0, source="provider",
    )  # fmt: skip
    pair, of_bob = open_session(alice), open_session(bob)

    response = Api(pair.access).delete("/users/me", {"password": "Kr1stall-alice"})

    assert (response.status_code, response.content) == (204, b"")
    assert list(User.objects.all()) == [bob]
    assert list(Session.objects.all()) == [of_bob.session]
    assert list(Allowance.objects.values_list("user", flat=True)) == [bob.pk]
    record.refresh_from_db()
    assert record.user_id is None and record.prompt_tokens == 1
    assert Api(pair.access).get("/users/me").status_code == 401
    assert Api().post("/auth/login", {"username": "alice", "password": "Kr1stall-alice"}).status_code == 401
    assert Api().post("/auth/refresh", {"refresh": pair.refresh}).status_code == 401


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"password": "wrong"}, "invalid_password"),
        ({}, "required"),
        ({"password": ""}, "blank"),
        ({"password": None}, "null"),
        ({"password": ["Kr1stall-alice"]}, "invalid"),
        ({"password": "Kr1stall-alice\x00"}, "null_characters_not_allowed"),
    ],
)
def test_delete_needs_the_password(alice: User, api_of: Any, body: Any, code: str) -> None:
    response = api_of(alice).delete("/users/me", body)

    assert response.status_code == 400
    assert errors(response) == [(code, "password")]
    assert User.objects.filter(pk=alice.pk).exists()


def test_another_users_password_does_not_do(alice: User, bob: User, api_of: Any) -> None:
    assert api_of(bob).delete("/users/me", {"password": "Kr1stall-alice"}).status_code == 400
    assert User.objects.count() == 2
