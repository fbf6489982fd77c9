"""The routes' tables as they are now, with the findings about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from cdc_tasks.routing.router import Route, RouteIndex
from listener.core.findings import Finding
from listener.postgres.client.connection import Connection
from listener.postgres.tables.catalogue import Table, TableName, read_names, read_tables
from listener.postgres.tables.checkpoint_notes import Notes
from listener.postgres.tables.reconciliation import former_names
from listener.postgres.tables.selection import SelectedTable, covered_partitions, selected_tables
from listener.postgres.tables.table_findings import find_in_tables

__all__ = ["CurrentTables", "read_current_tables", "routed"]


_NOTHING_NOTED: Final = Notes()


class CurrentTables(NamedTuple):
    """The routes' tables as they are now."""

    findings: list[Finding]
    selected: tuple[SelectedTable, ...]
    covered: tuple[Table, ...]  # partitions that routes select and whose changes come under the root's name
    names: Mapping[int, TableName]  # of all tables, views and the like


def read_current_tables(
    connection: Connection, routes: Sequence[Route], notes: Notes = _NOTHING_NOTED
) -> CurrentTables:
    """Return the routes' tables, and the findings about them.

    wal2json needs no publication, but it also leaves out changes of rows without a key.
    """
    known = read_names(connection)
    tables = read_tables(connection, routed(routes, known))
    version = connection.info.server_version
    findings = find_in_tables(routes, tables, known.values(), version, former_names(notes, known))
    selected, covered = selected_tables(routes, tables), covered_partitions(routes, tables)
    return CurrentTables(list(findings), selected, covered, known)


def routed(routes: Sequence[Route], names: Mapping[int, TableName]) -> list[int]:
    """Return the OIDs of the tables that the routes select."""
    index = RouteIndex(routes)
    return [oid for oid, name in names.items() if index.watching(*name)]
