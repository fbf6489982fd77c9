"""The story of `examples/audit-log`."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

import psycopg2

from examples.servers import connect
from examples.stage import StoryError

if TYPE_CHECKING:
    from examples.stage import Stage

__all__ = ["OTHER_DATABASE", "TRY", "VARIABLES", "play"]

VARIABLES: Final[dict[str, str]] = {}
OTHER_DATABASE: Final = "AUDIT_DATABASE_URL"
TRY: Final = (
    'psql $DATABASE_URL -c "UPDATE customers SET credit = 0"',
    'psql $AUDIT_DATABASE_URL -c "SELECT event, after, context FROM audit_log ORDER BY committed_at DESC LIMIT 5"',
)
_ROWS: Final = 50
_COUNT: Final = "SELECT count(*) FROM audit_log"
_LAST: Final = (
    "SELECT event, before, after, context FROM audit_log WHERE row_id = {} ORDER BY committed_at DESC LIMIT 1"
)


def play(stage: Stage) -> None:
    """Change a customer in two ways, kill the listener in the middle, and try to rewrite history."""
    audit = stage.environment["AUDIT_DATABASE_URL"]
    (before,) = _ask(audit, _COUNT)
    stage.step("The shop raises a customer's credit, and says who did")
    ((customer,),) = stage.sql(
        "INSERT INTO customers (name, password_hash) VALUES ('Bob', 'secret') RETURNING id"
    )
    stage.run(f"python -m audit raise-credit {customer} 100 7")
    _show(stage, audit, customer, before + 2)
    stage.step("Someone changes it in SQL: that is in the log, too")
    stage.sql(f"UPDATE customers SET credit = 9999 WHERE id = {customer}")
    _show(stage, audit, customer, before + 3)
    stage.step(f"The listener is killed while {_ROWS} customers are written, and started again")
    _write_and_kill(stage)
    stage.until("all changes in the audit log", lambda: _ask(audit, _COUNT)[0] >= before + 3 + _ROWS)
    ((rows,),) = stage.sql(_COUNT, url=audit)
    stage.say(
        f"{rows - before} changes, {rows - before} rows: nothing is missing, and nothing is there twice"
    )
    stage.until("neither more nor less", lambda: rows == before + 3 + _ROWS)
    stage.step("Nobody rewrites the audit log")
    try:
        stage.sql("DELETE FROM audit_log", url=audit)
    except psycopg2.errors.RaiseException as error:
        stage.say(f"ERROR: {error.diag.message_primary}")
    else:
        raise StoryError("The audit log was rewritten.")


def _write_and_kill(stage: Stage) -> None:
    statement = "INSERT INTO customers (name) VALUES ('Customer no. {}')"
    stage.say(f"sql> {statement.format(1)};  -- and so on: {_ROWS} transactions")
    with closing(connect(stage.servers.database)) as connection, connection.cursor() as cursor:
        for number in range(1, _ROWS + 1):
            cursor.execute(statement.format(number))
            if number == _ROWS // 2:
                stage.kill("listener")
    stage.start_again("listener")


def _show(stage: Stage, audit: str, customer: int, rows: int) -> None:
    """Print the newest row of the audit log when it is there."""
    stage.until("the change in the audit log", lambda: _ask(audit, _COUNT)[0] >= rows)
    event, before, after, context = _ask(audit, _LAST.format(customer))
    stage.say(f"audit_log: {event} of customer {customer}, {before} -> {after}, by {context}")


def _ask(url: str, query: str) -> Any:
    with closing(connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchone()
