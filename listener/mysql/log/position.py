"""The position of a change in a binlog, and the data that a checkpoint needs to continue there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import total_ordering
from typing import Final

__all__ = ["BinlogPosition"]

_OFFSETS: Final = 1 << 32


@total_ordering
@dataclass(frozen=True, slots=True, kw_only=True)
class BinlogPosition:
    """A place between two changes; printed as `binlog.000003:1234:5 server=… created_at=… gtids=… in=… last=… epoch=…`.

    Reading begins at the start of a transaction: `file` and `offset` are such a start, and all before it was published.
    `ordinal` is the last published change of the transaction that starts there, -1 for none. (If the log does not say
    where a transaction ends, `offset` is where it starts, and `last` is the same transaction.)
    """

    file: str
    offset: int
    ordinal: int = -1
    server: str = ""  # the server with the file: its server_uuid, on MariaDB its server_id
    # When the file was created, in seconds since 1970; 0: unknown. After a RESET, a file of this name has another time.
    created_at: int = 0
    gtids: str | None = None  # all transactions that were published completely; None if there are no GTIDs
    gtid: str = ""  # of the partly published transaction
    # With prepared transactions, which have to be read again after a restart: `gtids` is what was published before the
    # first of them, `restart` its file and offset, and `published` all that was published.
    restart: str = ""
    published: str | None = None
    last: str = ""  # the last transaction that was read: file, offset and mark (`gtid_event.mark_of`)
    epoch: int = 0  # grows if numbers begin again: see `Progress.epoch`

    def __str__(self) -> str:
        words = [f"{self.file}:{self.offset}:{self.ordinal}", f"server={self.server}"]
        if self.created_at:
            words.append(f"born={self.created_at}")
        if self.gtids is not None:
            words.append(f"gtids={self.gtids}")
        if self.gtid:
            words.append(f"in={self.gtid}")
        if self.restart:
            words.append(f"restart={self.restart}")
        if self.published is not None:
            words.append(f"published={self.published}")
        if self.last:
            words.append(f"last={self.last}")
        if self.epoch:
            words.append(f"epoch={self.epoch}")
        return " ".join(words)

    @classmethod
    def parse(cls, text: str) -> BinlogPosition:
        """Parse the output of `str`. Raise ValueError."""
        place, *rest = text.split(" ")
        file, offset, ordinal = place.rsplit(":", 2)
        words = dict(word.split("=", 1) for word in rest)
        return cls(
            file=file,
            offset=int(offset),
            ordinal=int(ordinal),
            server=words.get("server", ""),
            created_at=int(words.get("born", 0)),
            gtids=words.get("gtids"),
            gtid=words.get("in", ""),
            restart=words.get("restart", ""),
            published=words.get("published"),
            last=words.get("last", ""),
            epoch=int(words.get("epoch", 0)),
        )

    @property
    def file_number(self) -> int:
        """The number at the end of the file's name."""
        return int(self.file.rpartition(".")[2] or 0)

    def is_place_on(self, server: str) -> bool:
        """Return whether the server can find it by file and offset; the protocol has 32 bits for an offset."""
        return self.server == server and bool(self.file) and self.offset < _OFFSETS

    @property
    def start(self) -> tuple[str, int]:
        """The file and offset at which reading has to begin."""
        file, _, offset = (self.restart or f"{self.file}:{self.offset}").rpartition(":")
        return file, int(offset)

    @property
    def done(self) -> str | None:
        """All GTIDs that were published, also of what has to be read again."""
        return self.gtids if self.published is None else self.published

    def __lt__(self, other: BinlogPosition) -> bool:
        """Order by place; only valid for positions of one log without an accepted gap between them."""
        return (self.file_number, self.offset, self.ordinal) < (
            other.file_number,
            other.offset,
            other.ordinal,
        )
