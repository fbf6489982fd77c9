"""Where a change stands in a binlog, and what a checkpoint has to hold to go on from there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import total_ordering

__all__ = ["BinlogPosition"]


@total_ordering
@dataclass(frozen=True, slots=True, kw_only=True)
class BinlogPosition:
    """A place between two changes; printed as `binlog.000003:1234:5 server=… born=… gtids=… in=…`.

    A log is read from the start of a transaction on: `file` and `offset` are such a start, and what is before
    it was published. `ordinal` is the last published change of the transaction that starts there, -1 for none.
    """

    file: str
    offset: int
    ordinal: int = -1
    server: str = ""  # whose file: its server_uuid, on MariaDB its server_id
    born: int = (
        0  # when the file was begun, in seconds since 1970: tells it from one after a RESET; 0 unknown
    )
    gtids: str | None = None  # all transactions that were published completely; None where there are no GTIDs
    gtid: str = ""  # of the transaction that was published in part
    # Where transactions were prepared that are not committed yet, and that have to be read again after a restart:
    # then `gtids` is what was published before the first of them, and `published` what was published at all.
    restart: str = ""  # its file and offset
    published: str | None = None

    def __str__(self) -> str:
        words = [f"{self.file}:{self.offset}:{self.ordinal}", f"server={self.server}"]
        if self.born:
            words.append(f"born={self.born}")
        if self.gtids is not None:
            words.append(f"gtids={self.gtids}")
        if self.gtid:
            words.append(f"in={self.gtid}")
        if self.restart:
            words.append(f"restart={self.restart}")
        if self.published is not None:
            words.append(f"published={self.published}")
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
            born=int(words.get("born", 0)),
            gtids=words.get("gtids"),
            gtid=words.get("in", ""),
            restart=words.get("restart", ""),
            published=words.get("published"),
        )

    @property
    def file_number(self) -> int:
        return int(self.file.rpartition(".")[2] or 0)

    def __lt__(self, other: BinlogPosition) -> bool:
        """Order by place: meaningful for positions of one server."""
        return (self.file_number, self.offset, self.ordinal) < (
            other.file_number,
            other.offset,
            other.ordinal,
        )
