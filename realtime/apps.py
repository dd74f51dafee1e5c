"""The app."""

from django.apps import AppConfig


class RealtimeConfig(AppConfig):
    """The WebSocket."""

    name = "realtime"
