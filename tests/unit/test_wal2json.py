"""What only wal2json has: JSON made of the values, every table of the database, encodings of its own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from listener.monitor import SourceError
from listener.postgres.builtin_types import BUILTIN
from listener.postgres.definitions import ColumnDefinition, TableDefinition, TableDefinitions, TableName
from listener.postgres.wal2json import Wal2JsonDecoder
from tests.captures import captures

if TYPE_CHECKING:
    from collections.abc import Callable

    from listener.postgres.change import WALChange
    from listener.postgres.connection import Connection

_BEGIN = b'{"action":"B","timestamp":"2026-11-22 10:00:00.5+00","lsn":"1/A0","nextlsn":"1/B0"}'
_COMMITTED_AT = 848_656_800_500_000  # the same in microseconds since 2000


class Definitions(TableDefinitions):
    """A catalogue that a test writes; counts how often it is asked."""

    def __init__(self, *tables: TableDefinition) -> None:
        super().__init__(_no_server)
        self.tables = {table.ancestors[0]: table for table in tables}
        self.asked = 0

    def partitioned(self) -> frozenset[TableName]:
        return frozenset(name for table in self.tables.values() for name in table.ancestors[1:])

    def _ask(self, table: TableName) -> TableDefinition:
        self.asked += 1
        return self.tables.get(table) or TableDefinition(columns=(), ancestors=(table,), as_of=2**62)


def _no_server() -> Connection:
    raise AssertionError("no server")


def decode(
    *messages: bytes,
    definitions: Definitions | None = None,
    watches: Callable[[str, str], bool] = lambda *_: True,
    codec: str = "utf-8",
) -> list[WALChange]:
    decoder = Wal2JsonDecoder(
        BUILTIN.__getitem__, definitions or Definitions(), watches, source="c0ffee", codec=codec
    )
    changes: list[WALChange] = []
    for message in (_BEGIN, *messages):
        decoder.decode(message, changes)
    return changes


def message(action: str, table: str = "things", **parts: object) -> bytes:
    head = {"action": action, "timestamp": "2026-11-22 10:00:00.5+00", "lsn": "1/90", "schema": "public"}
    return json.dumps({**head, "table": table, **parts}, separators=(",", ":"), ensure_ascii=False).encode()


def column(name: str, oid: int, value: Any) -> dict[str, Any]:
    return {"name": name, "typeoid": oid, "value": value}


def table(
    name: str, *columns: str, ancestors: tuple[TableName, ...] = (), as_of: int = _COMMITTED_AT
) -> TableDefinition:
    return TableDefinition(
        columns=tuple(ColumnDefinition(each, 25, toastable=True) for each in columns),
        ancestors=(("public", name), *ancestors),
        as_of=as_of,
    )


@pytest.mark.parametrize(
    ("oid", "sent", "expected"),
    [
        (1700, "9" * 400 + ".10", "9" * 400 + ".10"),
        (1700, "0.00000000000000000000000000001", "0.00000000000000000000000000001"),
        (20, "-9223372036854775808", -9223372036854775808),
        (701, "1e+300", 1e300),
        (16, "true", True),
        (16, "false", False),
        (17, '"00ff"', "AP8="),
        (17, '""', ""),
        (1001, '"{\\"\\\\\\\\x00ff\\"}"', ["AP8="]),
        (3802, '"{\\"a\\": 12345678901234567890}"', {"a": 12345678901234567890}),
        (25, '"true"', "true"),
        (25, "null", None),
        (1184, '"2026-11-22 10:00:00.5+00"', "2026-11-22T10:00:00.500000+00:00"),
    ],
)
def test_what_json_did_to_a_value_is_undone(oid: int, sent: str, expected: object) -> None:
    raw = message("I", columns=[column("a", oid, "?")]).replace(b'"?"', sent.encode())
    (change,) = decode(raw)
    assert change.after == {"a": expected}


def test_numbers_that_newer_versions_send_as_strings_give_the_same_values() -> None:
    columns = [
        column("n", 1700, "NaN"),
        column("f", 701, "-Infinity"),
        column("i", 23, "7"),
        column("g", 700, "1.5"),
    ]
    (change,) = decode(message("I", columns=columns))
    assert change.after == {"n": "NaN", "f": "-Infinity", "i": 7, "g": 1.5}


def test_oids_that_do_not_fit_a_signed_integer() -> None:
    (change,) = decode(message("I", columns=[column("a", 23 - 2**32, 7)]))
    assert change.after == {"a": 7}


def test_rows_of_tables_that_nobody_watches_are_counted_and_dropped_unread() -> None:
    unreadable = message("I", "noise")[:-1] + b',"columns":[oops'
    kept = message("I", columns=[column("a", 23, 1)])
    changes = decode(unreadable, kept, unreadable, kept, watches=lambda _, name: name == "things")
    assert [change.position for change in changes] == ["1/A0:1", "1/A0:3"]


def test_an_update_of_other_columns_has_no_old_key() -> None:
    definitions = Definitions(table("things", "id", "a"))
    identity = [column("id", 25, "k")]
    (change,) = decode(
        message("U", columns=[column("id", 25, "k"), column("a", 25, "x")], identity=identity),
        definitions=definitions,
    )
    assert (change.before, change.after, change.unavailable) == (None, {"id": "k", "a": "x"}, ())


def test_the_catalogue_is_asked_again_when_a_later_transaction_lacks_a_column() -> None:
    definitions = Definitions(table("things", "id", "a", as_of=_COMMITTED_AT - 1))
    update = message("U", columns=[column("id", 25, "k")], identity=[column("id", 25, "k")])
    (change,) = decode(update, definitions=definitions)
    assert change.unavailable == ("a",)
    decoder = Wal2JsonDecoder(BUILTIN.__getitem__, definitions, lambda *_: True, source="c0ffee")
    definitions.tables["public", "things"] = table("things", "id", as_of=_COMMITTED_AT + 1)  # dropped
    changes: list[WALChange] = []
    decoder.decode(_BEGIN, changes)
    decoder.decode(update, changes)
    assert changes[0].unavailable == ()


def test_an_update_whose_other_columns_are_all_missing_is_not_taken_for_a_full_row() -> None:
    definitions = Definitions(table("things", "id", "a"))
    update = message("U", columns=[column("id", 25, "new")], identity=[column("id", 25, "old")])
    (change,) = decode(update, definitions=definitions)
    assert (change.before, change.after, change.unavailable) == ({"id": "old"}, {"id": "new"}, ("a",))


def test_the_catalogue_is_not_asked_again_when_nothing_is_missing() -> None:
    definitions = Definitions(table("things", "id", "a", as_of=0))
    update = message(
        "U", columns=[column("id", 25, "k"), column("a", 25, "x")], identity=[column("id", 25, "k")]
    )
    decode(update, update, update, definitions=definitions)
    assert definitions.asked == 1


@pytest.mark.parametrize(
    ("watched", "expected"),
    [
        ({"root"}, ["root"]),
        ({"middle"}, ["middle"]),
        ({"root", "middle", "leaf"}, ["root"]),
        ({"leaf"}, ["leaf"]),
        ({"elsewhere"}, []),
    ],
)
def test_a_partition_is_reported_as_the_topmost_watched_table(watched: set[str], expected: list[str]) -> None:
    definitions = Definitions(table("leaf", "id", ancestors=(("public", "middle"), ("public", "root"))))
    changes = decode(
        message("I", "leaf", columns=[column("id", 23, 1)]),
        definitions=definitions,
        watches=lambda _, name: name in watched,
    )
    assert [change.table for change in changes] == expected


def test_a_truncated_partition_is_told_of_only_where_it_is_itself_watched() -> None:
    definitions = Definitions(table("leaf", "id", ancestors=(("public", "root"),)), table("root", "id"))
    changes = decode(message("T", "root"), message("T", "leaf"), definitions=definitions)
    assert [(change.table, change.event.value) for change in changes] == [("root", "truncate")]


def test_a_database_of_another_encoding_is_read_in_it() -> None:
    raw = message("I", "Größe", columns=[column("ä", 25, "ö")]).decode().encode("latin-1")
    (change,) = decode(raw, codec="latin-1")
    assert (change.table, change.after) == ("Größe", {"ä": "ö"})


def test_bytes_that_are_of_no_encoding_are_shown_as_such() -> None:
    raw = message("I", "t?", columns=[column("c?", 25, "v?")]).replace(b"?", b"\xff")
    (change,) = decode(raw)
    assert (change.table, change.after) == (r"t\xff", {r"c\xff": r"v\xff"})
    assert json.loads(change.to_json())["after"] == {r"c\xff": r"v\xff"}


@pytest.mark.parametrize(
    "damaged", [b'{"action":"?"}', b"{", b'{"action":"I"}', message("I"), message("I")[:-5]]
)
def test_a_message_that_cannot_be_read_stops_the_listener(damaged: bytes) -> None:
    with pytest.raises(SourceError, match="cannot be decoded"):
        decode(damaged)


def test_the_commit_s_position_is_the_transaction_s_and_its_end_what_may_be_acknowledged() -> None:
    (capture,) = (each for each in captures("rows") if each.plugin == "wal2json")
    commits = [json.loads(payload) for payload in capture.payloads() if b'"action":"C"' in payload]
    decoder = capture.decoder()
    boundaries = [decoder.decode(payload, []) for payload in capture.payloads()]
    ends = [
        f"{boundary.end_lsn >> 32:X}/{boundary.end_lsn & 0xFFFFFFFF:X}"
        for boundary in boundaries
        if hasattr(boundary, "end_lsn")
    ]
    assert ends == [commit["nextlsn"] for commit in commits]
