"""The admin's pages of users and sessions."""

from typing import Any

import pytest
from django.test import Client

from accounts.models import Session, User
from quotas.models import Allowance


@pytest.fixture
def staff(db: Any) -> Client:
    User.objects.create_superuser("root", "root@example.com", "Kr1stall-root")
    client = Client()
    response = client.post("/admin/login/?next=/admin/", {"username": "ROOT@example.com", "password": "Kr1stall-root"})
    assert (response.status_code, response.headers["Location"]) == (302, "/admin/")
    return client


@pytest.mark.parametrize("path", ["user/", "user/add/", "session/"])
def test_pages(staff: Client, path: str) -> None:
    assert staff.get(f"/admin/accounts/{path}").status_code == 200


def test_anonymous_and_plain_users_are_sent_to_the_login(alice: User) -> None:
    client = Client()
    client.force_login(alice)

    for visitor in (client, Client()):
        response = visitor.get("/admin/accounts/user/")
        assert response.status_code == 302
        assert response.headers["Location"].startswith("/admin/login/")


def test_a_user_is_added_with_the_default_plan(staff: Client) -> None:
    form = {"username": "carol", "email": "carol@example.com", "usable_password": "true"}

    response = staff.post("/admin/accounts/user/add/", {**form, "password1": "Kr1stall-1", "password2": "Kr1stall-1"})

    assert response.status_code == 302
    carol = User.objects.get(username="carol")
    assert carol.check_password("Kr1stall-1")
    assert Allowance.objects.get(user=carol).plan.name == "free"


@pytest.mark.parametrize(("name", "email"), [("ＡＬＩＣＥ", "new@example.com"), ("new", "ALICE@example.com")])
def test_a_look_alike_is_a_form_error(staff: Client, alice: User, name: str, email: str) -> None:
    form = {"username": name, "email": email, "usable_password": "true"}

    response = staff.post("/admin/accounts/user/add/", {**form, "password1": "Kr1stall-1", "password2": "Kr1stall-1"})

    assert response.status_code == 200
    assert "already exists" in response.content.decode()
    assert User.objects.count() == 2


def test_a_user_is_changed(staff: Client, alice: User) -> None:
    page = f"/admin/accounts/user/{alice.pk}/change/"
    assert staff.get(page).status_code == 200

    response = staff.post(page, {"username": "alicia", "email": "alice@example.com", "role": "support"})

    assert response.status_code == 302
    alice.refresh_from_db()
    assert (alice.username, alice.username_folded, alice.role, alice.is_active) == (
        "alicia",
        "alicia",
        "support",
        False,
    )
    assert alice.check_password("Kr1stall-alice")


def test_a_password_is_set(staff: Client, alice: User) -> None:
    page = f"/admin/accounts/user/{alice.pk}/password/"
    assert staff.get(page).status_code == 200

    form = {"usable_password": "true", "password1": "New-kr1stall", "password2": "New-kr1stall"}
    assert staff.post(page, form).status_code == 302

    alice.refresh_from_db()
    assert alice.check_password("New-kr1stall")


def test_sessions_can_be_ended_but_not_changed(staff: Client, alice: User, open_session: Any) -> None:
    session = open_session(alice).session
    page = f"/admin/accounts/session/{session.pk}/change/"
    assert staff.get(page).status_code == 200
    assert staff.get("/admin/accounts/session/add/").status_code == 403
    assert staff.post(page, {"rotation": 9}).status_code == 403

    staff.post("/admin/accounts/session/", {"action": "revoke", "_selected_action": [session.pk]})

    stored = Session.objects.get(pk=session.pk)
    assert (stored.revoked_at is not None, stored.rotation) == (True, 0)
