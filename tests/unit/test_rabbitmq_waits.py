"""Every wait for RabbitMQ has a time-out that heartbeats do not restart; a confirm counts for its message only."""

from __future__ import annotations

import pytest

from cdc_tasks.broker.rabbitmq.transport import _Channel, _Connection


class _OnlyHeartbeats(_Connection):
    """A connection that gets only heartbeats, as fast as they are read."""

    def __init__(self) -> None:
        self.is_blocked = False

    def blocking_read(self, timeout: float) -> bool:
        if not timeout:
            raise TimeoutError
        return False


def test_heartbeats_do_not_restart_a_time_out() -> None:
    with pytest.raises(TimeoutError):
        _OnlyHeartbeats().drain_events(timeout=0.01)


def test_a_wait_for_an_answer_ends_although_heartbeats_come() -> None:
    connection = _OnlyHeartbeats()
    with connection.answered_within(0.01), pytest.raises(TimeoutError):
        connection.drain_events()
    assert connection.answer_by is None


def test_an_inner_wait_does_not_outlast_the_outer_one() -> None:
    connection = _OnlyHeartbeats()
    with connection.answered_within(1):
        outer = connection.answer_by
        with connection.answered_within(60):
            assert connection.answer_by == outer
        with connection.answered_within(0.5):
            assert connection.answer_by is not None
            assert outer is not None
            assert connection.answer_by < outer
        assert connection.answer_by == outer


def test_an_answer_is_not_waited_for_on_a_connection_that_is_not_read_from() -> None:
    connection = _OnlyHeartbeats()
    connection.is_blocked = True
    with connection.answered_within(60), pytest.raises(TimeoutError, match="alarm"):
        connection.drain_events()


def test_a_confirm_counts_for_the_message_that_it_names() -> None:
    channel = object.__new__(_Channel)
    channel._unconfirmed, channel._refused = {1, 2, 3, 4}, set[int]()
    channel._note_ack(3, multiple=False)
    assert channel._unconfirmed == {1, 2, 4}
    channel._note_ack(2, multiple=True)
    assert channel._unconfirmed == {4}
    channel._note_nack(4, multiple=False)
    assert (channel._unconfirmed, channel._refused) == (set(), {4})
