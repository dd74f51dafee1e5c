"""The one-time writing of secrets: what is there stays."""

import os
import re
from pathlib import Path

import pytest

from chatgpt_backend import env


@pytest.fixture
def env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / ".env"
    monkeypatch.setenv("ENV_FILE", str(path))
    for name in env.SECRETS:
        # Set first, so that the test's end takes away what the code puts into the environment.
        monkeypatch.setenv(name, "")
    return path


def forget() -> None:
    """Be a new process, to which somebody passes the secrets on as empty."""
    for name in env.SECRETS:
        os.environ[name] = ""


def test_empty_lines_are_filled_and_others_kept(env_file):
    env_file.write_text("SECRET_KEY=\nDEFAULT_MODEL=gpt-4o\nENCRYPTION_KEYS=")
    assert env.write_missing_secrets() == ["SECRET_KEY", "ENCRYPTION_KEYS"]
    text = env_file.read_text()
    assert re.fullmatch(r"DEFAULT_MODEL=gpt-4o\nSECRET_KEY=\S+\nENCRYPTION_KEYS=\S+\n", text)

    forget()
    assert env.write_missing_secrets() == []
    assert env_file.read_text() == text


def test_a_secret_that_is_there_is_never_touched(env_file):
    env_file.write_text("SECRET_KEY=mine\n")
    assert env.write_missing_secrets() == ["ENCRYPTION_KEYS"]
    forget()
    assert env.write_missing_secrets() == []
    assert env_file.read_text().startswith("SECRET_KEY=mine\nENCRYPTION_KEYS=")
    assert os.environ["SECRET_KEY"] == "mine"
