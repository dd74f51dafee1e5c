"""The app."""

from django.apps import AppConfig


class QuotasConfig(AppConfig):
    """Plans, holds, settlement, usage."""

    name = "quotas"
