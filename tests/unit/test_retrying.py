from __future__ import annotations

import pytest
from celery.exceptions import Reject, Retry

from cdc_tasks.celery import app
from cdc_tasks.notify.send_errors import (
    AnswerLostError,
    RateLimitedError,
    RefusedError,
    UnavailableError,
    error_for_status,
)
from cdc_tasks.retry import MAX_WAIT, TryAgain, seconds_to_wait
from cdc_tasks.worker.base_task import RetryingTask
from cdc_tasks.worker.redacted_args import redacted


@pytest.mark.parametrize(
    ("retries", "least", "most"), [(0, 0.5, 1), (3, 4, 8), (9, 256, 512), (60, 300, MAX_WAIT)]
)
def test_waits_grow_up_to_ten_minutes_and_are_spread(retries: int, least: float, most: float) -> None:
    waits = {seconds_to_wait(TryAgain(), retries) for _ in range(50)}
    assert len(waits) > 1
    assert all(least <= wait <= most for wait in waits)


def test_a_service_that_says_how_long_is_obeyed_but_never_past_the_visibility_timeout() -> None:
    assert 30 <= seconds_to_wait(TryAgain(after=30), 5) <= 31
    assert seconds_to_wait(TryAgain(after=86400), 0) == MAX_WAIT < 900


@pytest.mark.parametrize(
    ("status", "retry_after", "kind", "after"),
    [
        (429, "12", RateLimitedError, 12),
        (429, None, RateLimitedError, 30),
        (429, "nonsense", RateLimitedError, 30),
        (429, "Thu, 01 Jan 1970 00:00:00 GMT", RateLimitedError, 0),
        (503, "3", UnavailableError, 3),
        (408, None, UnavailableError, None),
        (500, None, AnswerLostError, None),
        (504, None, AnswerLostError, None),
        (401, None, RefusedError, None),
    ],
)
def test_a_status_says_whether_a_message_may_have_been_taken(
    status: int, retry_after: str | None, kind: type[Exception], after: float | None
) -> None:
    error = error_for_status(status, retry_after, "Slack")
    assert type(error) is kind
    assert getattr(error, "after", None) == after


def test_a_change_is_shown_by_its_name_and_other_arguments_as_they_are() -> None:
    change = {
        "id": "abc",
        "schema": "public",
        "table": "users",
        "event": "insert",
        "before": None,
        "after": {"n": "Anna"},
    }
    assert redacted((change,)) == "('<insert of public.users, abc>',)"
    assert redacted(([change, change],)) == "('<2 changes of public.users, first abc>',)"
    assert redacted({"changed": {"status": ["open", "closed"]}}) == "{'changed': '<status>'}"
    assert redacted(("roles", 1, [])) == "('roles', 1, [])"
    assert redacted({"change": change, "n": 1}) == "{'change': '<insert of public.users, abc>', 'n': 1}"


def test_a_retry_that_the_broker_does_not_take_leaves_the_task_in_the_queue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise Reject("no broker", requeue=False)

    task = _task(monkeypatch)
    monkeypatch.setattr(task, "retry", refuse)
    with pytest.raises(Reject) as caught:
        task()
    assert caught.value.requeue


def test_a_task_that_must_wait_is_retried_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def retry(**options: object) -> None:
        asked.update(options)
        raise Retry

    task = _task(monkeypatch)
    monkeypatch.setattr(task, "retry", retry)
    with pytest.raises(Retry):
        task()
    assert isinstance(asked["exc"], TryAgain)


def _task(monkeypatch: pytest.MonkeyPatch) -> RetryingTask:
    """Return a task that always wants another try, and runs as in a worker."""

    class Always(RetryingTask):
        name = "always"

        def run(self) -> None:
            raise TryAgain

    task = Always()
    task.bind(app)
    task.push_request(called_directly=False, retries=0)
    return task
