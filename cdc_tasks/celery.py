"""The Celery app: `celery -A cdc_tasks worker`, and `from cdc_tasks.celery import app` for your own tasks.

It uses `cdc_tasks.install`, as any other app. In addition it has the help desk's tasks, queues with their old names,
settings from the environment, and its own log format.
"""

from __future__ import annotations

import logging
import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click
import structlog
from celery import Celery, signals
from celery.utils.text import str_to_list

from cdc_tasks import logs
from cdc_tasks.broker.other_workers import AskOtherWorkers
from cdc_tasks.broker.queues import runs_tasks_of_default_queue, warn_of_old_name
from cdc_tasks.config import ignored_file, settings_module
from cdc_tasks.config.flower import OpenFlowerError, is_flower, prepare
from cdc_tasks.extras import MissingExtraError, check_extra
from cdc_tasks.settings import BrokerSettings, LogSettings, SettingsError, load, worker_settings
from cdc_tasks.user_code import TaskModulesError, import_task_modules, mistake
from cdc_tasks.variables import unknown_variables
from cdc_tasks.versions import OldCeleryError, check_versions
from cdc_tasks.worker.install import install, make_own
from cdc_tasks.worker.old_queues import OldQueues

if TYPE_CHECKING:
    from celery import Task

__all__ = ["app"]

log = structlog.get_logger()

_RESULT_BACKEND = "CELERY_RESULT_BACKEND"


def _is_celerys_command() -> bool:
    """Return whether this is Celery's command line, which would show an error as a traceback."""
    context = click.get_current_context(silent=True)
    return context is not None and context.find_root().command.name == "celery"


def load_master_tables() -> None:
    """Register the help desk's tables, in a process that reads the master cache and loads no tasks."""
    import_module("cdc_tasks.helpdesk.master_tables")


def _check_addresses() -> None:
    """Show an error for a bad URL; Celery's command line would show a traceback."""
    try:
        load(BrokerSettings)
        _import_settings()
    except SettingsError as error:
        if not _is_celerys_command():
            raise
        raise SystemExit(f"error: {error}") from None


def _import_settings() -> None:
    """Raise SettingsError if the module of CELERY_CONFIG_MODULE fails."""
    try:
        import_module(settings_module())
    except SettingsError:
        raise
    except Exception as error:
        raise SettingsError(
            f"CELERY_CONFIG_MODULE={settings_module()} cannot be imported: {mistake(error)}",
            hint="Write a module that starts with: from cdc_tasks.config.celery import *",
            code="celery_config_module",
        ) from error


_check_addresses()
app = Celery(
    "cdc_tasks",
    amqp="cdc_tasks.broker.queues:AMQP",
    task_cls="cdc_tasks.worker.base_task:RetryingTask",
    include=[
        "cdc_tasks.notify.delivery",
        "cdc_tasks.master_cache",
        "cdc_tasks.helpdesk.master_tables",
        "cdc_tasks.helpdesk.tickets",
        "cdc_tasks.helpdesk.users",
    ],
)
make_own(install(app))
app.config_from_object(settings_module())
app.steps["consumer"].update([AskOtherWorkers, OldQueues])


@app.on_after_configure.connect
def _leave_out_a_foreign_result_backend(sender: Celery, **_: Any) -> None:
    """Use no result backend if the settings have none.

    Celery would use CELERY_RESULT_BACKEND, which another application may have set.
    """
    if os.environ.get(_RESULT_BACKEND) and sender.conf.get("result_backend", None) is None:
        sender.backend_cls = "disabled"


@signals.celeryd_init.connect
def _refuse_old_versions(instance: Any, **_: Any) -> None:
    if instance.app is not app:
        return
    try:
        check_versions()
    except OldCeleryError as error:
        raise SystemExit(f"error: {error}") from None


@signals.celeryd_init.connect
def _report_bad_settings(instance: Any, **_: Any) -> None:
    """Report all bad settings before the first task; otherwise each would only show when a task fails."""
    if instance.app is not app:
        return
    try:
        worker_settings()
    except SettingsError as error:
        raise SystemExit(f"{error}") from None


@signals.celeryd_init.connect
def _leave_the_default_queue_to_others(instance: Any, options: dict[str, Any], **_: Any) -> None:
    """Consume Celery's default queue only if this app has tasks for it: otherwise its messages are not ours."""
    if instance.app is not app:
        return
    default = app.conf.task_default_queue
    is_asked_for = default in str_to_list(options.get("queues") or "")
    if not is_asked_for and not runs_tasks_of_default_queue(app):
        app.amqp.queues.forget(default)


@signals.celeryd_after_setup.connect
def _report_old_names_of_queues(instance: Any, **_: Any) -> None:
    if instance.app is app:
        for name, new in app.amqp.queues.asked_by_old_name.items():
            warn_of_old_name(name, new)


@signals.celeryd_after_setup.connect
def _report_unknown_variables(instance: Any, **_: Any) -> None:
    if instance.app is app:
        for variable, hint in unknown_variables().items():
            log.warning("unknown_variable", variable=variable, hint=hint)


@signals.celeryd_after_setup.connect
def _report_what_is_not_used(instance: Any, **_: Any) -> None:
    if instance.app is not app:
        return
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
            reason="It does not import the settings of cdc-tasks, so it may be another application's.",
            hint="To use it: start it with `from cdc_tasks.config.celery import *`.",
        )


def _report_mistakes_in_task_modules(**_: Any) -> None:
    if not _is_celerys_command():
        return
    try:
        import_task_modules(app.conf.imports)
    except TaskModulesError as error:
        raise SystemExit(f"error: {error}") from None


def _prepare_flower(**_: Any) -> None:
    if not is_flower():
        return
    try:
        prepare()
    except OpenFlowerError as error:
        raise SystemExit(f"error: {error}") from None


def _refuse_without_helpdesk(**_: Any) -> None:
    """Refuse to start without the help desk's dependencies, before its modules are imported."""
    try:
        check_extra("helpdesk")
    except MissingExtraError as error:
        raise SystemExit(
            f"error: {error}\n  For your own tasks: cdc_tasks.install(app), and celery -A your_app worker"
        ) from None


def _take_over_logs(**_: Any) -> None:
    """Configure logs when a worker or beat of this app starts; while this is connected, Celery does not."""
    signals.setup_logging.connect(_configure_logs)


for _act in (_refuse_without_helpdesk, _report_mistakes_in_task_modules, _prepare_flower, _take_over_logs):
    signals.import_modules.connect(_act, sender=app)


def _configure_logs(loglevel: int | str | None = None, logfile: str | None = None, **_: Any) -> None:
    """Log in the format of CDC_LOG_FORMAT, to the file that `--logfile`, `--detach` or `celery multi` names."""
    logs.configure(
        json=load(LogSettings).cdc_log_format == "json", level=loglevel or logging.INFO, file=logfile
    )


@signals.task_prerun.connect
def _name_the_task(task_id: str, task: Task[Any, Any], **_: Any) -> None:
    """Add the task's name and id to every line that it logs."""
    if task.app is app:
        structlog.contextvars.bind_contextvars(task=task.name, task_id=task_id)


@signals.task_postrun.connect
def _forget_the_task(task: Task[Any, Any], **_: Any) -> None:
    if task.app is app:
        structlog.contextvars.unbind_contextvars("task", "task_id")
