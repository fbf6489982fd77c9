"""The statements in a binlog, as the listener gets them, before it interprets them."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

from listener.core.wakeup import Wakeup
from listener.mysql.charsets import Charsets
from listener.mysql.client.connection import Session, connect
from listener.mysql.client.server import current_position, read_server
from listener.mysql.sql.statements import Dialect, Query, parse_query
from listener.mysql.stream import BinlogStream

if TYPE_CHECKING:
    from listener.mysql.log.position import BinlogPosition
    from tests.support.mysql.source import MySQLDatabase

__all__ = ["end_of_log", "logged_statements"]

_QUERY = 2
_END = b"CREATE TABLE the_end"


def end_of_log(database: MySQLDatabase) -> BinlogPosition:
    """Return where the next transaction will be, GTIDs included."""
    with closing(connect(database.url)) as connection:
        return current_position(connection, read_server(connection))


def logged_statements(database: MySQLDatabase, start: BinlogPosition) -> tuple[list[Query], Dialect]:
    """Return the statements in the log from `start` on, except BEGIN and COMMIT, and the dialect to read them."""
    database.execute("CREATE TABLE the_end (id int)", "DROP TABLE the_end")
    session = Session(partial(connect, database.url))
    with closing(connect(database.url)) as connection:
        server = read_server(connection)
    charsets = Charsets(session)
    found: list[Query] = []
    with BinlogStream(database.url, server_id=4711, name=database.name, wakeup=Wakeup()) as stream:
        stream.start(server, start)
        for event in stream.events():
            if event is None:
                stream.wait(1)
            elif event[4] == _QUERY:
                query = parse_query(event, len(event) - 4)
                if query.text.startswith(_END):
                    break
                if query.text not in {b"BEGIN", b"COMMIT"}:
                    found.append(query)
    return found, Dialect(mariadb=server.is_mariadb, charsets=charsets)
