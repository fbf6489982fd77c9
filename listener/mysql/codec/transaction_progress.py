"""The transaction being read, the position, and what was published before a restart."""

from __future__ import annotations

from typing import Final

import structlog

from cdc_tasks.changes import Context
from listener.mysql.codec.change import BinlogChange, Transaction
from listener.mysql.codec.gtid_event import mark_of
from listener.mysql.log.gtid import GTIDSet, MariaDBGTIDs, MySQLGTIDs
from listener.mysql.log.position import BinlogPosition

__all__ = ["ALL", "Progress"]

log = structlog.get_logger()

ALL: Final = float("inf")  # as an ordinal: the whole transaction

_FIRST: Final = 4  # the offset of a file's first event
_OFFSETS: Final = 1 << 32  # events count their file's bytes modulo this


class Progress:
    """The position in the log, from one transaction to the next, and the changes that `after` already covers."""

    def __init__(self, after: BinlogPosition, *, mariadb: bool, server: str = "") -> None:
        """`server` is the server whose log is read, if it is not the one of `after`: after a failover."""
        self.gtids: GTIDSet | None = None
        if after.done is not None:
            self.gtids = MariaDBGTIDs(after.done) if mariadb else MySQLGTIDs(after.done)
        self._order = _Order(after) if mariadb else None
        self.file = after.file  # the one that is being read
        self.created_at = after.created_at  # of that file, see `BinlogPosition`
        self._executed: MySQLGTIDs | None = None  # before this file, while we read by file and offset
        self.is_open = False  # inside a transaction

        self.ordinal = 0  # of its next change
        self.published_up_to: float = -1  # ordinal of its last change that was published before the start
        self.gtid, self.start = "", after.offset
        self._outer_end = 0  # where the transaction ends, if the event that ends it does not say so
        self._after = after
        self._server = server or after.server
        self._goes_by_place = after.is_place_on(self._server) and not isinstance(self.gtids, MySQLGTIDs)
        self.epoch = self._epoch_before = after.epoch
        self._event, self._done_last = b"", after.last  # what began this transaction; the last one, as `last`
        self._last_start = 0  # of the last transaction
        self._lap = 0  # what has to be added to offsets in this file
        self._catching_up = True
        self._committed = 0
        self._transaction: Transaction | None = None
        self._unmuted: Transaction | None = None  # of the changes that are not muted, while others are
        self._done_server, self._done_file, self._done_offset = after.server, after.file, after.offset
        self._pending: dict[str, BinlogPosition] = {}  # where the prepared transactions begin
        self._savepoints: dict[bytes, tuple[int, Context | None]] = {}  # the next ordinal, and the context
        self.unnumbered = 0  # rows that are still to be deleted, and have no ordinal: marks of the context
        self._held_from: int | None = None  # the ordinal of the first change that was left to the next batch
        self._handed_over: tuple[Transaction | None, int] = None, 0  # up to which ordinal of which one

    @property
    def place(self) -> str:
        """The position for display."""
        return f"{self.file}:{self.start}" + (f" ({self.gtid})" if self.gtid else "")

    @property
    def committed(self) -> int:
        """When the transaction was committed, in microseconds since 1970."""
        return self._committed

    @property
    def here(self) -> BinlogPosition:
        """The start of the transaction, with what was published before it."""
        gtids = self._gtids_text()
        if self._catching_up:
            gtids = self._after.gtids if self._order is None else str(self._order)
        return BinlogPosition(
            file=self.file,
            offset=self.start,
            server=self._server,
            created_at=self.created_at,
            gtids=gtids,
            epoch=self._epoch_before,
        )

    @property
    def position(self) -> BinlogPosition:
        """The position after the last decoded change, or after log without changes for us."""
        if self._catching_up:
            return self._after
        gtids = self._gtids_text()
        epoch = self._epoch_before if self.is_open else self.epoch
        restart, published = "", None
        if self._pending and not isinstance(self.gtids, MySQLGTIDs):
            oldest = min(self._pending.values())
            restart, published = f"{oldest.file}:{oldest.offset}", gtids
            gtids, epoch = oldest.gtids, oldest.epoch
        # While a transaction is read again, the place stays behind what was published of it before the start.
        ordinal = max(self._next_ordinal - 1, self.published_up_to) if self.is_open else -1
        within = ordinal >= 0
        server, file = (self._server, self.file) if within else (self._done_server, self._done_file)
        return BinlogPosition(
            file=file,
            offset=self.start if within else self._done_offset,
            ordinal=int(ordinal),
            server=server,
            created_at=self.created_at if (server, file) == (self._server, self.file) else 0,
            gtids=gtids,
            gtid=self.gtid if within else "",
            restart=restart,
            published=published,
            last=self._last() if within else self._done_last,
            epoch=epoch,
        )

    @property
    def read_gtids(self) -> str | None:
        """All transactions read, including the current one; None if there are no GTIDs."""
        gtids = self._gtids_text()
        return f"{gtids},{self.gtid}" if gtids is not None and self.is_open and self.gtid else gtids

    def stand_in(self, committed: int) -> Transaction:
        """Return the transaction for rows that a backfill read: the last one, at another time."""
        gtid = "" if self.gtids is None else self.gtid or self.gtids.newest(self._server)
        return Transaction(
            gtid=gtid,
            file=self.file,
            offset=self.start,
            committed=committed,
            server=self._server,
            epoch=self.epoch,
        )

    def enter(self, file: str) -> None:
        """Note that the next events are in this file."""
        if file != self.file:
            self._last_start = self._lap = 0
        self.file = file

    def rotate(self, file: str, offset: int) -> None:
        """Note that the log continues in another file."""
        self.enter(file)
        self._done_server, self._done_file, self._done_offset = self._server, file, offset
        self.created_at = 0
        self._executed = None

    def created(self, at: int) -> None:
        """Note when the file was created, in seconds since 1970."""
        self.created_at = at

    def learn(self, executed: MySQLGTIDs) -> None:
        """Take in which transactions came before this file, for a server with GTIDs that is read by file and offset."""
        began_inside = self._catching_up and self.file == self._after.file and self._after.offset > _FIRST
        if self.gtids is None and not began_inside:
            self._executed = executed

    def begin(self, gtid: str, *, end: int, size: int, committed: int, event: bytes = b"") -> None:
        """Begin a transaction with an event that ends at `end`; `committed` in microseconds since 1970."""
        if self.is_open:  # the one before had no end of its own
            self.finish(self.start)
        self._event, self._epoch_before = event, self.epoch
        if self._order is not None and not self._order.ascends_to(gtid):
            self.epoch += 1
        if self._executed is not None or not gtid:
            self._follow_mode(gtid)
        self.start = self._offset(end) - size if end else self._done_offset
        self._last_start = self.start
        self.gtid, self._committed = gtid, committed
        self.is_open = True
        self.ordinal = self._outer_end = 0
        self._transaction = self._unmuted = None
        self.unnumbered = 0
        self.published_up_to = self._published_before() if self._catching_up else -1

    def end_at(self, offset: int) -> None:
        """Note where the transaction ends: its last event is inside another one, and does not say so."""
        self._outer_end = offset

    def next_change(self) -> tuple[Transaction, int, float]:
        """Return the transaction, the ordinal of its next change, and up to which ordinal it was published before."""
        transaction = self._transaction
        if transaction is None:
            transaction = self._transaction = Transaction(
                gtid=self.gtid if self.gtids is not None else "",
                file=self.file,
                offset=self.start,
                committed=self._committed,
                server=self._server,
                epoch=self.epoch,
            )
        return transaction, self.ordinal, self.published_up_to

    def next_unmuted_change(self) -> tuple[Transaction, int, float]:
        """Return the same for what is sent although the changes around it are muted."""
        transaction, ordinal, published_up_to = self.next_change()
        return self._unmuted or transaction, ordinal, published_up_to

    def advance(self, ordinal: int) -> None:
        """Note that all changes before `ordinal` were read."""
        self.ordinal = ordinal

    def mute(self) -> None:
        """Mark the following changes as muted."""
        if self._unmuted is None:
            self._unmuted, _, _ = self.next_change()
            self._transaction = self._unmuted.muted()

    def unmute(self) -> None:
        """Stop marking changes as muted."""
        if self._unmuted is not None:
            self._transaction, self._unmuted = self._unmuted, None

    @property
    def context(self) -> Context | None:
        """The transaction's context."""
        return None if self._transaction is None else self._transaction.context

    def put_into(self, context: Context | None) -> None:
        """Set the context of the following changes."""
        transaction, _, _ = self.next_change()
        self._transaction = transaction.within(context)
        if self._unmuted is not None:
            self._unmuted = self._unmuted.within(context)

    @property
    def id_head(self) -> bytes | None:
        """The start of the ids of the open transaction's changes; None if there is none, or it has no changes."""
        return self._transaction.id_head if self.is_open and self._transaction is not None else None

    def _is_this(self, transaction: Transaction) -> bool:
        """Return whether it is the one that is being read, muted or not."""
        return self._transaction is not None and transaction.id_head is self._transaction.id_head

    def _follow_mode(self, gtid: str) -> None:
        """Read by GTIDs from the first one on, if all before it are known; without GTIDs read by file and offset."""
        if gtid:
            if self.gtids is None and self._executed is not None and not self._pending:
                self.gtids = self._executed
                log.info("gtids_are_on", position=self.place, gtids=str(self.gtids))
            self._executed = None
        elif self.gtids is not None and not self._catching_up:
            self.gtids = None
            log.warning("gtids_are_off", position=self.place)

    def finish(self, offset: int) -> None:
        """End the transaction, which ends before `offset`."""
        if not self.is_open:
            return
        self.is_open = False
        self._savepoints.clear()
        if self._order is not None:
            self._order.add(self.gtid)
        if self.published_up_to == ALL:
            return
        # Its start, if its end is not known or does not fit into 32 bits: `last` then says that it is done.
        end = max(self.start, (self._outer_end or offset) + self._lap)
        self._done_server, self._done_file, self._done_offset = self._server, self.file, end
        self._done_last = self._last()
        if self.gtids is not None and self.gtid:
            self.gtids.add(self.gtid)

    def abandon(self, changes: list[BinlogChange]) -> None:
        """Drop a transaction without an end, after a server crash."""
        if self.is_open:
            self.take_back(changes, 0)
            self.is_open = False
            self.epoch = self._epoch_before

    def mark(self, savepoint: bytes) -> None:
        """Note a savepoint."""
        self._savepoints[savepoint] = self.ordinal, self.context

    def take_back_to(self, savepoint: bytes, changes: list[BinlogChange]) -> None:
        """Drop the changes since the savepoint: the transaction was rolled back to it."""
        ordinal, context = self._savepoints.get(savepoint, (0, None))
        self.take_back(changes, ordinal)
        if self.context is not context:
            self.put_into(context)

    def take_back(self, changes: list[BinlogChange], ordinal: int) -> None:
        """Drop the changes from `ordinal` on: the transaction was rolled back to there."""
        while changes and self._is_this(changes[-1].commit) and changes[-1].ordinal >= ordinal:
            changes.pop()
        transaction, handed_over = self._handed_over
        if transaction is not None and self._is_this(transaction) and handed_over > ordinal:
            log.error("rolled_back_after_publishing", position=self.place)
        self.ordinal = min(self.ordinal, ordinal)

    def prepare(self, name: str) -> str:
        """End the first phase of an XA transaction; return its GTID, which `resolve` needs."""
        self._pending[name] = self.here
        gtid = self.gtid
        if isinstance(self.gtids, MySQLGTIDs):
            # The GTID stays out of the set, so that the server sends this transaction again after a restart.
            self.gtid = ""
        return gtid

    def resolve(self, name: str, gtid: str) -> None:
        """Remove the XA transaction from the prepared ones: it is committed now, or rolled back."""
        self._pending.pop(name, None)
        if gtid and isinstance(self.gtids, MySQLGTIDs):
            self.gtids.add(gtid)

    def hand_over(self, held_from: int | None = None) -> None:
        """Note that all changes so far leave in a batch: from now on they cannot be taken back.

        But for those of the open transaction from the ordinal `held_from` on, which the next batch has.
        """
        self._held_from = held_from
        if self.is_open:
            self._handed_over = self._transaction, self._next_ordinal

    @property
    def _next_ordinal(self) -> int:
        """The ordinal of the transaction's first change that no batch has."""
        return self.ordinal if self._held_from is None else min(self.ordinal, self._held_from)

    def _gtids_text(self) -> str | None:
        return None if self.gtids is None else str(self.gtids)

    def _published_before(self) -> float:
        """Return the last ordinal of this transaction that was published before the start."""
        after = self._after
        if self._is_published():
            return ALL
        self._catching_up = False
        if not self._goes_by_place:
            return after.ordinal if after.gtid and after.gtid == self.gtid else -1
        return after.ordinal if (self.file, self.start) == (after.file, after.offset) else -1

    def _is_published(self) -> bool:
        after = self._after
        if self._goes_by_place:
            here = BinlogPosition(file=self.file, offset=self.start, ordinal=after.ordinal)
            is_there = (self.file, self.start) == (after.file, after.offset)
            return here < after or (is_there and self._is_last())
        if self._order is not None:
            return self._order.skips(self.gtid)
        return self.gtids is not None and self.gtid in self.gtids

    def _is_last(self) -> bool:
        """Return whether the transaction at the checkpoint's place is the last published one, and not the next one."""
        after = self._after
        if after.ordinal >= 0:
            return False
        if after.last:
            return after.last.startswith(f"{after.file}:{after.offset}:")
        return isinstance(self.gtids, MariaDBGTIDs) and self.gtid in self.gtids

    def _last(self) -> str:
        return f"{self.file}:{self.start}:{mark_of(self._event)}" if self._event else ""

    def _offset(self, end: int) -> int:
        """Return where an event ends; events have 32 bits for it, so that it starts from 0 again after 4 GB."""
        while end + self._lap < self._last_start:
            self._lap += _OFFSETS
        return end + self._lap


class _Order:
    """The last transaction of each MariaDB domain: do its numbers ascend, and what has to be skipped on another server.

    The server sends what follows our GTIDs in each domain. If prepared transactions have to be read again, the first of
    these were published already.
    """

    def __init__(self, after: BinlogPosition) -> None:
        self._last = MariaDBGTIDs(after.gtids or "")
        self._skipped = MariaDBGTIDs(after.published or "").minus(self._last)

    def __str__(self) -> str:
        return str(self._last)

    def ascends_to(self, gtid: str) -> bool:
        return self._last.ascends_to(gtid)

    def add(self, gtid: str) -> None:
        self._last.add(gtid)

    def skips(self, gtid: str) -> bool:
        """Return whether this one was published, as all are up to the last published one of its domain."""
        if gtid in self._skipped:
            self._skipped = self._skipped.minus(MariaDBGTIDs(gtid))
            return True
        return self._skipped.has_domain_of(gtid)
