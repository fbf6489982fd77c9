"""Tables change in every way, clients write, the listener dies: what does not arrive is in a gap that was told.

`make chaos ARGS="--target tables"` is the long form.
"""

from __future__ import annotations

import os

import pytest

from demo.servers import PostgresServer
from tests.acceptance.changing_tables import CHANGES, ChangingTables
from tests.servers import DebianPostgresServer

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
