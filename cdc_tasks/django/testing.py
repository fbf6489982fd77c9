"""For tests of a Django project: which tasks a block of code would fire.

There are two ways, which see different changes:

- `captured_commits()` reads PostgreSQL's log, as the listener does. It sees every row that was committed: by
  `save()`, `update()`, `bulk_create()`, a trigger, plain SQL. It needs a test that commits: `TransactionTestCase`, or
  pytest's `@pytest.mark.django_db(transaction=True)`. It takes about a second.
- `captured_saves()` works in a `TestCase`, whose transaction is rolled back. It follows Django's signals. So it sees
  `save()`, `create()` and `delete()`. It does not see changes without a signal: `update()`, `bulk_create()`,
  `bulk_update()`, a ManyToManyField, SQL, triggers, a cascade in the database. It ignores rollbacks to a savepoint.

    with captured_saves() as fired:
        order.mark_as_paid()
    fired.assert_fires("orders.tasks.send_confirmation", args=[order.pk])
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from django.core.serializers.json import DjangoJSONEncoder
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.models.signals import post_delete, post_save, pre_delete, pre_save

from cdc_tasks.apps import find_app
from cdc_tasks.changes import Change, EventType, RowChange
from cdc_tasks.django.database import database_url, table_of
from cdc_tasks.django.routes import load_project_router
from cdc_tasks.django.settings import application, database_alias
from cdc_tasks.errors import CDCError
from cdc_tasks.routing.enqueued import EnqueuedTask
from cdc_tasks.routing.message_groups import OnFailure
from cdc_tasks.testing import Fired, WantedOrder, check_fired, row_change

if TYPE_CHECKING:
    from celery import Task
    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.models import Model

    from cdc_tasks.routing.router import BinlogRouter

__all__ = ["CaptureError", "Captured", "captured_commits", "captured_saves"]


class CaptureError(CDCError):
    """The changes of this test cannot be captured this way."""


class Captured:
    """The changes of a block and what they fire; filled when the block has ended."""

    def __init__(self, router: BinlogRouter) -> None:
        self.changes: list[RowChange] = []
        self._router = router

    @property
    def fired(self) -> list[Fired]:
        """What the changes fire, in order, before `coalesce` and `batch` combine it."""
        return [Fired.of(each) for each in self._router.tasks_for(self.changes)]

    def assert_fires(
        self,
        task: Task[Any, Any] | str,
        *,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        key: Any = None,
        group: str | None = None,
        on_failure: OnFailure | None = None,
        times: int = 1,
    ) -> None:
        """Raise AssertionError, with what did fire, unless the block fires `task` exactly `times` times.

        With `args`, `kwargs`, `key`, `group` or `on_failure`, only calls with these values count. It also fails if the
        Celery app has no such task, if the task does not take its arguments, and if a change would be parked.
        """
        check_fired(
            self.fired,
            task,
            args=args,
            kwargs=kwargs,
            order=WantedOrder(key=key, group=group, on_failure=on_failure),
            times=times,
            title=self._title(),
            routes=self._router.routes,
            app=find_app(application()),
        )

    def assert_fires_nothing(self) -> None:
        """Raise AssertionError, with what did fire, if the block fires any task."""
        if fired := self.fired:
            shown = "\n".join(f"  {each}" for each in fired)
            raise AssertionError(f"{self._title()} should not fire anything. What fired:\n{shown}")

    def _title(self) -> str:
        seen = ", ".join(f"{each.event} on {each.schema}.{each.table}" for each in self.changes)
        return f"The block ({seen or 'no change was seen'})"


# --- From the log -----------------------------------------------------------------------------------------


@contextmanager
def captured_commits() -> Iterator[Captured]:
    """Capture what the block commits, from PostgreSQL's log; the database is that of CDC_DATABASE, or `default`.

    It creates a temporary replication slot, and a publication that it drops afterwards. So the server needs
    `wal_level = logical`, and the role needs REPLICATION and must own the tables, as for `manage.py cdc check`.

    Raises CaptureError inside a transaction and on other databases, and RecordingError with the missing configuration.
    """
    from listener.testing import Recorder

    alias, router = database_alias(), load_project_router()
    _check_commits(connections[alias])
    captured = Captured(router)
    with Recorder(database_url(alias), router) as recorder:
        yield captured
        captured.changes += map(_row_change, recorder.changes())


def _row_change(change: Change) -> Any:
    if isinstance(change, EnqueuedTask):
        return change
    return RowChange.from_message(
        {
            **json.loads(change.to_json()),
            "is_last": change.transaction.is_last,
        }
    )


def _check_commits(connection: BaseDatabaseWrapper) -> None:
    if connection.vendor != "postgresql":
        raise CaptureError(
            f"captured_commits reads the log of PostgreSQL, not of {connection.display_name}.",
            hint="Use captured_saves().",
        )
    if connection.in_atomic_block:
        raise CaptureError(
            "This test runs in a transaction, and the log has only committed changes.",
            hint="Use django.test.TransactionTestCase or pytest.mark.django_db(transaction=True), or captured_saves().",
        )


# --- From signals -----------------------------------------------------------------------------------------


@contextmanager
def captured_saves(using: str = DEFAULT_DB_ALIAS) -> Iterator[Captured]:
    """Capture what the block saves and deletes one by one, from Django's signals; it may be rolled back later.

    The rows are read from the database, on PostgreSQL with the texts that its log has. `before` has the columns of the
    table's replica identity: without REPLICA IDENTITY FULL, nothing for an UPDATE, and the key for a DELETE. On other
    databases it has the whole row.
    """
    captured = Captured(load_project_router())
    follower = _Follower(connections[using], captured.changes)
    with follower:
        yield captured


class _Follower:
    """Records a change for each signal, and for each table of a model that inherits from others."""

    def __init__(self, connection: BaseDatabaseWrapper, changes: list[RowChange]) -> None:
        self._connection, self._changes = connection, changes
        self._before: dict[
            tuple[int, type[Model]], Row
        ] = {}  # by the instance's id, which stays alive meanwhile
        self._signals = (
            (pre_save, self._remember),
            (post_save, self._saved),
            (pre_delete, self._remember),
            (post_delete, self._deleted),
        )

    def __enter__(self) -> None:
        for signal, receiver in self._signals:
            signal.connect(receiver, weak=False)

    def __exit__(self, *_: object) -> None:
        for signal, receiver in self._signals:
            signal.disconnect(receiver)

    def _remember(self, sender: type[Model], instance: Model, using: str, **_: Any) -> None:
        if using == self._connection.alias and instance.pk is not None:
            for table in _tables_of(sender):
                if row := _row(self._connection, table, instance.pk):
                    self._before[id(instance), table] = row

    def _saved(self, sender: type[Model], instance: Model, using: str, **_: Any) -> None:
        for table in _tables_of(sender) if using == self._connection.alias else ():
            before = self._before.pop((id(instance), table), None)
            event = EventType.INSERT if before is None else EventType.UPDATE
            self._note(event, table, before, _row(self._connection, table, instance.pk))

    def _deleted(self, sender: type[Model], instance: Model, using: str, **_: Any) -> None:
        for table in reversed(_tables_of(sender)) if using == self._connection.alias else ():
            self._note(EventType.DELETE, table, self._before.pop((id(instance), table), None), None)

    def _note(self, event: EventType, model: type[Model], before: Row | None, after: Row | None) -> None:
        table, sent = table_of(model, self._connection), before
        if before is not None and not _has_whole_rows(self._connection, model):
            sent = {_key(model): before[_key(model)]} if event is EventType.DELETE else None
        missing = sorted(before.keys() - sent.keys()) if before and sent else ()
        self._changes.append(
            row_change(table.name, event, before=sent, after=after, schema=table.schema, unavailable=missing)
        )


Row = dict[str, Any]


def _tables_of(model: type[Model]) -> list[type[Model]]:
    """Return the models of the row's tables, in the order in which Django inserts."""
    concrete = model._meta.concrete_model or model
    return [*reversed(concrete._meta.get_parent_list()), concrete]


def _key(model: type[Model]) -> str:
    column = getattr(model._meta.pk, "column", None)
    if not column:
        raise CaptureError(
            f"captured_saves cannot follow {model.__name__}: its primary key has several columns.",
            hint="Use captured_commits() in a TransactionTestCase.",
        )
    return str(column)


def _row(connection: BaseDatabaseWrapper, model: type[Model], key: Any) -> Row | None:
    """Return the row as the log would have it; None if it does not exist."""
    quote = connection.ops.quote_name
    found = f"FROM {quote(model._meta.db_table)} WHERE {quote(_key(model))} = %s"
    value = model._meta.pk.get_db_prep_value(key, connection)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT * {found}", [value])
        row = cursor.fetchone()
        if row is None:
            return None
        columns = [(each[0], each[1]) for each in cursor.description]
        if connection.vendor != "postgresql":
            names = [name for name, _ in columns]
            return dict(zip(names, json.loads(json.dumps(row, cls=DjangoJSONEncoder)), strict=True))
        with _as_in_the_log(cursor):
            texts = ", ".join(f"{quote(name)}::text" for name, _ in columns)
            cursor.execute(f"SELECT {texts} {found}", [value])
            return {
                name: _decoded(oid, text)
                for (name, oid), text in zip(columns, cursor.fetchone(), strict=True)
            }


def _decoded(oid: int, text: str | None) -> Any:
    """Return what a task would get for the server's text of a value."""
    from listener.postgres.codec.values import BUILTIN, ValueType, converter

    if text is None:
        return None
    return json.loads(converter(BUILTIN.get(oid) or ValueType(oid, "unknown"))(text.encode()))


_IN_THE_LOG: Final = {
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "3",
    "bytea_output": "hex",
}


@contextmanager
def _as_in_the_log(cursor: Any) -> Iterator[None]:
    """Make the session print values as the listener's does in the block."""
    names = list(_IN_THE_LOG)
    cursor.execute(f"SELECT {', '.join('current_setting(%s)' for _ in names)}", names)
    before = dict(zip(names, cursor.fetchone(), strict=True))
    _set(cursor, _IN_THE_LOG)
    yield
    _set(cursor, before)


def _set(cursor: Any, values: dict[str, str]) -> None:
    calls = ", ".join("set_config(%s, %s, false)" for _ in values)
    cursor.execute(f"SELECT {calls}", [part for pair in values.items() for part in pair])


def _has_whole_rows(connection: BaseDatabaseWrapper, model: type[Model]) -> bool:
    """Return whether the log has whole old rows; on databases other than PostgreSQL that is the default."""
    if connection.vendor != "postgresql":
        return True
    with connection.cursor() as cursor:
        table = connection.ops.quote_name(model._meta.db_table)
        cursor.execute("SELECT relreplident = 'f' FROM pg_class WHERE oid = %s::regclass", [table])
        return bool(cursor.fetchone()[0])
