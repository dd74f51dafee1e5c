"""A tiny application on our server that sends 200 MB to whoever connects. Run: python -m … PORT."""

import sys
from typing import Any

from chatgpt_backend.ops.reactor import install_uvloop

install_uvloop()

from chatgpt_backend.ops.server import Server  # noqa: E402 - after the reactor

PIECES, PIECE = 200, b"x" * (1024 * 1024)
ended: list[str] = []


async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Flood the peer; `/ended` tells which floods have come back, and why; `/pieces` says a little;
    `/broken` fails, with a query in mid-answer."""
    if scope["type"] == "http" and scope["path"] == "/pieces":
        status = int(scope["query_string"] or b"200")
        await send({"type": "http.response.start", "status": status, "headers": []})
        for _ in range(3):
            await send({"type": "http.response.body", "body": b"piece\n", "more_body": True})
        await send({"type": "http.response.body"})
        return
    if scope["type"] == "http" and scope["path"] == "/broken":
        if scope["query_string"]:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"piece\n", "more_body": True})
        raise RuntimeError("broken on request")
    if scope["type"] == "http" and scope["path"] != "/flood":
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": ",".join(ended).encode()})
        return
    await receive()
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(PIECES):
            await send({"type": "http.response.body", "body": PIECE, "more_body": True})
        await send({"type": "http.response.body"})
    else:
        await send({"type": "websocket.accept"})
        code = scope["query_string"].decode()
        if code:
            await send({"type": "websocket.close", "code": int(code), "reason": "because"})
        else:
            for _ in range(PIECES):
                await send({"type": "websocket.send", "bytes": PIECE})
    last = (await receive())["type"]
    ended.append(last)


if __name__ == "__main__":
    server = Server(
        application, host="127.0.0.1", port=int(sys.argv[1]), max_frame_bytes=1024 * 1024, max_body_bytes=1024 * 1024
    )
    server.listen()
    server.run()
