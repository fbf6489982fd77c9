"""What a table was when a row was written, from the observations of it."""

from __future__ import annotations

import pytest

from listener.postgres.wal2json.definition_history import (
    ColumnDefinition,
    Observation,
    TableDefinition,
    TableHistory,
    UnknownDefinitionError,
    missing_columns,
)


class Log:
    """The LSNs of commits, and whether other transactions may have altered something."""

    def __init__(self, *, is_still: bool = True, **commits: int) -> None:
        self._commits = {int(name[1:]): lsn for name, lsn in commits.items()}
        self._is_still = is_still

    def is_before(self, xid: int, lsn: int) -> bool | None:
        committed = self._commits.get(xid)
        return None if committed is None or committed == lsn else committed < lsn

    def is_quiet(self, since: int, lsn: int) -> bool:
        return self._is_still or lsn <= since


def column(number: int, name: str, by: int = 0, *, dropped: bool = False) -> ColumnDefinition:
    return ColumnDefinition(
        number=number,
        name=name,
        type_oid=25,
        may_be_unsent=True,
        is_dropped=dropped,
        changed_by=by,
        is_final=not by,
    )


def history(*looks: tuple[int, list[ColumnDefinition]]) -> TableHistory:
    found = TableHistory()
    for at, columns in looks:
        found.add(
            Observation(
                definition=TableDefinition(oid=1, kind="r", columns=tuple(columns)), since=at, until=at
            )
        )
    return found


def missing(of: TableHistory, lsn: int, log: Log, *sent: str, **options: object) -> set[str]:
    (columns,) = of.columns(lsn, log)
    found = missing_columns(columns, sent, **{"is_whole": True, **options})  # type: ignore[arg-type] - a test's
    return {state.name for each in found for state in (*each.states, each.added) if state}


ID = column(1, "id")
RENAMED = history((10, [ID, column(2, "old")]), (30, [ID, column(2, "new", by=7)]))
ADDED = history((10, [ID, column(2, "body")]), (30, [ID, column(2, "body"), column(3, "more", by=7)]))
DROPPED = history((10, [ID, column(2, "body")]), (30, [ID, column(2, "gone", by=7, dropped=True)]))


@pytest.mark.parametrize(
    ("lsn", "log", "names"),
    [
        (20, Log(x7=15), {"new"}),
        (20, Log(x7=25), {"old"}),
        (20, Log(x7=20), {"old", "new"}),
        (20, Log(), {"old", "new"}),
        (35, Log(), {"new"}),
    ],
)
def test_a_column_has_the_name_of_the_time(lsn: int, log: Log, names: set[str]) -> None:
    assert missing(RENAMED, lsn, log, "id") == names


def test_a_name_that_may_have_been_another_in_between_is_not_known() -> None:
    with pytest.raises(UnknownDefinitionError, match="new, old was altered"):
        missing(RENAMED, 20, Log(x7=25, is_still=False), "id")
    assert missing(RENAMED, 10, Log(x7=25, is_still=False), "id") == {"old"}  # it was observed so


def test_a_name_that_was_never_observed_is_not_known() -> None:
    only_later = history((30, [ID, column(2, "new", by=7)]))
    with pytest.raises(UnknownDefinitionError, match="new was altered"):
        missing(only_later, 20, Log(x7=25), "id")
    assert missing(only_later, 20, Log(x7=15), "id") == {"new"}
    assert missing(only_later, 20, Log(x7=25), "id", "old") == set()  # that was it, and it was sent
    with pytest.raises(UnknownDefinitionError, match="it no longer exists"):
        TableHistory().columns(20, Log())


def test_a_column_that_was_added_later_was_not_there() -> None:
    assert missing(ADDED, 20, Log(x7=25), "id") == {"body"}
    assert missing(ADDED, 20, Log(x7=15), "id") == {"body", "more"}


def test_a_column_that_may_have_been_there_under_another_name() -> None:
    busy = Log(x7=25, is_still=False)
    assert missing(ADDED, 20, busy, "id") == {"body"}  # no row ever had its value
    assert missing(ADDED, 20, busy, "id", is_whole=False) == {"body", "more"}
    assert missing(ADDED, 20, busy, "id", ever_sent=["id", "body", "more"]) == {"body", "more"}
    with pytest.raises(UnknownDefinitionError):
        missing(ADDED, 20, busy, "id", ever_sent=["id", "body", "first_name"])
    assert missing(ADDED, 20, busy, "id", "first_name") == {"body"}  # what was sent is not missing


def test_a_column_that_was_dropped_later_was_there() -> None:
    assert missing(DROPPED, 20, Log(x7=25), "id") == {"body"}
    assert missing(DROPPED, 20, Log(x7=15), "id") == set()
    assert missing(DROPPED, 20, Log(x7=20), "id") == {"body"}


def test_columns_that_take_each_other_s_names_are_not_mixed_up() -> None:
    swapped = history(
        (10, [ID, column(2, "a"), column(3, "b")]),
        (30, [ID, column(2, "b", by=7), column(3, "a", by=7)]),
    )
    assert missing(swapped, 20, Log(x7=25), "id", "a") == {"b"}
    with pytest.raises(UnknownDefinitionError, match="each other's names"):
        missing(swapped, 20, Log(x7=20), "id", "a")


def test_old_observations_are_dropped_and_equal_ones_joined() -> None:
    found = history(
        (10, [ID]), (20, [ID]), (30, [ID, column(2, "a", by=7)]), (40, [ID, column(2, "a", by=7)])
    )
    assert [(look.since, look.until) for look in found.observations] == [(10, 20), (30, 40)]
    settled = TableDefinition(oid=1, kind="r", columns=(ID, column(2, "a")))
    found.add(Observation(definition=settled, since=50, until=50))
    assert len(found.observations) == 1
