"""What only wal2json has: JSON made of the values, every table of the database, encodings of its own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from listener.core.source import SourceError
from listener.postgres.codec.builtin_types import BUILTIN
from listener.postgres.wal2json.decoder import Wal2JsonDecoder
from listener.postgres.wal2json.definition_history import (
    ColumnDefinition,
    Observation,
    TableDefinition,
    TableHistory,
    TableName,
)
from listener.postgres.wal2json.definitions import TableDefinitions, has_altered
from tests.support.postgres.captures import captures

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from listener.postgres.client.connection import Connection
    from listener.postgres.codec.change import WALChange

_BEGIN = b'{"action":"B","xid":7,"timestamp":"2026-11-22 10:00:00.5+00","lsn":"1/A0","nextlsn":"1/B0"}'


class Definitions(TableDefinitions):
    """A catalogue that a test writes; counts how often it is read."""

    def __init__(self, **tables: TableDefinition) -> None:
        super().__init__(_no_server, "a_slot")
        self.tables = {("public", name): found for name, found in tables.items()}
        self.commits: dict[int, int] = {}
        self.end_of_log = 0
        self.asked = 0
        self.may_look = True
        self.unselected: list[TableName] = []

    def report_gone(self, tables: Collection[TableName], *, lsn: int) -> None:
        self.unselected += tables

    @property
    def may_refresh_all(self) -> bool:
        return self.may_look

    def refresh_all(self, *, lsn: int | None = None) -> bool:
        self._is_outdated = False
        return self.refresh([*self._histories], lsn=lsn or 0)

    def refresh(self, tables: Collection[TableName], *, lsn: int) -> bool:
        self.asked += 1
        looks = [
            self._histories.setdefault(table, TableHistory()).add(
                Observation(definition=self.tables.get(table), since=self.end_of_log, until=lsn)
            )
            for table in tables
        ]
        return any(looks)

    def _find_commits(self, xid: int) -> None:
        self._commits[xid] = (self.commits.get(xid), 0)


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
    decoder.verify(changes)
    return changes


def message(action: str, table: str = "things", **parts: object) -> bytes:
    head = {"action": action, "timestamp": "2026-11-22 10:00:00.5+00", "lsn": "1/90", "schema": "public"}
    return json.dumps({**head, "table": table, **parts}, separators=(",", ":"), ensure_ascii=False).encode()


def column(name: str, oid: int, value: Any) -> dict[str, Any]:
    return {"name": name, "typeoid": oid, "value": value}


def table(*columns: str, kind: str = "r", changed_by: int = 0) -> TableDefinition:
    """Return a table's definition; `changed_by` is the transaction that made its last column what it is."""
    return TableDefinition(
        oid=1,
        kind=kind,
        columns=tuple(
            ColumnDefinition(
                number=number,
                name=name,
                type_oid=25,
                may_be_unsent=True,
                changed_by=changed_by if number == len(columns) else 0,
                is_final=not changed_by or number < len(columns),
            )
            for number, name in enumerate(columns, start=1)
        ),
    )


def update(**values: object) -> bytes:
    """An UPDATE of the row whose key, `id`, is k."""
    columns = [column(name, 25, value) for name, value in ({"id": "k"} | values).items()]
    return message("U", columns=columns, identity=[column("id", 25, "k")])


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
def test_json_encoding_of_a_value_is_reversed(oid: int, sent: str, expected: object) -> None:
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


def test_rows_of_tables_that_no_route_selects_are_counted_and_dropped_unread() -> None:
    unreadable = message("I", "noise")[:-1] + b',"columns":[oops'
    kept = message("I", columns=[column("a", 23, 1)])
    changes = decode(unreadable, kept, unreadable, kept, watches=lambda _, name: name == "things")
    assert [change.position for change in changes] == ["1/A0:1", "1/A0:3"]


def test_an_update_of_other_columns_has_no_old_key() -> None:
    (change,) = decode(update(a="x"), definitions=Definitions(things=table("id", "a")))
    assert (change.before, change.after, change.unavailable) == (None, {"id": "k", "a": "x"}, ())


def test_an_update_whose_other_columns_are_all_missing_is_not_taken_for_a_full_row() -> None:
    raw = message("U", columns=[column("id", 25, "new")], identity=[column("id", 25, "old")])
    (change,) = decode(raw, definitions=Definitions(things=table("id", "a")))
    assert (change.before, change.after, change.unavailable) == ({"id": "old"}, {"id": "new"}, ("a",))


def test_the_catalogue_is_read_only_if_something_may_have_been_altered() -> None:
    definitions = Definitions(things=table("id", "a"))
    rows = [update(a="x"), update(), message("D", identity=[column("id", 25, "k")])] * 3
    decode(*rows, definitions=definitions)
    assert definitions.asked == 1  # the table had not been observed
    decode(*rows, definitions=definitions)
    assert definitions.asked == 1
    decode(_BEGIN.replace(b"1/B0", b"1/FF"), *rows, definitions=definitions)
    assert definitions.asked == 2


@pytest.mark.parametrize(("altered_at", "name"), [(0x1_0000_0090, "new"), (0x1_0000_00C0, "old")])
def test_the_log_and_no_clock_orders_a_row_and_a_definition(altered_at: int, name: str) -> None:
    """The row committed at 1/A0, whatever the server's clock said: here a hundred years later, or earlier."""
    for year in ("1926", "2026", "2126"):
        definitions = Definitions(things=table("id", "old"))
        definitions.refresh([("public", "things")], lsn=0)
        definitions.tables["public", "things"] = table("id", "new", changed_by=7)
        definitions.commits[7] = altered_at
        definitions.end_of_log = 0x1_0000_00FF
        decoder = Wal2JsonDecoder(BUILTIN.__getitem__, definitions, lambda *_: True, source="c0ffee")
        changes: list[WALChange] = []
        definitions.note_alteration(0)
        for raw in (_BEGIN, update()):
            decoder.decode(raw.replace(b"2026", year.encode()), changes)
        assert changes[0].unavailable == ("old",)  # by what was known
        decoder.verify(changes)
        assert changes[0].unavailable == (name,)
        assert changes[0].committed_at.year == int(year)


def test_an_enqueued_task_keeps_its_place_among_rows_that_are_decoded_again() -> None:
    definitions = Definitions(things=table("id", "old"))
    definitions.refresh([("public", "things")], lsn=0)
    definitions.tables["public", "things"] = table("id", "new", changed_by=7)
    definitions.commits[7] = 0x1_0000_0090
    definitions.end_of_log = 0x1_0000_00FF
    definitions.note_alteration(0)
    said = json.dumps({"enqueue": {"task": "shop.send"}})
    enqueued = message("M", transactional=True, prefix="cdc_tasks", content=said)
    first, task, last = decode(update(), enqueued, update(), definitions=definitions)
    assert (first.unavailable, last.unavailable) == (("new",), ("new",))  # decoded again
    assert (task.table, task.ordinal) == ("shop.send", 1)


def test_a_name_that_cannot_be_known_stops_the_listener() -> None:
    definitions = Definitions(things=table("id", "new", changed_by=7))
    definitions.commits[7] = 0x1_0000_00C0
    definitions.end_of_log = 0x1_0000_00FF
    with pytest.raises(
        SourceError, match=r"columns of public.things at 1/A0 cannot be determined: new was altered since"
    ):
        decode(update(), definitions=definitions)
    with pytest.raises(SourceError, match="it no longer exists"):
        decode(update(), definitions=Definitions())


def test_where_two_names_are_possible_both_are_unavailable() -> None:
    definitions = Definitions(things=table("id", "old"))
    definitions.refresh([("public", "things")], lsn=0)
    definitions.tables["public", "things"] = table("id", "new", changed_by=7)
    definitions.note_alteration(0)
    definitions.commits[7] = 0x1_0000_00A0  # in the row's own transaction: before it, or after it
    definitions.end_of_log = 0x1_0000_00FF
    (change,) = decode(update(), definitions=definitions)
    assert sorted(change.unavailable) == ["new", "old"]


def test_rows_of_a_materialized_view_are_none_of_a_table() -> None:
    definitions = Definitions(things=table("id", kind="m"))
    assert decode(message("I", columns=[column("id", 25, "k")]), definitions=definitions) == []


def test_the_position_does_not_pass_an_alteration_before_the_definitions_are_refreshed() -> None:
    definitions = Definitions()
    decoder = Wal2JsonDecoder(BUILTIN.__getitem__, definitions, lambda *_: True, source="c0ffee")
    decoder.decode(_BEGIN, [])
    assert decoder.may_advance()
    assert definitions.asked == 0
    decoder.decode(_BEGIN.replace(b"1/B0", b"1/FF"), [])
    definitions.may_look = False
    assert not decoder.may_advance()
    definitions.may_look = True
    assert decoder.may_advance()
    assert definitions.asked == 1


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


@pytest.mark.parametrize(
    ("commit", "end", "altered"),
    [
        (0x19474A8, 0x19474D8, False),  # a row
        (0x1947798, 0x1947810, True),  # ALTER TABLE … RENAME
        (0x1949FD0, 0x194A018, False),  # a row's, on two pages
        (0x1949FD0, 0x194A058, True),
        (0x1949FD0, 0x194A000, False),  # up to the page's end
    ],
)
def test_a_commit_that_invalidates_other_sessions_caches_is_known_by_its_size(
    commit: int, end: int, altered: bool
) -> None:
    assert has_altered(commit, end) is altered
