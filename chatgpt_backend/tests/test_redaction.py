"""What must never stand in a log."""

import pytest

from chatgpt_backend.lib.logs import redact


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("GET /api/v1/ws/abc.def-1?x=1", "GET /api/v1/ws/[redacted]?x=1"),
        ("/api/v1/ws?ticket=abc&x=1", "/api/v1/ws?ticket=[redacted]&x=1"),
        ("/api/v1/ws/ticket", "/api/v1/ws/ticket"),
        ("/api/v1/shared/abc/fork", "/api/v1/shared/[redacted]/fork"),
        ("/s/abc", "/s/[redacted]"),
        ("/static/s/abc", "/static/s/abc"),
        ("/reset/MQ/abc-def", "/reset/MQ/[redacted]"),
        ("'Authorization': 'Bearer abc'", "'Authorization': 'Bearer [redacted]'"),
        ("Sec-WebSocket-Protocol: bearer, abc", "Sec-WebSocket-Protocol: bearer, [redacted]"),
        ("token eyJhbGci.eyJzdWIi.c2ln here", "token [redacted] here"),
        ("key sk-cb-0123456789abcdef", "key [redacted]"),
        ("path=/api/v1/conversations/12 status=200", "path=/api/v1/conversations/12 status=200"),
    ],
)
def test_secrets_are_cut_out(line, expected):
    assert redact(line) == expected
