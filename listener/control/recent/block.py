"""A block of recent changes as stored in Redis: a header line, and compressed JSON.

Data common to many changes (transactions, kinds, routes, fates, column names) is stored once per block, and a
change has indexes into these lists. So a change takes some ten bytes, and a block can be read alone.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Final, TypeVar

import orjson

from cdc_tasks.changes import EventType
from listener.control.recent.entries import (
    Deed,
    Entry,
    Fate,
    Kind,
    KnownRoute,
    LeftOut,
    Noted,
    NotedChange,
    Transaction,
    Why,
    microseconds,
    time_of,
)

__all__ = [
    "HEAD",
    "MOST_TABLES",
    "BlockError",
    "Condition",
    "OpenBlock",
    "entries_of",
    "left_out_of",
    "text_of",
]

HEAD: Final = b"cdc-recent-1"  # then the number of changes, and a line end
_HEAD: Final = re.compile(rb"cdc-recent-1 \d+\n")
MOST_TABLES: Final = 20  # named for changes that are not noted
_LEFT_OUT: Final = re.compile(rb'\{"why":[^{}]*\}')
_LEVEL: Final = 3  # of zlib
_LARGEST: Final = 50_000_000  # bytes of JSON: a block has less than a hundredth of it

T = TypeVar("T", bound=Hashable)
Condition = Callable[[Any], bool]  # on a key or a context, as in JSON


class BlockError(ValueError):
    """These bytes are not a block of this format, or are damaged."""


class _Places(dict[T, int]):
    """The index of each value in a list of distinct ones."""

    def __missing__(self, value: T) -> int:
        self[value] = place = len(self)
        return place


class OpenBlock:
    """A block that still receives changes."""

    def __init__(self) -> None:
        self.changes = 0
        self._entries: list[Any] = []
        self._transactions = _Places[Transaction]()
        self._kinds = _Places[Kind]()
        self._routes = _Places[KnownRoute]()
        self._deeds = _Places[tuple[Deed, ...]]()
        self._columns = _Places[tuple[str, ...]]()

    def __bool__(self) -> bool:
        return bool(self._entries)

    def add(self, entry: Entry) -> None:
        """Add a change."""
        transaction, ordinal, kind, deeds, columns, key, old_key, own_id, coalesced = entry
        row: list[Any] = [
            self._transactions[transaction],
            ordinal,
            self._kinds[kind],
            self._deeds[deeds],
            -1 if columns is None else self._columns[columns],
            orjson.Fragment(key or b"0"),
        ]
        if old_key or own_id or coalesced:
            row += [orjson.Fragment(old_key or b"0"), own_id, coalesced]
        self._entries.append(row)
        self.changes += 1

    def leave_out(self, those: LeftOut) -> None:
        """Add an entry for changes that are not noted; merge it with the last entry if the reason is the same."""
        times = [None if each is None else microseconds(each) for each in (those.since, those.until)]
        last = self._entries[-1] if self._entries else None
        if isinstance(last, dict) and last["why"] == those.why and last["count"] and those.count:
            last["count"] += those.count
            last["last"], last["times"][1] = those.last, times[1]
            last["tables"] = list(dict.fromkeys((*last["tables"], *those.tables)))[:MOST_TABLES]
            return
        fields = {"why": those.why, "count": those.count, "first": those.first, "last": those.last}
        self._entries.append({**fields, "times": times, "tables": list(those.tables)})

    def packed(self) -> bytes:
        """Return it as bytes."""
        kinds = [
            (
                *kind[:3],
                [self._routes[each] for each in kind.watching],
                [self._routes[each] for each in kind.others],
            )
            for kind in self._kinds
        ]
        fields = {
            "kinds": kinds,
            "routes": list(map(tuple, self._routes)),
            "deeds": [list(map(tuple, each)) for each in self._deeds],
            "columns": list(self._columns),
            "transactions": [
                (*each[:3], orjson.Fragment(each.context or b"null"), each.is_muted)
                for each in self._transactions
            ],
            "entries": self._entries,
        }
        return b"%b %d\n%b" % (HEAD, self.changes, zlib.compress(orjson.dumps(fields), _LEVEL))


def text_of(block: bytes) -> bytes:
    """Return a block's JSON. Raise BlockError."""
    head = _HEAD.match(block)
    if head is None:
        raise BlockError("it does not begin as a block of ours does")
    reader = zlib.decompressobj()
    try:
        text = reader.decompress(block[head.end() :], _LARGEST)
    except zlib.error as error:
        raise BlockError(str(error)) from error
    if not reader.eof:
        raise BlockError("its end is missing")
    return text


def entries_of(
    text: bytes, *, key: Condition | None = None, context: Condition | None = None
) -> list[NotedChange | LeftOut | None]:
    """Return a block's entries, the oldest first; None for a change with another key or context.

    Raise BlockError.
    """
    try:
        return list(_Parsed(orjson.loads(text)).entries(key, context))
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BlockError(f"{type(error).__name__}: {error}") from error


def left_out_of(text: bytes) -> Iterator[LeftOut]:
    """Yield the entries for changes that are not noted, without parsing the rest. Raise BlockError."""
    for found in _LEFT_OUT.findall(text):
        fields = orjson.loads(found)
        if "times" in fields:  # otherwise it is a context
            yield _left_out(fields)


class _Parsed:
    """A block's lists."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self._entries = fields["entries"]
        self._transactions = fields["transactions"]
        self._columns = [tuple(each) for each in fields["columns"]]
        self._deeds = [
            {route: Deed(route, Fate(fate), detail) for route, fate, detail in each}
            for each in fields["deeds"]
        ]
        routes = [
            KnownRoute(name, task, tuple(events), when, place, grouping)
            for name, task, events, when, place, grouping in fields["routes"]
        ]
        self._kinds = [
            Kind(*each[:3], *(tuple(routes[at] for at in places) for places in each[3:5]))
            for each in fields["kinds"]
        ]
        self._fates: dict[tuple[int, int, bool], tuple[Noted, ...]] = {}

    def entries(
        self, key: Condition | None, context: Condition | None
    ) -> Iterator[NotedChange | LeftOut | None]:
        wanted = [context is None or context(each[3]) for each in self._transactions]
        for each in self._entries:
            if isinstance(each, dict):
                yield _left_out(each)
            elif wanted[each[0]] and (key is None or any(map(key, _keys_in(each)))):
                yield self._change(*each)
            else:
                yield None

    def _change(self, *row: Any) -> NotedChange:
        at, ordinal, number, deeds, names, key, *rest = row
        old_key, own_id, coalesced = rest or (None, "", ())
        id_head, position_head, committed, context, is_muted = self._transactions[at]
        kind = self._kinds[number]
        return NotedChange(
            id=own_id or f"{id_head}{ordinal}",
            schema=kind.schema,
            table=kind.table,
            event=EventType(kind.event),
            position=f"{position_head}{ordinal}",
            committed_at=time_of(committed),
            context=context,
            key=key or None,
            old_key=old_key or None,
            columns=None if names < 0 else self._columns[names],
            routes=self._noted((number, deeds, is_muted), dict(coalesced)),
        )

    def _noted(self, alike: tuple[int, int, bool], coalesced: dict[str, str]) -> tuple[Noted, ...]:
        """Return the outcomes of the routes, which most changes share with others."""
        number, deeds, is_muted = alike
        found = None if coalesced else self._fates.get(alike)
        if found is None:
            no = Fate.MUTED if is_muted else Fate.WHEN
            found = tuple(_noted(self._kinds[number], self._deeds[deeds], coalesced, no))
            if not coalesced:
                self._fates[alike] = found
        return found


def _noted(kind: Kind, deeds: dict[str, Deed], coalesced: dict[str, str], no: Fate) -> Iterator[Noted]:
    """Yield the outcome of each route of the table: watching routes without an outcome did not fire."""
    for route in kind.watching:
        deed = deeds.get(route.id or route.task)
        if deed is None:
            yield Noted(route, no, "")
        else:
            yield Noted(route, deed.fate, coalesced.get(deed.route, deed.detail))
    for route in kind.others:
        yield Noted(route, Fate.EVENT, "")


def _keys_in(row: list[Any]) -> list[Any]:
    """Return the key of the row, and its previous key."""
    return [row[5], *row[6:7]]


def _left_out(fields: dict[str, Any]) -> LeftOut:
    since, until = (None if each is None else time_of(each) for each in fields["times"])
    return LeftOut(
        why=Why(fields["why"]),
        count=fields["count"],
        first=fields["first"],
        last=fields["last"],
        since=since,
        until=until,
        tables=tuple(fields["tables"]),
    )
