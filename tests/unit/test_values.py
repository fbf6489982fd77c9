"""The server's text of a value as JSON."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.utils import json as kombu_json

from listener.postgres.codec.values import BUILTIN, ValueType, converter

BOOL, BYTEA, INT8, INT4, TEXT, OID, JSON = 16, 17, 20, 23, 25, 26, 114
FLOAT8, DATE, TIME, TIMESTAMP, TIMESTAMPTZ, TIMETZ = 701, 1082, 1083, 1114, 1184, 1266
NUMERIC, UUID, JSONB, INTERVAL, INT4RANGE = 1700, 2950, 3802, 1186, 3904
INT4_ARRAY, TEXT_ARRAY, BYTEA_ARRAY, JSON_ARRAY, BOX_ARRAY, BOOL_ARRAY, NUMERIC_ARRAY = (
    1007, 1009, 1001, 199, 1020, 1000, 1231,
)  # fmt: skip


def value(type_: int | ValueType, text: str | bytes) -> Any:
    """Return what a task would get."""
    value_type = BUILTIN[type_] if isinstance(type_, int) else type_
    return kombu_json.loads(converter(value_type)(text.encode() if isinstance(text, str) else text))


@pytest.mark.parametrize(
    ("oid", "text", "expected"),
    [
        (INT4, "-2147483648", -2147483648),
        (INT8, "9223372036854775807", 9223372036854775807),
        (OID, "4294967295", 4294967295),
        (BOOL, "t", True),
        (BOOL, "f", False),
        (FLOAT8, "0.1", 0.1),
        (FLOAT8, "1e-300", 1e-300),
        (FLOAT8, "1.7976931348623157e+308", 1.7976931348623157e308),
        (FLOAT8, "NaN", "NaN"),
        (FLOAT8, "Infinity", "Infinity"),
        (FLOAT8, "-Infinity", "-Infinity"),
        (NUMERIC, "1.10", "1.10"),
        (NUMERIC, "9" * 400, "9" * 400),
        (NUMERIC, "NaN", "NaN"),
        (UUID, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        (INTERVAL, "1 year 2 mons -3 days 04:05:06.789", "1 year 2 mons -3 days 04:05:06.789"),
        (INT4RANGE, "[1,10)", "[1,10)"),
        (BYTEA, "\\x", ""),
        (BYTEA, "\\x00ff7f", base64.b64encode(b"\x00\xff\x7f").decode()),
        (TEXT, "", ""),
        (TEXT, 'quote " backslash \\ newline \n', 'quote " backslash \\ newline \n'),
        (TEXT, "tab \t bell \x07 del \x7f", "tab \t bell \x07 del \x7f"),
        (TEXT, "größer 日本 😀 \u2028", "größer 日本 😀 \u2028"),
    ],
)
def test_scalars(oid: int, text: str, expected: object) -> None:
    assert value(oid, text) == expected


@pytest.mark.parametrize(
    ("oid", "text", "expected"),
    [
        (DATE, "2026-11-22", "2026-11-22"),
        (DATE, "infinity", "infinity"),
        (DATE, "0044-03-15 BC", "0044-03-15 BC"),
        (DATE, "10000-01-01", "10000-01-01"),
        (TIME, "10:00:00", "10:00:00"),
        (TIME, "10:00:00.5", "10:00:00.500000"),
        (TIME, "24:00:00", "24:00:00"),
        (TIMETZ, "10:00:00+00", "10:00:00+00:00"),
        (TIMETZ, "10:00:00.123-08", "10:00:00.123000-08:00"),
        (TIMETZ, "10:00:00+05:30", "10:00:00+05:30"),
        (TIMETZ, "10:00:00+05:53:28", "10:00:00+05:53:28"),
        (TIMESTAMP, "2026-11-22 10:00:00", "2026-11-22T10:00:00"),
        (TIMESTAMP, "2026-11-22 10:00:00.000001", "2026-11-22T10:00:00.000001"),
        (TIMESTAMP, "2026-11-22 10:00:00.25", "2026-11-22T10:00:00.250000"),
        (TIMESTAMP, "-infinity", "-infinity"),
        (TIMESTAMP, "0044-03-15 10:00:00 BC", "0044-03-15 10:00:00 BC"),
        (TIMESTAMP, "0044-03-15 10:00:00.123 BC", "0044-03-15 10:00:00.123 BC"),  # as long as six digits
        (TIMESTAMP, "10000-01-01 00:00:00", "10000-01-01 00:00:00"),
        (TIMESTAMP, "10000-01-01 00:00:00.12345", "10000-01-01 00:00:00.12345"),
        (TIMESTAMPTZ, "2026-11-22 10:00:00+00", "2026-11-22T10:00:00+00:00"),
        (TIMESTAMPTZ, "2026-11-22 10:00:00.123456+00", "2026-11-22T10:00:00.123456+00:00"),
        (TIMESTAMPTZ, "2026-11-22 10:00:00.1+00", "2026-11-22T10:00:00.100000+00:00"),
        (TIMESTAMPTZ, "infinity", "infinity"),
        (TIMESTAMPTZ, "0044-03-15 00:00:00+00 BC", "0044-03-15 00:00:00+00 BC"),
        (TIMESTAMPTZ, "0044-03-15 00:00:00.123+00 BC", "0044-03-15 00:00:00.123+00 BC"),
        (TIMESTAMPTZ, "294276-12-31 23:59:59.999999+00", "294276-12-31 23:59:59.999999+00"),
    ],
)
def test_dates_and_times_are_iso_8601_where_they_have_that_form(oid: int, text: str, expected: str) -> None:
    assert value(oid, text) == expected


@given(st.datetimes())
def test_timestamps_look_as_python_s_isoformat_has_them(moment: Any) -> None:
    text = moment.isoformat(sep=" ")
    server_s = text.rstrip("0") if "." in text else text  # the server prints no trailing zeros
    assert value(TIMESTAMP, server_s) == moment.isoformat()
    assert value(TIMESTAMPTZ, f"{server_s}+00") == f"{moment.isoformat()}+00:00"


@pytest.mark.parametrize("oid", [JSON, JSONB])
@pytest.mark.parametrize(
    "text",
    [
        "null",
        "true",
        '"text"',
        "-0.5e10",
        '{"a": [1, {"b": null}]}',
        " [1 , 2]\n",
        "[12345678901234567890123]",
        '{"\\u0041": "\\ud83d\\ude00"}',
    ],
)
def test_a_json_document_is_the_value_itself(oid: int, text: str) -> None:
    assert value(oid, text) == json.loads(text)


def test_an_integer_in_json_stays_exact_as_far_as_python_goes() -> None:
    assert value(JSONB, f"[{'9' * 4300}]") == [10**4300 - 1]
    assert value(JSONB, f"[{'9' * 4301}]") == f"[{'9' * 4301}]"
    assert value(JSONB, f'["{"9" * 5000}"]') == ["9" * 5000]
    assert value(JSONB, f"[-0.{'9' * 5000}]") == [-1.0]


def test_json_nested_more_deeply_than_a_worker_can_load_is_text() -> None:
    assert value(JSON, "[" * 200 + "]" * 200)
    assert value(JSON, '{"a":' * 201 + "1" + "}" * 201) == '{"a":' * 201 + "1" + "}" * 201
    assert value(JSON, "[" * 100_000 + "]" * 100_000) == "[" * 100_000 + "]" * 100_000
    flat = json.dumps([[n, {"brackets": '[[{{"\\'}] for n in range(500)])
    assert value(JSON, flat) == json.loads(flat)


def test_json_that_kombu_would_take_for_something_else_is_text() -> None:
    envelope = '{"a": [{"__type__": "no such type", "__value__": 1}]}'
    with pytest.raises(ValueError, match="Unsupported type"):
        kombu_json.loads(envelope)  # what this is about: the worker could not even read the message
    assert value(JSONB, envelope) == envelope
    assert value(JSON, envelope.replace("_t", "\\u005ft")) == envelope.replace("_t", "\\u005ft")
    assert value(JSONB, '{"__type__": "a field of one\'s own"}') == {"__type__": "a field of one's own"}


def test_bytes_that_are_not_utf_8_are_shown_with_backslashes() -> None:
    assert value(TEXT, b"caf\xe9") == r"caf\xe9"
    assert value(JSON, b'["caf\xe9"]') == r'["caf\xe9"]'
    assert value(TEXT_ARRAY, b"{caf\xe9}") == [r"caf\xe9"]


@pytest.mark.parametrize(
    ("oid", "text", "expected"),
    [
        (INT4_ARRAY, "{}", []),
        (INT4_ARRAY, "{1,NULL,3}", [1, None, 3]),
        (INT4_ARRAY, "{{1,2},{3,NULL}}", [[1, 2], [3, None]]),
        (INT4_ARRAY, "{{{1},{2}},{{3},{4}}}", [[[1], [2]], [[3], [4]]]),
        (INT4_ARRAY, "[0:2]={1,2,3}", [1, 2, 3]),
        (INT4_ARRAY, "[-1:0][2:3]={{1,2},{3,4}}", [[1, 2], [3, 4]]),
        (BOOL_ARRAY, "{t,f,NULL}", [True, False, None]),
        (NUMERIC_ARRAY, "{1.10,NaN}", ["1.10", "NaN"]),
        (TEXT_ARRAY, '{a,"b c",NULL,"NULL","","{}","a,b"}', ["a", "b c", None, "NULL", "", "{}", "a,b"]),
        (TEXT_ARRAY, r'{"quote \" backslash \\","[1]={2}"}', ['quote " backslash \\', "[1]={2}"]),
        (TEXT_ARRAY, '{"two\nlines",größer}', ["two\nlines", "größer"]),
        (BYTEA_ARRAY, r'{"\\x00ff",NULL,"\\x"}', ["AP8=", None, ""]),
        (JSON_ARRAY, r'{"{\"a\": [1, \"\\\\\"]}",null}', [{"a": [1, "\\"]}, None]),
        (BOX_ARRAY, "{(2,2),(1,1);(4,4),(3,3)}", ["(2,2),(1,1)", "(4,4),(3,3)"]),
        (1185, '{"2026-11-22 10:00:00+00",infinity}', ["2026-11-22T10:00:00+00:00", "infinity"]),
    ],
)
def test_arrays_are_lists(oid: int, text: str, expected: object) -> None:
    assert value(oid, text) == expected


_TEXTS = st.one_of(st.none(), st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
_LISTS = st.one_of(
    st.lists(_TEXTS),
    st.integers(1, 3).flatmap(
        lambda width: st.lists(st.lists(_TEXTS, min_size=width, max_size=width), min_size=1)
    ),
)


@given(_LISTS)
def test_any_array_of_texts_comes_out_as_it_went_in(items: list[Any]) -> None:
    assert value(TEXT_ARRAY, _as_the_server_prints(items)) == items


def _as_the_server_prints(item: Any) -> str:
    """What `array_out` does (src/backend/utils/adt/arrayfuncs.c)."""
    if item is None:
        return "NULL"
    if isinstance(item, list):
        return "{" + ",".join(map(_as_the_server_prints, item)) + "}"
    needs_quotes = item == "" or item.upper() == "NULL" or any(each in '"\\{}, \t\n\r\v\f' for each in item)
    escaped = item.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"' if needs_quotes else item


def test_a_domain_looks_as_what_it_is_based_on() -> None:
    positive = ValueType(50001, "domain", BUILTIN[INT4])
    bigger = ValueType(50002, "domain", positive)
    numbers = ValueType(50003, "domain", ValueType(50004, "array", bigger))
    assert value(bigger, "7") == 7
    assert value(numbers, "{7,NULL}") == [7, None]


def test_an_array_of_domains_over_arrays_is_nested() -> None:
    points = ValueType(50001, "array", ValueType(50002, "domain", BUILTIN[INT4_ARRAY]))
    assert value(points, '{"{1,2}","{3,4}"}') == [[1, 2], [3, 4]]


@pytest.mark.parametrize("kind", ["enum", "composite", "range", "unknown", "base"])
def test_what_has_no_form_in_json_is_the_server_s_text(kind: Any) -> None:
    assert value(ValueType(50001, kind), '(1,"a b")') == '(1,"a b")'
    assert value(ValueType(50002, "array", ValueType(50001, kind)), r'{"(1,\"a b\")",x}') == [
        '(1,"a b")',
        "x",
    ]


@pytest.mark.parametrize(
    ("oid", "text"),
    [
        (BYTEA, "escape \\000 format"),
        (BYTEA, "\\xabc"),
        (INT4_ARRAY, "1,2"),
        (TEXT_ARRAY, ""),
        (TEXT_ARRAY, "[0:1]"),
        (TIMESTAMPTZ, "2026-11-22 10:00:00.123456+05:30"),
        (TIME, "noon"),
        (BOOL, "perhaps"),
    ],
)
def test_a_value_in_a_form_that_we_do_not_know_is_the_server_s_text(oid: int, text: str) -> None:
    assert value(oid, text) == text


@given(st.sampled_from(sorted(BUILTIN)), st.binary())
def test_no_text_whatever_raises(oid: int, text: bytes) -> None:
    converter(BUILTIN[oid])(text.replace(b"\0", b""))
