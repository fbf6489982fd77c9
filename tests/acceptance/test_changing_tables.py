"""Tables change in every way, clients write, the listener dies: what does not arrive is in a gap that was told.

`make chaos ARGS="--target tables"` is the long form.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest

from harness.embedded_servers import PostgresServer
from harness.machine_servers import DebianPostgresServer
from tests.acceptance.changing_tables import (
    CHANGES,
    ChangingTables,
    Written,
    told_in,
    unexplained,
    unfounded,
)

pytestmark = pytest.mark.timeout(400)

_SEED = int(os.environ.get("CDC_TEST_SEED", "20261126"))


@pytest.mark.parametrize("server", [PostgresServer, DebianPostgresServer])
def test_what_does_not_arrive_while_tables_change_is_in_a_gap_that_names_it(
    server: type[PostgresServer],
) -> None:
    with ChangingTables(seed=_SEED, database=server) as tables:
        faults = tables.run(steps=len(CHANGES), said=print)  # pytest shows it where the test fails
    assert not faults, f"CDC_TEST_SEED={_SEED}: {faults[:20]}"
    assert tables.done["rows"] > 0


_ROW = Written(key=("insert", 1), table="public.t", since=0x1000, until=0x1100)


@pytest.mark.parametrize(
    ("text", "is_explained"),
    [
        ("public.t from 0/1000 to 0/2000", True),
        ("public.t from 0/1080 to ", True),  # it is not over
        ("committed between 1.1@0/1000:0 and 2@0/2000 may be missing: public.t (it is new)", True),
        ("public.t from 0/2000 to 0/3000", False),
        ("public.t_2 from 0/1000 to 0/2000", False),
        ("shop_a.t from 0/1000 to 0/2000", False),
        ("public.t", False),
    ],
)
def test_a_row_is_in_a_gap_that_names_its_table_and_positions_around_it(
    text: str, *, is_explained: bool
) -> None:
    assert (unexplained([_ROW], Counter(), [told_in(text)]) == []) == is_explained


def test_what_came_twice_or_was_never_committed_is_a_fault() -> None:
    assert unexplained([_ROW], Counter([_ROW.key]), []) == []
    assert unexplained([_ROW], Counter([_ROW.key, _ROW.key]), []) == ["2 times: ('insert', 1)"]
    assert unexplained([], Counter([_ROW.key]), []) == ["never committed: ('insert', 1)"]


def test_a_gap_without_a_reason_is_a_fault() -> None:
    told = [
        told_in("public.t from 0/1 to 0/2"),
        told_in("public.u from 0/1 to 0/2"),
        told_in("all tables from 0/1 to 0/2"),
    ]
    known = ["public.t", "public.u"]
    assert unfounded(told[:1], ["public.t"], known) == []
    assert len(unfounded(told, ["public.t"], known)) == 2
