"""Checks before a worker connects: its pool, its settings, and the permissions of its Redis user."""

from __future__ import annotations

from dataclasses import replace
from importlib import metadata
from typing import TYPE_CHECKING, Any

import kombu
import redis
import structlog

from cdc_tasks.broker.redis.acl import missing_for_worker
from cdc_tasks.config import settings_module
from cdc_tasks.config.required_settings import UnfitPoolError, check_pool, weakened
from cdc_tasks.installed import bound_before, is_foreign, note_parts, parts_of
from cdc_tasks.versions import OldCeleryError, check_versions, lacking_parts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery

__all__ = ["check_start"]

log = structlog.get_logger()

_MOST_SHOWN = 5  # tasks in a line of the log


def check_start(instance: Any) -> None:
    """Log settings that weaken the guarantees; raise SystemExit if the worker could not work at all."""
    app = instance.app
    _refuse_unfit_versions()
    _report_lacking_parts(app)
    if is_foreign(app):
        _report_late_install(app)
        lacks = [*_without_transport(app, instance.pool_cls), *weakened(app)]
        hint = "Remove these settings, or leave out that part: cdc_tasks.install(app, …=False)"
        _report(lacks, app=app.main, hint=hint)
    else:
        _refuse_unfit_pool(instance.pool_cls)
        hint = "Start the module with: from cdc_tasks.config.celery import *"
        _report(weakened(app), module=settings_module(), hint=hint)
    _refuse_a_user_without_rights(app)


def _refuse_unfit_versions() -> None:
    try:
        check_versions()
    except OldCeleryError as error:
        raise SystemExit(f"error: {error}") from None


def _report_lacking_parts(app: Celery) -> None:
    with app.connection_for_read() as connection:
        lacks = lacking_parts(connection.transport.driver_type)
    if lacks:
        log.warning("celery_version_lacks_parts", celery=metadata.version("celery"), lacks=lacks)


def _report_late_install(app: Celery) -> None:
    if tasks := bound_before(app):
        log.warning(
            "installed_after_tasks",
            app=app.main,
            tasks=tasks[:_MOST_SHOWN],
            number=len(tasks),
            hint="They keep their earlier options. Call cdc_tasks.install(app) right after creating the app, before "
            "a task is used.",
        )


def _report(lacks: list[str], *, hint: str, **where: Any) -> None:
    if lacks:
        log.error("settings_weaken_guarantees", lacks=lacks, hint=hint, **where)


def _refuse_unfit_pool(pool: type) -> None:
    try:
        check_pool(pool)
    except UnfitPoolError as error:
        raise SystemExit(f"error: {error}") from None


def _without_transport(app: Celery, pool: type) -> Iterator[str]:
    """Use kombu's own transport in this worker if ours cannot renew its leases in the worker's pool."""
    parts = parts_of(app)
    if parts is None or not parts.transport:
        return
    try:
        check_pool(pool, is_foreign=True)
    except UnfitPoolError as error:
        note_parts(app, replace(parts, transport=False))
        app.amqp.Connection = kombu.Connection
        yield f"{error.message} So this worker uses kombu's own transport: {_LOSES}"


_LOSES = "a message is lost when a worker dies while it receives it"


def _refuse_a_user_without_rights(app: Celery) -> None:
    """Refuse to start if the broker's user lacks a permission: each such command would stop the consumer."""
    parts = parts_of(app)
    if parts is None or not parts.transport:
        return
    with app.connection_for_read() as connection:
        if connection.transport.driver_type != "redis":
            return
        try:
            with connection.channel() as channel:
                missing = missing_for_worker(
                    redis.Redis(connection_pool=channel.pool),  # type: ignore[attr-defined]  # what kombu's channels to Redis have
                    list(app.amqp.queues.consume_from),
                    prefix=channel.global_keyprefix,  # type: ignore[attr-defined]  # the same
                )
        except (redis.RedisError, OSError):  # Redis is down: the worker waits for it
            return
    if missing is not None:
        raise SystemExit(f"error: The broker refuses us: {missing.found}.\n  {missing.hint}")
