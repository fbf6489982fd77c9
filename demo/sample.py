"""The demo's rows: a help desk of three people, in a database that holds nothing else."""

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

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from demo.inbox import Inbox

__all__ = ["Sample", "SampleError"]

# The last made first: in this order they can be dropped.
_TABLES = tuple(reversed(re.findall(r"CREATE TABLE IF NOT EXISTS (\w+)", schema.sql("postgresql"))))
# A table that only the demo makes: where it is, the others are the demo's too.
_MARK = "cdc_demo"
# How an empty database is made, and how its URL begins.
_EMPTY = {
    "postgresql": ("createdb", "postgresql"),
    "mysql": ("mysqladmin create", "mysql"),
    "mariadb": ("mariadb-admin create", "mysql"),
}
_ROWS = (
    "INSERT INTO departments (name) VALUES ('Support'), ('Engineering')",
    "INSERT INTO roles (name) VALUES ('Admin'), ('Agent')",
    # Identities begin at 1: Mona, Anna, Carl.
    "INSERT INTO users (name, email) VALUES ('Mona', 'mona@example.com')",
    "INSERT INTO users (name, email, manager_id) VALUES ('Anna', 'anna@example.com', 1)",
    "INSERT INTO users (name, email, manager_id) VALUES ('Carl', 'carl@example.com', 1)",
)


class SampleError(CDCError):
    """The demo cannot use this database."""


class Sample:
    """The sample tables and their rows; they go away with `remove`."""

    def __init__(self, engine: Engine, *, name: str) -> None:
        """`name` is the listener's CDC_NAME: what it leaves on the server is removed too."""
        self._engine = engine
        self._name = name

    def prepare(self, inbox: Inbox) -> None:
        """Make the tables anew, with people whose accounts lead to the inbox; raises SampleError."""
        try:
            self._refuse_tables_of_others()
            self.remove()
            self.execute(f"CREATE TABLE {_MARK} (id integer PRIMARY KEY)")
            schema.create(self._engine)
            self.execute(*_ROWS)
        except DBAPIError as error:
            raise SampleError(f"the sample tables could not be made: {error.orig}".strip()) from error
        with sqlalchemy.orm.Session(self._engine) as session:
            slack, teams = SecretStr("xoxb-demo"), SecretStr(inbox.teams_webhook("Mona"))
            accounts.connect(session, email="anna@example.com", service="slack", address=None, secret=slack)
            accounts.connect(session, email="mona@example.com", service="teams", address=None, secret=teams)

    def execute(self, *statements: str) -> float:
        """Run them as they are, in one transaction; returns time.monotonic() of its commit's return."""
        with self._engine.connect() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)
            connection.commit()
            return time.monotonic()

    def sealed_token(self) -> str:
        """Return a Slack token as it stands in the database: encrypted with the demo's key."""
        return sealed_secrets.seal(SecretStr("xoxb-demo"))

    def remove(self) -> None:
        """Leave the database as it was, if the demo has made tables in it; the listener must have ended."""
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
                f"DATABASE_URL's database has tables of its own where the demo's would be: {', '.join(taken)}",
                hint=f"give the demo an empty one: {create} cdc_demo, and DATABASE_URL={scheme}://…/cdc_demo",
            )

    def _remove_replication(self, connection: Connection) -> None:
        """Drop slot and publication: a slot that nobody reads keeps the server's log for ever."""
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
