"""The changes of a large batch as logged: rendering rows only for the journal would be its largest cost.

Only for PostgreSQL, whose rows are server text. They become JSON lines when they are read.
"""

from __future__ import annotations

import json
import marshal
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby, repeat
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from cdc_tasks.changes import Change
from listener.control.journal.file import MUTED, UNREADABLE
from listener.core.logged_change import LoggedChange

if TYPE_CHECKING:
    from listener.postgres.codec.change import Transaction

__all__ = ["as_logged", "line_of", "lines_of"]

_FORMAT: Final = 4  # of marshal: readable by each Python since 3.4
_KIND: Final = attrgetter("logged_kind")
_OLD: Final = attrgetter("logged_old")
_NEW: Final = attrgetter("logged_new")
_ORDINAL: Final = attrgetter("ordinal")
_TRANSACTION: Final = attrgetter("commit")


def as_logged(changes: Sequence[Change]) -> bytes | None:
    """Return the changes as bytes; None if they have to be rendered now (other source, or missing values)."""
    if not all(isinstance(each, LoggedChange) and each.is_of_texts for each in _one_of_each_type(changes)):
        return None
    from listener.postgres.codec.stored_kind import values_of

    kinds = list(map(_KIND, changes))
    places = {kind: place for place, kind in enumerate(dict.fromkeys(kinds))}
    runs = [
        (each.id_head, each.position_head, each.committed, each.tail, each.is_muted, sum(1 for _ in alike))
        for each, alike in groupby(map(_TRANSACTION, changes))
    ]
    try:
        return marshal.dumps(
            (
                [values_of(kind) for kind in places],
                None if len(places) == 1 else [places[kind] for kind in kinds],
                runs,
                list(map(_ORDINAL, changes)),
                list(map(_OLD, changes)),
                list(map(_NEW, changes)),
            ),
            _FORMAT,
        )
    except ValueError:  # UNCHANGED: a large value that the server did not send
        return None


def _one_of_each_type(changes: Sequence[Change]) -> Iterable[Change]:
    return dict(zip(map(type, changes), changes, strict=True)).values()


def lines_of(data: bytes) -> Iterator[bytes]:
    """Yield the lines from the output of `as_logged`."""
    from listener.postgres.codec.change import WALChange
    from listener.postgres.codec.stored_kind import kind_of

    values, places, runs, ordinals, olds, news = marshal.loads(data)  # noqa: S302 - our own file, with a checksum
    kinds = [kind_of(each) for each in values]
    transactions = chain.from_iterable(repeat(_transaction(*run), run[-1]) for run in runs)
    rows = zip(places or repeat(0), transactions, ordinals, olds, news, strict=False)
    for place, transaction, ordinal, old, new in rows:
        line = line_of(WALChange(kinds[place], old, new, transaction, ordinal))
        yield MUTED + line if transaction.is_muted else line


def _transaction(
    id_head: bytes, position_head: bytes, committed: int, tail: bytes, muted: Any, _changes: int
) -> Transaction:
    from listener.postgres.codec.change import Transaction

    found = Transaction(0, committed, "")
    found.id_head, found.position_head, found.tail, found.is_muted = id_head, position_head, tail, muted
    return found


def line_of(change: Change) -> bytes:
    """Return the change as JSON, or its known parts if the row cannot be rendered."""
    try:
        return change.to_json()
    except Exception:  # noqa: BLE001 - for any reason: its place is kept
        schema, table, event = change.kind
        fields: dict[str, Any] = {
            "id": change.id,
            "schema": schema,
            "table": table,
            "event": event,
            "before": None,
            "after": None,
            "unavailable": [],
            "position": change.position,
            "committed_at": change.committed_at.isoformat(timespec="microseconds"),
        }
        return UNREADABLE + json.dumps(fields).encode()
