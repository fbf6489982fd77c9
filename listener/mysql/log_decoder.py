"""The decoder of a server's log: for the stream, and for a replay of older log."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cdc_tasks.routing.router import Route
from listener.mysql.charsets import Charsets
from listener.mysql.client.server import Server
from listener.mysql.codec.decoder import Decoder
from listener.mysql.log.position import BinlogPosition
from listener.mysql.sql.statements import Dialect
from listener.mysql.tables.catalogue import Definitions
from listener.mysql.tables.table_description import Tables

__all__ = ["log_decoder"]


def log_decoder(
    server: Server,
    routes: Sequence[Route],
    charsets: Charsets,
    *,
    definitions: Definitions | None,
    after: BinlogPosition,
    accepts_gap_until: BinlogPosition | None = None,
    selects: Callable[[str, str | None], bool] = lambda _schema, _table: False,
) -> Decoder:
    """Return the decoder for the changes that the routes select; parameters as for `Tables` and `Decoder`."""
    tables = Tables(definitions, charsets, routes, mariadb=server.is_mariadb)
    return Decoder(
        mariadb=server.is_mariadb,
        describe=tables.describe,
        forget=tables.forget,
        after=after,
        server=server.name,
        accepts_gap_until=accepts_gap_until,
        dialect=Dialect(
            mariadb=server.is_mariadb,
            folds_names=server.variable("lower_case_table_names") not in {"", "0"},
            charsets=charsets,
        ),
        selects=selects,
        keeps_muted=any(route.even_muted for route in routes),
    )
