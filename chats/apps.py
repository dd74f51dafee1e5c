"""The app."""

from django.apps import AppConfig


class ChatsConfig(AppConfig):
    """Conversations, messages, generation."""

    name = "chats"
