"""What is sealed opens for its own row alone, under any key in force, and not once a bit of it was changed."""

import base64
import os
from types import SimpleNamespace

import pytest
from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured
from hypothesis import given
from hypothesis import strategies as st

from chatgpt_backend.lib.crypto import CannotOpen, Keyring, key_id, keyring, parse_keys, sealed_text

OLD, NEW, OTHER = (bytes([number]) * 32 for number in (1, 2, 3))
TEXT = "汉字 and émoji 👩‍👩‍👧, a NUL \x00 too"


def encoded(key):
    return base64.urlsafe_b64encode(key).decode()


class Note:
    """As much of a model as sealed text needs."""

    _meta = SimpleNamespace(db_table="notes")
    text = sealed_text("text_sealed")
    summary = sealed_text("summary_sealed")

    def __init__(self, owner_id=1):
        self.owner_id = owner_id
        self.text_sealed = self.summary_sealed = b""


class Letter(Note):
    _meta = SimpleNamespace(db_table="letters")
    text = sealed_text("text_sealed")


@given(data=st.binary(max_size=200), associated=st.binary(max_size=40))
def test_what_is_sealed_opens(data, associated):
    ring = Keyring([NEW])
    sealed = ring.seal(data, associated)
    assert ring.open(sealed, associated) == data
    assert ring.open(memoryview(sealed), associated) == data
    assert sealed[:5] == b"\x01" + key_id(NEW)
    # version, key id, nonce, tag
    assert len(sealed) == len(data) + 1 + 4 + 12 + 16


def test_the_same_text_is_never_sealed_the_same():
    assert len({Keyring([NEW]).seal(b"same", b"") for _ in range(100)}) == 100


@pytest.mark.parametrize("place", range(1 + 4 + 12 + 4 + 16))
def test_a_changed_byte_does_not_open(place):
    sealed = bytearray(Keyring([NEW]).seal(b"text", b"row"))
    sealed[place] ^= 1
    with pytest.raises(CannotOpen):
        Keyring([NEW]).open(bytes(sealed), b"row")


@pytest.mark.parametrize("length", range(1 + 4 + 12 + 4 + 16))
def test_a_value_cut_short_does_not_open(length):
    sealed = Keyring([NEW]).seal(b"text", b"row")
    with pytest.raises(CannotOpen):
        Keyring([NEW]).open(sealed[:length], b"row")


def test_another_key_does_not_open_and_the_refusal_names_the_one_that_is_missing():
    sealed = Keyring([OLD]).seal(b"text", b"row")
    with pytest.raises(CannotOpen, match=f"no key {key_id(OLD).hex()} among ENCRYPTION_KEYS"):
        Keyring([NEW]).open(sealed, b"row")


def test_the_first_key_seals_and_all_open():
    before = Keyring([OLD]).seal(b"text", b"row")
    rotated = Keyring([NEW, OLD])
    after = rotated.seal(b"text", b"row")
    assert rotated.open(before, b"row") == rotated.open(after, b"row") == b"text"
    assert Keyring([NEW]).open(after, b"row") == b"text"
    with pytest.raises(CannotOpen):
        Keyring([OLD]).open(after, b"row")
    # The other way round the old one would still seal.
    assert Keyring([OLD]).open(Keyring([OLD, NEW]).seal(b"text", b"row"), b"row") == b"text"


def test_the_settings_keys_are_read_as_they_stand(settings):
    settings.ENCRYPTION_KEYS = [encoded(OLD)]
    sealed = keyring().seal(b"text", b"row")
    settings.ENCRYPTION_KEYS = [encoded(NEW), f" {encoded(OLD)} "]
    assert keyring().open(sealed, b"row") == b"text"
    assert keyring().sealing_id == key_id(NEW)
    settings.ENCRYPTION_KEYS = [encoded(NEW)]
    with pytest.raises(CannotOpen):
        keyring().open(sealed, b"row")


def test_without_keys_one_is_derived_from_the_secret():
    (derived,) = parse_keys([], "secret")
    assert len(derived) == 32
    assert parse_keys([], "secret") == [derived]
    assert parse_keys([], "another") != [derived]
    assert parse_keys([encoded(NEW)], "secret") == [NEW]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "key 2 has 0 bytes instead of 32"),
        ("   ", "key 2 has 0 bytes instead of 32"),
        (encoded(bytes(16)), "key 2 has 16 bytes instead of 32"),
        (encoded(bytes(33)), "key 2 has 33 bytes instead of 32"),
        (encoded(NEW)[:-1], "key 2 is not url-safe base64"),
        ("not a key", "key 2 is not url-safe base64"),
        ("汉字" * 20, "key 2 is not url-safe base64"),
        # A key that was mistyped must not quietly be another key.
        ("!" + encoded(NEW), "key 2 is not url-safe base64"),
        (encoded(NEW)[:20] + " " + encoded(NEW)[20:], "key 2 is not url-safe base64"),
    ],
)
def test_a_bad_key_is_named_by_its_place_and_not_shown(value, message):
    with pytest.raises(ImproperlyConfigured) as refused:
        parse_keys([encoded(OLD), value], "secret")
    assert str(refused.value) == f"ENCRYPTION_KEYS: {message}"


def test_a_key_may_hold_any_byte():
    for key in (bytes([0xFB, 0xEF, 0xFF]) * 10 + b"\xff\xff", os.urandom(32)):
        assert parse_keys([encoded(key)], "secret") == [key]


def test_sealed_text_reads_back_and_its_column_hides_it():
    note = Note()
    assert note.text == ""
    note.text = TEXT
    assert (note.text, note.summary) == (TEXT, "")
    assert b"and" not in note.text_sealed
    fresh = Note()
    fresh.text_sealed = memoryview(note.text_sealed)  # as PostgreSQL hands it over
    assert fresh.text == TEXT


def test_empty_text_stays_empty():
    note = Note()
    note.text = TEXT
    note.text = ""
    assert (note.text, note.text_sealed) == ("", b"")
    assert Note.text.seal("", owner_id=1) == b""
    assert Note.text.open(b"", owner_id=1) == ""


def test_text_may_come_as_its_bytes():
    for given_text in (TEXT, TEXT.encode(), bytearray(TEXT.encode())):
        assert Note.text.open(Note.text.seal(given_text, owner_id=1), owner_id=1) == TEXT


@pytest.mark.parametrize(
    "opening",
    [
        lambda sealed: Note.text.open(sealed, owner_id=2),
        lambda sealed: Note.text.open(sealed, owner_id=11),
        lambda sealed: Note.summary.open(sealed, owner_id=1),
        lambda sealed: Letter.text.open(sealed, owner_id=1),
    ],
    ids=["owner", "owner that begins alike", "column", "table"],
)
def test_a_value_copied_elsewhere_does_not_open(opening):
    with pytest.raises(CannotOpen, match="changed or belongs to another row"):
        opening(Note.text.seal(TEXT, owner_id=1))


def test_a_row_that_changes_its_owner_does_not_open():
    note = Note(owner_id=1)
    note.text_sealed = Note.text.seal(TEXT, owner_id=1)
    note.owner_id = 2
    with pytest.raises(CannotOpen):
        _ = note.text


def test_the_owner_comes_before_the_text():
    with pytest.raises(ValueError, match="set owner_id before sealed text"):
        Note(owner_id=None).text = TEXT


def test_a_new_sealed_value_is_opened_anew_and_the_same_one_once():
    note = Note()
    note.text = "first"
    opened = note.text
    assert note.text is opened
    note.text_sealed = Note.text.seal("second", owner_id=1)
    assert note.text == "second"
    Note.text.forget(note)
    assert (note.text, note.text_sealed) == ("", b"")


@pytest.mark.django_db
def test_a_models_row_is_made_read_deferred_and_updated(django_assert_num_queries):
    users = get_user_model()
    user = users.objects.create(username="alice", email="alice@example.com")
    user.custom_instructions = TEXT
    user.save(update_fields=["custom_instructions_sealed"])

    assert users.objects.get(id=user.pk).custom_instructions == TEXT
    deferred = users.objects.defer("custom_instructions_sealed").get(id=user.pk)
    with django_assert_num_queries(1):
        assert deferred.custom_instructions == TEXT

    sealed = users.custom_instructions.seal("second", owner_id=user.pk)
    users.objects.filter(id=user.pk).update(custom_instructions_sealed=sealed)
    assert users.objects.get(id=user.pk).custom_instructions == "second"
    assert user.custom_instructions == TEXT  # as it was read
    user.refresh_from_db()
    assert user.custom_instructions == "second"


def test_a_models_constructor_takes_the_attribute_once_the_owner_is_known():
    users = get_user_model()
    assert users(id=7, custom_instructions=TEXT).custom_instructions == TEXT
    with pytest.raises(ValueError, match="set id before sealed text"):
        users(custom_instructions=TEXT)
