"""The position of a chunk in the stream: changes up to then replace the rows read."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from hashlib import blake2b
from itertools import count
from typing import Any

from listener.core.backfill import Chunk, ChunkRequest
from listener.core.seen_changes import SeenChanges
from listener.core.wakeup import Wakeup
from listener.mysql.backfill.chunk_reader import ChunkReader, FoundRows, ReadWork
from listener.mysql.client.connection import Connection
from listener.mysql.client.server import Server
from listener.mysql.codec.change import BinlogChange, Transaction
from listener.mysql.codec.decoder import Decoder
from listener.mysql.codec.table import Kind, Row
from listener.mysql.log.position import BinlogPosition

__all__ = ["ReadChange", "Window"]

# After all changes of its transaction: no transaction has that many.
_FIRST_ORDINAL = 3 << 30


class ReadChange(BinlogChange):
    """A row that a backfill read; its position is after the last transaction that the stream has sent."""

    __slots__ = ()

    def __init__(self, kind: Kind, row: Row, transaction: Transaction, ordinal: int, read_id: bytes) -> None:
        super().__init__(kind, None, row, transaction, ordinal)
        self.stamp = read_id, self.stamp[1]


class Window:
    """Reads one chunk at a time, and holds it until the stream has passed everything that the rows show."""

    def __init__(self, connect: Callable[[], Connection[Any]], server: Server) -> None:
        self._source = server.kind
        self._reader = ChunkReader(connect, server)
        self._request: ChunkRequest | None = None
        self._decoder: Decoder
        self._seen: SeenChanges[BinlogChange] = SeenChanges()  # since the chunk was requested

    @property
    def is_busy(self) -> bool:
        """Whether a chunk is being read, or waits for its position."""
        return self._request is not None

    def is_due(self, place: BinlogPosition | None) -> bool:
        """Return whether a chunk can come at the next end of a transaction, if the stream is at `place`."""
        if self._request is None or not self._reader.done.is_set:
            return False
        found = self._reader.found
        return found is None or (place is not None and place >= found.high)

    @property
    def done(self) -> Wakeup | None:
        """What is set when the rows are there; None if nothing is being read."""
        return None if self._request is None or self._reader.done.is_set else self._reader.done

    def start(self, request: ChunkRequest, decoder: Decoder) -> None:
        """Start to read a chunk; `take` returns it later."""
        self._request, self._decoder = request, decoder
        self._seen.forget()
        decoder.muted_tables.clear()
        self._reader.start(ReadWork(request, decoder.progress.read_gtids, decoder.committed_by_name))

    def take(self, changes: Sequence[BinlogChange], place: BinlogPosition | None) -> Chunk | None:
        """Process the stream's changes up to `place`; return the chunk if it can come here."""
        request, reader, decoder = self._request, self._reader, self._decoder
        if request is None:
            return None
        self._seen.note(changes, (request.schema, request.table))
        if not self.is_due(place):
            return None
        if reader.error is not None:
            self._request = None
            return Chunk(request=request, error=reader.error)
        found = reader.found
        if found is None or decoder.is_within_transaction:
            return None
        self._request = None
        return self._chunk(request, found)

    def close(self) -> None:
        """Drop the chunk being read, and close the sessions."""
        self._request = None
        self._reader.close()

    def _chunk(self, request: ChunkRequest, found: FoundRows) -> Chunk:
        key = found.table.key_names
        changed = self._seen.keys(lambda change, row: change.key_in(row, key))
        is_muted = (request.schema, request.table) in self._decoder.muted_tables
        if changed is None or is_muted or self._seen.is_torn:
            self._seen.forget()
            return Chunk(request=request, is_torn=True)
        transaction = self._decoder.progress.stand_in(found.at)
        rows = [] if self._seen.has_truncate else list(self._reads(request, found, changed, transaction))
        self._seen.forget()
        return Chunk(
            request=request,
            rows=rows,
            found=len(found.rows),
            last=found.last or request.after,
            is_end=found.is_end,
        )

    def _reads(
        self, request: ChunkRequest, found: FoundRows, changed: set[Hashable], transaction: Transaction
    ) -> Iterator[ReadChange]:
        kind, key = found.kind, found.table.key_names
        render = kind.table.render
        head = b"%b-%b-" % (self._source.encode(), request.backfill.encode())
        salt = f"{request.schema}\0{request.table}\0".encode()
        numbers = count(_FIRST_ORDINAL)
        for row in found.rows:
            identity = render(row, key)
            if identity not in changed:
                digest = blake2b(salt + identity, digest_size=12).hexdigest().encode()
                yield ReadChange(kind, row, transaction, next(numbers), head + digest)
