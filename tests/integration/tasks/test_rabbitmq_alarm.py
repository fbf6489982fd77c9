"""Workers during an alarm of RabbitMQ: they take messages, and nothing that they send is lost."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from harness.waiting import wait_until
from harness.worker import Worker
from tests.integration.tasks.test_rabbitmq import sender_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery

    from harness.machine_servers import RabbitMQServer
    from tests.support.helpdesk import HelpDesk

_TASKS = 600


@pytest.fixture
def environment(helpdesk: HelpDesk, rabbitmq_server: RabbitMQServer) -> dict[str, str]:
    return {
        **helpdesk.environment,
        "CELERY_BROKER_URL": rabbitmq_server.url,
        "CDC_TASK_MODULES": "tests.support.tasks.faulty",
    }


@contextmanager
def _alarm(server: RabbitMQServer) -> Iterator[None]:
    """Have an alarm. Each `rabbitmqctl` starts a virtual machine, which takes long on a busy machine: so few."""
    try:
        server.control("eval", f"{_set_limit('0.00001')}, {_WAIT_FOR_ALARM}.")
        yield
    finally:
        alarms = server.control("eval", f"Alarms = rabbit_alarm:get_alarms(), {_set_limit('0.4')}, Alarms.")
    assert "memory" in alarms, "it ended too early"


def _set_limit(share: str) -> str:
    return f"vm_memory_monitor:set_vm_memory_high_watermark({share})"


_WAIT_FOR_ALARM = (
    "(fun Wait() -> case rabbit_alarm:get_alarms() of [] -> timer:sleep(20), Wait(); _ -> ok end end)()"
)


def _count(sender: Celery, number: int) -> None:
    for _ in range(number):
        sender.send_task("faulty.counts", ["counted", True], queue="celery", expires=None)


def _counted(desk: HelpDesk) -> int:
    return int(desk.broker.cache.get("counted") or 0)


@pytest.mark.parametrize("begin", ["before the alarm", "during the alarm"])
def test_a_backlog_is_worked_off_while_the_alarm_lasts(
    begin: str, environment: dict[str, str], helpdesk: HelpDesk, rabbitmq_server: RabbitMQServer
) -> None:
    with Worker(environment):  # declares the queues
        pass
    with sender_of(environment) as sender:
        _count(sender, _TASKS)
    if begin == "before the alarm":
        with Worker(environment) as worker, _alarm(rabbitmq_server):
            wait_until(lambda: _counted(helpdesk) >= _TASKS, timeout=60, what="all tasks")
            assert worker.process.poll() is None
    else:
        with _alarm(rabbitmq_server), Worker(environment, mingle=True):
            wait_until(lambda: _counted(helpdesk) >= _TASKS, timeout=60, what="all tasks")


def test_retries_wait_for_the_end_of_the_alarm_and_hold_up_nobody(
    environment: dict[str, str], helpdesk: HelpDesk, rabbitmq_server: RabbitMQServer
) -> None:
    with Worker(environment) as worker, sender_of(environment) as sender:
        worker.pause()
        for _ in range(10):
            sender.send_task("faulty.retries_out", queue="celery")
        _count(sender, 200)
        with _alarm(rabbitmq_server):
            worker.pause(on=False)
            wait_until(lambda: _counted(helpdesk) == 200, timeout=60, what="the others")
            assert not worker.events("task_gave_up")
            wait_until(lambda: len(worker.events("retry_deferred")) >= 10, what="the retries to be kept")
            assert worker.events("broker_blocked")
        wait_until(lambda: len(_given_up(worker)) == 10, timeout=60, what="the last tries")
        wait_until(lambda: not helpdesk.broker.cache.exists("cdc:held-retries"), what="nothing to be held")


def test_a_retry_that_was_deferred_when_its_worker_died_is_sent_by_the_next_one(
    environment: dict[str, str], helpdesk: HelpDesk, rabbitmq_server: RabbitMQServer
) -> None:
    with Worker(environment) as worker, sender_of(environment) as sender:
        worker.pause()
        sender.send_task("faulty.retries_out", queue="celery")
        with _alarm(rabbitmq_server):
            worker.pause(on=False)
            wait_until(lambda: worker.events("retry_deferred"), timeout=30, what="the retry to be kept")
            worker.kill()
    with Worker(environment) as worker:
        wait_until(lambda: _given_up(worker), timeout=60, what="the last try")


def test_a_worker_process_that_dies_meanwhile_does_not_take_its_task_along(
    environment: dict[str, str], helpdesk: HelpDesk, rabbitmq_server: RabbitMQServer
) -> None:
    with Worker(environment) as worker, sender_of(environment) as sender:
        worker.pause()
        sender.send_task("faulty.kills", queue="celery")
        with _alarm(rabbitmq_server):
            worker.pause(on=False)
            wait_until(lambda: helpdesk.broker.cache.get("killed"), timeout=30, what="the first death")
        wait_until(lambda: worker.events("task_gave_up"), timeout=60, what="the last death")


def _given_up(worker: Worker) -> set[str]:
    return {line["dead_letter"] for line in worker.events("task_gave_up")}
