"""`write_context`: the writes of a request or a task through a SQLAlchemy engine carry its context."""

from __future__ import annotations

from typing import Any, Final

from cdc_tasks.outbox.current import say_before, takes_back

__all__ = ["write_context"]

_SAID: Final = "cdc_tasks_said"  # the actor whose context the connection's transaction has
_KINDS: Final = frozenset({"postgresql", "mysql", "mariadb"})


def write_context(engine: Any) -> None:
    """Add the context of the current request or task to each transaction of the engine that writes.

    Call it once, where you create the Engine or AsyncEngine. The context comes from the middleware
    (`cdc_tasks.web.asgi`, `cdc_tasks.web.flask`), and for tasks from `cdc_tasks.install(app, context=True)`. It is
    written before the first statement that writes. Outside of requests and tasks nothing is written.

    A connection that commits each statement by itself (AUTOCOMMIT) writes no context. On MySQL and MariaDB the table
    `cdc_tasks_marks` is needed, as for `cdc_tasks.enqueue`.
    """
    from sqlalchemy import event

    sync = getattr(engine, "sync_engine", engine)
    if sync.dialect.name not in _KINDS or event.contains(sync, "before_cursor_execute", _before):
        return
    event.listen(sync, "before_cursor_execute", _before)
    event.listen(sync, "begin", _forget)
    event.listen(sync, "rollback_savepoint", _forget)


def _forget(connection: Any, *_: Any) -> None:
    connection.info.pop(_SAID, None)


def _before(connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
    info = connection.info
    if takes_back(statement):
        info.pop(_SAID, None)
    elif connection.get_transaction() is not None and not _commits_each(connection):
        info[_SAID] = say_before(statement, connection, info.get(_SAID))


def _commits_each(connection: Any) -> bool:
    options = {**connection.engine.get_execution_options(), **connection.get_execution_options()}
    return options.get("isolation_level") == "AUTOCOMMIT"
