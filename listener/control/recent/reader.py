"""Reads recent changes, the newest first: a page, those of a row or a person, or the one with an id."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Self

from listener.control.recent.block import BlockError, Condition, entries_of, left_out_of, text_of
from listener.control.recent.entries import LeftOut, NotedChange
from listener.control.recent.store import RecentStore, Sizes

__all__ = ["Page", "Place", "RecentReader", "Sought"]


class Place(NamedTuple):
    """The position of an entry: block and index. It stays valid during writes, until the entry is dropped."""

    block: int
    entry: int

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Parse `12.345`; None if it is not a position."""
        with suppress(ValueError):
            block, entry = map(int, text.split("."))
            return cls(block, entry)
        return None

    def __str__(self) -> str:
        return f"{self.block}.{self.entry}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sought:
    """Which changes to select; empty: all."""

    table: tuple[str, str] | None = None  # schema and table; an enqueued task has an empty schema
    event: str = ""
    row: tuple[tuple[str, str], ...] = ()  # columns of the key, and their values
    who: tuple[str, str] | None = None  # a name in the context, empty: any, and its value
    since: datetime | None = None
    until: datetime | None = None
    ids: frozenset[str] = frozenset()

    @property
    def is_narrow(self) -> bool:
        """Whether it selects certain rows, people or ids."""
        return bool(self.row or self.who or self.ids)

    def has(self, change: NotedChange) -> bool:
        """Return whether the change is selected."""
        return (
            (self.table is None or (change.schema, change.table) == self.table)
            and (not self.event or change.event.value == self.event)
            and (not self.row or _is_row(change.key, self.row) or _is_row(change.old_key, self.row))
            and (self.who is None or _has(change.context, self.who))
            and (self.since is None or change.committed_at >= self.since)
            and (self.until is None or change.committed_at < self.until)
            and (not self.ids or change.id in self.ids)
        )

    def misses(self, those: LeftOut) -> bool:
        """Return whether some of the changes that are not noted may be selected."""
        if self.since is not None and those.until is not None and those.until < self.since:
            return False
        return self.until is None or those.since is None or those.since < self.until


class Page(NamedTuple):
    """Some entries, the newest first."""

    entries: Sequence[tuple[Place, NotedChange | LeftOut]]
    more: Place | None  # the next page is before this position; None: there are no more
    left_out: int  # changes of the time searched that are not noted
    unreadable: int  # blocks that are damaged, or of another format


class RecentReader:
    """Reads the recent changes of one listener, even while it writes. All raise BrokerAwayError, BrokerError."""

    def __init__(self, store: RecentStore) -> None:
        self._store = store

    def close(self) -> None:
        self._store.close()

    def sizes(self) -> Sizes:
        """Return how much is kept."""
        return self._store.sizes()

    def page(self, sought: Sought, *, before: Place | None = None, limit: int = 100) -> Page:
        """Return up to `limit` changes; unless certain rows are sought, including entries for changes not noted."""
        search = _Search(sought, before, limit)
        for number, data in self._store.blocks(None if before is None else before.block):
            search.look_into(number, data)
            if search.more is not None:
                break
        return Page(search.found, search.more, search.left_out, search.unreadable)


class _Search:
    """Goes through blocks, the newest first."""

    def __init__(self, sought: Sought, before: Place | None, limit: int) -> None:
        self._sought, self._before, self._limit = sought, before, limit
        self._patterns = list(_patterns(sought))
        row, who = sought.row, sought.who
        self._key: Condition | None = (lambda key: _is_row(key, row)) if row else None
        self._context: Condition | None = None if who is None else lambda context: _has(context, who)
        self._changes = 0
        self.found = list[tuple[Place, NotedChange | LeftOut]]()
        self.more: Place | None = None
        self.left_out = 0
        self.unreadable = 0

    def look_into(self, number: int, block: bytes) -> None:
        """Collect the selected changes. Most blocks are excluded without parsing."""
        try:
            text = text_of(block)
            if all(each.search(text) for each in self._patterns):
                self._take(number, entries_of(text, key=self._key, context=self._context))
            else:
                self.left_out += sum(map(self._missed, left_out_of(text)))
        except (BlockError, ValueError):
            self.unreadable += 1

    def _take(self, number: int, entries: Sequence[NotedChange | LeftOut | None]) -> None:
        for at in range(len(entries) - 1, -1, -1):
            place, entry = Place(number, at), entries[at]
            if entry is None or (self._before is not None and place >= self._before):
                continue
            if isinstance(entry, LeftOut):
                self._pass(place, entry)
            elif self._sought.has(entry):
                if self._changes == self._limit:
                    self.more = self.found[-1][0]
                    return
                self._changes += 1
                self.found.append((place, entry))

    def _pass(self, place: Place, those: LeftOut) -> None:
        if not self._sought.misses(those):
            return
        self.left_out += those.count or 0
        if not self._sought.is_narrow:
            self.found.append((place, those))

    def _missed(self, those: LeftOut) -> int:
        return (those.count or 0) if self._sought.misses(those) else 0


def _patterns(sought: Sought) -> Iterator[re.Pattern[bytes]]:
    """Yield patterns found in each block that has a selected change."""
    for name, value in (*sought.row, *(() if sought.who is None else (sought.who,))):
        head = rb'"%b": ?' % _escaped(name) if name else b": ?"
        yield re.compile(rb'%b(?:%b|"%b")[,}]' % (head, re.escape(value.encode()), _escaped(value)))
    if sought.table is not None:
        schema, table = map(json.dumps, sought.table)
        if schema.isascii() and table.isascii() and "\\" not in schema + table:
            yield re.compile(re.escape(f"{schema},{table},".encode()))
    if sought.ids:
        heads = {re.escape(each[: each.rfind("-") + 1].encode()) for each in sought.ids}
        own = {re.escape(each.encode()) for each in sought.ids}
        yield re.compile(b"|".join(heads | own))


def _escaped(text: str) -> bytes:
    """Return a pattern for a string in JSON, with the escapes of either of two writers."""
    plain, ascii_only = (json.dumps(text, ensure_ascii=each)[1:-1].encode() for each in (False, True))
    return b"(?:%b|%b)" % (re.escape(plain), re.escape(ascii_only))


def _is_row(key: Any, row: Sequence[tuple[str, str]]) -> bool:
    return all(_has(key, each) for each in row)


def _has(values: Any, asked: tuple[str, str]) -> bool:
    if not values:
        return False
    name, value = asked
    return any(_shown(each) == value for key, each in values.items() if name in ("", key))


def _shown(value: Any) -> str:
    """Return a value as in JSON, a string unchanged."""
    return value if isinstance(value, str) else json.dumps(value)
