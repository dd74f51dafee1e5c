"""Real server processes for the tests that need one: `manage.py serve` on a spare port and a database of its own."""

import atexit
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2

ROOT = Path(__file__).resolve().parent.parent
SECRETS = {
    "SECRET_KEY": "process-tests-only-0123456789abcdef0123456789abcdef",
    "ENCRYPTION_KEYS": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
}

# The database that `init` made, once a test process: migrating takes seconds, copying none.
_made: list[Path] = []


def spare_port() -> int:
    """Return a port of the loopback interface that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(folder: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a project whose database is in `folder`; nothing of the developer's own leaks in."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "TMPDIR")}
    return {
        **kept,
        **SECRETS,
        "ENV_FILE": "",
        "LOG_FILE": "",
        "DATABASE_URL": f"sqlite:///{folder / 'server.db'}",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": str(ROOT),
        "SHUTDOWN_GRACE_SECONDS": "5",
        **(extra or {}),
    }


def manage(*arguments: str, env: Mapping[str, str], check: bool = True) -> "subprocess.CompletedProcess[str]":
    """Run a management command to its end and return what it printed."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "manage.py"), *arguments],
        env=dict(env), cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    if check and done.returncode:
        raise AssertionError(f"manage.py {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done


class Process:
    """A child process on a port, its output kept in a file. A context manager: it never outlives the test."""

    def __init__(
        self, command: list[str], *, env: Mapping[str, str], folder: Path, port: int, ready: str = "/"
    ) -> None:
        self.command = command
        self.env = dict(env)
        self.log_path = folder / f"server-{port}.log"
        self.port = port
        self.ready = ready
        self.url = f"http://127.0.0.1:{port}"
        self.ws_url = f"ws://127.0.0.1:{port}"
        self.child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.child is not None and self.child.poll() is None:
            self.kill()
        if error is not None and hasattr(error, "add_note"):
            error.add_note(f"--- the server's output ---\n{self.log[-8000:]}")

    @property
    def log(self) -> str:
        """Everything that the process has printed, over all its starts."""
        return self.log_path.read_text("utf-8", "replace") if self.log_path.exists() else ""

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self.child is not None, "not started"
        return self.child.pid

    def launch(self) -> None:
        """Start the process without waiting for it to answer."""
        with self.log_path.open("ab") as output:
            self.child = subprocess.Popen(self.command, env=self.env, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)

    def start(self) -> None:
        """Start the process and wait until it answers."""
        self.launch()
        self.wait_ready()

    def wait_ready(self, timeout: float = 30.0) -> None:
        """Wait until the process answers 200; fail with its output when it has ended or takes too long."""
        assert self.child is not None, "not started"
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.child.poll() is not None:
                raise AssertionError(f"the server ended with {self.child.returncode}:\n{self.log}")
            try:
                if httpx2.get(self.url + self.ready, timeout=5, trust_env=False).status_code == 200:
                    return
            except httpx2.TransportError:
                pass  # not listening yet
            time.sleep(0.05)
        raise AssertionError(f"the server did not answer within {timeout} s:\n{self.log}")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process alone."""
        assert self.child is not None, "not started"
        self.child.send_signal(number)

    def wait(self, timeout: float = 30.0) -> int:
        """Wait for the process to end and return its exit code."""
        assert self.child is not None, "not started"
        return self.child.wait(timeout)

    def kill(self) -> None:
        """End the process as a power cut would (SIGKILL)."""
        self.signal(signal.SIGKILL)
        self.wait()

    def terminate(self, timeout: float = 30.0) -> int:
        """Ask the process to stop (SIGTERM), wait for it, and return its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def cpu_seconds(self) -> float:
        """Return the CPU time that the process has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss(self) -> int:
        """Return the resident memory of the process, in bytes."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


class ServerProcess(Process):
    """`manage.py init` once, then `manage.py serve`, on a SQLite file in `folder`.

    with ServerProcess(tmp_path, env={"OPENAI_API_KEY": "k", "OPENAI_API_BASE": upstream.url}) as server:
        httpx2.get(server.url + "/health")
        server.kill()        # or terminate(), which returns the exit code
        server.start()       # again, on the same port and database
    """

    def __init__(
        self, folder: Path, *, env: Mapping[str, str] | None = None, port: int | None = None, init: bool = True
    ) -> None:
        port = port or spare_port()
        command = [sys.executable, str(ROOT / "manage.py"), "serve", "--port", str(port)]
        super().__init__(command, env=environment(folder, env), folder=folder, port=port, ready="/health/ready")
        if init:
            self.initialize()

    def initialize(self) -> None:
        """Run `init`, or copy what it made before where nothing in the environment sets this database apart."""
        admin = ("--admin-username", "root", "--admin-email", "root@example.com", "--admin-password", "root-password-1")
        database = self.env["DATABASE_URL"].removeprefix("sqlite:///")
        if any(self.env.get(name) != value for name, value in SECRETS.items()) or not database.startswith("/"):
            self.manage("init", *admin)
            return
        if not _made:
            template = Path(tempfile.mkdtemp(prefix="chatgpt-backend-processes-")) / "made.db"
            atexit.register(shutil.rmtree, template.parent, ignore_errors=True)
            manage("init", *admin, env={**self.env, "DATABASE_URL": f"sqlite:///{template}"})
            _made.append(template)
        shutil.copyfile(_made[0], database)

    def manage(self, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run a management command in this server's environment."""
        return manage(*arguments, env=self.env, check=check)

    def register(self, name: str = "alice") -> dict[str, Any]:
        """Register a user and return the answer: `user`, `access`, `refresh`."""
        body = {"username": name, "email": f"{name}@example.com", "password": "password123"}
        answer = httpx2.post(f"{self.url}/api/v1/auth/register", json=body, timeout=30, trust_env=False)
        assert answer.status_code == 201, answer.text
        return dict(answer.json())
