"""Notes the changes of a batch and their outcome, in the listener's loop: small values, and of rows only the keys."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import orjson
import structlog

from cdc_tasks.changes import Change, Context, EventType
from cdc_tasks.environment import shown_context
from cdc_tasks.errors import CDCError
from cdc_tasks.routing.router import BinlogRouter, Call, Parked, Route, RouteIndex
from cdc_tasks.source_lines import named, shown_place
from listener.control.recent.entries import (
    Deed,
    Entry,
    Fate,
    Kind,
    KnownRoute,
    LeftOut,
    Transaction,
    Why,
    microseconds,
)
from listener.core.logged_change import LoggedChange

__all__ = ["InForce", "Keys", "Noter", "TableKeys", "left_out"]

log = structlog.get_logger()

_ENQUEUED: Final = EventType.ENQUEUED.value
_UPDATE: Final = EventType.UPDATE.value
_MOST_KINDS: Final = 5_000
_LONGEST_KEY: Final = 500  # bytes of JSON
_LONGEST_NAME: Final = 200  # characters: anyone who writes to the database may name enqueued tasks
_FALLBACK: Final = ("id",)  # the key of a table with an unknown key

Keys = Mapping[tuple[str, str], tuple[str, ...]]


class InForce:
    """The commands in force, as of one batch."""

    __slots__ = ("paused", "skips")

    def __init__(
        self, paused: Collection[str] = frozenset(), skips: Mapping[str, datetime] | None = None
    ) -> None:
        """`paused` are route ids; `skips` are the times until which routes fire nothing."""
        self.paused = frozenset(paused)
        self.skips = skips or {}


class TableKeys:
    """The key columns of each table, as of the last query of the database."""

    def __init__(self, read: Callable[[], Keys]) -> None:
        """`read` queries the database; it raises CDCError."""
        self._read = read
        self.known: Keys = {}
        self.version = 0  # another one: `known` is
        self.is_wanted = False  # a table is not among them

    def of(self, schema: str, table: str) -> tuple[str, ...]:
        """Return the key of a table; if unknown, the usual key."""
        found = self.known.get((schema, table))
        if found is None:
            self.is_wanted = True
        return _FALLBACK if found is None else found

    def refresh(self) -> None:
        """Query again. Without an answer, keep the known keys."""
        self.is_wanted = False
        try:
            self.known = self._read()
            self.version += 1
        except CDCError as error:
            log.debug("keys_not_known", reason=error.message)


class _KnownKind:
    """A kind of change, with the data for noting it."""

    __slots__ = ("is_enqueued", "is_logged", "is_update", "key", "key_set", "kind", "plain")

    def __init__(self, kind: Kind, key: tuple[str, ...], *, is_logged: bool) -> None:
        self.kind = kind
        self.is_logged = is_logged  # its changes are as a source logged them
        self.key = key
        self.key_set = frozenset(key)
        self.is_update = kind.event == _UPDATE
        self.is_enqueued = kind.event == _ENQUEUED
        # By the ids of the routes that fired, without further details: most changes have the same.
        self.plain: dict[tuple[str, ...], tuple[Deed, ...]] = {}


class Noter:
    """Creates entries from changes and the tasks they fired."""

    def __init__(self, router: BinlogRouter, keys: TableKeys) -> None:
        self._router = router
        self._keys = keys
        self._version = keys.version
        self._index = RouteIndex(router.routes)
        self._kinds: dict[tuple[str, str, str], _KnownKind] = {}
        self._routes: dict[str, KnownRoute] = {}

    def entries(
        self, changes: Sequence[Change], fired: Sequence[Call | Parked], in_force: InForce
    ) -> list[Entry]:
        """Return an entry for each change; `fired` begins with their tasks, in the same order."""
        if self._version != self._keys.version:
            self._version = self._keys.version
            self._kinds.clear()
        made = list[Entry]()
        place, end = 0, len(fired)
        commit: Any = None
        transaction: Transaction | None = None
        heads: dict[tuple[str, bytes, bytes], str] = {}
        for change in changes:
            start = place
            while place < end and fired[place][1] is change:
                place += 1
            if transaction is None or change.commit is not commit:
                commit = change.commit
                transaction = _transaction(change)
            made.append(self._entry(change, transaction, fired[start:place], in_force, heads))
        return made

    def _entry(
        self,
        change: Any,
        transaction: Transaction,
        fired: Sequence[Call | Parked],
        in_force: InForce,
        heads: dict[tuple[str, bytes, bytes], str],
    ) -> Entry:
        known = self._kinds.get(change.kind) or self._learn(change)
        own, position = change.stamp
        ordinal = int(position[len(transaction.position_head) :])
        deeds, coalesced = _deeds(known, change, fired, in_force, heads)
        key = old_key = b""
        columns = None
        if not known.is_enqueued:
            columns = _changed_columns(change, known) if known.is_update else None
            if known.key:
                key, old_key = _keys_of(change, known, columns)
        text = own.decode()
        own_id = "" if text == f"{transaction.id_head}{ordinal}" else text
        return Entry(transaction, ordinal, known.kind, deeds, columns, key, old_key, own_id, coalesced)

    def _learn(self, change: Change) -> _KnownKind:
        if len(self._kinds) >= _MOST_KINDS:
            self._kinds.clear()
        name = change.kind
        schema, table, event = name
        watching = self._router.routes_for(name)
        is_enqueued = event == _ENQUEUED
        others = (
            []
            if is_enqueued
            else [each for each in self._index.watching(schema, table) if each not in watching]
        )
        kind = Kind(
            "" if is_enqueued else schema,  # its options, which are not for everyone
            table[:_LONGEST_NAME],
            event,
            tuple(map(self._known_route, watching)),
            tuple(map(self._known_route, others)),
        )
        key = () if is_enqueued else self._keys.of(schema, table)
        found = self._kinds[name] = _KnownKind(kind, key, is_logged=isinstance(change, LoggedChange))
        return found

    def _known_route(self, route: Route) -> KnownRoute:
        if not route.id:
            return KnownRoute("", route.task[:_LONGEST_NAME], (_ENQUEUED,), "", "", "")
        found = self._routes.get(route.id)
        if found is None:
            found = self._routes[route.id] = KnownRoute(
                route.id,
                route.task,
                tuple(each.value for each in EventType if each in route.events),
                "" if route.when is None else named(route.when),
                shown_place(route.place),
                "coalesce" if route.coalesce else f"batch of {route.batch}" if route.batch else "",
            )
        return found


def _transaction(change: Any) -> Transaction:
    commit, (own, position) = change.commit, change.stamp
    id_head = getattr(commit, "id_head", None) or own[: own.rindex(b"-") + 1]
    context = commit.context
    return Transaction(
        id_head.decode(),
        position[: position.rindex(b":") + 1].decode(),
        microseconds(change.committed_at),
        b"" if context is None else _shown(context),
        bool(change.is_muted),
    )


def _shown(context: Context) -> bytes:
    """Return the visible context as JSON: the values that CDC_CONTEXT_SHOWN names, null for the others."""
    shown = shown_context(context.values)
    return orjson.dumps({name: shown.get(name) for name in context.values})


# --- Outcomes of the routes ---------------------------------------------------------------------------------


def _deeds(
    known: _KnownKind,
    change: Any,
    fired: Sequence[Call | Parked],
    in_force: InForce,
    heads: dict[tuple[str, bytes, bytes], str],
) -> tuple[tuple[Deed, ...], tuple[tuple[str, str], ...]]:
    """Return the outcomes of the routes that fired, and the changes with which it was coalesced."""
    is_plain = not (in_force.paused or in_force.skips)
    for each in fired:
        if each.__class__ is Parked or each[0].coalesce:
            is_plain = False
    if is_plain:
        routes = tuple([each[0].id for each in fired])
        found = known.plain.get(routes)
        if found is not None:
            return found, ()
    deeds, coalesced = list[Deed](), list[tuple[str, str]]()
    for each in fired:
        deed, head = _deed(change, each, in_force, heads)
        deeds.append(deed)
        if head:
            coalesced.append((deed.route, head))
    made = tuple(deeds)
    if is_plain and len(known.plain) < _MOST_KINDS:
        known.plain[routes] = made
    return made, tuple(coalesced)


def _deed(
    change: Any, fired: Call | Parked, in_force: InForce, heads: dict[tuple[str, bytes, bytes], str]
) -> tuple[Deed, str]:
    route = fired.route
    name = route.id or route.task[:_LONGEST_NAME]
    until = in_force.skips.get(route.id)
    if until is not None and change.committed_at <= until:
        return Deed(name, Fate.SKIPPED), ""
    if isinstance(fired, Parked):
        return Deed(name, Fate.PARKED, type(fired.error).__name__), ""
    if route.coalesce:
        head = heads.setdefault((route.id, fired.arguments, fired.kwargs), change.id)
        if head != change.id:
            return Deed(name, Fate.COALESCED), head
    return Deed(name, Fate.WAITS if route.id in in_force.paused else Fate.FIRED), ""


# --- The row ------------------------------------------------------------------------------------------------


def _changed_columns(change: Any, known: _KnownKind) -> tuple[str, ...] | None:
    """Return the names of the columns that an update changed; None if the old row is unknown."""
    if known.is_logged:
        columns: tuple[str, ...] | None = change.changed_columns()
        return columns
    if change.before is None or change.after is None:
        return None
    return tuple(name for name in change.after if change.changed(name))


def _keys_of(change: Any, known: _KnownKind, columns: tuple[str, ...] | None) -> tuple[bytes, bytes]:
    """Return the key of the row, and the key before the change if different."""
    key = _json(change.row_json, known.key)
    if not known.is_update or (columns is not None and known.key_set.isdisjoint(columns)):
        return key, b""
    if not known.is_logged:
        return key, b""
    old_key = _json(change.old_row_json, known.key)
    return key, b"" if old_key == key else old_key


def _json(render: Callable[[tuple[str, ...]], bytes], columns: tuple[str, ...]) -> bytes:
    """Return these columns of a row as JSON; nothing if they are too long, missing, or cannot be read."""
    try:
        text = render(columns)
    except Exception:  # noqa: BLE001 - for any reason: a task that needs them is parked, and says why
        return b""
    return b"" if len(text) > _LONGEST_KEY or text == b"{}" else text


# --- What is not noted --------------------------------------------------------------------------------------


def left_out(changes: Sequence[Change], why: Why) -> LeftOut:
    """Return an entry for changes that are not noted. Samples three of them."""
    first, last = changes[0], changes[-1]
    return LeftOut(
        why=why,
        count=len(changes),
        first=first.stamp[1].decode(),
        last=last.stamp[1].decode(),
        since=first.committed_at,
        until=last.committed_at,
        tables=tuple(dict.fromkeys(_names(first, changes[len(changes) // 2], last))),
    )


def _names(*changes: Change) -> Iterator[str]:
    for each in changes:
        schema, table, event = each.kind
        if event != _ENQUEUED:
            yield f"{schema}.{table}"
