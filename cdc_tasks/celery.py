"""The Celery app: `celery -A cdc_tasks worker`, and `from cdc_tasks.celery import app` for your own tasks."""

from __future__ import annotations

import logging
import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click
import redis
import structlog
from celery import signals
from celery.utils.text import str_to_list

from cdc_tasks import logs
from cdc_tasks.broker.clock import Ticking
from cdc_tasks.broker.delays import BindToDelayedDelivery, DelayingCelery
from cdc_tasks.broker.other_workers import AskOtherWorkers
from cdc_tasks.broker.queues import runs_tasks_of_default_queue, warn_of_old_name
from cdc_tasks.broker.redis.acl import missing_for_worker
from cdc_tasks.config import ignored_file, settings_module
from cdc_tasks.config.flower import OpenFlowerError, is_flower, prepare
from cdc_tasks.config.required_settings import UnfitPoolError, check_pool, weakened
from cdc_tasks.config.required_versions import OldCeleryError, check_versions
from cdc_tasks.settings import BrokerSettings, LogSettings, SettingsError, load, worker_settings
from cdc_tasks.worker.old_queues import OldQueues

if TYPE_CHECKING:
    from celery import Celery, Task

__all__ = ["app"]

log = structlog.get_logger()

_RESULT_BACKEND = "CELERY_RESULT_BACKEND"


def load_master_tables() -> None:
    """Register the help desk's tables, in a process that reads the master cache and loads no task."""
    import_module("cdc_tasks.helpdesk.master_tables")


def _check_addresses() -> None:
    """Show an error for a bad URL; Celery's command line would show a traceback."""
    try:
        load(BrokerSettings)
    except SettingsError as error:
        if click.get_current_context(silent=True) is None:
            raise
        raise SystemExit(f"error: {error}") from None


_check_addresses()
app = DelayingCelery(
    "cdc_tasks",
    amqp="cdc_tasks.broker.queues:AMQP",
    task_cls="cdc_tasks.worker.base_task:RetryingTask",
    include=[
        "cdc_tasks.notify.delivery",
        "cdc_tasks.worker.health",
        "cdc_tasks.worker.deferred_retries",
        "cdc_tasks.master_cache",
        "cdc_tasks.helpdesk.master_tables",
        "cdc_tasks.helpdesk.tickets",
        "cdc_tasks.helpdesk.users",
    ],
)
app.config_from_object(settings_module())
app.steps["consumer"].update([BindToDelayedDelivery, AskOtherWorkers, OldQueues, Ticking])


@app.on_after_configure.connect
def _leave_out_a_foreign_result_backend(sender: Celery, **_: Any) -> None:
    """Use no result backend if the settings have none.

    Celery would use CELERY_RESULT_BACKEND, which another application may have set.
    """
    if os.environ.get(_RESULT_BACKEND) and sender.conf.get("result_backend", None) is None:
        sender.backend_cls = "disabled"


@signals.celeryd_init.connect
def _refuse_old_versions(**_: Any) -> None:
    try:
        check_versions()
    except OldCeleryError as error:
        raise SystemExit(f"error: {error}") from None


@signals.celeryd_init.connect
def _report_bad_settings(**_: Any) -> None:
    """Report all bad settings before the first task; otherwise each would show when a task fails."""
    try:
        worker_settings()
    except SettingsError as error:
        raise SystemExit(f"{error}") from None


@signals.celeryd_init.connect
def _leave_the_default_queue_to_others(instance: Any, options: dict[str, Any], **_: Any) -> None:
    """Take from Celery's default queue only if this app has tasks for it: otherwise its messages are not ours."""
    default = instance.app.conf.task_default_queue
    if default not in str_to_list(options.get("queues") or "") and not runs_tasks_of_default_queue(
        instance.app
    ):
        instance.app.amqp.queues.forget(default)


@signals.celeryd_after_setup.connect
def _report_old_names_of_queues(instance: Any, **_: Any) -> None:
    for name, new in instance.app.amqp.queues.asked_by_old_name.items():
        warn_of_old_name(name, new)


@signals.celeryd_after_setup.connect
def _refuse_unfit_pools(instance: Any, **_: Any) -> None:
    try:
        check_pool(instance.pool_cls)
    except UnfitPoolError as error:
        raise SystemExit(f"error: {error}") from None


@signals.celeryd_after_setup.connect
def _report_weak_settings(**_: Any) -> None:
    if lacks := weakened(app):
        log.error(
            "settings_weaken_guarantees",
            module=settings_module(),
            lacks=lacks,
            hint="Start the module with: from cdc_tasks.config.celery import *",
        )
    if app.backend_cls == "disabled":
        log.warning(
            "result_backend_not_used",
            variable=_RESULT_BACKEND,
            reason="The settings of cdc-tasks keep no results.",
            hint="To keep results: set result_backend in the module of CELERY_CONFIG_MODULE.",
        )
    if path := ignored_file():
        log.warning(
            "celeryconfig_not_used",
            file=str(path),
            reason="It does not start from the settings of cdc-tasks, so it may be another application's.",
            hint="To use it: start it with `from cdc_tasks.config.celery import *`.",
        )


@signals.celeryd_after_setup.connect
def _refuse_a_redis_user_without_rights(instance: Any, **_: Any) -> None:
    """Refuse to start if the broker's user lacks a permission: each such command would end the consumer."""
    with instance.app.connection_for_read() as connection:
        if connection.transport.driver_type != "redis":
            return
        try:
            with connection.channel() as channel:
                missing = missing_for_worker(
                    redis.Redis(connection_pool=channel.pool),
                    list(instance.app.amqp.queues.consume_from),
                    prefix=channel.global_keyprefix,
                )
        except (redis.RedisError, OSError):  # Redis is down: the worker waits for it
            return
    if missing is not None:
        raise SystemExit(f"error: The broker refuses us: {missing.found}.\n  {missing.hint}")


@signals.import_modules.connect
def _prepare_flower(**_: Any) -> None:
    if not is_flower():
        return
    try:
        prepare()
    except OpenFlowerError as error:
        raise SystemExit(f"error: {error}") from None


@signals.setup_logging.connect
def _configure_logs(loglevel: int | str | None = None, logfile: str | None = None, **_: Any) -> None:
    """Log in the format of CDC_LOG_FORMAT, to the file of Celery's `--logfile`, `--detach` or `celery multi`."""
    logs.configure(
        json=load(LogSettings).cdc_log_format == "json", level=loglevel or logging.INFO, file=logfile
    )


@signals.task_prerun.connect
def _name_the_task(task_id: str, task: Task[Any, Any], **_: Any) -> None:
    """Add the task's name and id to every line that it logs."""
    structlog.contextvars.bind_contextvars(task=task.name, task_id=task_id)


@signals.task_postrun.connect
def _forget_the_task(**_: Any) -> None:
    structlog.contextvars.unbind_contextvars("task", "task_id")
