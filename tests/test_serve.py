"""`manage.py serve` and `init` as an operator meets them: real processes."""

import asyncio
import json
import re
import resource
import signal
import socket
import stat
import sys
import time
from collections.abc import Iterator

import httpx2
import pytest
import websockets

from tests.processes import SECRETS, Process, ServerProcess, environment, manage, spare_port
from tests.upstream import Upstream

pytestmark = pytest.mark.processes
OTHER_KEY = "ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA="


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("server")) as process:
        yield process


def get(server: Process, path: str, **options: object) -> httpx2.Response:
    return httpx2.get(server.url + path, trust_env=False, timeout=10, **options)


def refused(command: ServerProcess) -> str:
    """Return the one line that a server says which refuses to start."""
    command.launch()
    assert command.wait() == 1
    assert len(command.log.strip().splitlines()) == 1, command.log
    return command.log


# --- Start ------------------------------------------------------------------------------------------------------


def test_start_says_where_to_look(server):
    assert f"http://localhost:{server.port}/\n" in server.log
    assert f"http://localhost:{server.port}/docs\n" in server.log
    assert f"http://localhost:{server.port}/admin/\n" in server.log


def test_port_in_use_is_one_clear_line(server, tmp_path):
    second = ServerProcess(tmp_path, port=server.port)
    assert f"Port {server.port} on 127.0.0.1 is in use" in refused(second)


def test_foreign_encryption_keys_are_refused_by_name(tmp_path):
    first = ServerProcess(tmp_path)
    second = ServerProcess(tmp_path, env={"ENCRYPTION_KEYS": OTHER_KEY}, port=first.port, init=False)
    line = refused(second)
    assert re.search(r"sealed under key [0-9a-f]{8}, which is not configured", line)
    assert "ENCRYPTION_KEYS" in line
    # `init` refuses as well, and a ring that has the old key behind the new one is welcome.
    assert second.manage("init", check=False).returncode == 1
    both = f"{OTHER_KEY},{SECRETS['ENCRYPTION_KEYS']}"
    with ServerProcess(tmp_path, env={"ENCRYPTION_KEYS": both}, init=False) as third:
        assert get(third, "/health").status_code == 200


def test_missing_migrations_are_refused(tmp_path):
    assert "manage.py init" in refused(ServerProcess(tmp_path, init=False))


@pytest.mark.parametrize(("secret", "check"), [("", "ops.E001"), ("short", "ops.E002")])
def test_unsafe_secret_key_is_refused(tmp_path, secret, check):
    assert check in refused(ServerProcess(tmp_path, env={"SECRET_KEY": secret}, init=False))


def test_stock_daphne_serves_too(tmp_path):
    port = spare_port()
    env = environment(tmp_path)
    manage("init", env=env)
    command = [sys.executable, "-m", "daphne", "-p", str(port), "chatgpt_backend.asgi:application"]
    with Process(command, env=env, folder=tmp_path, port=port, ready="/health/ready") as daphne:
        assert get(daphne, "/health").json()["status"] == "ok"


def test_stock_daphne_serves_nothing_with_foreign_keys(tmp_path):
    port = spare_port()
    manage("init", env=environment(tmp_path))
    command = [sys.executable, "-m", "daphne", "-p", str(port), "chatgpt_backend.asgi:application"]
    env = environment(tmp_path, {"ENCRYPTION_KEYS": OTHER_KEY})
    process = Process(command, env=env, folder=tmp_path, port=port)
    process.launch()
    try:
        deadline = time.monotonic() + 20
        while "keys_do_not_fit" not in process.log and time.monotonic() < deadline:
            try:
                assert get(process, "/health").status_code == 503
            except httpx2.TransportError:
                time.sleep(0.05)
        assert "keys_do_not_fit" in process.log
    finally:
        process.kill()


# --- init -------------------------------------------------------------------------------------------------------


def test_init_writes_secrets_once_and_prints_a_password_once(tmp_path):
    # given neither secrets nor an administrator
    env_file = tmp_path / "env"
    env = environment(tmp_path, {"ENV_FILE": str(env_file), "SECRET_KEY": "", "ENCRYPTION_KEYS": ""})
    # when
    first = manage("init", env=env).stdout
    written = env_file.read_text()
    second = manage("init", env=env).stdout
    # then
    assert re.search(r"Administrator: admin, password \S{12,}\. It is shown this once\.", first)
    assert re.search(r"(?m)^SECRET_KEY=\S{40,}$", written)
    assert re.search(r"(?m)^ENCRYPTION_KEYS=\S{44}$", written)
    assert stat.S_IMODE(env_file.stat().st_mode) == 0o600
    assert (second, env_file.read_text()) == ("", written)


def test_init_makes_the_administrator_that_was_named(tmp_path):
    env = environment(tmp_path, {"DJANGO_SUPERUSER_USERNAME": "boss", "DJANGO_SUPERUSER_PASSWORD": "boss-password-1"})
    assert "Administrator: boss.\n" in manage("init", env=env).stdout
    assert "left as it is" in manage("init", env=env).stdout


def test_init_refuses_a_weak_password(tmp_path):
    done = manage(
        "init", "--admin-username", "boss", "--admin-password", "boss", env=environment(tmp_path), check=False
    )
    assert done.returncode == 1
    assert "too short" in done.stderr


# --- Answers ----------------------------------------------------------------------------------------------------


def test_health(server):
    answer = get(server, "/health")
    assert answer.status_code == 200
    assert answer.json() == {
        "status": "ok",
        "checks": {"database": "ok", "cache": "ok", "channel_layer": "ok", "upstream": "offline"},
        "version": "0.1.0",
    }
    assert get(server, "/health/live").status_code == 200
    assert get(server, "/health/ready").status_code == 200


@pytest.mark.parametrize("path", ["/api/nothing", "/api/v1/nothing", "/api", "/api/v1/"])
def test_unknown_path_of_the_api_is_its_error_object(server, path):
    answer = get(server, path, headers={"Accept": "text/html"})
    assert answer.status_code == 404
    assert answer.json()["type"] == "client_error"
    assert answer.json()["errors"][0]["code"] == "not_found"


def test_unknown_path_of_the_openai_api_is_its_error_object(server):
    answer = get(server, "/v1/nothing")
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_foreign_host_is_refused_but_for_probes(server):
    assert get(server, "/api/v1/users/me", headers={"Host": "evil.example"}).status_code == 400
    assert get(server, "/health/ready", headers={"Host": "10.0.0.7"}).status_code == 200


@pytest.mark.parametrize("path", ["/api/v1/auth/login", "/api/v1/conversations"])
def test_huge_json_is_a_client_error_in_json(server, path):
    token = server.register(f"big{path[-5:].strip('/')}")["access"]
    body = json.dumps({"title": "x" * 20_000_000}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    answer = httpx2.post(server.url + path, content=body, headers=headers, trust_env=False, timeout=30)
    assert answer.status_code == 413
    assert answer.json()["errors"][0]["code"] == "request_too_large"


def test_body_in_chunks_is_read(server):
    def pieces() -> Iterator[bytes]:
        yield b'{"username": "nobody", '
        yield b'"password": "password123"}'

    headers = {"Content-Type": "application/json"}
    answer = httpx2.post(server.url + "/api/v1/auth/login", content=pieces(), headers=headers, trust_env=False)
    assert answer.status_code == 401
    assert answer.json()["errors"][0]["code"] == "invalid_credentials"


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_documentation_names_no_other_server(server, path):
    page = get(server, path)
    assert page.status_code == 200
    # Neither the page nor, for what it loads, a file that is not there.
    assert not re.search(r"""(?:src|href)=["'](?:https?:)?//""", page.text)
    for file in re.findall(r"""(?:src|href)=["'](/[^"']+)""", page.text):
        assert get(server, file).status_code == 200, file


def test_schema_is_openapi_3_1(server):
    assert get(server, "/api/schema").json()["openapi"].startswith("3.1")


def test_tokens_and_tickets_reach_no_log(server):
    secret = "eyJhbGciOiJIUzI1NiJ9.c2VjcmV0LWNsYWltcw.c2lnbmF0dXJl"

    async def knock() -> None:
        for path in (f"/api/v1/ws/{secret}", f"/api/v1/ws?ticket={secret}", f"/nowhere/{secret}"):
            try:
                async with websockets.connect(server.ws_url + path, proxy=None, open_timeout=10) as one:
                    await asyncio.wait_for(one.wait_closed(), 10)
            except websockets.InvalidStatus:
                pass  # refused in the handshake: as good, here

    asyncio.run(knock())
    get(server, f"/api/v1/ws/{secret}")
    get(server, f"/api/v1/ws/not-even-a-token-{secret[:5]}")
    get(server, "/api/v1/users/me", headers={"Authorization": f"Bearer {secret}"})
    assert "/api/v1/ws/[redacted]" in server.log
    for part in (secret, secret.split(".")[1], "not-even-a-token"):
        assert part not in server.log


# --- The end ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_drains_and_ends_well(tmp_path, number):
    with ServerProcess(tmp_path) as server, httpx2.Client(trust_env=False) as kept_alive:
        assert kept_alive.get(server.url + "/health/ready").status_code == 200
        with socket.create_connection(("127.0.0.1", server.port)) as half:
            half.sendall(b"GET /health HTTP/1.1\r\n")  # a request that never becomes one
            server.signal(number)
            assert server.wait() == 0
        assert "Traceback" not in server.log
        assert "server_draining" in server.log


def test_second_start_is_quick(tmp_path):
    server = ServerProcess(tmp_path)
    # In seconds of CPU: other tests share the machine's.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    server.manage("init")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    with server:
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime + server.cpu_seconds()
    assert spent < 5


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as one:
        yield one


def test_stop_lets_a_reply_finish_and_refuses_new_ones(tmp_path, upstream):
    # given a reply under way that takes some two seconds, a reader of it, and a socket
    env = {"OPENAI_API_KEY": "k", "OPENAI_API_BASE": upstream.url, "SHUTDOWN_GRACE_SECONDS": "20"}
    with ServerProcess(tmp_path, env=env) as server:
        token = server.register()["access"]

        async def scene() -> None:
            headers = {"Authorization": f"Bearer {token}"}
            async with (
                httpx2.AsyncClient(base_url=server.url, headers=headers, trust_env=False, timeout=30) as client,
                httpx2.AsyncClient(base_url=server.url, headers=headers, trust_env=False, timeout=30) as other,
                websockets.connect(f"{server.ws_url}/api/v1/ws/{token}", proxy=None) as sock,
            ):
                created = await client.post("/api/v1/conversations", json={})
                body = {"conversation_id": created.json()["id"], "content": "!tokens=40 !slow=0.05", "stream": True}
                await other.get("/health/ready")
                async with client.stream("POST", "/api/v1/messages", json=body) as stream:
                    lines = stream.aiter_lines()
                    while not (await anext(lines)).startswith("event: message.delta"):
                        pass
                    # when
                    server.signal(signal.SIGTERM)
                    # then sockets are sent elsewhere,
                    await asyncio.wait_for(sock.wait_closed(), 5)
                    assert sock.close_code == 4503
                    # the process takes no connection and no work, and says so on those it has,
                    with pytest.raises(httpx2.TransportError):
                        httpx2.get(server.url + "/health", trust_env=False)
                    assert (await other.get("/health/ready")).status_code == 503
                    refused = await other.post("/api/v1/messages", json=body)
                    assert refused.status_code == 503
                    # and the reply comes to its end.
                    rest = [line async for line in lines]
                    assert "event: message.completed" in rest

        asyncio.run(scene())
        assert server.wait() == 0
        assert "Traceback" not in server.log


def test_stop_interrupts_what_outlasts_the_grace_and_tells_its_reader(tmp_path, upstream):
    env = {"OPENAI_API_KEY": "k", "OPENAI_API_BASE": upstream.url, "SHUTDOWN_GRACE_SECONDS": "0.5"}
    with ServerProcess(tmp_path, env=env) as server:
        headers = {"Authorization": f"Bearer {server.register()['access']}"}
        with httpx2.Client(base_url=server.url, headers=headers, trust_env=False, timeout=30) as client:
            conversation = client.post("/api/v1/conversations", json={}).json()
            body = {"conversation_id": conversation["id"], "content": "!never", "stream": True}
            with client.stream("POST", "/api/v1/messages", json=body) as stream:
                lines = stream.iter_lines()
                while not next(lines).startswith("event: message.delta"):
                    pass
                server.signal(signal.SIGTERM)
                assert "event: message.interrupted" in list(lines)
        assert server.wait() == 0
        assert "Traceback" not in server.log


def test_second_signal_stops_at_once(tmp_path, upstream):
    env = {"OPENAI_API_KEY": "k", "OPENAI_API_BASE": upstream.url, "SHUTDOWN_GRACE_SECONDS": "60"}
    with ServerProcess(tmp_path, env=env) as server:
        headers = {"Authorization": f"Bearer {server.register()['access']}"}
        with httpx2.Client(base_url=server.url, headers=headers, trust_env=False, timeout=30) as client:
            conversation = client.post("/api/v1/conversations", json={}).json()
            body = {"conversation_id": conversation["id"], "content": "!never", "stream": True}
            with client.stream("POST", "/api/v1/messages", json=body) as stream:
                next(stream.iter_lines())
                server.signal(signal.SIGTERM)
                while "server_draining" not in server.log:
                    time.sleep(0.02)
                server.signal(signal.SIGTERM)
                assert server.wait(timeout=10) == 0
        assert "Traceback" not in server.log
