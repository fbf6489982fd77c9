"""Where a change stands in a binlog, and what a checkpoint has to hold to go on from there."""

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

    A log is read from the start of a transaction on: `file` and `offset` are such a start, and what is before
    it was published. `ordinal` is the last published change of the transaction that starts there, -1 for none.
    (Where the log does not say where a transaction ends, `offset` is where it starts, and `last` is the same.)
    """

    file: str
    offset: int
    ordinal: int = -1
    server: str = ""  # whose file: its server_uuid, on MariaDB its server_id
    created_at: int = (
        0  # when the file was begun, in seconds since 1970: tells it from one after a RESET; 0 unknown
    )
    gtids: str | None = None  # all transactions that were published completely; None where there are no GTIDs
    gtid: str = ""  # of the transaction that was published in part
    # Where transactions were prepared that are not committed yet, and that have to be read again after a restart:
    # then `gtids` is what was published before the first of them, and `published` what was published at all.
    restart: str = ""  # its file and offset
    published: str | None = None
    last: str = (
        ""  # the last transaction that was read: its file, its offset and its mark, see `gtid_event.mark_of`
    )
    epoch: int = 0  # grows where numbers begin again: see `Progress.epoch`

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
        """Read what `str` printed; raises ValueError."""
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
        return int(self.file.rpartition(".")[2] or 0)

    def is_place_on(self, server: str) -> bool:
        """Return whether the server finds it by file and offset; its protocol has 32 bits for an offset."""
        return self.server == server and bool(self.file) and self.offset < _OFFSETS

    @property
    def start(self) -> tuple[str, int]:
        """File and offset from which on the log has to be read."""
        file, _, offset = (self.restart or f"{self.file}:{self.offset}").rpartition(":")
        return file, int(offset)

    @property
    def done(self) -> str | None:
        """All GTIDs that were published, whatever has to be read again."""
        return self.gtids if self.published is None else self.published

    def __lt__(self, other: BinlogPosition) -> bool:
        """Order by place: meaningful for positions of one log, and not behind a gap that was accepted."""
        return (self.file_number, self.offset, self.ordinal) < (
            other.file_number,
            other.offset,
            other.ordinal,
        )
