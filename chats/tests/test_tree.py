"""The tree kept in columns, against the tree itself."""

from datetime import UTC, datetime

import pytest
from django.contrib.auth import get_user_model
from django.db import transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chats import tree
from chats.models import Conversation, Message

pytestmark = pytest.mark.django_db
NOW = datetime(2026, 1, 1, tzinfo=UTC)
# Behind which message, of those there are, the next one goes: its place from the newest; None makes a new root.
STEPS = st.lists(st.none() | st.integers(0, 7), max_size=14)


class Model:
    """The naive tree: each message's parent, and the end of the active branch."""

    def __init__(self):
        self.parents = {}
        self.end = None

    def way_to(self, message_id):
        way = []
        while message_id is not None:
            way.append(message_id)
            message_id = self.parents[message_id]
        return way[::-1]


class Rows:
    """The same in the database, grown as sending a message grows it."""

    def __init__(self):
        user, _ = get_user_model().objects.get_or_create(username="alice", defaults={"email": "alice@example.com"})
        self.conversation = Conversation.objects.create(owner=user, model="m", created_at=NOW, updated_at=NOW)
        self.end = None

    def append(self, parent_id):
        parent = Message.objects.get(id=parent_id) if parent_id is not None else None
        with transaction.atomic():
            if parent_id != self.end:
                tree.activate_branch(parent, self.conversation.pk)
            message = Message.objects.create(
                owner_id=self.conversation.owner_id, conversation=self.conversation, parent=parent,
                depth=parent.depth + 1 if parent else 0, role="user", created_at=NOW,
            )  # fmt: skip
        self.end = message.pk
        return message.pk


def grow(steps):
    model, rows = Model(), Rows()
    for step in steps:
        newest_first = sorted(model.parents, reverse=True)
        parent_id = newest_first[step % len(newest_first)] if step is not None and newest_first else None
        message_id = rows.append(parent_id)
        model.parents[message_id] = parent_id
        model.end = message_id
    return model, rows


def active(rows):
    return list(Message.objects.active_branch(rows.conversation.pk).values_list("id", flat=True))


def branch(message_id):
    message = Message.objects.get(id=message_id)
    return list(tree.branch_ending_at(message).order_by("depth").values_list("id", flat=True))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_the_columns_say_what_the_tree_says(db, steps):
    bystander = grow([None, 0])[1]
    untouched = active(bystander)
    model, rows = grow(steps)
    assert active(rows) == model.way_to(model.end)
    for message_id in model.parents:
        assert branch(message_id) == model.way_to(message_id)
    assert active(bystander) == untouched


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS.filter(bool), switches=st.lists(st.none() | st.integers(0, 20), min_size=1, max_size=5))
def test_any_message_can_be_made_the_active_branchs_end(db, steps, switches):
    model, rows = grow(steps)
    ids = sorted(model.parents)
    for switch in switches:
        target = None if switch is None else ids[switch % len(ids)]
        message = Message.objects.get(id=target) if target is not None else None
        with transaction.atomic():
            tree.activate_branch(message, rows.conversation.pk)
        assert active(rows) == model.way_to(target)
        for message_id in ids:
            assert branch(message_id) == model.way_to(message_id)


def test_reading_the_active_branch_is_one_query_and_another_two(django_assert_num_queries):
    model, rows = grow([None, 0, 0, 0, 2, 0])
    first, *_, aside, _, _ = sorted(model.parents)
    # 1 → 2 → 3 → 4 and, behind 2, 5 → 6, which is active.
    assert active(rows) == model.way_to(rows.end)
    assert len(active(rows)) == 4
    with django_assert_num_queries(1):
        list(tree.branch_ending_at(Message(id=first, conversation=rows.conversation, depth=0, on_active_branch=True)))
    message = Message.objects.get(id=aside)
    assert not message.on_active_branch
    with django_assert_num_queries(2):
        assert [one.pk for one in tree.branch_ending_at(message).order_by("depth")] == model.way_to(aside)


def test_a_switch_costs_the_same_however_long_the_branches(django_assert_num_queries):
    _, rows = grow([None] + [0] * 40)
    left, root = rows.end, active(rows)[0]
    rows.append(root)
    for _ in range(40):
        rows.append(rows.end)
    message = Message.objects.get(id=left)
    with transaction.atomic(), django_assert_num_queries(4):
        tree.activate_branch(message, rows.conversation.pk)
    assert active(rows)[-1] == left
    assert len(active(rows)) == 41
