"""Writes recent changes: the loop notes, a thread packs and sends. Nothing here ever delays the queue, or fails it.

The notes of a batch count once the broker holds the batch. Redis gets them about a second later. While Redis is
unavailable or nearly full, notes are dropped and counted.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from threading import Event, Thread
from time import monotonic, thread_time
from typing import Final, NamedTuple

import structlog

from cdc_tasks.errors import CDCError
from cdc_tasks.routing.router import BinlogRouter, Call, Parked
from listener.control.recent.block import MOST_TABLES, OpenBlock
from listener.control.recent.budget import Budget
from listener.control.recent.entries import Entry, LeftOut, Why, time_of
from listener.control.recent.noting import InForce, Keys, Noter, TableKeys, left_out
from listener.control.recent.store import RecentStore
from listener.core.source import Batch

__all__ = ["RecentChanges"]

log = structlog.get_logger()

_EVERY: Final = 1.0  # seconds between two writes
_PACKED: Final = 1_000  # changes in a finished block
_MOST_WAITING: Final = 10_000  # entries not processed by the thread yet
_ASK_FOR_KEYS: Final = 30.0  # seconds between two queries of the database
_LOOK_AT_MEMORY: Final = 10.0  # seconds
_SHARE_OF_MEMORY: Final = 10  # up to a tenth of maxmemory
_NEARLY_FULL: Final = 0.9  # of maxmemory: above it, memory is released
_LAST_WRITE: Final = 3.0  # seconds that the listener waits for it at its end


class _Noted(NamedTuple):
    """The notes of a batch."""

    entries: Sequence[Entry]
    rest: LeftOut | None  # the changes after them


class RecentChanges:
    """Notes the changes of one listener. The loop calls it; everything except `counts` belongs to one thread."""

    def __init__(
        self,
        store: RecentStore,
        router: BinlogRouter,
        *,
        max_bytes: int,
        read_keys: Callable[[], Keys],
        in_force: Callable[[], InForce] = InForce,
        budget: Budget | None = None,
    ) -> None:
        """`read_keys` queries each table's key; it raises CDCError."""
        self._keys = TableKeys(read_keys)
        self._noter = Noter(router, self._keys)
        self._in_force = in_force
        self._budget = budget or Budget()
        self._pending: list[tuple[str, _Noted | None]] = []  # of batches not confirmed yet
        self._writer = _Writer(store, max_bytes, self._keys)
        self._accounted = 0.0  # of the thread's time

    @property
    def noted(self) -> int:
        """How many changes Redis has received so far."""
        return self._writer.noted

    @property
    def left_out(self) -> Mapping[str, int]:
        """How many it has not received, by reason."""
        return self._writer.left_out

    def attach(self) -> None:
        """Prepare for the first batch: batches that the broker does not hold come again."""
        self._pending.clear()
        self._keys.refresh()
        self._writer.start()

    def note(self, batch: Batch, fired: Iterable[Call | Parked]) -> Iterable[Call | Parked]:
        """Return the tasks of the batch's changes, and note them; the notes count once the position is confirmed."""
        changes = batch.changes
        if not changes:
            if self._pending:
                self._pending.append((batch.position, None))
            return fired
        self._account()
        allowed = 0 if self._writer.is_behind else self._budget.allowed(len(changes))
        if not allowed:  # this costs the same for one change and for thousands
            self._pending.append((batch.position, _Noted((), left_out(changes, Why.RATE))))
            return fired
        calls = list(fired)
        began = monotonic(), thread_time()
        rest = changes[allowed:]
        entries = self._noter.entries(changes[:allowed], calls, self._in_force())
        self._pending.append((batch.position, _Noted(entries, left_out(rest, Why.RATE) if rest else None)))
        self._budget.spend(thread_time() - began[1], monotonic() - began[0], allowed)
        return calls

    def _account(self) -> None:
        spent = self._writer.spent
        self._budget.spend_elsewhere(spent - self._accounted)
        self._accounted = spent

    def confirmed(self, position: str) -> None:
        """Pass on the notes up to this position: the broker holds these batches."""
        if not self._pending:
            return
        places = [place for place, (its, _) in enumerate(self._pending, 1) if its == position]
        if not places:
            return
        self._writer.take([noted for _, noted in self._pending[: places[-1]] if noted is not None])
        del self._pending[: places[-1]]

    def close(self) -> None:
        """Write the rest, if Redis accepts it soon."""
        self._writer.close()


class _Writer:
    """The thread. After errors, notes are dropped, counted, and logged once."""

    def __init__(self, store: RecentStore, max_bytes: int, keys: TableKeys) -> None:
        self._store = store
        self._keys = keys
        self._asked_at = monotonic()  # for keys
        self._max_bytes = self._limit = max_bytes
        self._taken = deque[_Noted]()
        self._waiting = 0  # entries in `_taken`, about
        self._thread = Thread(target=self._run, name="recent-changes", daemon=True)
        self._closed = Event()
        self.spent = 0.0  # seconds of CPU
        self.noted = 0
        self.left_out = Counter[str]()
        self._open = OpenBlock()
        self._finished: list[bytes] = []
        self._new: list[Entry] = []  # entries that Redis does not have yet
        self._lost: LeftOut | None = None  # since the last successful write
        self._is_new = True
        self._is_first = True  # the open block in Redis is not ours
        self._has_news = True
        self._has_failed = False
        self._looked_at = float("-inf")  # at the memory

    def start(self) -> None:
        """Start to write, if not started."""
        if not self._thread.is_alive() and not self._closed.is_set():
            self._thread.start()

    @property
    def is_behind(self) -> bool:
        """Whether no more entries are accepted."""
        return self._waiting > _MOST_WAITING

    def take(self, noted: Iterable[_Noted]) -> None:
        """Write these soon."""
        for each in noted:
            self._waiting += len(each.entries)
            self._taken.append(each)

    def close(self) -> None:
        """Write the rest and end; wait briefly for that."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(_LAST_WRITE)

    # --- In the thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        is_closed = False
        while not is_closed:
            is_closed = self._closed.wait(_EVERY)
            try:
                self._round(is_last=is_closed)
            except Exception as error:  # noqa: BLE001 - the queue goes on, whatever it is
                self._drop(error)
            self._ask_for_keys()
            self.spent = thread_time()
        self._store.close()

    def _ask_for_keys(self) -> None:
        if self._keys.is_wanted and monotonic() - self._asked_at > _ASK_FOR_KEYS:
            self._keys.refresh()
            self._asked_at = monotonic()

    def _round(self, *, is_last: bool) -> None:
        if self._is_new:
            if self._store.is_open():
                self._open.leave_out(LeftOut(why=Why.ENDED, count=None))
            self._is_new = False
        self._pack()
        if not (self._has_news or is_last):
            return
        self._look_at_memory()
        tail = self._open.packed() if self._open else b""
        self._store.write(self._finished, tail, self._limit, is_first=self._is_first, is_last=is_last)
        self._written()

    def _pack(self) -> None:
        while self._taken:
            entries, rest = self._taken.popleft()
            self._waiting -= len(entries)
            self._has_news = True
            for each in entries:
                self._new.append(each)
                self._open.add(each)
                if self._open.changes >= _PACKED:
                    self._finish()
            if rest is not None:
                self._open.leave_out(rest)
                self.left_out[rest.why] += rest.count or 0

    def _finish(self) -> None:
        self._finished.append(self._open.packed())
        self._open = OpenBlock()

    def _look_at_memory(self) -> None:
        """Determine how much may be kept. Raise _NearlyFullError if Redis needs the memory for other data."""
        now = monotonic()
        if now - self._looked_at < _LOOK_AT_MEMORY and not self._has_failed:
            return
        self._looked_at = now
        used, limit = self._store.memory()
        self._limit = self._max_bytes if limit is None else min(self._max_bytes, limit // _SHARE_OF_MEMORY)
        if limit is not None and used > limit * _NEARLY_FULL:
            self._store.halve()
            raise _NearlyFullError(f"Redis uses {used:,} of its {limit:,} bytes")

    def _written(self) -> None:
        if self._has_failed:
            log.info("recent_changes_work_again", left_out=0 if self._lost is None else self._lost.count)
        self.noted += len(self._new)
        self._finished, self._new, self._lost = [], [], None
        self._is_first = self._has_news = self._has_failed = False

    def _drop(self, error: Exception) -> None:
        """Drop what Redis has not received; note that there after the next successful write."""
        self._pack_nothing()
        if self._new:
            self._lost = _lost(self._new, self._lost)
            self.left_out[Why.STORE] += len(self._new)
        if not self._has_failed and (self._new or not self._closed.is_set()):
            is_known = isinstance(error, CDCError | _NearlyFullError)
            told = str(error) if is_known else f"{type(error).__name__}: {error}"
            log.warning("recent_changes_failed", reason=told, hint=_FAILED)
        self._has_failed = self._is_first = True
        self._finished, self._new, self._open = [], [], OpenBlock()
        if self._lost is not None:
            self._open.leave_out(self._lost)

    def _pack_nothing(self) -> None:
        """Take the waiting entries without packing them."""
        while self._taken:
            entries, rest = self._taken.popleft()
            self._waiting -= len(entries)
            self._new += entries
            if rest is not None:
                self.left_out[rest.why] += rest.count or 0


class _NearlyFullError(Exception):
    """Redis needs its memory for more important data than recent changes."""


_FAILED: Final = (
    "The stream continues, and so does this once Redis accepts it. "
    "What is not written is missing in `changes` and in the console."
)


def _lost(entries: Sequence[Entry], before: LeftOut | None) -> LeftOut:
    """Return an entry for these unnoted changes, together with those `before`."""
    first, last = entries[0], entries[-1]
    tables = {f"{each.kind.schema}.{each.kind.table}": None for each in (first, last)}
    return LeftOut(
        why=Why.STORE,
        count=len(entries) + (0 if before is None else before.count or 0),
        first=_position(first) if before is None else before.first,
        last=_position(last),
        since=time_of(first.transaction.committed) if before is None else before.since,
        until=time_of(last.transaction.committed),
        tables=tuple(tables)
        if before is None
        else tuple(dict.fromkeys((*before.tables, *tables)))[:MOST_TABLES],
    )


def _position(entry: Entry) -> str:
    return f"{entry.transaction.position_head}{entry.ordinal}"
