"""Sets of GTIDs: MySQL's by server and tag, MariaDB's by domain. Pure values.

Sources: MySQL's manual, "GTID Format and Storage"; MariaDB's, "Global Transaction ID".
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from struct import Struct
from typing import Final, Protocol, Self
from uuid import UUID

__all__ = ["GTIDSet", "MariaDBGTIDs", "MariaDBState", "MySQLGTIDs"]

_SOURCE: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_pairs = Struct("<QQ")
_listed = Struct("<IIQ")  # domain, server, number
_TAG: Final = re.compile(r"[a-z_][a-z0-9_]{0,31}")


class GTIDSet(Protocol):
    """The transactions read completely; they are added one by one."""

    def add(self, gtid: str) -> None: ...
    def __contains__(self, gtid: str) -> bool: ...
    def newest(self, server: str) -> str: ...


class MySQLGTIDs:
    """Any transactions of any servers: `uuid:1-5:7,uuid:tag:1-3`."""

    def __init__(self, text: str = "") -> None:
        """Take what the server prints; raises ValueError."""
        self._intervals: dict[str, list[list[int]]] = {}  # by "uuid" or "uuid:tag": [first, last], ascending
        for part in filter(None, re.sub(r"\s", "", text).split(",")):
            source, *rest = part.lower().split(":")
            if not _SOURCE.fullmatch(source) or not rest:
                raise ValueError(part)
            name = source
            for each in rest:
                if _TAG.fullmatch(each):
                    name = f"{source}:{each}"
                    continue
                first, _, last = each.partition("-")
                self._add(name, int(first), int(last or first))

    def add(self, gtid: str) -> None:
        """Add one transaction, `uuid:number` or `uuid:tag:number`."""
        name, _, number = gtid.rpartition(":")
        intervals = self._intervals.get(name)
        if intervals and intervals[-1][1] + 1 == (n := int(number)):
            intervals[-1][1] = n  # the usual case
        else:
            self._add(name, int(number), int(number))

    def __contains__(self, gtid: str) -> bool:
        name, _, number = gtid.rpartition(":")
        wanted = int(number)
        return any(first <= wanted <= last for first, last in self._intervals.get(name, ()))

    def __str__(self) -> str:
        return ",".join(
            f"{name}:{':'.join(f'{first}-{last}' if last > first else str(first) for first, last in intervals)}"
            for name, intervals in sorted(self._intervals.items())
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MySQLGTIDs) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    @classmethod
    def decoded(cls, data: bytes) -> Self:
        """Return the set in a PREVIOUS_GTIDS event, with tags or without."""
        head = int.from_bytes(data[:8], "little")
        is_tagged = bool(head >> 56)
        gtids, at = cls(), 8
        for _ in range(head >> 8 & (1 << 48) - 1 if is_tagged else head):
            name = str(UUID(bytes=data[at : at + 16]))
            at += 16
            if is_tagged:
                end = at + 1 + (data[at] >> 1)
                name += f":{data[at + 1 : end].decode()}" if end > at + 1 else ""
                at = end
            count = int.from_bytes(data[at : at + 8], "little")
            for first, behind in _pairs.iter_unpack(data[at + 8 : at + 8 + 16 * count]):
                gtids._add(name, first, behind - 1)
            at += 8 + 16 * count
        return gtids

    def encoded(self) -> bytes:
        """Return the set as a replica sends it; one with tags in the form of MySQL 8.3 and later."""
        is_tagged = any(":" in name for name in self._intervals)
        parts = [_tagged_head(len(self._intervals)) if is_tagged else _u64(len(self._intervals))]
        for name, intervals in sorted(self._intervals.items()):
            source, _, tag = name.partition(":")
            parts.append(bytes.fromhex(source.replace("-", "")))
            if is_tagged:
                parts.append(b"%c%b" % (len(tag) << 1, tag.encode()))  # a length below 64 is one byte
            parts.append(_u64(len(intervals)))
            parts.extend(_u64(first) + _u64(last + 1) for first, last in intervals)
        return b"".join(parts)

    def __bool__(self) -> bool:
        return bool(self._intervals)

    def size(self) -> int:
        """Return how many transactions there are."""
        return sum(last - first + 1 for each in self._intervals.values() for first, last in each)

    def union(self, other: Self) -> MySQLGTIDs:
        """Return the union of the two sets."""
        return MySQLGTIDs(",".join(filter(None, (str(self), str(other)))))

    def newest(self, server: str) -> str:
        """Return the last transaction of a server, or of another one if it has none; empty if there is none."""
        name = server if server in self._intervals else next(iter(sorted(self._intervals)), "")
        return f"{name}:{self._intervals[name][-1][1]}" if name else ""

    def minus(self, other: MySQLGTIDs) -> MySQLGTIDs:
        """Return the transactions of this set that are not in the other."""
        left = MySQLGTIDs()
        for name, intervals in self._intervals.items():
            holes = other._intervals.get(name, [])
            for first, last in intervals:
                at = first
                for hole_first, hole_last in holes:
                    if hole_last < at or hole_first > last:
                        continue
                    if hole_first > at:
                        left._add(name, at, hole_first - 1)
                    at = hole_last + 1
                if at <= last:
                    left._add(name, at, last)
        return left

    def _add(self, name: str, first: int, last: int) -> None:
        if first < 1 or last < first:
            raise ValueError(f"{first}-{last}")
        intervals = self._intervals.setdefault(name, [])
        at = bisect_right(intervals, [first])
        intervals.insert(at, [first, last])
        merged: list[list[int]] = []
        for each in intervals:
            if merged and each[0] <= merged[-1][1] + 1:
                merged[-1][1] = max(merged[-1][1], each[1])
            else:
                merged.append(each)
        self._intervals[name] = merged


def _u64(number: int) -> bytes:
    return number.to_bytes(8, "little")


def _tagged_head(count: int) -> bytes:
    """Return the number of parts, between two bytes which say that the parts have tags."""
    return _u64(1 << 56 | count << 8 | 1)


class MariaDBGTIDs:
    """The last transaction of each domain: `0-1-17,1-2-4`.

    The numbers of a domain ascend only if gtid_strict_mode is on, or only one server writes in it. So a GTID does not
    say which of two transactions came first.
    """

    def __init__(self, text: str = "") -> None:
        """Take what the server prints; raises ValueError."""
        self._last: dict[str, str] = {}  # domain -> server-number
        for part in filter(None, re.sub(r"\s", "", text).split(",")):
            domain, server, number = map(int, part.split("-"))
            self._last[str(domain)] = f"{server}-{number}"

    def add(self, gtid: str) -> None:
        """Advance to a transaction, `domain-server-number`."""
        domain, _, rest = gtid.partition("-")
        self._last[domain] = rest

    def __contains__(self, gtid: str) -> bool:
        """Return whether it is the last one of its domain."""
        domain, _, rest = gtid.partition("-")
        return self._last.get(domain) == rest

    def __bool__(self) -> bool:
        return bool(self._last)

    def __iter__(self) -> Iterator[str]:
        return (f"{domain}-{self._last[domain]}" for domain in sorted(self._last, key=int))

    def __str__(self) -> str:
        return ",".join(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MariaDBGTIDs) and self._last == other._last

    def __hash__(self) -> int:
        return hash(str(self))

    def newest(self, server: str) -> str:
        """Return the last transaction of a server in one of the domains, or of another one; empty if there is none."""
        return next((gtid for gtid in self if gtid.split("-")[1] == server), next(iter(self), ""))

    def minus(self, other: MariaDBGTIDs) -> MariaDBGTIDs:
        """Return our last transactions in those domains in which `other` has another one."""
        return MariaDBGTIDs(",".join(gtid for gtid in self if gtid not in other))

    def has_domain_of(self, gtid: str) -> bool:
        """Return whether there is a transaction of this one's domain."""
        return gtid.partition("-")[0] in self._last

    def ascends_to(self, gtid: str) -> bool:
        """Return whether the number of the next transaction is greater than the last one of its domain."""
        domain, _, rest = gtid.partition("-")
        last = self._last.get(domain)
        return last is None or _number(last) < _number(rest)


class MariaDBState:
    """The greatest number of each server in each domain (gtid_binlog_state): `0-1-17,0-2-3`."""

    def __init__(self, text: str = "") -> None:
        """Take what the server prints; raises ValueError."""
        self._numbers: dict[tuple[int, int], int] = {}  # by domain and server
        for part in filter(None, re.sub(r"\s", "", text).split(",")):
            domain, server, number = map(int, part.split("-"))
            self._numbers[domain, server] = number

    @classmethod
    def decoded(cls, event: bytes) -> Self:
        """Parse a GTID_LIST event: the transactions before its file."""
        state = cls()
        count = int.from_bytes(event[19:23], "little") & 0xFFFFFFF
        for domain, server, number in _listed.iter_unpack(event[23 : 23 + 16 * count]):
            state._numbers[domain, server] = number
        return state

    def number(self, gtid: str) -> int:
        """Return the greatest number of this transaction's server in its domain; 0 if there is none."""
        domain, server, _ = map(int, gtid.split("-"))
        return self._numbers.get((domain, server), 0)

    def lacks(self, gtids: MariaDBGTIDs) -> MariaDBGTIDs:
        """Return those that came after this state, or never."""
        return MariaDBGTIDs(",".join(gtid for gtid in gtids if self.number(gtid) < _number(gtid)))


def _number(gtid: str) -> int:
    return int(gtid.rpartition("-")[2])
