"""The app."""

from django.apps import AppConfig


class AccountsConfig(AppConfig):
    """Users, sessions, tokens."""

    name = "accounts"
