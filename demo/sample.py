"""The demo's tables and rows: a help desk of three people, in an otherwise empty database."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import sqlalchemy
from pydantic import SecretStr
from sqlalchemy.exc import DBAPIError

from cdc_tasks.errors import CDCError
from cdc_tasks.helpdesk import schema
from cdc_tasks.notify import accounts, sealed_secrets
from cdc_tasks.routing.enqueued import CREATE_MARKS
from demo.orders import ORDERS, place_order

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from demo.inbox import Inbox

__all__ = ["Sample", "SampleError"]

# In the order in which they can be dropped: the last created first.
_TABLES = (
    "cdc_tasks_marks",  # on MySQL and MariaDB only
    ORDERS.name,
    *reversed(re.findall(r"CREATE TABLE IF NOT EXISTS (\w+)", schema.sql("postgresql"))),
)
# Only the demo creates this table. If it exists, the other tables are the demo's too.
_MARK = "cdc_demo"
# The command that creates an empty database, and the scheme of its URL.
_EMPTY = {
    "postgresql": ("createdb", "postgresql"),
    "mysql": ("mysqladmin create", "mysql"),
    "mariadb": ("mariadb-admin create", "mysql"),
}
_ROWS = (
    "INSERT INTO departments (name) VALUES ('Support'), ('Engineering')",
    "INSERT INTO roles (name) VALUES ('Admin'), ('Agent')",
    # The ids are 1 Mona, 2 Anna, 3 Carl.
    "INSERT INTO users (name, email) VALUES ('Mona', 'mona@example.com')",
    "INSERT INTO users (name, email, manager_id) VALUES ('Anna', 'anna@example.com', 1)",
    "INSERT INTO users (name, email, manager_id) VALUES ('Carl', 'carl@example.com', 1)",
)


class SampleError(CDCError):
    """The demo cannot use this database."""


class Sample:
    """The sample tables and their rows; `remove` drops them."""

    def __init__(self, engine: Engine, *, name: str) -> None:
        """`name` is the listener's CDC_NAME: `remove` also drops its slot and publication."""
        self._engine = engine
        self._name = name

    def prepare(self, inbox: Inbox) -> None:
        """Recreate the tables, with users whose accounts lead to the inbox. Raises SampleError."""
        try:
            self._refuse_tables_of_others()
            self.remove()
            self.execute(f"CREATE TABLE {_MARK} (id integer PRIMARY KEY)")
            schema.create(self._engine)
            ORDERS.create(self._engine)
            if self._engine.dialect.name != "postgresql":
                self.execute(CREATE_MARKS)
            self.execute(*_ROWS)
        except DBAPIError as error:
            raise SampleError(f"the sample tables could not be created: {error.orig}".strip()) from error
        with sqlalchemy.orm.Session(self._engine) as session:
            slack, teams = SecretStr("xoxb-demo"), SecretStr(inbox.teams_webhook("Mona"))
            accounts.connect(session, email="anna@example.com", service="slack", address=None, secret=slack)
            accounts.connect(session, email="mona@example.com", service="teams", address=None, secret=teams)

    def execute(self, *statements: str) -> float:
        """Run the statements in one transaction; return time.monotonic() when the commit was sent.

        An effect may happen before the commit returns: counted from then, its time would be negative.
        """
        with self._engine.connect() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)
            committing = time.monotonic()
            connection.commit()
            return committing

    def order(self, item: str, *, is_committed: bool) -> int:
        """Place an order as the application does, and return its number."""
        return place_order(self._engine, item, is_committed=is_committed)

    def session(self) -> Connection:
        """Return a session in which each statement is committed by itself, and % has no special meaning."""
        return self._engine.connect().execution_options(isolation_level="AUTOCOMMIT", no_parameters=True)

    def sealed_token(self) -> str:
        """Return a Slack token as in the database: encrypted with the demo's key."""
        return sealed_secrets.seal(SecretStr("xoxb-demo"))

    def remove(self) -> None:
        """Drop everything that the demo has created; the listener must have ended."""
        if _MARK not in self._tables():
            return
        with self._engine.begin() as connection:
            for table in (*_TABLES, _MARK):
                connection.exec_driver_sql(f"DROP TABLE IF EXISTS {table}")
        if self._engine.dialect.name == "postgresql":
            with self._engine.begin() as connection:
                self._remove_replication(connection)

    def _tables(self) -> set[str]:
        return set(sqlalchemy.inspect(self._engine).get_table_names())

    def _refuse_tables_of_others(self) -> None:
        tables = self._tables()
        taken = sorted(tables.intersection(_TABLES))
        if taken and _MARK not in tables:
            create, scheme = _EMPTY[self._engine.dialect.name]
            raise SampleError(
                f"The database of DATABASE_URL already has tables that the demo would create: {', '.join(taken)}",
                hint=f"give the demo an empty database: {create} cdc_demo, and DATABASE_URL={scheme}://…/cdc_demo",
            )

    def _remove_replication(self, connection: Connection) -> None:
        """Drop the slot and the publication: a slot without a reader retains WAL forever."""
        slot = sqlalchemy.text(
            "SELECT active FROM pg_replication_slots"
            " WHERE slot_name = :name AND database = current_database()"
        )
        active = connection.execute(slot, {"name": self._name}).scalar()
        if active:
            raise SampleError("another demo is running on this database", hint="end that one first")
        if active is not None:
            drop = sqlalchemy.text("SELECT pg_drop_replication_slot(:name)")
            connection.execute(drop, {"name": self._name})
        connection.exec_driver_sql(f"DROP PUBLICATION IF EXISTS {self._name}")
