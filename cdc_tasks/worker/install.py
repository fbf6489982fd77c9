"""`cdc_tasks.install`: makes the tasks of any Celery app finish.

An app keeps its class, its tasks, queues and settings. All changes apply to this app only:

- Its class becomes a subclass of itself that sends messages as our transports need them (`DelayingApp`).
- Its connections are `cdc_tasks.broker.connection.Connection`.
- Its registry of tasks puts `Retrying` before the bases of each task (`cdc_tasks.worker.base_task`).
- Our settings come after its own and before Celery's defaults.
- Its workers have a few additional steps. Celery's signals are shared by all apps of the process, so each function
  below first checks whether the app has our parts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from celery import Celery, signals

from cdc_tasks import tracing
from cdc_tasks.config.part_settings import use_settings
from cdc_tasks.errors import CDCError
from cdc_tasks.installed import (
    NO_PARTS,
    Parts,
    asked_parts,
    has_redis,
    is_foreign,
    note_bound,
    note_parts,
    parts_of,
)
from cdc_tasks.worker import traced_tasks

__all__ = ["InstallError", "install", "make_own"]


class InstallError(CDCError):
    """cdc-tasks cannot be installed in this object."""


def install(
    app: Celery,
    *,
    transport: bool = True,
    late_acks: bool = True,
    retries: bool = True,
    dead_letters: bool = True,
    health: bool = True,
    metrics: bool = True,
    order_by_key: bool = True,
    context: bool = False,
    otel: bool = False,
) -> Celery:
    """Make the tasks of the Celery app `app` finish; return the app.

    Call it once, where you create the app, before or after `config_from_object`. Each part can be left out. The app's
    own settings take precedence; if one weakens a guarantee, its workers log `settings_weaken_guarantees` at start-up.

    - `transport`: on Redis and RabbitMQ no message is lost when a worker dies at the wrong moment. The messages of a
      dead worker are delivered again within a minute, however long the app's tasks run. On Redis, messages that are due
      later wait in Redis, not in a worker. Workers wait for a broker that is down or hangs. Task events are published
      many at a time, up to 50 ms later.
    - `late_acks`: a message is acknowledged when its task has ended, not when it begins. So a task whose worker
      dies runs again: make it idempotent.
    - `retries`: a task that raises `cdc_tasks.TryAgain` is retried, with back-off, up to its `max_retries`, or 15
      times. Celery's own retries (`autoretry_for`, `self.retry`) are not changed.
    - `dead_letters`: tasks that fail or repeatedly kill their workers, messages of unknown tasks, and malformed
      messages are kept in Redis: `python -m cdc_tasks -A … dead-letters list`.
    - `health`: `python -m cdc_tasks -A … health` queries a worker through the broker.
    - `metrics`: Flower's `/metrics` shows the numbers of dead letters, parked changes and waiting messages.
    - `order_by_key`: on RabbitMQ, tasks with a key go to their own queues (`cdc_SHOP_keyed_0`, … for an app with the
      name SHOP), and the app's workers consume from them. It needs `transport`, `late_acks` and `dead_letters`. On
      Redis `transport` alone keeps their order, in the app's queues.
    - `context`: the writes of a task have a context that names it, with `task` and `task_id`. This needs
      `cdc_tasks.write_context(engine)`, or in a Django project `CDC_CONTEXT = True`.
    - `otel`: the process uses OpenTelemetry tracing, as with CDC_OTEL=true: workers trace the app's tasks.

    The data in Redis is in CDC_CACHE_URL, or else in the broker. If neither is Redis, the parts that need it are left
    out, and the worker logs this.

    Raises InstallError if this is not a Celery app, or if it already has other parts. Raises MissingExtraError if
    packages for `otel` are not installed.
    """
    if otel:
        tracing.turn_on()
    parts = Parts(
        transport=transport,
        late_acks=late_acks,
        retries=retries,
        dead_letters=dead_letters,
        health=health,
        metrics=metrics,
        order_by_key=order_by_key,
        context=context,
    )
    _check(app, parts)
    if parts_of(app) is None:
        note_bound(app)
        note_parts(app, parts)
        _change(app, parts)
    return app


def make_own(app: Celery) -> None:
    """Mark this as cdc-tasks' own app."""
    note_parts(app, parts_of(app) or Parts(), is_own=True)


def _check(app: Any, parts: Parts) -> None:
    if not isinstance(app, Celery):
        raise InstallError(
            f"cdc_tasks.install got {type(app).__name__}, not a Celery app.",
            hint='app = Celery("shop"); cdc_tasks.install(app)',
        )
    before = parts_of(app)
    if before is not None and before != parts:
        raise InstallError(
            f"cdc-tasks is already installed in the app {app.main}, with other parts.",
            hint="Call cdc_tasks.install once for each app.",
        )


def _change(app: Celery, parts: Parts) -> None:
    use_settings(app, parts)
    if parts.transport:
        _use_transport(app)
    if parts.retries or parts.dead_letters:
        _use_retries(app)
    _add_steps(app, parts)
    _connect(app)


# --- Transport ------------------------------------------------------------------------------------------


def _use_transport(app: Celery) -> None:
    from cdc_tasks.broker.connection import Connection

    _subclass(app)
    app.amqp.Connection = Connection


def _subclass(app: Celery) -> None:
    """Make the app send messages as our transports need them."""
    from cdc_tasks.broker.delays import DelayingApp

    theirs = type(app)

    def reduced(self: Any) -> Any:
        """Pickle the app with its original class: another process cannot import the subclass."""
        pair: Any = theirs.__reduce__(self)
        make, (_, *arguments) = pair
        return make, (theirs, *arguments)

    names = {"__module__": theirs.__module__, "__doc__": theirs.__doc__, "__reduce__": reduced}
    app.__class__ = type(theirs.__name__, (DelayingApp, theirs), names)


# --- Tasks ----------------------------------------------------------------------------------------------


def _use_retries(app: Any) -> None:
    from cdc_tasks.worker.base_task import RetryingRegistry, make_retrying

    for task in dict.values(app._tasks):  # noqa: SLF001  # `tasks` would make all tasks, before the app is configured
        make_retrying(task)
    app._tasks.__class__ = RetryingRegistry  # noqa: SLF001  # the same


# --- Workers and Flower ---------------------------------------------------------------------------------


def _add_steps(app: Celery, parts: Parts) -> None:
    if not parts.transport:
        return
    from cdc_tasks.broker.clock import Ticking
    from cdc_tasks.broker.delays import BindToDelayedDelivery
    from cdc_tasks.broker.other_workers import LookAtUnacked
    from cdc_tasks.worker.events import BufferEvents

    app.steps["consumer"].update([BindToDelayedDelivery, LookAtUnacked, Ticking, BufferEvents])
    if parts.has_partitions:
        from cdc_tasks.worker.keyed_messages import KeyedQueues

        app.steps["consumer"].add(KeyedQueues)


def _connect(app: Celery) -> None:
    """Connect the signals below for this app too; connecting them again changes nothing."""
    signals.import_modules.connect(_add_tasks, sender=app)
    signals.celeryd_init.connect(_leave_out_what_needs_redis)
    signals.celeryd_init.connect(_offer_partitions)
    signals.celeryd_after_setup.connect(_note_partitions)
    signals.celeryd_after_setup.connect(_refuse_or_report)
    traced_tasks.connect()


def _add_tasks(sender: Celery, **_: Any) -> None:
    """Add our own tasks to a worker, after its own modules; add our metrics to Flower."""
    from cdc_tasks.config.flower import is_flower
    from cdc_tasks.worker.own_tasks import add_tasks, show_numbers

    parts = parts_of(sender) or NO_PARTS
    add_tasks(sender, parts)
    if (
        parts.metrics and is_foreign(sender) and is_flower()
    ):  # our own app's Flower gets more: `cdc_tasks.celery`
        show_numbers()


def _leave_out_what_needs_redis(instance: Any, **_: Any) -> None:
    """Before a worker starts: find out whether there is a Redis for our data, and where our log lines go."""
    parts = parts_of(instance.app)
    if parts is None:
        return
    from cdc_tasks import logs

    if is_foreign(instance.app):
        logs.use_standard_logging()
    if (parts.dead_letters or parts.health) and not has_redis(instance.app):
        note_parts(instance.app, replace(parts, dead_letters=False, health=False))


def _offer_partitions(instance: Any, **_: Any) -> None:
    """Before a worker reads `-Q`: make it accept the queues for tasks with a key."""
    if is_foreign(instance.app) and asked_parts(instance.app).has_partitions:
        from cdc_tasks.worker.added_partitions import offer

        offer(instance.app)


def _note_partitions(instance: Any, **_: Any) -> None:
    """After a worker has read `-Q`: record whether it takes tasks with a key."""
    if is_foreign(instance.app) and asked_parts(instance.app).has_partitions:
        from cdc_tasks.worker.added_partitions import note_choice

        note_choice(instance.app)


def _refuse_or_report(instance: Any, **_: Any) -> None:
    """Before a worker connects: log what weakens the guarantees, and refuse what would stop it a moment later."""
    if parts_of(instance.app) is not None:
        from cdc_tasks.worker.startup import check_start

        check_start(instance)
