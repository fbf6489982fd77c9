"""Transactions that are put aside, on disk where they are large, until it is certain that they were committed."""

from __future__ import annotations

from typing import Final

import structlog

from listener.mysql.codec.change import BinlogChange
from listener.mysql.codec.prepared import Spool
from listener.mysql.codec.progress import ALL, Progress
from listener.mysql.sql.statements import BACK_TO, SAVEPOINT, savepoint_name

__all__ = ["Aside"]

log = structlog.get_logger()

_NOTHING: Final = (None, "")


class Aside:
    """One transaction that is being put aside, and those that were prepared (XA) and wait for their second phase."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.spool: Spool | None = None  # of what is being put aside
        self._marks: dict[bytes, int] = {}  # savepoints in it
        self._prepared: dict[str, tuple[Spool, str]] = {}  # by their name, with their GTID
        self._given_back: Spool | None = None

    def begin(self) -> Spool:
        """Start to put events aside."""
        self.drop()
        self.spool, self._marks = Spool(), {}
        return self.spool

    def take(self) -> Spool | None:
        """Stop it, and return what was put aside."""
        spool, self.spool = self.spool, None
        return spool

    def drop(self) -> None:
        """Forget what is being put aside."""
        if self.spool is not None:
            self.spool.close()
            self.spool = None

    def add(self, event: bytes, text: bytes, changes: list[BinlogChange]) -> None:
        """Put an event aside; `text` is the statement in it, and may take back a part of what came before."""
        spool = self.spool or self.begin()
        if text.startswith(SAVEPOINT):
            self._marks[savepoint_name(text[len(SAVEPOINT) :])] = spool.size
        elif text.startswith(BACK_TO):
            savepoint = savepoint_name(text[len(BACK_TO) :])
            if savepoint not in self._marks:
                self._progress.take_back_to(savepoint, changes)
            spool.cut(self._marks.get(savepoint, 0))
        else:
            spool.add(event)

    def prepare(self, name: str, spool: Spool) -> None:
        """Keep a transaction until its second phase comes."""
        former, _ = self._prepared.pop(name, _NOTHING)
        if former is not None:  # no server prepares two of one name
            former.close()
        self._prepared[name] = spool, self._progress.prepare(name)

    def settle(self, name: str, *, commits: bool) -> Spool | None:
        """Return what the second phase commits now; None where it is nothing, or was published before."""
        spool, gtid = self._prepared.pop(name, _NOTHING)
        self._progress.settle(name, gtid)
        if commits and self._progress.published_up_to != ALL:
            if spool is None:
                log.error("prepared_before_start", transaction=name, position=self._progress.place)
            return spool
        if spool is not None:
            spool.close()
        return None

    def keep_open(self, spool: Spool) -> None:
        """Close it with us: its events are being read once more."""
        if self._given_back is not None:
            self._given_back.close()
        self._given_back = spool

    def close(self) -> None:
        """Let go of what is kept on disk."""
        self.drop()
        for spool in (self._given_back, *(spool for spool, _ in self._prepared.values())):
            if spool is not None:
                spool.close()
