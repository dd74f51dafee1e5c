"""Users and their signed-in sessions."""

import unicodedata
from datetime import datetime
from typing import Any, ClassVar

from django.contrib.auth.models import AbstractUser
from django.db import models

from chatgpt_backend.lib.crypto import sealed_text


def fold(name: str) -> str:
    """Return `name` as it is compared: NFKC, case folded, so that look-alikes of one letter are one name."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


class User(AbstractUser):
    """A person. Names and addresses are unique however they are written: the folded columns hold that."""

    class Role(models.TextChoices):
        USER = "user"
        SUPPORT = "support"
        ADMIN = "admin"

    id: Any
    first_name = None  # type: ignore[assignment]  # Django's way of leaving a field out
    last_name = None  # type: ignore[assignment]
    email = models.EmailField(unique=True)
    username_folded = models.CharField(max_length=300, unique=True, editable=False)
    email_folded = models.CharField(max_length=300, unique=True, editable=False)
    role = models.CharField(max_length=8, choices=Role.choices, default=Role.USER)
    default_model = models.CharField(max_length=200, blank=True)
    custom_instructions_sealed = models.BinaryField(default=b"", blank=True)
    language = models.CharField(max_length=10, blank=True)
    theme = models.CharField(max_length=10, blank=True)

    custom_instructions = sealed_text("custom_instructions_sealed", owner="id")

    class Meta:
        ordering = ("id",)

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Save with the folded columns in step with the names. Who starts as a superuser starts as an admin."""
        if self._state.adding and self.is_superuser:
            self.role = self.Role.ADMIN
        self.username_folded, self.email_folded = fold(self.username), fold(self.email)
        fields = kwargs.get("update_fields")
        if fields is not None and {"username", "email"} & set(fields):
            kwargs["update_fields"] = {*fields, "username_folded", "email_folded"}
        super().save(*args, **kwargs)


class Session(models.Model):
    """One signed-in device. Its access tokens name it, and each request reads it: revoked, they are dead at once.

    `rotation` counts the refreshes; the refresh token in force carries that number.
    """

    id: Any
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="sessions")
    created_at = models.DateTimeField()
    last_seen_at = models.DateTimeField()
    expires_at = models.DateTimeField(help_text="when the refresh token in force ends")
    revoked_at = models.DateTimeField(null=True, blank=True)
    rotation = models.PositiveIntegerField(default=0)
    rotated_at = models.DateTimeField()
    ip = models.GenericIPAddressField(null=True, blank=True)
    user_agent = models.CharField(max_length=300, blank=True)

    # Set by `tokens.read_access_token` on what it returns: the end of the access token it read.
    token_expires_at: datetime

    class Meta:
        indexes: ClassVar = [models.Index(fields=["user", "revoked_at"], name="session_of_user")]

    def __str__(self) -> str:
        return f"{self.user_id} {self.user_agent[:40]}"
