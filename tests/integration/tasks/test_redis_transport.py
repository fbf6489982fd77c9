"""How an idle worker gets its next message."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery

from harness.waiting import at_most, wait_until
from harness.worker import Worker

if TYPE_CHECKING:
    from tests.support.helpdesk import HelpDesk

_QUEUES = ("celery", "cdc_notifications", "cdc_cache", "cdc_bulk")


def test_a_message_in_any_queue_wakes_an_idle_worker_which_does_not_look_again_and_again(
    helpdesk: HelpDesk,
) -> None:
    cache = helpdesk.broker.cache
    with Worker({**helpdesk.environment, "CDC_TASK_MODULES": "tests.support.celery_settings.no_wake_up"}):
        for number, queue in enumerate(_QUEUES * 3):
            wait_until(lambda: _blocked(helpdesk) == len(_QUEUES), what="the worker to wait at each queue")
            helpdesk.send("killed.note", number, queue=queue)
            wait_until(partial(cache.hexists, "noted", str(number)), what=f"what is in {queue}")


def test_a_message_with_a_priority_is_found_although_nothing_wakes_the_worker(helpdesk: HelpDesk) -> None:
    with (
        Worker({**helpdesk.environment, "CDC_TASK_MODULES": "tests.support.tasks.killed"}),
        Celery("tests", broker=helpdesk.broker.url, set_as_current=False) as app,
    ):
        wait_until(lambda: _blocked(helpdesk) == len(_QUEUES), what="the worker to wait at each queue")
        app.send_task("killed.note", [1], queue="cdc_bulk", priority=9)
        wait_until(lambda: helpdesk.broker.cache.hexists("noted", "1"), what="the message")


def test_a_worker_with_more_queues_than_kombu_has_connections_waits_at_each(helpdesk: HelpDesk) -> None:
    queues = [f"queue-{number}" for number in range(30)]
    environment = {**helpdesk.environment, "CDC_TASK_MODULES": "tests.support.celery_settings.no_wake_up"}
    with Worker(
        {**environment, "CELERY_CONFIG_MODULE": "tests.support.celery_settings.any_queue"},
        "-Q",
        ",".join(queues),
    ):
        wait_until(lambda: _blocked(helpdesk) == len(queues), what="the worker to wait at each queue")
        for number, queue in enumerate(queues):
            helpdesk.send("killed.note", number, queue=queue)
        wait_until(lambda: helpdesk.broker.cache.hlen("noted") == len(queues), what="all messages")


def _blocked(helpdesk: HelpDesk) -> int:
    """Return how many connections wait for a message; none waits at the queue of health checks."""
    return int(helpdesk.broker.client.info("clients")["blocked_clients"])


def test_one_message_wakes_one_of_several_idle_workers(helpdesk: HelpDesk) -> None:
    """Redis' counts of commands would show a second worker's reaction to a message."""
    client, cache = helpdesk.broker.client, helpdesk.broker.cache
    environment = {**helpdesk.environment, "CDC_TASK_MODULES": "tests.support.celery_settings.no_wake_up"}
    with (
        Worker(environment, "-Q", "cdc_bulk"),
        Worker(environment, "-Q", "cdc_bulk"),
        Worker(environment, "-Q", "cdc_bulk"),
    ):
        wait_until(lambda: _blocked(helpdesk) == 3, timeout=60, what="three workers to wait at their queue")
        before = _calls(client, "brpoplpush")
        for number in range(10):
            helpdesk.send("killed.note", number, queue="cdc_bulk")
            wait_until(partial(cache.hexists, "noted", str(number)), what="the message")
            wait_until(lambda: _blocked(helpdesk) == 3, what="all to wait again")
        assert (
            _calls(client, "brpoplpush") - before <= 10 + 10
        )  # each message's, and one for each that waits again


@pytest.mark.versions
def test_what_is_in_a_dead_workers_inbox_goes_back(helpdesk: HelpDesk) -> None:
    """It waited, and was stopped before it could read the answer: the message is already in its inbox."""
    client, cache = helpdesk.broker.client, helpdesk.broker.cache
    environment = {**helpdesk.environment, "CDC_TASK_MODULES": "tests.support.tasks.killed"}
    environment["CELERY_CONFIG_MODULE"] = "tests.support.celery_settings.short_lease"
    with Worker(environment, "-Q", "cdc_bulk") as worker:
        wait_until(lambda: _blocked(helpdesk) == 1, timeout=60, what="the worker to wait")
        worker.pause()
        helpdesk.send("killed.note", 1, queue="cdc_bulk")
        wait_until(lambda: list(client.scan_iter("cdc:inbox:*")), what="the message to be in the inbox")
        assert client.llen("cdc_bulk") == 0
        worker.kill()
        with Worker(environment, "-Q", "cdc_bulk"):
            wait_until(partial(cache.hexists, "noted", "1"), timeout=60, what="the message")
    assert cache.hget("noted", "1") == b"1"


def test_a_worker_that_ends_or_leaves_a_queue_keeps_no_message_in_an_inbox(helpdesk: HelpDesk) -> None:
    """Its waits would keep messages until they end, which is ten minutes here."""
    client, cache = helpdesk.broker.client, helpdesk.broker.cache
    environment = {**helpdesk.environment, "CDC_TASK_MODULES": "tests.support.celery_settings.no_wake_up"}
    with (
        Worker(environment, "-Q", "cdc_bulk,cdc_cache") as worker,
        Celery("tests", broker=helpdesk.broker.url, set_as_current=False) as app,
    ):
        wait_until(lambda: _blocked(helpdesk) == 2, timeout=60, what="the worker to wait at each queue")

        def has_left() -> bool:
            app.control.cancel_consumer("cdc_cache")  # again and again: it may not listen yet
            return _blocked(helpdesk) == 1

        wait_until(has_left, what="the worker to wait there no more", every=0.2)
        helpdesk.send("killed.note", 1, queue="cdc_cache")
        assert client.llen("cdc_cache") == 1

        helpdesk.send("killed.note_slowly", 2, queue="cdc_bulk")
        wait_until(lambda: cache.llen("begun"), what="a task that runs when the worker is asked to end")
        worker.process.terminate()
        wait_until(lambda: _blocked(helpdesk) == 0, timeout=20, what="the worker to wait nowhere")
        helpdesk.send("killed.note", 3, queue="cdc_bulk")
        assert worker.process.wait(at_most(30)) == 0
    assert client.llen("cdc_bulk") == 1
    assert cache.hkeys("noted") == [b"2"]
    assert not list(client.scan_iter("cdc:inbox:*"))
    assert not list(client.scan_iter("cdc:unacked*"))


def test_a_message_that_came_just_as_the_worker_was_asked_to_end_goes_back(helpdesk: HelpDesk) -> None:
    client = helpdesk.broker.client
    environment = {**helpdesk.environment, "CDC_TASK_MODULES": "tests.support.celery_settings.no_wake_up"}
    with Worker(environment, "-Q", "cdc_bulk,cdc_cache") as worker:
        wait_until(lambda: _blocked(helpdesk) == 2, timeout=60, what="the worker to wait at each queue")
        worker.pause()
        for queue in ("cdc_bulk", "cdc_cache"):
            helpdesk.send("killed.note", 1, queue=queue)
        worker.process.terminate()
        worker.pause(on=False)
        assert worker.process.wait(at_most(30)) == 0
    waits = client.llen("cdc_bulk") + client.llen("cdc_cache")
    assert waits + helpdesk.broker.cache.hlen("noted") >= 1
    assert not list(client.scan_iter("cdc:inbox:*"))
    assert not list(client.scan_iter("cdc:unacked*"))


def test_the_leases_of_workers_that_ended_go_and_those_of_the_living_stay(helpdesk: HelpDesk) -> None:
    client = helpdesk.broker.client
    environment = {**helpdesk.environment, "CDC_TASK_MODULES": "tests.support.tasks.killed"}
    environment["CELERY_CONFIG_MODULE"] = "tests.support.celery_settings.short_lease"
    with Worker(environment, "-Q", "cdc_bulk") as worker:
        helpdesk.send("killed.note", 1, queue="cdc_bulk")
        wait_until(lambda: helpdesk.broker.cache.hexists("noted", "1"), what="a task of it")
        old = wait_until(lambda: client.hkeys("cdc:leases"), what="its leases")
        assert worker.stop() == 0
    with Worker(environment, "-Q", "cdc_cache"):
        wait_until(lambda: not set(old) & set(client.hkeys("cdc:leases")), timeout=60, what="them to go")
    assert {key.rpartition(b":")[0] for key in client.scan_iter("cdc:*")} <= {b"cdc"}


def test_a_worker_that_stood_still_for_longer_than_its_lease_waits_under_a_new_one(
    helpdesk: HelpDesk,
) -> None:
    """Others have deleted the leases of its inboxes. It goes on, gets a message in one, and dies."""
    client, cache = helpdesk.broker.client, helpdesk.broker.cache
    environment = {**helpdesk.environment, "CDC_TASK_MODULES": "tests.support.celery_settings.quick_wake_up"}
    environment["CELERY_CONFIG_MODULE"] = "tests.support.celery_settings.short_lease"
    with (
        Worker(environment, "-Q", "cdc_bulk") as worker,
        Worker(environment, "-Q", "cdc_cache", "-n", "other@%h"),
    ):
        [lease] = wait_until(lambda: _inboxes(client, "cdc_bulk"), timeout=60, what="the lease of its inbox")
        worker.pause()
        wait_until(
            lambda: lease not in _inboxes(client, "cdc_bulk"), timeout=60, what="the lease to be ended"
        )
        worker.pause(on=False)
        wait_until(lambda: lease in _inboxes(client, "cdc_bulk"), what="the worker to wait again")
        worker.pause()
        helpdesk.send("killed.note", 1, queue="cdc_bulk")
        worker.kill()
        with Worker(environment, "-Q", "cdc_bulk"):
            wait_until(partial(cache.hexists, "noted", "1"), timeout=60, what="the message")


def _inboxes(client: Any, queue: str) -> list[bytes]:
    return [name for name in client.hkeys("cdc:leases") if name.endswith(b" " + queue.encode())]


def _calls(client: Any, command: str) -> int:
    return int(client.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"])
