"""Routes of sockets."""

from django.urls import re_path

from realtime.consumer import ChatConsumer

websocket_urlpatterns = [
    re_path(r"^api/v1/ws/?$", ChatConsumer.as_asgi()),
    re_path(r"^api/v1/ws/(?P<token>[^/]+)/?$", ChatConsumer.as_asgi()),
]
