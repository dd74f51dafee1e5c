"""The project: settings, URLs, the ASGI application."""

__version__ = "0.1.0"
