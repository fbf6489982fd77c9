"""A table's definition when a row was written, from observations of the catalogue before and after: pure, no I/O.

An observation shows a table at one moment, but a row may be older or newer. The log orders the two: each part
of a definition has the transaction that created it, and a transaction has the LSN of its commit. No clock is used.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Protocol

__all__ = [
    "ColumnDefinition",
    "Observation",
    "Order",
    "PossibleColumn",
    "TableDefinition",
    "TableHistory",
    "TableName",
    "UnknownDefinitionError",
    "missing_columns",
]

TableName = tuple[str, str]  # schema, table


class Order(Protocol):
    """The order of transactions in the log: by xid, and by the LSN of the commit."""

    def is_before(self, xid: int, lsn: int) -> bool | None:
        """Return whether the transaction committed before `lsn`; None: exactly there, or unknown."""

    def is_quiet(self, since: int, lsn: int) -> bool:
        """Return whether only known transactions altered tables after `since` and up to `lsn`."""


_HAVE_ROWS = "rpm"  # pg_class.relkind of what can have rows in the log


class UnknownDefinitionError(Exception):
    """The table's definition at that LSN cannot be determined; the message has the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnDefinition:
    """One column, or a dropped one."""

    number: int  # pg_attribute.attnum: no other column of the table ever gets it
    name: str
    type_oid: int
    may_be_unsent: bool  # its value may be stored outside the row: then the log has it only if it changes
    is_dropped: bool = False
    changed_by: int = 0  # the transaction that created this state
    # Whether this state is older than everything still to be read.
    is_final: bool = field(default=True, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableDefinition:
    """The relation with a table's name at one moment."""

    oid: int
    kind: str  # pg_class.relkind: r table, p partitioned table, m materialized view, …
    identity: str = "d"  # pg_class.relreplident: d primary key, i index, f full, n nothing
    columns: tuple[ColumnDefinition, ...]  # in the order of their numbers, dropped ones included
    # Transactions; the last of them gave it the name.
    named_by: tuple[int, ...] = field(default=(), compare=False)
    is_name_final: bool = field(default=True, compare=False)

    @property
    def is_final(self) -> bool:
        """Whether all of it is older than everything still to be read."""
        return self.is_name_final and all(column.is_final for column in self.columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What the catalogue showed, once or several times in succession."""

    definition: TableDefinition | None  # None: nothing had the name
    since: int  # the end of the log after the first time: it was valid there already
    until: int  # an LSN before the last time: it was still valid there


@dataclass(frozen=True, slots=True, kw_only=True)
class PossibleColumn:
    """The possible states of one column when a row was written."""

    states: tuple[ColumnDefinition, ...]  # without those in which it did not exist; several: unknown which
    may_be_another: bool = False  # it may have had a state that was never observed
    names: frozenset[str]  # all names under which it was observed
    may_be_gone: bool = False  # or it may not exist yet
    added: ColumnDefinition | None = None  # it may have existed already, as this or under another name

    @property
    def is_certain(self) -> bool:
        """Whether it existed, and is known."""
        return len(self.states) == 1 and not self.may_be_another and not self.may_be_gone

    @property
    def can_be_there(self) -> bool:
        return bool(self.states) or self.may_be_another or self.added is not None


class TableHistory:
    """The observations of one name, as far back as there is log to read."""

    def __init__(self, observations: Sequence[Observation] = ()) -> None:
        """Start with these observations, the oldest first."""
        self._observations = list(observations)

    @property
    def observations(self) -> Sequence[Observation]:
        """The oldest first."""
        return self._observations

    @property
    def is_plain(self) -> bool:
        """Whether only an ordinary table was observed."""
        return all(seen.definition is not None and seen.definition.kind == "r" for seen in self._observations)

    def is_certain(self, lsn: int) -> bool:
        """Return whether the latest observation is valid at `lsn` and since."""
        found = self._observations
        if not found:
            return False
        return found[-1].since <= lsn or (len(found) == 1 and _is_final(found[0]))

    def add(self, seen: Observation) -> bool:
        """Add an observation; return whether it differs from the last one."""
        last = self._observations[-1] if self._observations else None
        is_new = last is None or last.definition != seen.definition
        if last is not None and not is_new:
            # With the newer definition: more of it may be final.
            until = max(last.until, seen.until)
            seen = Observation(definition=seen.definition, since=last.since, until=until)
            self._observations.pop()
        self._observations.append(seen)
        if _is_final(seen):
            del self._observations[:-1]
        return is_new

    def is_over(self, lsn: int) -> bool:
        """Return whether no relation has the name, and all rows of the previous one are read."""
        return (
            bool(self._observations)
            and self._observations[-1].definition is None
            and self._observations[-1].since < lsn
        )

    @property
    def not_final(self) -> frozenset[int]:
        """The transactions that created the observed definitions, without final ones."""
        found = [seen.definition for seen in self._observations if seen.definition]
        columns = [column.changed_by for each in found for column in each.columns if not column.is_final]
        return frozenset(columns).union(*(each.named_by for each in found if not each.is_name_final))

    def identities(self, lsn: int, order: Order) -> frozenset[str]:
        """Return what the replica identity may have been, as pg_class.relreplident; "" for one never observed."""
        found: set[str] = set()
        for seen in reversed(self._observations):
            definition = seen.definition
            if definition is None:
                continue
            if not _is_younger(definition, lsn, order):
                found.add(definition.identity)
            if seen.since <= lsn or definition.is_name_final or _is_named(definition, lsn, order):
                return frozenset(found if order.is_quiet(seen.until, lsn) else found | {""})
        return frozenset(found | {""})

    def kinds(self, lsn: int, order: Order) -> frozenset[str]:
        """Return the possible kinds of the relation with the name at `lsn`; none if nothing was observed."""
        return frozenset(
            seen.definition.kind
            for observations in self._owners(lsn, order)
            for seen in observations[-1:]
            if seen.definition
        )

    def columns(self, lsn: int, order: Order) -> list[list[PossibleColumn]]:
        """Return the possible states of the columns at `lsn`, for each table that may have had the name.

        Raise UnknownDefinitionError if the table was never observed.
        """
        owners = list(self._owners(lsn, order))
        if not owners:
            raise UnknownDefinitionError("it no longer exists, and the listener has not seen it before")
        return [list(_columns(observations, lsn, order)) for observations in owners]

    def _owners(self, lsn: int, order: Order) -> Iterator[list[Observation]]:
        """Yield the observations of each table that may have had the name, the latest first."""
        found = [
            seen for seen in self._observations if seen.definition and seen.definition.kind in _HAVE_ROWS
        ]
        owners = [
            list(observations)
            for _, observations in groupby(found, key=lambda seen: seen.definition and seen.definition.oid)
        ]
        for at in reversed(range(len(owners))):
            had_it = at == 0 or _had_the_name(owners[at], owners[at - 1], lsn, order)
            if had_it is not False:
                yield owners[at]
            if had_it:
                return


def _is_final(seen: Observation) -> bool:
    return seen.definition is not None and seen.definition.is_final


def _had_the_name(
    observations: Sequence[Observation], earlier: Sequence[Observation], lsn: int, order: Order
) -> bool | None:
    """Return whether it had the name at `lsn`, and no longer the table of the `earlier` observations."""
    definition = observations[-1].definition
    if observations[0].since <= lsn or definition is None or definition.is_name_final:
        return True
    if _is_named(definition, lsn, order):
        return True
    # Otherwise the earlier table may have lost the name before: of the later one only the latest change is known.
    is_younger = _is_younger(definition, lsn, order) and order.is_quiet(earlier[-1].until, lsn)
    return False if is_younger else None


def _is_named(definition: TableDefinition, lsn: int, order: Order) -> bool:
    """Return whether the table existed, under this name, before `lsn`."""
    return all(order.is_before(xid, lsn) for xid in definition.named_by)


def _is_younger(definition: TableDefinition, lsn: int, order: Order) -> bool:
    return any(order.is_before(xid, lsn) is False for xid in definition.named_by)


def _columns(observations: Sequence[Observation], lsn: int, order: Order) -> Iterator[PossibleColumn]:
    by_number = [
        {column.number: column for column in seen.definition.columns}
        for seen in observations
        if seen.definition
    ]
    for number in sorted(frozenset[int]().union(*by_number)):
        found = [(seen, columns.get(number)) for seen, columns in zip(observations, by_number, strict=True)]
        yield _possible(found, lsn, order)


def _possible(
    found: Sequence[tuple[Observation, ColumnDefinition | None]], lsn: int, order: Order
) -> PossibleColumn:
    """Go back from the column's current state to its state at `lsn`."""
    names = frozenset(column.name for _, column in found if column and not column.is_dropped)
    states: list[ColumnDefinition] = []
    may_be_gone = False
    later: ColumnDefinition | None = None  # its state after `lsn`
    for observations in reversed(_same(found)):
        column = observations[-1][1]
        was_made = column is None or observations[0][0].since <= lsn or _is_older(observations, lsn, order)
        if was_made is not False and (column is None or column.is_dropped):
            may_be_gone = True
        elif was_made is not False and column is not None:
            states.append(column)
        if was_made:
            # After the last such observation it may have been renamed twice, or added and altered.
            doubtful = later and not order.is_quiet(observations[-1][0].until, lsn)
            twice = bool(doubtful) and _is_renamed(column, later)
            added = later if doubtful and column is None and not twice else None
            return PossibleColumn(
                states=tuple(states), may_be_another=twice, may_be_gone=may_be_gone, names=names, added=added
            )
        later = column
    return PossibleColumn(states=tuple(states), may_be_another=True, names=names)


def _same(
    found: Sequence[tuple[Observation, ColumnDefinition | None]],
) -> list[list[tuple[Observation, ColumnDefinition | None]]]:
    return [list(observations) for _, observations in groupby(found, key=lambda each: each[1])]


def _is_older(
    observations: Sequence[tuple[Observation, ColumnDefinition | None]], lsn: int, order: Order
) -> bool | None:
    columns = [column for _, column in observations if column]
    return any(column.is_final for column in columns) or order.is_before(columns[0].changed_by, lsn)


def _is_renamed(column: ColumnDefinition | None, later: ColumnDefinition | None) -> bool:
    """Return whether the column may have had a third name in between."""
    if later is None or (column is None and not later.is_dropped):
        return False
    return column is None or (not later.is_dropped and later.name != column.name)


def missing_columns(
    columns: Sequence[PossibleColumn],
    sent: Collection[str],
    *,
    is_whole: bool,
    ever_sent: Collection[str] = (),
) -> list[PossibleColumn]:
    """Return the columns whose values were not `sent`; one too many if unknown.

    `is_whole`: the whole row was sent, except unchanged values that are stored outside of it. Otherwise only a
    key was sent. `ever_sent` are all columns of the table's rows so far: a value outside of its row was sent once.
    Raise UnknownDefinitionError if a name cannot be known.
    """
    known = frozenset(name for column in columns for name in _names_of(column))
    rest = [column for column in columns if not _names_of(column) & frozenset(sent)]
    strangers = [name for name in sent if name not in known]
    if len(columns) - len(rest) > len(sent) - len(strangers):
        raise UnknownDefinitionError("columns have taken each other's names")
    if strangers:  # these are the columns with an unknown state, so none of these is missing
        unknown = [column for column in rest if column.may_be_another or column.added]
        if len(strangers) != len(unknown):
            raise UnknownDefinitionError(
                f"{', '.join(strangers)} is unknown, and was renamed or dropped since"
            )
        rest = [column for column in rest if column not in unknown]
    missing = [column for column in rest if not is_whole or _may_be_unsent(column, columns, ever_sent)]
    for column in missing:
        if column.may_be_another or (column.added and _strangers(columns, ever_sent)):
            raise UnknownDefinitionError(
                f"{', '.join(sorted(column.names)) or 'a column that was dropped'} was altered since"
            )
    return [column for column in missing if column.can_be_there]


def _strangers(columns: Sequence[PossibleColumn], names: Collection[str]) -> list[str]:
    """Return the names that were never observed."""
    return [name for name in names if all(name not in column.names for column in columns)]


def _names_of(column: PossibleColumn) -> frozenset[str]:
    if column.may_be_another or column.added:
        return column.names
    return frozenset(state.name for state in column.states)


def _may_be_unsent(
    column: PossibleColumn, columns: Sequence[PossibleColumn], ever_sent: Collection[str]
) -> bool:
    if column.added:
        return column.added.name in ever_sent or bool(_strangers(columns, ever_sent))
    return column.may_be_another or any(state.may_be_unsent for state in column.states)
