"""A statement is cut into tokens as the server cuts it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from listener.mysql.sql.lexer import ANSI_QUOTES, MSSQL, NO_BACKSLASH_ESCAPES, Kind, Rules, tokens, unquoted

_CHARSETS = ("utf8mb4", "latin1", "cp866", "big5", "cp932", "gb18030", "gbk", "sjis", "ujis")


def _cut(text: bytes, *, mariadb: bool = True, **rules: Any) -> list[tuple[str, bytes]]:
    return [(each.kind.name, each.text) for each in tokens(text, Rules(mariadb=mariadb, **rules))]


def _texts(text: bytes, **rules: Any) -> list[bytes]:
    return [each for _, each in _cut(text, **rules)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"a--1", [b"a", b"-", b"-", b"1"]),
        (b"a-- 1", [b"a"]),
        (b"a--\n1", [b"a", b"1"]),
        (b"a--\x02 1\nb", [b"a", b"b"]),
        (b"a --", [b"a"]),
        (b"a#'\nb", [b"a", b"b"]),
        (b"a/*'*/b", [b"a", b"b"]),
        (b"a/**/b", [b"a", b"b"]),
        (b"a/***/b", [b"a", b"b"]),
        (b"a/*/*/b", [b"a", b"b"]),
        (b"a /* /* */ b */", [b"a", b"b", b"*", b"/"]),
        (b"/*! a /* b */ c */ d */", [b"a", b"c", b"d", b"*", b"/"]),
        (b"/*!50100a*/b", [b"a", b"b"]),
        (b"/*!501000a*/b", [b"a", b"b"]),
        (b"/*!5010 a*/b", [b"5010", b"a", b"b"]),
        (b"/*+ a */b", [b"b"]),
        (b"2*/*x*/3", [b"2", b"*", b"3"]),
        (b"2*/*! 3*/", [b"2", b"*", b"3"]),
        (b"'a''b'", [b"'a''b'"]),
        (b"'a\\'b' c", [b"'a\\'b'", b"c"]),
        (b"'a\\\\' b", [b"'a\\\\'", b"b"]),
        (b"'a'\"b\"", [b"'a'", b'"b"']),
        (b"N'a'x'00'_latin1'b'", [b"N", b"'a'", b"x", b"'00'", b"_latin1", b"'b'"]),
        (b"`a``b`.c", [b"`a``b`", b".", b"c"]),
        (b"`a\\`b", [b"`a\\`", b"b"]),
        (b"@@a:=\\N", [b"@", b"@", b"a", b":", b"=", b"\\", b"N"]),
        (b"", []),
        (b" \t\r\n\v\f", []),
    ],
)
def test_tokens_are_the_server_s(text: bytes, found: list[bytes]) -> None:
    assert _texts(text) == found


def test_mariadb_has_comments_of_its_own() -> None:
    assert _texts(b"/*M!100100 a*/b") == [b"a", b"b"]
    assert _texts(b"/*M! a*/b") == [b"a", b"b"]
    assert _texts(b"/*M!100100 a*/b", mariadb=False) == [b"b"]


def test_modes_decide_what_quotes_mean() -> None:
    assert _cut(b'"a\\"', sql_mode=ANSI_QUOTES) == [("NAME", b'"a\\"')]
    assert _cut(b'"a\\""') == [("STRING", b'"a\\""')]
    assert _cut(b"'a\\'", sql_mode=NO_BACKSLASH_ESCAPES) == [("STRING", b"'a\\'")]
    assert _cut(b"[a b]", sql_mode=MSSQL) == [("NAME", b"[a b]")]
    assert _texts(b"[a b]", sql_mode=MSSQL, mariadb=False) == [b"[", b"a", b"b", b"]"]


def test_a_word_behind_a_point_is_a_name() -> None:
    assert _cut(b"a.select") == [("WORD", b"a"), ("MARK", b"."), ("NAME", b"select")]
    assert _cut(b"1.select")[-1] == ("WORD", b"select")


@pytest.mark.parametrize("text", [b"'a", b'"a', b"`a", b"/* a", b"'a\\'", b"`a``", b"a/*"])
def test_what_does_not_end_is_broken(text: bytes) -> None:
    assert _cut(text)[-1][0] == "BROKEN"


def test_a_backslash_skips_one_byte_even_of_two() -> None:
    assert _texts(b"'\xbf\x5c' x", charset="gbk") == [b"'\xbf\x5c'", b"x"]
    assert _texts(b"'\\\xbf\x5c' x'", charset="gbk") == [b"'\\\xbf\x5c' x'"]
    assert _texts(b"'\xbf\x5c' x'", charset="latin1") == [b"'\xbf\x5c' x'"]


@pytest.mark.parametrize("charset", _CHARSETS)
@given(text=st.binary(max_size=80), mode=st.sampled_from([0, ANSI_QUOTES, NO_BACKSLASH_ESCAPES, MSSQL]))
@settings(deadline=None, max_examples=100)
def test_any_bytes_come_to_an_end_and_nothing_is_made_up(charset: str, text: bytes, mode: int) -> None:
    rest = text
    for token in tokens(text, Rules(mariadb=True, sql_mode=mode, charset=charset)):
        assert token.text
        place = rest.find(token.text)
        assert place >= 0
        rest = rest[place + len(token.text) :] if token.kind is not Kind.BROKEN else b""


_QUOTES = st.sampled_from([(b"`", b"`", 0), (b'"', b'"', ANSI_QUOTES), (b"[", b"]", MSSQL)])


@pytest.mark.parametrize(
    ("charset", "codec"),
    [
        ("gbk", "gbk"),
        ("sjis", "shift_jis"),
        ("big5", "big5"),
        ("utf8mb4", "utf-8"),
        ("gb18030", "gb18030"),
    ],
)
@given(data=st.data(), quotes=_QUOTES)
@settings(deadline=None, max_examples=100)
def test_every_name_comes_out_as_it_went_in(
    charset: str, codec: str, data: st.DataObject, quotes: tuple[bytes, bytes, int]
) -> None:
    letters = st.characters(codec=codec, exclude_characters="\0¥‾", exclude_categories=["Cs"])
    name = data.draw(st.text(letters, min_size=1, max_size=30))
    opening, closing, mode = quotes
    doubled = name.replace(closing.decode(), 2 * closing.decode()).encode(codec)
    rules = Rules(mariadb=True, sql_mode=mode, charset=charset)
    found = list(tokens(b"a" + opening + doubled + closing + b"b", rules))
    assert [each.kind for each in found] == [Kind.WORD, Kind.NAME, Kind.WORD]
    assert unquoted(found[1].text, rules).decode(codec) == name
