"""Rows that are read after their table was altered: wal2json gives what pgoutput gives, which is in the log."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from listener.core.source import SourceError
from tests.support.postgres.source import PostgresSource, rows_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cdc_tasks.changes import Change
    from tests.conftest import Database

LONG = "repeat('long ', 1000)"
ITEMS = (
    "CREATE TABLE items (id int PRIMARY KEY, note text, body text, extra text)",
    "ALTER TABLE items ALTER body SET STORAGE EXTERNAL, ALTER extra SET STORAGE EXTERNAL",
    f"INSERT INTO items VALUES (1, 'a', {LONG}, {LONG}), (2, 'a', {LONG}, NULL)",
)
RENAME = "ALTER TABLE items RENAME body TO text"
TOUCH, REMOVE = "UPDATE items SET note = note || '!' WHERE id = 1", "DELETE FROM items WHERE id = 2"


@pytest.fixture
def both(debian_database: Database) -> Iterator[tuple[PostgresSource, PostgresSource]]:
    """One database, read through pgoutput, which is believed, and through wal2json."""
    with (
        PostgresSource(debian_database, "pgoutput", name="believed") as believed,
        PostgresSource(debian_database, "wal2json", name="doubted") as doubted,
    ):
        yield believed, doubted


def seen(changes: Sequence[Change]) -> list[object]:
    return [(change.table, *each) for change, each in zip(changes, rows_of([*changes]), strict=True)]


@pytest.mark.parametrize("restart", [False, True], ids=["running", "stopped"])
@pytest.mark.parametrize(
    "statements",
    [
        [TOUCH, REMOVE, RENAME],
        [TOUCH, REMOVE, "ALTER TABLE items RENAME body TO text", "ALTER TABLE items RENAME text TO words"],
        [TOUCH, REMOVE, "ALTER TABLE items ADD later text"],
        [TOUCH, REMOVE, "ALTER TABLE items ADD later text NOT NULL DEFAULT 'x', ADD number int"],
        [TOUCH, REMOVE, "ALTER TABLE items DROP body"],
        [TOUCH, REMOVE, "ALTER TABLE items DROP body", "ALTER TABLE items ADD body text"],
        [
            TOUCH,
            REMOVE,
            "ALTER TABLE items DROP body, ADD later text",
            "ALTER TABLE items RENAME extra TO body",
        ],
        [TOUCH, REMOVE, "ALTER TABLE items RENAME TO things"],
        [TOUCH, REMOVE, "DROP TABLE items"],
        [TOUCH, REMOVE, "DROP TABLE items", "CREATE TABLE items (other text, id int PRIMARY KEY)"],
        [TOUCH, "ALTER TABLE items RENAME body TO text", TOUCH, REMOVE],
        [TOUCH, "ALTER TABLE items ADD later text", TOUCH, REMOVE],
        [TOUCH, "ALTER TABLE items DROP extra", TOUCH, REMOVE],
        [
            TOUCH,
            "ALTER TABLE items RENAME body TO text",
            TOUCH,
            "ALTER TABLE items RENAME extra TO more",
            TOUCH,
        ],
        [
            TOUCH,
            "ALTER TABLE items ADD later text; ALTER TABLE items ALTER later SET STORAGE EXTERNAL",
            f"UPDATE items SET later = {LONG} WHERE id = 1",
            TOUCH,
            REMOVE,
        ],
        [
            TOUCH,
            "ALTER TABLE items RENAME note TO title",
            "UPDATE items SET title = 'b' WHERE id = 1",
            REMOVE,
        ],
        [TOUCH, "ALTER TABLE items ALTER body TYPE varchar(100000)", TOUCH, REMOVE],
        [TOUCH, "ALTER TABLE items ALTER body SET STORAGE PLAIN", TOUCH, REMOVE],
        [TOUCH, "GRANT SELECT ON items TO PUBLIC", "ANALYZE items", "VACUUM FULL items", TOUCH, REMOVE],
    ],
    ids=lambda statements: "; ".join(statements)[:120].replace(
        "UPDATE items SET note = note || '!' WHERE id = 1", "touch"
    ),
)
def test_what_is_missing_has_the_name_of_the_time(
    both: tuple[PostgresSource, PostgresSource], statements: list[str], restart: bool
) -> None:
    believed, doubted = both
    believed.execute(*ITEMS, "CREATE TABLE marks (id int PRIMARY KEY)")
    for source in both:
        source.watch("items", "marks")
    if restart:
        believed.execute("INSERT INTO marks VALUES (1)")
        for source in both:
            source.changes(1)
            source.stop()
    believed.execute(*statements)
    count = sum(statement.startswith(("UPDATE", "DELETE")) for statement in statements)
    if restart:
        for source in both:
            source.watch("*")
    assert seen(doubted.changes(count)) == seen(believed.changes(count))


def test_if_the_rows_own_transaction_alters_its_table_both_names_are_unavailable(
    both: tuple[PostgresSource, PostgresSource],
) -> None:
    """wal2json does not say which of the two came first."""
    believed, doubted = both
    believed.execute(*ITEMS)
    for source in both:
        source.watch("items")
    believed.execute(f"BEGIN; {TOUCH}; {RENAME}; {REMOVE}; COMMIT", TOUCH)
    expected, found = believed.changes(3), doubted.changes(3)
    assert [(change.before, change.after) for change in found] == [
        (change.before, change.after) for change in expected
    ]
    assert [{*change.unavailable} - {*right.unavailable} for change, right in zip(found, expected, strict=True)] == [
        {"text"}, {"body"}, set()
    ]  # fmt: skip


def test_before_a_subtransaction_alters_a_table_both_names_are_unavailable(
    both: tuple[PostgresSource, PostgresSource],
) -> None:
    """A column names the subtransaction that altered it, and the log only the transaction."""
    believed, doubted = both
    believed.execute(*ITEMS)
    for source in both:
        source.watch("items")
    rename = f"DO $$ BEGIN {RENAME}; EXCEPTION WHEN division_by_zero THEN NULL; END $$"
    believed.execute(TOUCH, rename, TOUCH, REMOVE)
    expected, found = believed.changes(3), doubted.changes(3)
    assert {*found[0].unavailable} == {*expected[0].unavailable, "text"}
    assert seen(found[1:]) == seen(expected[1:])


def changes_or_stop(source: PostgresSource, count: int) -> list[Change] | None:
    """Return the changes; None if a column's name cannot be known."""
    try:
        return source.changes(count)
    except SourceError as error:
        if "cannot be determined" not in error.message:
            raise
        return None


class Writer:
    """Writes rows of a table and alters it, as a seed says."""

    def __init__(self, source: PostgresSource, seed: int) -> None:
        self._source = source
        self._random = random.Random(seed)
        self._columns = ["note", "body", "extra"]
        self._made = len(self._columns)
        self._ids = [1, 2]
        self.written: list[str] = []

    def write(self) -> int:
        """Run a transaction; return how many changes come of it."""
        choices = [self._rows, self._rows, self._rows, self._definition, self._both]
        count, statements = self._random.choice(choices)()
        self._source.execute("BEGIN; " + "; ".join(statements) + "; COMMIT")
        self.written += [*statements, ""]
        return count

    def _both(self) -> tuple[int, list[str]]:
        before, after = self._rows(), self._definition()
        return before[0], [*before[1], *after[1]]

    def _rows(self) -> tuple[int, list[str]]:
        statements = [self._row() for _ in range(self._random.randint(1, 3))]
        return len(statements), statements

    def _row(self) -> str:
        column, value = self._random.choice(self._columns), self._random.choice(["NULL", "'x'", LONG, LONG])
        self._made += 1
        kind = self._random.choice(["insert", "touch", "touch", "touch", "move", "remove"])
        if kind == "insert" or (kind != "touch" and not self._ids):
            self._ids.append(self._made)
            return f"INSERT INTO items (id, {column}) VALUES ({self._made}, {value})"
        if kind == "touch":
            return f"UPDATE items SET {column} = {value} WHERE id = 0"
        old = self._ids.pop()
        if kind == "remove":
            return f"DELETE FROM items WHERE id = {old}"
        self._ids.append(self._made)
        return f"UPDATE items SET id = {self._made} WHERE id = {old}"

    def _definition(self) -> tuple[int, list[str]]:
        column = self._random.choice(self._columns)
        self._made += 1
        new = f"c{self._made}"
        match self._random.choice(["add", "drop", "rename", "rename", "type", "identity", "grant"]):
            case "add":
                self._columns.append(new)
                return 0, [
                    f"ALTER TABLE items ADD {new} text",
                    f"ALTER TABLE items ALTER {new} SET STORAGE EXTERNAL",
                ]
            case "drop" if len(self._columns) > 1:
                self._columns.remove(column)
                return 0, [f"ALTER TABLE items DROP {column}"]
            case "rename":
                self._columns[self._columns.index(column)] = new
                return 0, [f"ALTER TABLE items RENAME {column} TO {new}"]
            case "type":
                return 0, [f"ALTER TABLE items ALTER {column} TYPE varchar"]
            case "identity":
                return 0, [f"ALTER TABLE items REPLICA IDENTITY {self._random.choice(['FULL', 'DEFAULT'])}"]
            case _:
                return 0, ["GRANT SELECT ON items TO PUBLIC"]


@pytest.mark.parametrize("seed", range(8))
def test_after_any_alteration_wal2json_gives_what_pgoutput_gives_or_stops(
    both: tuple[PostgresSource, PostgresSource], seed: int
) -> None:
    """If a row's own transaction alters its table, a name too many may be unavailable, and never one too few."""
    believed, doubted = both
    believed.execute(*ITEMS, f"INSERT INTO items VALUES (0, 'a', {LONG}, {LONG})")
    for source in both:
        source.watch("items")
        source.changes(0)  # what the first start notes
    writer, chance = Writer(believed, seed), random.Random(seed)
    for _ in range(12):
        count = sum(writer.write() for _ in range(chance.randint(1, 6)))
        if chance.random() < 0.3:
            for source in both:
                source.stop()
                source.watch("items")
        right = believed.changes(count)
        found = changes_or_stop(doubted, count)
        if found is None:
            return
        for change, expected in zip(found, right, strict=True):
            assert (change.before, change.after) == (expected.before, expected.after), writer.written
            assert {*expected.unavailable} <= {*change.unavailable}, writer.written
