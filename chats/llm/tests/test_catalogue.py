from decimal import Decimal

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from chats.llm import catalogue
from chats.llm.catalogue import UnknownModel, list_models, resolve, sync_builtin_models
from chats.models import CatalogueModel

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def models():
    CatalogueModel.objects.all().delete()
    sync_builtin_models()
    yield
    catalogue.clear_cache()


def test_sync_inserts_what_is_missing_and_keeps_what_staff_changed():
    CatalogueModel.objects.filter(name="gpt-4o").delete()
    CatalogueModel.objects.filter(name="gpt-4").update(input_price=7, available=False)

    assert sync_builtin_models() == ["gpt-4o"]
    assert sync_builtin_models() == []

    row = CatalogueModel.objects.get(name="gpt-4")
    assert (row.input_price, row.available) == (7, False)


def test_resolves_with_a_key(settings):
    settings.OPENAI_API_KEY = "sk-x"

    target = resolve("o3")

    assert (target.requested, target.model, target.provider) == ("o3", "o3", "openai")
    assert (target.input_price, target.output_price) == (Decimal(2), Decimal(8))
    assert (target.takes_temperature, target.wants_max_completion_tokens) == (False, True)
    assert resolve("eliza").is_offline


def test_without_a_key_the_embedded_model_answers_for_all(settings):
    settings.OPENAI_API_KEY = ""

    target = resolve("o3")

    assert (target.requested, target.model, target.provider) == ("o3", "eliza", "offline")
    assert (target.input_price, target.output_price) == (0, 0)
    assert (target.takes_temperature, target.wants_max_completion_tokens) == (True, False)
    assert target.context_window == 200_000


@pytest.mark.parametrize("key", ["", "sk-x"])
def test_unknown_and_switched_off(settings, key):
    settings.OPENAI_API_KEY = key
    CatalogueModel.objects.filter(name="gpt-4").update(available=False)
    catalogue.clear_cache()

    for name in ("gpt-4", "gpt-nonsense", "", "GPT-4o"):
        with pytest.raises(UnknownModel):
            resolve(name)


def test_costs_one_query_in_half_a_minute():
    with CaptureQueriesContext(
        connection,
    ) as queries:
        for name in ("gpt-4o", "gpt-4", "gpt-3.5-turbo"):
            resolve(name)
        list_models()

    assert len(queries) == 1


def test_lists_for_clients():
    CatalogueModel.objects.filter(name="gpt-4").update(available=False)

    listed = {entry["id"]: entry for entry in list_models()}

    assert list(listed) == sorted(listed)
    assert listed["gpt-3.5-turbo"] == {
        "id": "gpt-3.5-turbo",
        "provider": "openai",
        "context_window": 16_385,
        "max_output_tokens": 4_096,
        "vision": False,
        "input_price": Decimal("0.5"),
        "output_price": Decimal("1.5"),
        "available": True,
    }
    assert listed["gpt-4"]["available"] is False
    assert listed["eliza"]["provider"] == "offline"
