"""Ask a starting server for what its users will: its page, an account, a conversation, a reply. Python alone.

Usage: smoke.py URL PID, where PID is the process that must live until the server answers.
"""

import json
import os
import sys
import time
import urllib.error
import urllib.request
from typing import Any

# Installing comes first, on a cold cache.
START_SECONDS = 600
base, pid = sys.argv[1], int(sys.argv[2])
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def call(method: str, path: str, body: dict[str, Any] | None = None, token: str | None = None) -> bytes:
    """Return the body of an answer of 2xx. Raises urllib's errors for anything else."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(base + path, data, headers, method=method)
    with opener.open(request, timeout=60) as answer:
        return bytes(answer.read())


def wait_for_start() -> None:
    """Wait until the server is ready, while its process lives."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        os.kill(pid, 0)
        try:
            call("GET", "/health/ready")
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
        else:
            return
    raise SystemExit(f"no answer from {base} within {START_SECONDS} s")


wait_for_start()
assert b"<html" in call("GET", "/").lower()
assert json.loads(call("GET", "/health"))["status"] == "ok"
assert json.loads(call("GET", "/api/schema"))["openapi"].startswith("3.1")
user = {"username": "testuser", "email": "test@example.com", "password": "password123"}
call("POST", "/api/v1/auth/register", user)
token = json.loads(call("POST", "/api/v1/auth/login", {"username": "testuser", "password": "password123"}))["access"]
conversation = json.loads(
    call("POST", "/api/v1/conversations", {"title": "我的第一个对话", "model": "gpt-3.5-turbo"}, token)
)
message = {"conversation_id": conversation["id"], "content": "你好，请介绍一下自己", "role": "user"}
reply = json.loads(call("POST", "/api/v1/messages", message, token))["reply"]
assert reply["status"] == "completed" and reply["content"], reply
streamed = call("POST", "/api/v1/messages", message | {"stream": True}, token).decode()
assert "event: message.delta" in streamed and "event: message.completed" in streamed, streamed
print(f"answered: {reply['content']}")
