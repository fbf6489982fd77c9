"""The position of a chunk in the stream: changes between its marks replace the rows read."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import lru_cache, partial
from hashlib import blake2b
from itertools import count
from typing import Any
from uuid import uuid4

from cdc_tasks.errors import CDCError
from listener.core.backfill import Chunk, ChunkRequest
from listener.core.seen_changes import SeenChanges
from listener.postgres.backfill.chunk_reader import ChunkReader, FoundRows, TableColumn
from listener.postgres.client.connection import Connection
from listener.postgres.client.type_catalogue import TypeCatalogue
from listener.postgres.codec.change import Transaction, WALChange
from listener.postgres.codec.decoder import Decoder, Watermark
from listener.postgres.codec.table import Column, Kind, Table
from listener.postgres.codec.tuple_data import UNCHANGED, Row
from listener.postgres.tables.catalogue import TableName

__all__ = ["ReadChange", "Window"]


class ReadChange(WALChange):
    """A row that a backfill read; its position is in the transaction of the chunk's upper mark."""

    __slots__ = ()

    def __init__(self, kind: Kind, row: Row, transaction: Transaction, ordinal: int, read_id: bytes) -> None:
        super().__init__(kind, None, row, transaction, ordinal)
        self.stamp = read_id, self.stamp[1]


class Window:
    """Reads one chunk at a time, and holds it until the stream is at its upper mark."""

    def __init__(
        self,
        connect: Callable[[], Connection],
        decoder: Decoder,
        *,
        source: str,
        publication: str | None,
        refusal: CDCError | None = None,
    ) -> None:
        """`source` names the cluster in ids; `refusal` is the reason if this stream cannot have marks."""
        self._decoder = decoder
        self._source = source
        self._refusal = refusal
        self._reader = ChunkReader(connect, publication=publication)
        self._types = TypeCatalogue(connect)
        self._kind = lru_cache(maxsize=10)(self._compile)
        self._request: ChunkRequest | None = None
        self._token = ""
        self._is_open = False  # the stream is between the marks
        self._seen: SeenChanges[WALChange] = SeenChanges()  # between the marks
        self._mutings = 0

    @property
    def is_busy(self) -> bool:
        """Whether a chunk is being read, or waits for its position."""
        return self._request is not None

    def start(self, request: ChunkRequest) -> None:
        """Start to read a chunk; `passed` returns it later."""
        self._request, self._token = request, uuid4().hex
        self._is_open = False
        self._seen.forget()
        if self._refusal is None:
            self._reader.start((self._token, request))

    def passed(self, changes: Sequence[WALChange], mark: Watermark | None) -> Chunk | None:
        """Process new changes of the stream, and the mark at their end; return the chunk if this is its position."""
        request = self._request
        if request is None:
            return None
        if self._is_open:
            self._seen.note(changes, (request.schema, request.table))
        error = self._refusal or self._reader.error
        if error is not None:
            self._request = None
            return Chunk(request=request, error=error)
        if mark is None or mark.token != self._token:
            return None
        if mark.end == "low":
            self._is_open, self._mutings = True, self._decoder.mutings
            return None
        self._request = None
        return self._chunk(request, self._reader.found, self._decoder.transaction)

    def close(self) -> None:
        """Drop the chunk being read, and close the sessions."""
        self._request = None
        self._reader.close()
        self._types.close()

    def _chunk(self, request: ChunkRequest, found: FoundRows | None, transaction: Transaction) -> Chunk:
        changed = None if found is None else self._seen.keys(partial(_values, found.table.key))
        is_torn = self._seen.is_torn or not self._is_open or self._decoder.mutings != self._mutings
        if found is None or changed is None or is_torn:
            return Chunk(request=request, is_torn=True)
        rows = [] if self._seen.has_truncate else list(self._reads(request, found, changed, transaction))
        return Chunk(
            request=request,
            rows=rows,
            found=len(found.rows),
            last=found.last or request.after,
            is_end=found.is_end,
            at=transaction.committed_at,
        )

    def _reads(
        self, request: ChunkRequest, found: FoundRows, changed: set[Hashable], transaction: Transaction
    ) -> Iterable[ReadChange]:
        kind = self._kind(found.table.name, found.columns)
        places = [kind.table.index[name] for name in found.table.key]
        head = b"%b-%b-" % (self._source.encode(), request.backfill.encode())
        salt = "\0".join(found.table.name).encode()
        numbers = count()
        for row in found.rows:
            key: Any = tuple([row[place] for place in places])
            if key not in changed:
                digest = blake2b(b"\0".join((salt, *key)), digest_size=12).hexdigest().encode()
                yield ReadChange(kind, row, transaction, next(numbers), head + digest)

    def _compile(self, name: TableName, columns: tuple[TableColumn, ...]) -> Kind:
        shown = [Column(each.name, self._types.resolve(each.type_oid), key=False) for each in columns]
        return Kind(Table(*name, shown, identity="d"), "read")


def _values(key: tuple[str, ...], change: WALChange, row: Row) -> Hashable | None:
    """Return the row's key; None if the row lacks it."""
    index = change.places
    values = tuple(row[index[name]] if name in index else None for name in key)
    return None if any(value is None or value is UNCHANGED for value in values) else values
