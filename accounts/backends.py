"""Signing in by name or by e-mail address."""

from typing import Any

from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.hashers import make_password
from django.db.models import Q

from accounts.models import User, fold


class NameOrEmailBackend(ModelBackend):
    """Take a name or an address, however it is written. A miss costs one hash too, so time tells nothing."""

    def authenticate(
        self, request: Any, username: str | None = None, password: str | None = None, **kwargs: Any
    ) -> User | None:
        """Return the active user whom `username` and `password` fit, or None. One query, one hash."""
        if username is None or password is None:
            return None
        user = find_user(username)
        if user is None:
            make_password(password)
            return None
        fits = user.check_password(password)
        return user if fits and self.user_can_authenticate(user) else None


def find_user(name_or_email: str) -> User | None:
    """Return the user of that name or address.

    Where one user's name is another's address (registration refuses it, `createsuperuser` does not), the address wins:
    its owner has no other name for it.
    """
    folded = fold(name_or_email)
    found = list(User.objects.filter(Q(username_folded=folded) | Q(email_folded=folded))[:2])
    return next((user for user in found if user.email_folded == folded), found[0] if found else None)
