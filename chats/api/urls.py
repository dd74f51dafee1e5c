"""Routes under /api/v1."""

from django.urls import path

from chats.api.conversations import ConversationMessagesView, ConversationsView, ConversationView
from chats.api.messages import MessageStopView, MessageStreamView, MessagesView, MessageView
from chats.api.models import ModelsView

urlpatterns = [
    path("models", ModelsView.as_view()),
    path("conversations", ConversationsView.as_view()),
    path("conversations/<int:conversation_id>", ConversationView.as_view()),
    path("conversations/<int:conversation_id>/messages", ConversationMessagesView.as_view()),
    path("messages", MessagesView.as_view()),
    path("messages/<int:message_id>", MessageView.as_view()),
    path("messages/<int:message_id>/stop", MessageStopView.as_view()),
    path("messages/<int:message_id>/stream", MessageStreamView.as_view()),
]
