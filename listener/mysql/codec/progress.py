"""Which transaction is being read, how far, and what was published before a restart."""

from __future__ import annotations

from typing import Final

import structlog

from listener.mysql.codec.change import BinlogChange, Transaction
from listener.mysql.codec.gtid_event import mark_of
from listener.mysql.log.gtid import GTIDSet, MariaDBGTIDs, MySQLGTIDs
from listener.mysql.log.position import BinlogPosition

__all__ = ["ALL", "Progress"]

log = structlog.get_logger()

ALL: Final = float("inf")  # ordinals: the whole transaction

_FIRST: Final = 4  # the offset of a file's first event
_OFFSETS: Final = 1 << 32  # events count their file's bytes modulo this


class Progress:
    """The place in the log, from one transaction to the next; leaves out what `after` covers."""

    def __init__(self, after: BinlogPosition, *, mariadb: bool, server: str = "") -> None:
        """`server` is whose log is read, where it is another than that of `after`: after a failover."""
        self.gtids: GTIDSet | None = None
        if after.done is not None:
            self.gtids = MariaDBGTIDs(after.done) if mariadb else MySQLGTIDs(after.done)
        self._order = _Order(after) if mariadb else None
        self.file = after.file  # that is being read
        self.born = after.born  # when it was begun
        self._executed: MySQLGTIDs | None = None  # all GTIDs before this file, while we go by files
        self.is_open = False  # a transaction
        self.is_standalone = False  # it has one statement, and no end of its own
        self.ordinal = 0  # of its next change
        self.published_up_to: float = -1  # ordinal of its last change that was published before we came
        self.gtid, self.start = "", after.offset
        self.outer_end = 0  # where it ends, where the event that ends it does not say
        self._after = after
        self._server = server or after.server
        self._goes_by_place = after.is_place_on(self._server) and not isinstance(self.gtids, MySQLGTIDs)
        self.epoch = self._epoch_before = after.epoch
        self._event, self._done_last = b"", after.last  # the event that began the transaction; the last one
        self._last_start, self._lap = (
            0,
            0,
        )  # of the last transaction; what is to be added to offsets in this file
        self._catching_up = True
        self._committed = 0
        self._transaction: Transaction | None = None
        self._done_server, self._done_file, self._done_offset = after.server, after.file, after.offset
        self._pending: dict[str, BinlogPosition] = {}  # where transactions begin that are prepared
        self._savepoints: dict[bytes, int] = {}
        self._given: tuple[Transaction | None, int] = None, 0

    @property
    def place(self) -> str:
        """Where we are, for a person."""
        return f"{self.file}:{self.start}" + (f" ({self.gtid})" if self.gtid else "")

    @property
    def here(self) -> BinlogPosition:
        """Where the transaction begins, with what was published before it."""
        gtids = self._gtids_text()
        if self._catching_up:
            gtids = self._after.gtids if self._order is None else str(self._order)
        return BinlogPosition(
            file=self.file,
            offset=self.start,
            server=self._server,
            born=self.born,
            gtids=gtids,
            epoch=self._epoch_before,
        )

    @property
    def position(self) -> BinlogPosition:
        """Behind the last change that was decoded, or behind what did not concern us."""
        if self._catching_up:
            return self._after
        gtids = self._gtids_text()
        epoch = self._epoch_before if self.is_open else self.epoch
        restart, published = "", None
        if self._pending and not isinstance(self.gtids, MySQLGTIDs):
            oldest = min(self._pending.values())
            restart, published = f"{oldest.file}:{oldest.offset}", gtids
            gtids, epoch = oldest.gtids, oldest.epoch
        # Never back behind what was published before we came, while its transaction is read once more.
        ordinal = max(self.ordinal - 1, self.published_up_to) if self.is_open else -1
        within = ordinal >= 0
        server, file = (self._server, self.file) if within else (self._done_server, self._done_file)
        return BinlogPosition(
            file=file,
            offset=self.start if within else self._done_offset,
            ordinal=int(ordinal),
            server=server,
            born=self.born if (server, file) == (self._server, self.file) else 0,
            gtids=gtids,
            gtid=self.gtid if within else "",
            restart=restart,
            published=published,
            last=self._last() if within else self._done_last,
            epoch=epoch,
        )

    @property
    def transaction(self) -> Transaction:
        """What the changes of the transaction have in common."""
        if self._transaction is None:
            self._transaction = Transaction(
                gtid=self.gtid if self.gtids is not None else "",
                file=self.file,
                offset=self.start,
                committed=self._committed,
                server=self._server,
                epoch=self.epoch,
            )
        return self._transaction

    def enter(self, file: str) -> None:
        """Read in this file from now on."""
        if file != self.file:
            self._last_start = self._lap = 0
        self.file = file

    def rotate(self, file: str, offset: int) -> None:
        """Go on in another file of the log."""
        self.enter(file)
        self._done_server, self._done_file, self._done_offset = self._server, file, offset
        self.born = 0
        self._executed = None

    def learn(self, executed: MySQLGTIDs) -> None:
        """Take in which transactions came before this file, where the server knows GTIDs and we go by files."""
        began_inside = self._catching_up and self.file == self._after.file and self._after.offset > _FIRST
        if self.gtids is None and not began_inside:
            self._executed = executed

    def begin(
        self, gtid: str, *, end: int, size: int, committed: int, standalone: bool, event: bytes = b""
    ) -> None:
        """Start a transaction with an event that ends at `end`; `committed` in microseconds since 1970."""
        if self.is_open:  # the last one had no end of its own
            self.finish(self.start)
        self._event, self._epoch_before = event, self.epoch
        if self._order is not None and not self._order.ascends_to(gtid):
            self.epoch += 1
        if self._executed is not None or not gtid:
            self._follow_mode(gtid)
        self.start = self._offset(end) - size if end else self._done_offset
        self._last_start = self.start
        self.gtid, self._committed = gtid, committed
        self.is_open, self.is_standalone = True, standalone
        self.ordinal = self.outer_end = 0
        self._transaction = None
        self.published_up_to = self._published_before() if self._catching_up else -1

    def _follow_mode(self, gtid: str) -> None:
        """Go by GTIDs from their first one on, where all that came before is known; and by files without one."""
        if gtid:
            if self.gtids is None and self._executed is not None and not self._pending:
                self.gtids = self._executed
                log.info("gtids_are_on", position=self.place, gtids=str(self.gtids))
            self._executed = None
        elif self.gtids is not None and not self._catching_up:
            self.gtids = None
            log.warning("gtids_are_off", position=self.place)

    def finish(self, offset: int) -> None:
        """End the transaction; `offset` is behind it."""
        if not self.is_open:
            return
        self.is_open = False
        self._savepoints.clear()
        if self._order is not None:
            self._order.add(self.gtid)
        if self.published_up_to == ALL:
            return
        # At its start where its end is not known, or has no place in 32 bits: then it is known as the last one.
        end = max(self.start, (self.outer_end or offset) + self._lap)
        self._done_server, self._done_file, self._done_offset = self._server, self.file, end
        self._done_last = self._last()
        if self.gtids is not None and self.gtid:
            self.gtids.add(self.gtid)

    def abandon(self, changes: list[BinlogChange]) -> None:
        """Forget a transaction that a crash of the server has left without its end."""
        if self.is_open:
            self.take_back(changes, 0)
            self.is_open = False
            self.epoch = self._epoch_before

    def mark(self, savepoint: bytes) -> None:
        self._savepoints[savepoint] = self.ordinal

    def take_back_to(self, savepoint: bytes, changes: list[BinlogChange]) -> None:
        self.take_back(changes, self._savepoints.get(savepoint, 0))

    def take_back(self, changes: list[BinlogChange], ordinal: int) -> None:
        """Forget the changes from `ordinal` on: the transaction was rolled back so far."""
        while changes and changes[-1].transaction is self._transaction and changes[-1].ordinal >= ordinal:
            changes.pop()
        transaction, given = self._given
        if transaction is not None and transaction is self._transaction and given > ordinal:
            log.error("rolled_back_after_publishing", position=self.place)
        self.ordinal = min(self.ordinal, ordinal)

    def prepare(self, name: str) -> str:
        """End the first phase of an XA transaction; returns its GTID, to be given back to `settle`."""
        self._pending[name] = self.here
        gtid = self.gtid
        if isinstance(self.gtids, MySQLGTIDs):
            # A set can have a hole: after a restart the server sends this one again.
            self.gtid = ""
        return gtid

    def settle(self, name: str, gtid: str) -> None:
        """Forget that the XA transaction was prepared: its second phase has come."""
        self._pending.pop(name, None)
        if gtid and isinstance(self.gtids, MySQLGTIDs):
            self.gtids.add(gtid)

    def give(self) -> None:
        """Say that all changes so far are given away: they cannot be taken back any more."""
        if self.is_open:
            self._given = self._transaction, self.ordinal

    def _gtids_text(self) -> str | None:
        return None if self.gtids is None else str(self.gtids)

    def _published_before(self) -> float:
        """Return the last ordinal of this transaction that was published before we came."""
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
        """Return whether the transaction at the checkpoint's place is not the next, but the last one."""
        after = self._after
        if after.ordinal >= 0:
            return False
        if after.last:
            return after.last.startswith(f"{after.file}:{after.offset}:")
        return isinstance(self.gtids, MariaDBGTIDs) and self.gtid in self.gtids

    def _last(self) -> str:
        return f"{self.file}:{self.start}:{mark_of(self._event)}" if self._event else ""

    def _offset(self, end: int) -> int:
        """Return where an event ends that is not in the last transaction, whose own place has 32 bits only."""
        while end + self._lap < self._last_start:
            self._lap += _OFFSETS
        return end + self._lap


class _Order:
    """The last transaction of each of MariaDB's domains: whether numbers ascend, and how far to skip on another server.

    A replica gives us what follows our GTIDs in each domain. Where prepared transactions are read again, that begins
    with what was published.
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
        """Return whether this one was published: so are all up to the last published one of its domain."""
        if gtid in self._skipped:
            self._skipped = self._skipped.minus(MariaDBGTIDs(gtid))
            return True
        return self._skipped.has_domain_of(gtid)
