"""Every type of PostgreSQL, from a real server to the JSON that a task gets."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

import pytest
from structlog.testing import capture_logs

from listener.postgres.client.connection import connect
from listener.postgres.client.type_catalogue import TypeCatalogue
from listener.postgres.codec.builtin_types import BUILTIN
from reference.values import POSTGRES, POSTGRES_INTERNAL, POSTGRES_SPECIAL
from tests.support.postgres.source import PostgresSource

if TYPE_CHECKING:
    from tests.conftest import Database

DIGITS: Final = "7" * 400

CASES: Final = POSTGRES + POSTGRES_INTERNAL

# What the server uses within itself, and does not let anybody write.
NOT_FOR_USERS: Final = {
    "cstring",
    "gtsvector",
    "pg_brin_bloom_summary",
    "pg_brin_minmax_multi_summary",
    "pg_dependencies",
    "pg_mcv_list",
    "pg_ndistinct",
    "pg_node_tree",
}

# As above; each is one more value of a type that is there already.
SPECIAL_CASES: Final[list[tuple[str, str, Any]]] = [
    *POSTGRES_SPECIAL,
    ("numeric", f"{DIGITS}.000100", f"{DIGITS}.000100"),
    ("text", 'a "b" \\ \n \t é 日本 😀', 'a "b" \\ \n \t é 日本 😀'),
    ("bool", "false", False),
    ("numeric", "0.00000000000000000000000000001", "0.00000000000000000000000000001"),
    ("float8", "-0", 0),
    ("float8", "1e300", 1e300),
    ("date", "5874897-12-31", "5874897-12-31"),
    ("time(0)", "10:00", "10:00:00"),
    ("timestamp", "0044-03-15 10:00:00.123 BC", "0044-03-15 10:00:00.123 BC"),
    ("timestamptz", "infinity", "infinity"),
    ("timestamptz", "1883-11-18 12:03:58-04:56:02", "1883-11-18T17:00:00+00:00"),
    ("timestamptz", "2026-11-22 10:00:00.12+00", "2026-11-22T10:00:00.120000+00:00"),
    ("jsonb", f"[{'9' * 4300}]", [10**4300 - 1]),
    ("jsonb", f"[{'9' * 4301}]", f"[{'9' * 4301}]"),
    ("jsonb", '{"__type__": "x", "__value__": 1}', '{"__type__": "x", "__value__": 1}'),
    ("json", "[" * 300 + "]" * 300, "[" * 300 + "]" * 300),
    ("int4[]", "[0:1]={1,2}", [1, 2]),
    ("box[]", "{(3,4),(1,2);(1,1),(0,0)}", ["(3,4),(1,2)", "(1,1),(0,0)"]),
    ("int2vector[]", '{"1 2","3"}', ["1 2", "3"]),
    ("text[]", '{"a,b","{c}",NULL,"null","","q\\"\\\\"}', ["a,b", "{c}", None, "null", "", 'q"\\']),
]

# wal2json before 2.6 writes these as null.
NOT_A_NUMBER: Final[list[tuple[str, str, Any]]] = [
    ("numeric", "NaN", "NaN"),
    ("numeric", "-Infinity", "-Infinity"),
    ("float4", "NaN", "NaN"),
    ("float8", "Infinity", "Infinity"),
]


def test_every_type_that_a_column_can_have_is_tried_here(any_database: Database) -> None:
    rows = any_database.fetch(
        "SELECT oid::regtype::text FROM pg_type WHERE typtype IN ('b', 'r', 'm') AND typcategory <> 'A'"
        " AND typnamespace = 'pg_catalog'::regnamespace"
    )
    names = any_database.fetch("SELECT to_regtype(unnest(%s::text[]))::text", [name for name, *_ in CASES])
    assert {name for (name,) in rows} <= {name for (name,) in names} | NOT_FOR_USERS | {"character", "bit"}


def test_the_built_in_types_are_the_servers(any_database: Database) -> None:
    rows = any_database.fetch(
        "SELECT oid::bigint FROM pg_type WHERE typnamespace = 'pg_catalog'::regnamespace AND oid < 10000"
        " AND typtype IN ('b', 'r', 'm') AND typelem NOT IN (SELECT oid FROM pg_type WHERE typtype = 'c')"
    )
    oids = {oid for (oid,) in rows}
    assert oids <= BUILTIN.keys()
    with closing(TypeCatalogue(lambda: connect(any_database.url))) as catalogue:
        catalogue._known.clear()
        for oid in oids:
            assert catalogue.resolve(oid) == BUILTIN[oid]


@pytest.mark.parametrize("as_array", [False, True], ids=["alone", "in an array"])
def test_every_type(source: PostgresSource, as_array: bool) -> None:
    cases = _cases_for(source)
    if as_array:
        cases = [
            (f"{type_}[]", _array_of(type_, literal), [expected, None])
            for type_, literal, expected in cases
            if not type_.endswith("[]")
        ]
    assert _round_trip(source, cases) == {f"c{n}": expected for n, (_, _, expected) in enumerate(cases)}


def test_wal2json_before_2_6_cannot_tell_nan_from_null_and_the_log_says_so(debian_database: Database) -> None:
    with capture_logs() as logs, PostgresSource(debian_database, "wal2json") as source:
        assert set(_round_trip(source, NOT_A_NUMBER).values()) == {None}
    (warning,) = (entry for entry in logs if entry["event"] == "old_plugin")
    assert "NaN and Infinity" in warning["lacks"]


def test_null_is_null_whatever_the_type(source: PostgresSource) -> None:
    cases = [(type_, None, None) for type_, _, _ in _cases_for(source)]
    assert set(_round_trip(source, cases).values()) == {None}


def test_types_of_the_user_s_own(source: PostgresSource) -> None:
    source.execute(
        "CREATE EXTENSION hstore; CREATE EXTENSION citext",
        "CREATE TYPE mood AS ENUM ('sad', 'o''k', 'very \"happy\"')",
        "CREATE TYPE pair AS (a int, b text)",
        "CREATE TYPE moods AS RANGE (subtype = text)",
        "CREATE DOMAIN positive AS int CHECK (value > 0)",
        "CREATE DOMAIN price AS numeric(10, 2)",
        "CREATE DOMAIN bigger AS positive CHECK (value > 100)",
        "CREATE DOMAIN numbers AS bigger[]",
        "CREATE DOMAIN blob AS bytea; CREATE DOMAIN flag AS bool; CREATE DOMAIN document AS jsonb",
        "CREATE DOMAIN measure AS float8; CREATE DOMAIN moment AS timestamptz; CREATE DOMAIN boxes AS box[]",
    )
    cases = [
        ("mood", 'very "happy"', 'very "happy"'),
        ("mood[]", '{sad,NULL,"very \\"happy\\""}', ["sad", None, 'very "happy"']),
        ("pair", '(1,"a ""b""")', '(1,"a ""b""")'),
        ("pair[]", '{"(1,x)"}', ["(1,x)"]),
        ("moods", "[a,b)", "[a,b)"),
        ("positive", "7", 7),
        ("positive[]", "{7,NULL}", [7, None]),
        ("price", "1.5", "1.50"),
        ("price", "NaN", "NaN"),
        ("bigger", "101", 101),
        ("numbers", "{101,102}", [101, 102]),
        ("numbers[]", '{"{101}",NULL}', [[101], None]),
        ("blob", "\\x00ff", "AP8="),
        ("flag", "true", True),
        ("flag[]", "{t,f}", [True, False]),
        ("document", '{"a": 1}', {"a": 1}),
        ("measure", "NaN", "NaN"),
        ("measure", "1.5", 1.5),
        ("moment", "2026-01-01 10:00+02", "2026-01-01T08:00:00+00:00"),
        ("boxes", "{(3,4),(1,2);(1,1),(0,0)}", ["(3,4),(1,2)", "(1,1),(0,0)"]),
        ("hstore", "a=>1", '"a"=>"1"'),
        ("hstore[]", '{"\\"a\\"=>\\"1\\""}', ['"a"=>"1"']),
        ("citext", "CaSe", "CaSe"),
    ]
    expected = {f"c{n}": value for n, (_, _, value) in enumerate(cases)}
    assert _round_trip(source, cases) == expected


def test_values_do_not_depend_on_the_settings_of_database_and_role(source: PostgresSource) -> None:
    name = source.database.name
    for setting in (
        "DateStyle = 'German'",
        "IntervalStyle = 'iso_8601'",
        "TimeZone = 'Asia/Kolkata'",
        "extra_float_digits = -5",
        "bytea_output = 'escape'",
        "client_encoding = 'LATIN1'",
    ):
        source.execute(f"ALTER DATABASE {name} SET {setting}")
    cases = [
        case
        for case in CASES
        if case[0] in {"timestamptz", "date", "interval", "float8", "bytea", "text", "timestamp"}
    ]
    assert _round_trip(source, cases) == {f"c{n}": expected for n, (_, _, expected) in enumerate(cases)}


def _cases_for(source: PostgresSource) -> list[tuple[str, Any, Any]]:
    """Return what this server and plugin can do."""
    cases = CASES + SPECIAL_CASES + ([] if source.plugin == "wal2json" else NOT_A_NUMBER)
    ((has_xml, is_14),) = source.database.fetch(
        "SELECT setting LIKE '%libxml%', current_setting('server_version_num')::int >= 140000"
        " FROM pg_config() WHERE name = 'CONFIGURE'"
    )
    return [
        case
        for case in cases
        if (has_xml or case[0] != "xml")
        and (is_14 or ("multirange" not in case[0] and case[:2] != ("numeric", "-Infinity")))
    ]


def _round_trip(source: PostgresSource, cases: list[tuple[str, Any, Any]]) -> dict[str, Any]:
    """Insert a row with all of the literals, and return it as a task gets it."""
    columns = ", ".join(f"c{n} {type_}" for n, (type_, _, _) in enumerate(cases))
    source.execute(f"CREATE TABLE things (id int PRIMARY KEY, {columns})")
    source.watch("things")
    values = ", ".join(["%s"] * len(cases))
    source.database.execute(f"INSERT INTO things VALUES (1, {values})", *[literal for _, literal, _ in cases])
    (change,) = source.changes(1)
    row: dict[str, Any] = json.loads(change.to_json())["after"]
    assert row == change.after
    assert row.pop("id") == 1
    return row


def _array_of(type_: str, literal: str) -> str:
    delimiter = ";" if type_ == "box" else ","
    escaped = literal.replace("\\", "\\\\").replace('"', '\\"')
    return f'{{"{escaped}"{delimiter}NULL}}'
