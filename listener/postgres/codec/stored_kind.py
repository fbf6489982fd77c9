"""A kind of change as plain values, and back: rows can be kept as logged, and rendered later."""

from __future__ import annotations

from typing import Any

from listener.postgres.codec.builtin_types import ValueType
from listener.postgres.codec.table import Column, Kind, OldRow, Table

__all__ = ["kind_of", "values_of"]


def values_of(kind: Kind) -> tuple[Any, ...]:
    """Return everything on which its JSON depends, as strings, bytes, numbers and tuples."""
    table = kind.table
    columns = tuple((each.name, _of_type(each.type), each.key) for each in table.columns)
    return table.schema, table.name, table.identity, columns, kind.event, kind.old.name, kind.has_new


def kind_of(values: tuple[Any, ...]) -> Kind:
    """Return the kind with these values."""
    schema, name, identity, columns, event, old, has_new = values
    table = Table(
        schema, name, [Column(column, _type(of), key) for column, of, key in columns], identity=identity
    )
    return Kind(table, event, OldRow[old], has_new=has_new)


def _of_type(value_type: ValueType) -> tuple[Any, ...]:
    of = value_type.of
    return value_type.oid, value_type.kind, None if of is None else _of_type(of), value_type.delimiter


def _type(values: tuple[Any, ...]) -> ValueType:
    oid, kind, of, delimiter = values
    return ValueType(oid, kind, None if of is None else _type(of), delimiter)
