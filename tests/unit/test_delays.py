"""A delay is rounded up to whole seconds, and a message that is due has none."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery

from cdc_tasks import install
from cdc_tasks.broker.delays import _whole_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = datetime(2026, 11, 22, 10, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("countdown", "whole"), [(0.001, 1), (0.999, 1), (1, 1), (1.2, 2), (60, 60), (0, None), (-3, None)]
)
@pytest.mark.parametrize(
    "form",
    [
        lambda seconds: (seconds, None),
        lambda seconds: (None, NOW + timedelta(seconds=seconds)),
        lambda seconds: (None, (NOW + timedelta(seconds=seconds)).isoformat()),
        lambda seconds: (None, (NOW + timedelta(seconds=seconds)).replace(tzinfo=None)),
        lambda seconds: (None, (NOW + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")),
    ],
    ids=["countdown", "eta", "eta as text", "naive eta", "eta as text with Z"],
)
def test_a_wait_is_in_whole_seconds(
    form: Callable[[float], tuple[Any, Any]], countdown: float, whole: int | None
) -> None:
    assert _whole_seconds(*form(countdown), NOW)[0] == whole


def test_a_retry_does_not_carry_the_marks_of_the_broker() -> None:
    headers = {"x-death": [{"queue": "celery_delayed_1"}], "x-delivery-count": 1, "redelivered": True}
    with install(Celery("tests", broker="memory://", set_as_current=False)) as app:
        app.send_task("any", queue="of this test", headers={**headers, "mine": 1})
        with app.connection_for_read() as connection, connection.SimpleQueue("of this test") as queue:
            message = queue.get(timeout=1)
    assert message.headers["mine"] == 1
    assert not headers.keys() & message.headers.keys()
