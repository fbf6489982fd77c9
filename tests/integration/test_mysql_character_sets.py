"""Text of every character set of MySQL and MariaDB."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tests.mysql_source import MySQLSource

if TYPE_CHECKING:
    from tests.mysql_source import MySQLDatabase


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
