"""A binlog reader that keeps its position even if the broker loses the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import structlog

from listener.core.backfill import ChunkRequest
from listener.core.source import Batch, Saved
from listener.mysql.log.position import BinlogPosition
from listener.mysql.monitor import BinlogMonitor
from listener.publish.bookmark import Bookmark

__all__ = ["BookmarkedMonitor"]

log = structlog.get_logger()


class BookmarkedMonitor:
    """A BinlogMonitor with a bookmark; fulfils `listener.core.source.Monitor`.

    If the broker has no checkpoint, reading continues at the bookmark. Without a bookmark it is the first start.
    """

    def __init__(self, monitor: BinlogMonitor, bookmark: Bookmark) -> None:
        self._monitor = monitor
        self._bookmark = bookmark

    @property
    def source(self) -> str:
        return self._monitor.source

    @property
    def has_accepted_gap(self) -> bool:
        """See `Monitor.has_accepted_gap`."""
        return self._monitor.has_accepted_gap

    @property
    def is_standby(self) -> bool:
        """See `Monitor.is_standby`."""
        return self._monitor.is_standby

    @property
    def silence(self) -> float:
        """See `Monitor.silence`."""
        return self._monitor.silence

    def open(self, *, saved: Saved | None, again: Callable[[], Saved | None] | None = None) -> None:
        """See `Monitor.open`."""
        self._monitor.open(saved=saved, again=again)

    def batches(self, after: str | None) -> Iterator[Batch]:
        """Yield the changes after `after`, or after the bookmark; see `Monitor.batches`."""
        noted = self._bookmark.read(self.source, wait=after is None)
        if noted and (after is None or _is_before(after, noted)):
            self._report_broker_behind(after, noted)
        batches = self._monitor.batches(after or noted)
        for first in batches:
            if not (after or noted):
                self._report_first_start(first.position)
            if noted is None or self._monitor.has_accepted_gap or _is_before(first.position, noted):
                self._bookmark.start_at(first.position)
            yield first
            break
        yield from batches

    def acknowledge(self, position: str) -> None:
        """Move the bookmark. The server is not informed: it keeps its log for a configured time."""
        self._bookmark.published(position)
        self._monitor.acknowledge(position)

    def read_chunk(self, request: ChunkRequest, /) -> None:
        """See `Monitor.read_chunk`."""
        self._monitor.read_chunk(request)

    def stop(self) -> None:
        """Make `open` and `batches` return soon."""
        self._monitor.stop()
        self._bookmark.stop()

    def close(self) -> None:
        """Close the connections; safe to call twice."""
        self._bookmark.close()
        self._monitor.close()

    def _report_broker_behind(self, after: str | None, noted: str) -> None:
        log.error(
            "broker_behind",
            checkpoint=after,
            bookmark=noted,
            reason="The broker has no checkpoint, or an old one, but a listener with this CDC_NAME has read further: "
            "the broker was restarted without its data, or with an old copy. Its tasks are lost. Reading continues at "
            f"{'its checkpoint' if after else 'the bookmark'}.",
            hint="Keep the broker's data (appendonly yes). To publish again what it held: CDC_REPLAY_WINDOW=600. "
            f"If it was emptied on purpose, and this is a first start: DEL {self._bookmark.key} in CACHE_URL",
        )

    def _report_first_start(self, position: str) -> None:
        log.warning(
            "first_start",
            position=position,
            reason="Neither the broker nor the Redis of CACHE_URL knows this CDC_NAME: the listener does not read what "
            "was committed before. If a listener with this name has run before, both have lost their data.",
            hint="To read all of the log: stop the listener, delete its checkpoint in the broker and "
            f"{self._bookmark.key} in CACHE_URL, and: python -m listener run --from-start",
        )


def _is_before(position: str, other: str) -> bool:
    """Return whether one position is before another in a server's log; False for positions of two servers."""
    ours, theirs = BinlogPosition.parse(position), BinlogPosition.parse(other)
    if ours.server != theirs.server:
        return False
    if ours.created_at and theirs.created_at:
        return (ours.created_at, ours) < (theirs.created_at, theirs)
    return ours < theirs
