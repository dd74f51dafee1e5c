"""The user model, hashing, rules for passwords, and finding whom a name means."""

import threading
from typing import Any

import pytest
from django.contrib.auth import authenticate
from django.contrib.auth.hashers import check_password, make_password
from django.contrib.auth.password_validation import get_password_validators, validate_password
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction

from accounts import hashers
from accounts.backends import find_user
from accounts.models import User


def test_create_user_and_the_natural_key(db: Any) -> None:
    user = User.objects.create_user("Alice", "Alice@X.Example", "pw")

    assert User.objects.get_by_natural_key("Alice") == user
    assert (user.username_folded, user.email_folded) == ("alice", "alice@x.example")
    assert (user.role, user.is_staff, user.is_superuser) == ("user", False, False)
    assert authenticate(username="ALICE", password="pw") == user
    assert authenticate(username="alice@x.example", password="pw") == user
    assert authenticate(username="alice", password="PW") is None


def test_a_new_superuser_is_an_admin(db: Any) -> None:
    admin = User.objects.create_superuser("root", "root@example.com", "pw")

    assert (admin.role, admin.is_staff, admin.is_superuser) == ("admin", True, True)
    assert User.objects.get().role == "admin"


def test_a_superusers_role_may_change_later(db: Any) -> None:
    admin = User.objects.create_superuser("root", "root@example.com", "pw")
    admin.role = User.Role.SUPPORT
    admin.save(update_fields=["role"])

    assert User.objects.get().role == "support"


@pytest.mark.parametrize(("name", "email"), [("ALICE", "b@example.com"), ("bob", "Alice@Example.com")])
def test_the_database_holds_look_alikes_off(alice: User, name: str, email: str) -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        User.objects.create_user(name, email, "pw")


def test_an_address_beats_a_name_like_it(db: Any) -> None:
    User.objects.create_user("bob@example.com", "squatter@example.com", "pw")
    bob = User.objects.create_user("bob", "bob@example.com", "pw")

    assert find_user("bob@example.com") == bob
    assert find_user("nobody") is None


def test_signing_in_is_one_query(alice: User, django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(1):
        assert authenticate(username="alice", password="Kr1stall-alice") == alice
    with django_assert_num_queries(1):
        assert authenticate(username="nobody", password="Kr1stall-alice") is None


def test_a_user_without_a_password_cannot_sign_in(alice: User) -> None:
    alice.set_unusable_password()
    alice.save(update_fields=["password"])

    assert authenticate(username="alice", password="Kr1stall-alice") is None


def test_hashes_are_argon2id_of_19_mib() -> None:
    encoded = make_password("密码 and more")

    assert encoded.startswith("argon2$argon2id$v=19$m=19456,t=2,p=1$")
    assert check_password("密码 and more", encoded)
    assert not check_password("other", encoded)


def test_a_flood_of_hashes_runs_on_a_few_threads() -> None:
    gate = threading.Event()
    for _ in range(hashers.CONCURRENT_HASHES):
        hashers._threads.submit(gate.wait)
    done = threading.Event()

    def hash_one() -> None:
        make_password("pw")
        done.set()

    caller = threading.Thread(target=hash_one)
    caller.start()
    try:
        assert not done.wait(0.3)
    finally:
        gate.set()
        caller.join()
    assert done.is_set()


def test_the_strict_policy_refuses_common_passwords() -> None:
    strict = get_password_validators(
        [
            {
                "NAME": "django.contrib.auth.password_validation.MinimumLengthValidator",
                "OPTIONS": {"min_length": 12},
            },
            {"NAME": "accounts.passwords.MixedKindsValidator"},
            {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
        ]
    )

    validate_password("password123")
    with pytest.raises(ValidationError) as raised:
        validate_password("password123", password_validators=strict)
    assert {error.code for error in raised.value.error_list} == {"password_too_short", "password_too_common"}
