"""Making, changing and deleting accounts, signing in and out.

Passwords are hashed and checked outside of transactions: a hash takes its time and may wait for its turn.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, TypeVar

import structlog
from django.conf import settings
from django.contrib.auth import authenticate
from django.contrib.auth.hashers import make_password
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError as DjangoValidationError
from django.db import IntegrityError
from rest_framework import status
from rest_framework.exceptions import ErrorDetail, NotFound, ValidationError

from accounts import tokens
from accounts.models import Session, User
from accounts.names import Problems, find_domain_problems, find_name_problems, find_taken_names
from accounts.tokens import TokenPair
from chatgpt_backend.lib import db
from chatgpt_backend.lib.errors import ClientError, invalid
from quotas.services import open_account

log = structlog.get_logger(__name__)
T = TypeVar("T")
# Each preference and the column that holds it.
PREFERENCES = {
    "default_model": "default_model",
    "custom_instructions": "custom_instructions_sealed",
    "language": "language",
    "theme": "theme",
}


class InvalidCredentials(ClientError):
    """401: name and password fit no active account. It says no more, so that nobody learns which names exist."""

    def __init__(self) -> None:
        super().__init__(
            "invalid_credentials", "No active account fits this name and password.",
            status_code=status.HTTP_401_UNAUTHORIZED,
        )  # fmt: skip


def register_user(
    *, username: str, email: str, password: str, ip: str | None, user_agent: str, now: datetime
) -> TokenPair:
    """Make a user on the default plan, signed in. Returns the first session's tokens.

    Raises ClientError `registration_closed` (403), and ValidationError that names every field at fault.
    """
    # REGISTRATION=invite needs an invitation, and nobody can hold one yet.
    if settings.REGISTRATION != "open":
        raise ClientError("registration_closed", "Registration is closed.", status_code=status.HTTP_403_FORBIDDEN)
    email = User.objects.normalize_email(email)
    wanted = User(username=username, email=email)
    # Of two about the address the domain's is told: whoever cannot have it need not learn that it is taken.
    problems = find_name_problems(wanted) | find_domain_problems(email) | find_password_problems(password, wanted)
    if problems:
        raise ValidationError(problems)
    hashed = make_password(password)

    def insert() -> TokenPair:
        # A fresh instance each time: a transaction that is tried again must not find the key of its first attempt.
        user = User(username=username, email=email, password=hashed, date_joined=now, last_login=now)
        user.save()
        open_account(user.pk)
        return tokens.open_session(user=user, ip=ip, user_agent=user_agent, now=now)

    pair = _with_free_names(wanted, insert)
    log.info("user_registered", user_id=pair.session.user_id)
    return pair


def sign_in(*, username: str, password: str, ip: str | None, user_agent: str, now: datetime) -> TokenPair:
    """Open a session for whom name (or address) and password fit. Raises InvalidCredentials."""
    user = authenticate(username=username, password=password)
    if not isinstance(user, User):
        raise InvalidCredentials

    def insert() -> TokenPair | None:
        # The row may have gone, or been disabled, while the password was hashed.
        if not User.objects.filter(pk=user.pk, is_active=True).update(last_login=now):
            return None
        return tokens.open_session(user=user, ip=ip, user_agent=user_agent, now=now)

    pair = db.in_transaction(insert)
    if pair is None:
        raise InvalidCredentials
    return pair


def end_session(*, user: User, session_id: int, now: datetime) -> None:
    """Sign one of the user's devices out. Raises NotFound for a session that is not theirs, or is over."""
    if not user.sessions.filter(pk=session_id, revoked_at=None, expires_at__gt=now).update(revoked_at=now):
        raise NotFound


def end_all_sessions(*, user: User, now: datetime) -> int:
    """Sign all of the user's devices out. Returns how many."""
    return Session.objects.filter(user=user, revoked_at=None).update(revoked_at=now)


def update_profile(*, user: User, changes: Mapping[str, Any]) -> User:
    """Change `username`, `email` and what `preferences` names; return the user as stored.

    Raises ValidationError for a name or address that is taken.
    """

    def write() -> User:
        # Locked and read anew: the folded columns are written together, so a stale copy would undo another change.
        current = User.objects.select_for_update().filter(pk=user.pk).first()
        if current is None:
            raise NotFound
        named = {name: changes[name] for name in ("username", "email") if name in changes}
        if "email" in named:
            named["email"] = User.objects.normalize_email(named["email"])
        preferences = changes.get("preferences", {})
        for name, value in {**named, **preferences}.items():
            setattr(current, name, value)
        if named and (problems := find_name_problems(current)):
            raise ValidationError(problems)
        if fields := {*named, *(PREFERENCES[name] for name in preferences)}:
            current.save(update_fields=fields)
        return current

    wanted = User(pk=user.pk, username=changes.get("username", ""), email=changes.get("email", ""))
    return _with_free_names(wanted, write)


def delete_account(*, user: User, password: str) -> None:
    """Remove the user and everything the user owns. Usage records stay, without a name.

    Raises ValidationError for a wrong password.
    """
    if not user.check_password(password):
        raise invalid("password", "The password is wrong.", "invalid_password")

    def remove() -> None:
        # Locked first: whoever inserts a row of this user's meanwhile waits, and then finds no user, instead of leaving
        # a row behind that the deletion did not see.
        locked = User.objects.select_for_update().filter(pk=user.pk).first()
        if locked is not None:
            locked.delete()

    db.in_transaction(remove)
    log.info("user_deleted", user_id=user.pk)


def find_password_problems(password: str, user: User) -> Problems:
    """Return each rule that the password breaks, under `password`. `user` need not be stored."""
    try:
        validate_password(password, user)
    except DjangoValidationError as error:
        return {
            "password": [
                ErrorDetail(message, one.code or "invalid")
                for one in error.error_list
                for message in one.messages
            ]
        }  # fmt: skip
    return {}


def _with_free_names(wanted: User, write: Callable[[], T]) -> T:
    """Run `write` in a transaction; a name taken in the meantime is reported like one taken before."""
    try:
        return db.in_transaction(write)
    except IntegrityError:
        if problems := find_taken_names(wanted):
            raise ValidationError(problems) from None
        raise
