from __future__ import annotations

from typing import Any

import pytest

from cdc_tasks.changes import EventType
from cdc_tasks.helpdesk.tickets import reported_changes
from cdc_tasks.notify.message import Fact, Message
from tests.support.helpdesk import change

_OLD = {"id": 1, "title": "a", "status": "open", "priority": "Low", "assigned_to_id": 5}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (_OLD, {**_OLD, "status": "closed"}, {"status": ("open", "closed")}),
        (_OLD, {**_OLD, "assigned_to_id": None}, {"assigned_to_id": (5, None)}),
        (
            _OLD,
            {**_OLD, "priority": "High", "status": "closed"},
            {"status": ("open", "closed"), "priority": ("Low", "High")},
        ),
        (_OLD, {**_OLD, "title": "b"}, {}),
        (None, {**_OLD, "status": "closed"}, None),  # replica identity default, key untouched
        ({"id": 1}, {**_OLD, "status": "closed"}, None),  # replica identity default, key changed
        ({"id": 1, "status": "open"}, {**_OLD, "status": "closed"}, {"status": ("open", "closed")}),
        ({"id": 1, "status": "open"}, _OLD, None),  # an index on status: the rest is not known
        (_OLD, {"id": 1, "status": "closed"}, {"status": ("open", "closed")}),  # a route with columns=
        ({"id": 1, "status": "open"}, {"id": 1, "status": "open"}, {}),
    ],
)
def test_changes_are_reported_as_far_as_the_old_row_is_known(
    before: dict[str, Any] | None, after: dict[str, Any], expected: dict[str, Any] | None
) -> None:
    update = change(EventType.UPDATE, "tickets", before=before, after=after)
    assert reported_changes(update) == expected


def test_a_message_in_one_line_says_it_all() -> None:
    message = Message(
        heading="New Ticket", title="TKT-00001 Fire", facts=(Fact("Status", "open"), Fact("By", "Carl"))
    )
    assert message.text == "New Ticket: TKT-00001 Fire (Status: open · By: Carl)"
    assert Message(heading="Welcome", title="Anna").text == "Welcome: Anna"
