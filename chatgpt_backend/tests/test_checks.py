"""The system checks of what an operator may have set unsafely."""

from typing import Any

import pytest
from django.core import checks

from chatgpt_backend.ops.checks import SERVING


def found() -> list[str]:
    return [str(message.id) for message in checks.run_checks(tags=[SERVING], include_deployment_checks=True)]


def test_development_is_fine():
    assert found() == []


def test_missing_and_short_secrets_are_errors(settings: Any):
    settings.SECRET_KEY = settings.INSECURE_SECRET_KEY
    assert found() == ["ops.E001"]
    settings.SECRET_KEY = "x" * 31
    assert found() == ["ops.E002"]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, []),
        ({"DEBUG": True}, ["ops.W001"]),
        ({"PUBLIC_URL": "http://chat.example.com"}, ["ops.W002"]),
        ({"ALLOWED_HOSTS": ["*"]}, ["ops.W003"]),
        ({"ENCRYPTION_KEYS": []}, ["ops.W004"]),
    ],
)
def test_settings_of_development_on_a_public_address_are_warned_of(settings: Any, changed, expected):
    settings.PUBLIC_URL, settings.ENCRYPTION_KEYS = "https://chat.example.com", ["one"]
    for name, value in changed.items():
        setattr(settings, name, value)
    assert found() == expected
