"""Text of every character set of MySQL and MariaDB."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import closing
from itertools import product
from typing import TYPE_CHECKING, TypeVar

from tests.support.mysql.source import MySQLSource

if TYPE_CHECKING:
    from tests.support.mysql.source import MySQLDatabase

_T = TypeVar("_T")


def test_text_of_every_character_set_is_as_the_server_has_it(source: MySQLSource) -> None:
    charsets = [
        (str(name), int(length))
        for name, length in source.database.fetch(
            "SELECT CHARACTER_SET_NAME, MAXLEN FROM information_schema.CHARACTER_SETS"
            " WHERE CHARACTER_SET_NAME NOT IN ('binary', 'filename') ORDER BY 1"
        )
    ]
    source.execute(*(f"CREATE TABLE t_{name} (a text CHARACTER SET {name})" for name, _ in charsets))
    source.watch()
    sample = "ABC xyz 019 äöüß éèñ ÅØ çšž αβγ ЖЯѣ שלום ไทย 日本語 カタカナ 한국어 中文繁體 €~\\ 🙂"
    source.execute(*(f"INSERT IGNORE INTO t_{name} VALUES ('{sample}')" for name, _ in charsets))
    one_byte = ", ".join(str(byte) for byte in range(1, 256))
    single = [name for name, length in charsets if length == 1 and name != "ascii"]
    source.execute(
        *(f"INSERT INTO t_{name} VALUES (CONVERT(CHAR({one_byte}) USING {name}))" for name in single),
        setting="sql_mode = ''",
    )
    found = source.changes(len(charsets) + len(single), timeout=60)
    wrong = {}
    for change in found:
        stored = {row[0] for row in source.database.fetch(f"SELECT a FROM {change.table}")}
        # For a byte that stands for no character the server has a question mark; we say which byte it is.
        ours = re.sub(r"\\x[0-9a-f]{2}", "?", change.row["a"])
        if ours not in stored:
            wrong[change.table] = (ours, stored)
    assert not wrong


_SJIS = ([*range(0x81, 0xA0), *range(0xE0, 0xFD)], [*range(0x40, 0x7F), *range(0x80, 0xFD)])
_GBK = (range(0x81, 0xFF), [*range(0x40, 0x7F), *range(0x80, 0xFF)])
_ROW = range(0xA1, 0xFF)
_DIGIT = range(0x30, 0x3A)
# Every character of several bytes that a server may take for one.
_FORMS: dict[str, list[tuple[Iterable[int], ...]]] = {
    "big5": [(range(0xA1, 0xFA), [*range(0x40, 0x7F), *_ROW])],
    "cp932": [_SJIS],
    "sjis": [_SJIS],
    "ujis": [(_ROW, _ROW), ([0x8E], range(0xA1, 0xE0)), ([0x8F], _ROW, _ROW)],
    "eucjpms": [(_ROW, _ROW), ([0x8E], range(0xA1, 0xE0)), ([0x8F], _ROW, _ROW)],
    "euckr": [(range(0x81, 0xFF), [*range(0x41, 0x5B), *range(0x61, 0x7B), *range(0x81, 0xFF)])],
    "gb2312": [(range(0xA1, 0xF8), _ROW)],
    "gbk": [_GBK],
    "gb18030": [
        _GBK,
        *(([lead], _DIGIT, range(0x81, 0xFF), _DIGIT) for lead in (0x81, 0x82, 0x83, 0x84, 0x90, 0xE3)),
    ],
}
_BASIC = "".join(map(chr, (*range(1, 0xD800), *range(0xE000, 0x10000))))
_ALL = _BASIC + "".join(map(chr, range(0x10000, 0x110000)))
_OF_EVERY_PLANE = {"utf8mb4", "utf16", "utf16le", "utf32", "gb18030"}


def test_every_character_of_several_bytes_is_as_the_server_has_it(source: MySQLSource) -> None:
    known = source.database.fetch("SELECT CHARACTER_SET_NAME, MAXLEN FROM information_schema.CHARACTER_SETS")
    charsets = sorted(str(name) for name, length in known if length > 1 and name != "filename")
    source.execute(*(f"CREATE TABLE t_{name} (a mediumtext CHARACTER SET {name})" for name in charsets))
    source.watch()
    rows = 0
    with closing(source.database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("SET sql_mode = ''")
        for name in charsets:
            for codes in _chunks(_codes(name)):
                value = b"\n".join(codes)
                cursor.execute(f"INSERT INTO t_{name} VALUES (CONVERT(_binary %s USING {name}))", [value])
                rows += 1
            for text in _chunks(_ALL if name in _OF_EVERY_PLANE else _BASIC):
                cursor.execute(f"INSERT INTO t_{name} VALUES (%s)", ["".join(text)])
                rows += 1
    found: dict[str, list[str]] = {}
    for change in source.changes(rows, timeout=180):
        found.setdefault(change.table, []).append(change.row["a"])
    wrong = {
        table: differing[:10]
        for table, ours in found.items()
        if (
            differing := _differing(ours, [row[0] for row in source.database.fetch(f"SELECT a FROM {table}")])
        )
    }
    assert not wrong


def _codes(charset: str) -> list[bytes]:
    return [bytes(code) for form in _FORMS.get(charset, ()) for code in product(*form)]


def _chunks(of: Sequence[_T]) -> list[Sequence[_T]]:
    return [of[start : start + 30_000] for start in range(0, len(of), 30_000)]


def _differing(ours: list[str], servers: list[str]) -> list[tuple[str, str]]:
    """Return the lines that differ; where the server shows a question mark, we say which bytes they are."""
    lines = zip("\n".join(ours).split("\n"), "\n".join(servers).split("\n"), strict=True)
    return [
        pair for pair in lines if pair[0] != pair[1] and not (pair[1] == "?" and pair[0].startswith("\\x"))
    ]


def test_halves_of_a_surrogate_pair_are_no_characters(source: MySQLSource) -> None:
    """In UCS-2; the servers themselves answer a SELECT with bytes that are not UTF-8."""
    source.execute(
        *(f"CREATE TABLE t_{name} (a text CHARACTER SET {name})" for name in ("ucs2", "utf16", "utf16le"))
    )
    source.watch()
    source.execute(
        "INSERT INTO t_ucs2 VALUES (CONVERT(x'0041d83dde000042' USING ucs2))",
        "INSERT INTO t_utf16 VALUES (CONVERT(x'0041d83dde000042' USING utf16))",
        "INSERT INTO t_utf16le VALUES (CONVERT(x'41003dd800de4200' USING utf16le))",
        setting="sql_mode = ''",
    )
    assert [each.row["a"] for each in source.changes(3)] == ["A\\xd8\\x3d\\xde\\x00B", "A😀B", "A😀B"]


def test_text_that_is_not_of_its_character_set_does_not_stop_the_stream(
    mariadb_database: MySQLDatabase,
) -> None:
    with MySQLSource(mariadb_database, name=mariadb_database.name) as source:
        source.execute(
            "CREATE TABLE t (id int, a text CHARACTER SET latin1)", "INSERT INTO t VALUES (1, x'e9ff')"
        )
        source.watch()
        # The old way to change what bytes are taken for; no server looks at them.
        source.execute("ALTER TABLE t MODIFY a blob", "SET @bytes = (SELECT a FROM t)")
        source.execute("ALTER TABLE t MODIFY a text CHARACTER SET ucs2", setting="sql_mode = ''")
        source.execute("UPDATE t SET id = 2")
        assert source.changes(1)[0].row["id"] == 2
