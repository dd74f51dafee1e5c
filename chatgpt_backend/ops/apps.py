"""The app."""

from django.apps import AppConfig


class OpsConfig(AppConfig):
    """Health, request ids, system checks, `init`, `serve`."""

    name = "chatgpt_backend.ops"
    label = "ops"

    def ready(self) -> None:
        """Register the system checks."""
        from chatgpt_backend.ops import checks  # noqa: F401
